# Not what comes first in PATH, as a shim or a virtual environment must not end up in a #! line.
PYTHON ?= $(or $(wildcard /usr/bin/python3),python3)
export PATH ?= /usr/local/bin:/usr/bin:/bin
PREFIX ?= /usr/local
DOCOPT ?= docopt
BIN = $(DESTDIR)$(PREFIX)/bin
LIB = $(DESTDIR)$(PREFIX)/lib/spawn-fcgi
MAN = $(DESTDIR)$(PREFIX)/share/man
VENV := .venv/$(shell echo "$(DOCOPT)$(PYTHON)" "$$("$(PYTHON)" -V 2>/dev/null)" | tr '/ <>=' '__lge')
RUN = $(VENV)/bin/python -B
PIP = PIP_USER=0 PIP_REQUIRE_VIRTUALENV=0 PIP_ROOT_USER_ACTION=ignore $(1) -m pip install -q --use-pep517
PEERS = spawn-fcgi php-cgi php-fpm fcgiwrap libfcgi-perl uwsgi-core uwsgi-plugin-python3 multiwatch adduser \
  nginx-light lighttpd apache2 runit cron supervisor systemd iproute2 procps faketime curl python3-docopt
LINT = '$(RUN) -m ruff check .' '$(RUN) -m ruff format --check .' 'shellcheck .ci/run' \
  '$(RUN) -m mypy spawn_fcgi.py tests tests/app.fcgi' 'mandoc -Tlint -W style man/*'
INTERPRETER := $(shell "$(PYTHON)" -Ec 'import sys; print(sys.executable)' 2>/dev/null)
FOUND = $(shell "$(PYTHON)" -Ic 'import docopt; print(docopt.__file__.split("/__init__.")[0])' 2>/dev/null)
FETCH = $(call PIP,"$(PYTHON)") -t '$(LIB).new' docopt || ! echo No docopt: apt-get install python3-docopt >&2
export define CHECK
from sys import executable as python, exit, version_info
if version_info < (3, 9): exit("make: older than Python 3.9: PYTHON=" + python)
if len(python.encode()) > 242 or set(" \t'\"") & set(python): exit("make: the kernel refuses #!" + python)
if not "$(PREFIX)".startswith("/"): exit("make: not a path that begins with /: PREFIX=$(PREFIX)")
endef
.PHONY: help demo test peers test-peers bench lint install uninstall clean
help: ## show this
	@sed -n 's/^\([a-z-]*\):.*## /make \1	/p' Makefile | expand -t 18
$(VENV)/bin/pytest:
	"$(PYTHON)" -m venv --clear $(VENV)
	$(call PIP,$(RUN)) '$(DOCOPT)' pytest
	chown -hR "$$(ls -nd . | awk '{ print $$3 }')" .venv  # make clean has to work after sudo make test
demo: $(VENV)/bin/pytest ## spawn the sample application and send it requests (PORT=9000)
	@$(RUN) tests/demo.py $(or $(PORT),9000)
test: $(VENV)/bin/pytest ## run the tests that need nothing but Python
	$(RUN) -m pytest -p no:cacheprovider
peers: ## install the programs that people spawn, and servers (Debian, as root)
	DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends $(PEERS)
test-peers: peers $(VENV)/bin/pytest ## run the tests with those, and beside the C tool (as root)
	$(call PIP,$(RUN)) flup==1.0.3 && $(RUN) -m pytest -p no:cacheprovider tests/peers
bench: $(VENV)/bin/pytest ## compare the time of a start with that of the C tool (TURNS=20)
	@$(RUN) tests/bench.py $(or $(TURNS),20)
lint: $(VENV)/bin/pytest ## check everything with ruff, mypy, shellcheck and mandoc
	$(call PIP,$(RUN)) mypy==2.4.1 ruff==0.17.6 types-docopt==0.6.11.20241107
	@status=0; for check in $(LINT); do $$check || { echo "failed: $$check"; status=1; }; done; exit $$status
install: ## install the command and its pages (PREFIX=/usr/local, DESTDIR=, PYTHON=/usr/bin/python3)
	@"$(PYTHON)" -Ec "$$CHECK"
	umask 022 && mkdir -p '$(BIN)' '$(LIB)' '$(MAN)/man1' '$(MAN)/man7'
	rm -rf '$(LIB).new' '$(LIB).old' && mkdir '$(LIB).new'
	$(if $(FOUND),cp -RL '$(FOUND)' '$(LIB).new',$(FETCH))
	install -m 644 spawn_fcgi.py '$(LIB).new'
	"$(PYTHON)" -IWignore -m compileall -q -s '$(LIB).new' '$(LIB).new'
	chmod -R u=rwX,go=rX '$(LIB).new'
	printf '%s\n' '#!$(INTERPRETER) -ISWignore' 'import os, sys' 'sys.path.append("$(PREFIX)/lib/spawn-fcgi")' \
	  'from spawn_fcgi import main' 'os._exit(main())' >'$(BIN)/spawn-fcgi.new'
	chmod 755 '$(BIN)/spawn-fcgi.new'
	install -m 644 man/spawn-fcgi.1 '$(MAN)/man1'
	install -m 644 man/spawn-fcgi-recipes.7 '$(MAN)/man7'
	mv '$(LIB)' '$(LIB).old' && mv '$(LIB).new' '$(LIB)'
	mv '$(BIN)/spawn-fcgi.new' '$(BIN)/spawn-fcgi'
	rm -rf '$(LIB).old'
uninstall: ## remove what install wrote
	rm -rf '$(BIN)/spawn-fcgi' '$(LIB)' '$(MAN)/man1/spawn-fcgi.1' '$(MAN)/man7/spawn-fcgi-recipes.7'
	rm -rf '$(BIN)/spawn-fcgi.new' '$(LIB).new' '$(LIB).old' # left by an install that failed
clean: ## remove what the other targets made here
	rm -rf .venv build dist __pycache__ tests/__pycache__ tests/peers/__pycache__ .*_cache
