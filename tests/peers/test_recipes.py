"""Every block of README and of both pages, typed as it stands, does what is said of it there.

A new recipe is a new row in one of the lists below, which are typed from top to bottom.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
from functools import partial
from typing import NamedTuple

import pytest
from harness import ROOT, connects, wait_for

from peers.machine import INIT, SYSTEMD, WORDS, Machine, machine


class Step(NamedTuple):
    """Type the blocks of a title, see that what they start runs and stays, and go on."""

    title: str  # of the subsection; in README and under EXAMPLES, the line above the block
    number: int = 0  # so many processes run then ...
    name: str = "-"  # ... of this name, see pgrep(1)
    stay: int | None = None  # if the first one is killed, so many stay, and others come
    says: str = ""  # what the commands print: a regular expression
    after: str = ""  # a script that is typed afterwards, each of whose commands must succeed


PAGES = r"PHP 8.*WSGI at /app and /here\n.*CGI at /cgi-bin/hello\n"
# fmt: off
PERL = [
    Step("The user"),
    Step("Perl", 4, "app.fcgi", after="""
        kill $(cat /run/app.pid); sed -i '2i warn "serving\\n";' /srv/app/app.fcgi"""),
]
README = [
    Step("On Debian, clone this repository and try it, as root", says="answered by PID.* passed"),
    Step("Install it for all users, as root", after="[ ! -L /usr/local/bin/spawn-fcgi ]"),
    Step("As root in the checkout, create a user, and install PHP and the sample application"),
    Step("Start four workers on a TCP port, and keep their PIDs", 4, "python3", after="""
        ss -Hltn | grep 127.0.0.1:9000; kill -STOP $(cat /run/app.pid)
        { sleep 1; kill -CONT $(pgrep python3); } >/dev/null 2>&1 &  # they end late"""),
    Step("Stop them, and wait until they are gone", after="pgrep python3 && exit 1; true"),
    Step("Start PHP as the user app, on a Unix socket that only www-data can use", 5, "php-cgi"),
    Step("In a supervisor's run script, make this the last line", 1, "python3", after="""
        kill $(pgrep python3)
        sed -i 's/^    while True:/    os.write(2, b"serving")\\n&/' /srv/app/app.fcgi
        grep serving /srv/app/app.fcgi"""),
    Step("Append the application's standard error to a log file", 1, "python3", after="""
        await 'grep serving /var/log/app.log'
        make uninstall; ls -d /usr/local/*/spawn-fcgi && exit 1; true"""),
]
WEB_SERVERS = [
    Step("The user"),
    Step("PHP", 5, "php-cgi"),
    Step("WSGI", 4, "app.py"),
    Step("CGI", 4, "fcgiwrap"),
    Step("lighttpd", says=PAGES, after="""
        old=$(pidof php-cgi); asked 2001 :80; [ "$old" != "$(pidof php-cgi)" ]
        service lighttpd stop"""),
    Step("Apache", says=PAGES, after="service apache2 stop"),
    # All four end, also those that another was faster than.
    Step("nginx", says=PAGES, after="kill $(cat /run/app.pid); await '! pgrep app.py'"),
    Step("uWSGI", 5, "uwsgi-core", after="""
        curl -s 127.0.0.1:8080/app/here | grep 'at /app and /here'; kill $(cat /run/php.pid)"""),
    Step("PHP-FPM", 5, "php-fpm.*", after="asked 6 :8080; kill $(cat /run/app.pid)"),
    Step("Perl", 4, "app.fcgi", after="""
        curl -s http://127.0.0.1:8080/app/here | grep 'Perl at /app/here'
        kill $(cat /run/php.pid); await '! pgrep php-fpm'"""),
    Step("PHP in a chroot", 5, "php-cgi", says="from /www/hello.php, ..:.. UTC", after="""
        [ $(readlink /proc/$(cat /run/jail.pid)/root) = /srv/jail ]
        kill $(cat /run/jail.pid); await '! pgrep php-cgi'; ip addr add 10.0.0.2/24 dev lo
        spawn-fcgi -a 10.0.0.3 -p 9000 -u app -C 4 -- /usr/bin/php-cgi"""),
    Step("Several hosts", 10, "php-cgi", after="""
        service nginx restart; asked 6 :8081; kill $(cat /run/php.pid)
        await '! ss -Hltn | grep 10.0.0.2:9000'; asked 6 :8081; kill $(pidof php-cgi)
        await '! pgrep php-cgi'; mv /var/www/html/hello.php ."""),
    Step("Containers", after="""
        await '[ $(pgrep -cu www-data php-cgi) = 5 ]'; service nginx restart; asked 6 :8081
        pid=$(pgrep -o php-cgi); grep -P '^NSpid:.*\\t1$' /proc/$pid/status
        kill $pid; await '! pgrep php-cgi'"""),
]
STARTERS = [
    *PERL,
    Step("Shell script", 4, "app.fcgi", says="running: 4 of 4", after="""
        cd /srv/app; kill -9 $(pgrep -o app.fcgi); await './ctl status | grep "running: 3 of 4"'
        ./ctl start | grep 'already running: 3 of 4'
        ./ctl force-reload; ./ctl status | grep 'running: 4 of 4'
        kill -STOP $(pgrep -o app.fcgi); fast ./ctl stop; pgrep app.fcgi && exit 1
        ls /run/app.pid && exit 1; [ "$(./ctl status || echo $?)" = "running: 0 of 4\n3" ]
        ./ctl start; sed -i 's/^user=app/user=www-data/' ctl  # changed too early
        ./ctl status 2>&1 | grep 'app.pid: not processes of www-data: [0-9]'
        ./ctl start && exit 1; ./ctl stop && exit 1
        [ $(cat /run/app.pid | wc -w) = $(pgrep -cu app app.fcgi) ]
        sed -i 's/^user=www-data/user=app/' ctl; ./ctl stop; pgrep app.fcgi && exit 1
        sed 's/^user=app/user=www-data/' ctl >other; chmod 755 other; ./other start
        ./other restart; ./other status | grep 'running: 4 of 4'; ./other stop
        sleep 99 & echo $! >/run/app.pid; ./ctl stop && exit 1; kill $!  # a stranger lives
        sed 's,^app=[^ ]*,app=/usr/bin/php-cgi,; s/^number=4/number=1/
            s/^php_children=-1/php_children=4/' ctl >php; chmod 755 php; ./php start
        await '[ $(pgrep -c php-cgi) = 5 ]'; ./php status | grep 'running: 1 of 1'
        ./php stop; pgrep php-cgi && exit 1
        rm -f /etc/cron.d/*; : >/etc/crontab; touch -d @1 /etc/crontab /etc/cron.d; fast cron"""),
    Step("cron", 4, "app.fcgi", after="""
        kill -9 $(pgrep app.fcgi); await '/srv/app/ctl status | grep "running: 4 of 4"'
        rm /etc/cron.d/app; kill $(cat /run/crond.pid); /srv/app/ctl stop"""),
    Step("SysV init", 4, "app.fcgi", after="""
        ls /etc/rc2.d/S*app; service app status; service app stop
        service app status && exit 1; runsvdir -P /etc/service >/dev/null 2>&1 &"""),
    Step("runit", 1, "app.fcgi", stay=0, after="""
        await 'grep serving /var/log/app/current'; rm /etc/service/app; sv exit /etc/sv/app
        service supervisor start; await 'supervisorctl pid'"""),
    Step("supervisord", 1, "app.fcgi", stay=0, after="""
        await 'grep serving /var/log/supervisor/app*'
        service supervisor stop; await '! pgrep supervisord'"""),
    Step("multiwatch", 4, "app.fcgi", stay=3, after="""
        grep 'SigIgn:.*1000$' /proc/$(pidof multiwatch)/status  # SIGPIPE"""),
]
UNITS = [
    *PERL,
    Step("systemd, Type=forking", 4, "app.fcgi", stay=0, after="systemctl disable --now app"),
    Step("systemd, Type=simple", 1, "app.fcgi", stay=0, after="""
        await 'journalctl -u app | grep serving'; systemctl disable --now app
        systemd-run -p User=app -p AmbientCapabilities=CAP_NET_BIND_SERVICE \
            /usr/local/bin/spawn-fcgi -n -p 90 -- /srv/app/app.fcgi
        await 'ss -Hltn | grep :90'; await 'kill $(pgrep app.fcgi)'"""),
    Step("systemd, User=", 1, "app.fcgi", stay=0, after="systemctl is-enabled app"),
]
# fmt: on
PLANS = {"README": README, "web servers": WEB_SERVERS, "starters": STARTERS, "units": UNITS}

