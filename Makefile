PYTHON ?= python3
PREFIX ?= /usr/local
PORT ?= 9000
TURNS ?= 20
DIST ?= build
VENV ?= .venv
DOCOPT ?= $(shell $(VENV)/bin/python -c 'import docopt; print(docopt.__file__)')
# Not the one of a virtual environment, which may go away.
INTERPRETER = $(shell $(PYTHON) -c 'import os, sys; \
  print(sys.executable if sys.prefix == sys.base_prefix else os.path.realpath(sys.executable))')
BIN = $(DESTDIR)$(PREFIX)/bin
LIB = $(DESTDIR)$(PREFIX)/lib/spawn-fcgi
MAN = $(DESTDIR)$(PREFIX)/share/man/man1

# Programs that people spawn, the servers in front of them, and tools of the tests, from Debian.
PEERS = spawn-fcgi php-cgi php-fpm fcgiwrap libfcgi-perl libfcgi-bin uwsgi-core \
  uwsgi-plugin-python3 multiwatch nginx-light lighttpd apache2 runit cron apache2-utils \
  perl strace mandoc iproute2 procps faketime locales shellcheck curl systemd python3-venv
APT = DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0 --no-install-recommends

.PHONY: help demo test check peers matrix bench lint dist install uninstall clean

help:
	@echo 'make demo       spawn the sample application and send it requests (PORT=9000)'
	@echo 'make test       run the whole test suite (also: make check)'
	@echo 'make peers      install the programs that the tests spawn and serve (Debian, as root)'
	@echo 'make matrix     run the suite on every CPython here, with docopt-ng, and on the C tool'
	@echo 'make bench      print what a start costs beside the C tool, in so many turns (TURNS=20)'
	@echo 'make lint       let ruff, mypy, shellcheck and mandoc look at everything'
	@echo 'make dist       build a wheel and an sdist (DIST=build)'
	@echo 'make install    install the command and its man page (PREFIX=/usr/local, DESTDIR=)'
	@echo 'make uninstall  remove what install wrote'
	@echo 'make clean      remove what the other targets made here'

$(VENV)/ready: pyproject.toml
	$(PYTHON) -m venv --clear $(VENV)
	$(VENV)/bin/pip install -q --disable-pip-version-check -e '.[test]'
	touch $@

demo: $(VENV)/ready
	@$(VENV)/bin/python tests/demo.py $(PORT)

test check: $(VENV)/ready
	$(VENV)/bin/python -m pytest

peers: $(VENV)/peers/ready
	$(APT) install $(PEERS) || { apt-get -qq update && $(APT) install $(PEERS); }

$(VENV)/peers/ready: $(VENV)/ready
	/usr/bin/python3 -m venv --clear $(VENV)/peers
	$(VENV)/peers/bin/pip install -q --disable-pip-version-check flup==1.0.3
	touch $@

matrix:
	.ci/matrix

bench: $(VENV)/ready
	@$(VENV)/bin/python -B tests/bench.py $(TURNS)

lint: $(VENV)/ready
	$(VENV)/bin/pip install -q --disable-pip-version-check mypy==2.4.1 ruff==0.17.6 types-docopt==0.6.11.20241107
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy spawn_fcgi.py tests tests/app.fcgi
	shellcheck .ci/run .ci/matrix
# SC2194: what was a variable of make is a constant to the shell.
	recipes=$$($(MAKE) -nB --no-print-directory help demo test peers matrix bench dist install uninstall \
	  clean) && printf '%s\n' "$$recipes" | shellcheck -s sh -e SC2194 -
	sed -n '/^```sh/,/^```$$/{//!p}' README.md | shellcheck -s sh -
	mandoc -Tlint -W style man/spawn-fcgi.1

dist: $(VENV)/build/ready
	$(VENV)/build/bin/python -m build --outdir '$(DIST)'

# The last build that runs on Python 3.9.
$(VENV)/build/ready: $(VENV)/ready
	$(VENV)/bin/python -m venv --clear $(VENV)/build
	$(VENV)/build/bin/pip install -q --disable-pip-version-check build==1.4.4
	touch $@

install: $(VENV)/ready
	case '$(PREFIX)' in /*) ;; *) echo 'PREFIX must begin with /' >&2; exit 1;; esac
	umask 022 && mkdir -p '$(BIN)' '$(LIB)' '$(MAN)'
	install -m 644 spawn_fcgi.py '$(LIB)'
	rm -rf '$(LIB)/docopt' '$(LIB)/docopt.py'
	cp -R '$(DOCOPT:/__init__.py=)' '$(LIB)'
	rm -rf '$(LIB)/docopt/__pycache__'
	$(INTERPRETER) -W ignore -m compileall -q -f -s '$(DESTDIR)' '$(LIB)'
	chmod -R u=rwX,go=rX '$(LIB)'
	printf '%s\n' '#!$(INTERPRETER) -IS' 'import _signal as s, sys' \
	  'if s.getsignal(s.SIGINT) is s.default_int_handler: s.signal(s.SIGINT, s.SIG_DFL)' \
	  'sys.path.insert(0, "$(PREFIX)/lib/spawn-fcgi")' \
	  'from spawn_fcgi import main' 'sys.exit(main())' >'$(BIN)/spawn-fcgi'
	chmod 755 '$(BIN)/spawn-fcgi'
	install -m 644 man/spawn-fcgi.1 '$(MAN)'

uninstall:
	rm -f '$(BIN)/spawn-fcgi' '$(MAN)/spawn-fcgi.1'
	rm -rf '$(LIB)/spawn_fcgi.py' '$(LIB)/docopt' '$(LIB)/docopt.py' '$(LIB)/__pycache__'
	[ ! -d '$(LIB)' ] || rmdir --ignore-fail-on-non-empty '$(LIB)'

clean:
	rm -rf $(VENV) build __pycache__ tests/__pycache__ .*_cache
