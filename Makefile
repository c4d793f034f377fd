PYTHON ?= python3
PREFIX ?= /usr/local
DOCOPT ?= docopt
BIN = $(DESTDIR)$(PREFIX)/bin
LIB = $(DESTDIR)$(PREFIX)/lib/spawn-fcgi
MAN = $(DESTDIR)$(PREFIX)/share/man
# Of this very interpreter: another one, or its next version, gets an environment of its own.
VENV := .venv/$(DOCOPT)$(shell $(PYTHON) -c 'import sys; \
  print(sys.base_prefix.replace("/", "-"), sys.version.split()[0], sep="-")' 2>/dev/null)
PIP = PIP_ROOT_USER_ACTION=ignore $(VENV)/bin/python -m pip install -q --use-pep517
PEERS = spawn-fcgi php-cgi php-fpm fcgiwrap libfcgi-perl uwsgi-core uwsgi-plugin-python3 multiwatch \
  nginx-light lighttpd apache2 runit cron supervisor systemd iproute2 procps faketime curl \
  adduser python3-docopt
# Not the one of a virtual environment, which may go away.
INTERPRETER := $(shell $(PYTHON) -c 'import os, sys; assert sys.version_info >= (3, 9); print( \
  sys.executable if sys.prefix == sys.base_prefix else os.path.realpath(sys.executable))' 2>/dev/null)
OWN = $(PREFIX)/lib/spawn-fcgi/docopt
DOCOPT_DIR := $(or $(shell $(or $(INTERPRETER),false) -Ic 'import docopt, os; \
  print(os.path.dirname(docopt.__file__.replace("/__init__.py", "")))' 2>/dev/null),$(OWN))
.PHONY: help demo test peers test-peers bench lint install uninstall clean
help: ## show this
	@sed -n 's/^\([a-z-]*\):.*## /make \1	/p' Makefile | expand -t 18
$(VENV)/ready:
	$(PYTHON) -m venv --clear $(VENV)
	$(PIP) $(DOCOPT) pytest && touch $@
demo: $(VENV)/ready ## spawn the sample application and ask it (PORT=9000)
	@$(VENV)/bin/python -W ignore tests/demo.py $(or $(PORT),9000)
test: $(VENV)/ready ## run the tests that need nothing but Python
	$(VENV)/bin/python -m pytest tests --ignore tests/peers
peers: ## install the programs that people spawn, and servers (Debian, as root)
	DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends $(PEERS)
test-peers: peers $(VENV)/ready ## run the tests with those, and beside the C tool (as root)
	$(PIP) flup==1.0.3
	$(VENV)/bin/python -m pytest tests/peers
bench: $(VENV)/ready ## print what a start costs beside the C tool (TURNS=20)
	@$(VENV)/bin/python -W ignore tests/bench.py $(or $(TURNS),20)
lint: $(VENV)/ready ## let ruff, mypy, shellcheck and mandoc look at everything
	$(PIP) mypy==2.4.1 ruff==0.17.6 types-docopt==0.6.11.20241107
	$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy spawn_fcgi.py tests tests/app.fcgi
	shellcheck .ci/run && mandoc -Tlint -W style man/*

install: ## install command and pages (PREFIX=/usr/local, DESTDIR=, PYTHON=python3)
	@[ '$(INTERPRETER)' ] || { echo 'make: no Python 3.9 or later: $(PYTHON)' >&2; exit 1; }
	@case '$(PREFIX)' in /*) ;; *) echo 'make: PREFIX has to begin with /' >&2; exit 1;; esac
	@case '$(INTERPRETER)' in *' '*) echo 'make: no #! line takes $(INTERPRETER)' >&2; exit 1;; esac
	@umask 022; for d in '$(BIN)' '$(LIB)' '$(MAN)/man1' '$(MAN)/man7'; do mkdir -p "$$d" || exit; done
	@[ '$(DOCOPT_DIR)' != '$(OWN)' ] || [ -d '$(LIB)/docopt' ] || { umask 022; rm -rf '$(LIB)/new'; \
	  $(INTERPRETER) -m pip install -qt '$(LIB)/new' --no-deps docopt 2>/dev/null && mv '$(LIB)/new' '$(LIB)/docopt'; } \
	  || { echo 'make: no docopt, and pip cannot fetch it: apt-get install python3-docopt' >&2; exit 1; }
	@install -m 644 spawn_fcgi.py '$(LIB)/new.py' && mv -f '$(LIB)/new.py' '$(LIB)/spawn_fcgi.py'
	@umask 022; $(INTERPRETER) -W ignore -m compileall -qf -s '$(DESTDIR)' '$(LIB)'
	@printf '%s\n' '#!$(INTERPRETER) -IS' 'import sys' \
	  'sys.excepthook = lambda kind, *_: kind is KeyboardInterrupt or sys.__excepthook__(kind, *_)' \
	  'import signal  # Ctrl-C meanwhile ends it quietly, and from here on as a signal does' \
	  'if signal.getsignal(signal.SIGINT) is signal.default_int_handler:' \
	  '    signal.signal(signal.SIGINT, signal.SIG_DFL)' 'import os, warnings' \
	  'warnings.simplefilter("ignore")  # of docopt, which a new Python may have to compile' \
	  'sys.path += ["$(PREFIX)/lib/spawn-fcgi", "$(DOCOPT_DIR)"]' \
	  'from spawn_fcgi import main' 'os._exit(main())  # without tidying up, for some ms' >'$(BIN)/.spawn-fcgi'
	@chmod 755 '$(BIN)/.spawn-fcgi' && mv -f '$(BIN)/.spawn-fcgi' '$(BIN)/spawn-fcgi'
	@for page in man/*; do install -m 644 $$page '$(MAN)'/man$${page##*.}; done
	@[ '$(DOCOPT_DIR)' = '$(OWN)' ] || rm -rf '$(LIB)/docopt'
	@d='$(INTERPRETER)'; while d=$${d%/*}; [ "$$d" ]; do case $$(stat -Lc %A "$$d") in *[xt]) ;; \
	  *) echo "warning: $$d keeps other users from $(INTERPRETER)" >&2;; esac; done
	@echo 'installed $(BIN)/spawn-fcgi for $(INTERPRETER), $(LIB), and two pages in $(MAN)'
uninstall: ## remove what install wrote
	rm -rf '$(BIN)/spawn-fcgi' '$(LIB)' '$(MAN)/man1/spawn-fcgi.1' '$(MAN)/man7/spawn-fcgi-recipes.7'
clean: ## remove what the other targets made here
	rm -rf .venv build dist __pycache__ tests/__pycache__ tests/peers/__pycache__ .*_cache