ESCAPES = {r"\(aq": "'", r"\(dq": '"', r"\(ha": "^", r"\(ti": "~", r"\-": "-", r"\e": "\\"}
MANUAL, COOKBOOK = (
    re.sub(r"\\(\(..|.)", lambda it: ESCAPES.get(it[0], it[0]), (ROOT / "man" / page).read_text())
    for page in ("spawn-fcgi.1", "spawn-fcgi-recipes.7")
)
GUIDES = (ROOT / "README.md").read_text() + MANUAL
BEGIN, END = r"(?:```sh|\.Bd -literal.*)\n", r"(?:```|\.Ed)$"
SHOWN = re.findall(rf"^(.*):\n{BEGIN}((?:.*\n)*?){END}", GUIDES, re.M)
PARTS = re.findall(r"^\.Ss (.*)\n((?:(?!\.S[sh] ).*\n)*)", COOKBOOK, re.M)
BLOCK = re.compile(rf"(?:^\.Pa (\S+) :\n)?^{BEGIN}((?:.*\n)*?){END}", re.M)
# Each block is the path of a file, empty for commands, and its text.
RECIPES = {title: [("", text)] for title, text in SHOWN}
RECIPES.update({title: BLOCK.findall(part) for title, part in PARTS})

CHECKOUT = "/srv/src"
SETUP = f"""mkdir {CHECKOUT}; ln -sf /bin/false /usr/bin/spawn-fcgi  # full paths count
tar -C {shlex.quote(str(ROOT))} --exclude .venv --exclude .git -c . | tar -C {CHECKOUT} -x
cat >/usr/local/sbin/apt-get <<'END'  # installs nothing, but everything has to be there
#!/bin/sh
[ $1 = update ] || dpkg -s $(echo $* | sed 's/^install//; s/ -[^ ]*//g') >/dev/null
END
chmod 755 /usr/local/sbin/apt-get
"""
FOR_MAKE = "PORT=9097 PYTEST_ADDOPTS='-k demo'"  # others may use port 9000; one test will do
PRELUDE = f"""{WORDS}
asked() {{ [ $(curl -s "http://127.0.0.1$2/hello.php?[1-$1]" | grep -c 'from PHP') = $1 ]; }}
FROM() {{ :; }}; EXPOSE() {{ :; }}; RUN() {{ "$@"; }}; COPY() {{ mkdir -p "$2"; cp -r "$1" "$2"; }}
set -x; cd {CHECKOUT}
"""


def type_block(on: Machine, path: str, text: str) -> str:
    """Do what one block of a recipe says; return what its commands print."""
    if path == "Dockerfile":
        *steps, command = text.replace("\\\n", "").splitlines()
        on.sh("\n".join([PRELUDE, *steps]))
        words = shlex.join(json.loads(command.partition("CMD")[2]))
        on.sh(f"unshare -pf --kill-child --mount-proc {words} >/dev/null 2>&1 &")
    elif path:
        on.write(path, text)
    elif " -n " in text:  # stays in the foreground
        on.sh(f"{{ {text.rstrip()}; }} >/dev/null 2>&1 &")
    else:
        network = "pip install" in text or "make test" in text
        return on.sh(f"cd {CHECKOUT}; export {FOR_MAKE}\n{text}", network)
    return ""


def follow(on: Machine, step: Step) -> None:
    """Type a recipe, and see that what it promises is so."""
    recipe = "".join(text for _, text in RECIPES[step.title])
    sockets = re.findall(r"(?:-s |socket=)(/run/\S+)", recipe)
    wait_for(f"the end of {sockets}", lambda: not any(connects(on.path(path)) for path in sockets))
    said = "".join(type_block(on, *block) for block in RECIPES[step.title])
    assert re.search(step.says, said, re.S), said
    running = on.running(step.name, step.number)
    for path in re.findall(r"(?:-P |pid_file=)(/run/\S+)", recipe):
        assert {*map(int, on.path(path).read_text().split())} <= {*running}
    if step.stay is not None:
        on.sh(f"kill -9 {running[0]}")
        again = partial(on.running, step.name, step.number)
        wait_for("others in its place", lambda: len({*running} & {*again()}) == step.stay, 20)
    [user] = re.findall(r"-u ([a-z-]+)", recipe)[:1] or ["app"]
    workers = on.running(step.name, step.number)
    if step.title == "PHP-FPM":
        del workers[0]  # the master, which is root's
    for pid in workers:
        uid, _, *uids = on.sh(f"id -u {user}; grep ^Uid: /proc/{pid}/status").split()
        assert {*uids} == {uid}
    wait_for(f"{sockets}", lambda: all(connects(on.path(path)) for path in sockets))
    for path in sockets:
        on.sh(f"setpriv --reuid www-data --regid www-data --init-groups test -w {path}")


@pytest.mark.parametrize("plan", PLANS)
def test_each_recipe_does_what_it_promises(plan: str) -> None:
    with machine(SYSTEMD if plan == "units" else INIT) as on:
        on.sh(SETUP)
        for step in PLANS[plan]:
            try:
                follow(on, step)
                on.sh(PRELUDE + step.after)
            except (Exception, pytest.fail.Exception) as error:
                pytest.fail(f"{step.title}: {error}", pytrace=False)


def test_each_block_is_typed_and_the_pages_name_each_other() -> None:
    titles = {step.title for steps in PLANS.values() for step in steps}
    assert titles == {*RECIPES}
    assert {*SHOWN} == {(title, RECIPES[title][0][1]) for title, _ in SHOWN}
    assert len(SHOWN) == GUIDES.count("\n```sh\n") + GUIDES.count("\n.Bd ")
    assert sum(len(RECIPES[title]) for title, _ in PARTS) == COOKBOOK.count("\n.Bd ")
    assert "\nspawn-fcgi-recipes(7)" in MANUAL
    assert "\nspawn-fcgi(1)" in COOKBOOK


def test_each_message_of_the_manual_is_one_of_the_program() -> None:
    known = re.sub("[{}]", "", (ROOT / "spawn_fcgi.py").read_text())
    known += "\n".join(["''", "'-f'", *map(os.strerror, errno.errorcode)])
    ours = MANUAL.partition(".Ss The application ended\n")[2]
    messages = re.findall(r'^\.It Sy "(.*)"$', ours, re.M)
    parts = {part for text in messages for part in re.split(r"(?: ?\.\.\.|: \d*|; )+", text)}
    assert set() < parts <= {part for part in parts if part in known}
