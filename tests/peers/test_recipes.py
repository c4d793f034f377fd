"""The manual's commands and files, typed as they stand, do what it says of them."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex

import harness
import pytest
from harness import ROOT, wait_for
from machine import FAST_CLOCK, INIT, SYSTEMD, Machine, machine

MANUAL = (ROOT / "man/spawn-fcgi.1").read_text()
COOKBOOK = (ROOT / "man/spawn-fcgi-recipes.7").read_text()
ESCAPES = {r"\(aq": "'", r"\(dq": '"', r"\(ha": "^", r"\(ti": "~", r"\-": "-", r"\e": "\\"}
# What is typed on each machine. "# title" is all of a recipe, or of an example by what the manual
# says of it; then so many processes run, so many of these still when the first has been killed and
# come back, and the commands have said that.
STEP = r"^# ([^:>\n]*?)(?:: (\d+) (\S+))?(?:, killed: (\d) stay)?(?: > (.*))?\n((?:(?!# ).*\n)*)"
PLANS = {
    "web servers": r"""
# The user
# PHP: 5 php-cgi
# WSGI: 4 app.py
# CGI: 4 fcgiwrap
# lighttpd > PHP 8.*WSGI at /app and /here\n.*CGI at /cgi-bin/hello\n
old=$(pidof php-cgi); asked 2001 http://127.0.0.1/hello.php; [ "$old" != "$(pidof php-cgi)" ]
service lighttpd stop
# Apache > PHP 8.*WSGI at /app and /here\n.*CGI at /cgi-bin/hello\n
service apache2 stop
# nginx > PHP 8.*WSGI at /app and /here\n.*CGI at /cgi-bin/hello\n
kill $(cat /run/app.pid)
# uWSGI: 5 uwsgi-core
curl -s http://127.0.0.1:8080/app/here | grep 'WSGI at /app and /here'; kill $(cat /run/php.pid)
# PHP-FPM: 5 php-fpm8.2
asked 6 http://127.0.0.1:8080/hello.php; kill $(cat /run/app.pid)
# Perl: 4 app.fcgi
curl -s http://127.0.0.1:8080/app/here | grep 'Perl at /app/here'; kill $(cat /run/php.pid)
for n in 2 3; do ip addr add 10.0.0.$n dev lo; done
spawn-fcgi -a 10.0.0.3 -p 9000 -u app -C 4 -- /usr/bin/php-cgi
# Several hosts: 10 php-cgi
service nginx restart; asked 6 http://127.0.0.1:8081/hello.php; kill $(cat /run/php.pid)
await '! ss -Hltn | grep 10.0.0.2:9000'; asked 6 http://127.0.0.1:8081/hello.php
kill $(pidof php-cgi); await '! pgrep php-cgi'; mkdir /srv/src; cd /srv/src
tar -C "$ROOT" --exclude .venv --exclude .git -c . | tar -x; mv /var/www/html/hello.php .
# Containers
await '[ $(pgrep -cu www-data php-cgi) = 5 ]'
grep -P '^NSpid:\t\d+\t1$' /proc/$(pgrep -o php-cgi)/status
service nginx restart; asked 6 http://127.0.0.1:8081/hello.php
""",
    "starters": r"""
# The user
# Perl: 4 app.fcgi
kill $(cat /run/app.pid); sed -i '2i warn "serving\\n";' /srv/app/app.fcgi
# Shell script: 4 app.fcgi > 4 of 4 run
cd /srv/app; kill -9 $(pgrep -o app.fcgi); await './ctl status | grep "3 of 4 run"'
./ctl start; ./ctl status | grep '3 of 4 run'; ./ctl restart; ./ctl status | grep '4 of 4 run'
kill -STOP $(pgrep -o app.fcgi); fast ./ctl stop; [ $(pgrep -c app.fcgi || ls /run/app.pid) = 0 ]
[ "$(echo $(./ctl status || echo $?))" = '0 of 4 run 3' ]
sleep 99 & echo $! >/run/app.pid; ./ctl stop; grep sleep /proc/$!/cmdline; kill $!
rm -f /etc/cron.d/*; : >/etc/crontab; touch -d @1 /etc/crontab /etc/cron.d; fast cron
# cron: 4 app.fcgi
kill -9 $(pgrep app.fcgi); await '/srv/app/ctl status | grep "4 of 4 run"'
rm /etc/cron.d/app; kill $(cat /run/crond.pid); /srv/app/ctl stop
# SysV init: 4 app.fcgi
ls /etc/rc2.d/S*app; service app status; service app stop; service app status && exit 1
runsvdir -P /etc/service >/dev/null 2>&1 &
# runit: 1 app.fcgi, killed: 0 stay
await 'grep serving /var/log/app/current'
rm /etc/service/app; sv exit /etc/sv/app; service supervisor start; await 'supervisorctl pid'
# supervisord: 1 app.fcgi, killed: 0 stay
await 'grep serving /var/log/supervisor/app-stdout*'; service supervisor stop
# multiwatch: 4 app.fcgi, killed: 3 stay
kill $(pidof multiwatch)
# Start four workers on a TCP port, and keep their PIDs: 4 app.fcgi
ss -Hltn | grep 127.0.0.1:9000
# Stop them: 0 app.fcgi
# Start PHP as the user app, on a Unix socket for www-data alone: 5 php-cgi
# Become the application, as the last line of a run script: 1 app.fcgi
kill $(pgrep app.fcgi); cp --parents /bin/sh $(ldd /bin/sh | grep -o '/[^ ]*') /srv/app
printf '#!/bin/sh\necho serving >&2\nkill -STOP $$\n' >/srv/app/app.fcgi
# Run it in a new root, with its socket outside: 1 app.fcgi
[ $(readlink /proc/$(pgrep app.fcgi)/root) = /srv/app ]; kill -9 $(pgrep app.fcgi)
touch /var/log/app.log; chown app /var/log/app.log
# Keep what it says on standard error, in a file that app may write to: 1 app.fcgi
await 'grep serving /var/log/app.log'
""",
    "systemd": r"""
# The user
# Perl: 4 app.fcgi
kill $(cat /run/app.pid); sed -i '2i warn "serving\\n";' /srv/app/app.fcgi
# systemd, Type=forking: 4 app.fcgi, killed: 0 stay
systemctl is-enabled app; systemctl disable --now app
# systemd, Type=simple: 1 app.fcgi, killed: 0 stay
systemctl is-enabled app; await 'journalctl -u app | grep serving'
""",
}
PRELUDE = f"""
await() {{ until eval "$1"; do sleep 0.1; done; }}
asked() {{ [ $(curl -s "$2?[1-$1]" | grep -c 'from PHP') = $1 ]; }}
fast() {{ {FAST_CLOCK} "$@" >/dev/null; }}
FROM() {{ :; }}; EXPOSE() {{ :; }}; RUN() {{ "$@"; }}
COPY() {{ cd /srv/src; mkdir -p "$2"; cp -r "$1" "$2"; }}
set -x; ROOT={shlex.quote(str(ROOT))}
"""
# /run is as after a boot; libfaketime's files go with the machine; the full path counts.
SETUP = "chmod 755 /run; mount -t tmpfs none /dev/shm; ln -sf /bin/false /usr/bin/spawn-fcgi"
# What a recipe installs has to be here already.
APT_GET = "#!/bin/sh\n[ $1 = update ] || dpkg -s $(echo $* | sed 's/^install//; s/ -[^ ]*//g')\n"


def plain(roff: str) -> str:
    """Return the text that a line of roff stands for."""
    return re.sub(r"\\(\(..|.)", lambda escape: ESCAPES[escape[0]], roff)


def blocks(part: str) -> list[tuple[str, str]]:
    """Return the literal blocks of a part: the path of a file, empty for commands, and the text."""
    literal = r"(?:^\.Pa (\S+) :\n)?^\.Bd -literal.*\n((?:.*\n)*?)\.Ed$"
    return [(plain(path), plain(text)) for path, text in re.findall(literal, part, re.M)]


EXAMPLES = dict(re.findall(r"^(.*):\n(\.Bd (?:.*\n)*?\.Ed$)", MANUAL, re.M))
PARTS = dict(re.findall(r"^\.Ss (.*)\n((?:(?!\.S[sh] ).*\n)*)", COOKBOOK, re.M))
RECIPES = {title: blocks(part) for title, part in {**PARTS, **EXAMPLES}.items() if blocks(part)}


def follow(on: Machine, title: str, count: int, name: str, stay: str, saying: str) -> None:
    """Do what a recipe says, and see that what it promises is so."""
    said, recipe = "", "".join(text for _, text in RECIPES[title])
    sockets = [on.path(path) for path in re.findall(r"-s (/run/\S+)", recipe)]
    wait_for(lambda: not any(map(harness.connects, sockets)))
    for path, text in RECIPES[title]:
        if path == "Dockerfile":
            *steps, command = text.replace("\\\n", "").splitlines()
            on.sh("\n".join([PRELUDE, *steps]))
            words = shlex.join(json.loads(command.partition(" ")[2]))
            on.start(f"unshare --pid --fork --kill-child --mount-proc {words}")
        elif path:
            on.write(path, text, "644")
        elif " -n " in text:  # stays in the foreground
            on.start(text.rstrip())
        else:
            said += on.sh(text, network="pip install" in text)
    assert re.search(saying, said, re.S), said
    running = on.running(name, count)
    for path in re.findall(r"^ .*-P (\S+)", recipe, re.M):
        assert {*map(int, on.path(path).read_text().split())} <= running
    if stay:
        on.sh(f"kill -9 {min(running)}")
        wait_for(lambda: len(running & on.running(name, count)) == int(stay), 20)
    user = on.sh(f"id -u {(re.findall('-u ([^ ]+)', recipe) or ['app'])[0]}")
    for state in on.processes(name).values():
        assert {*state.uids} == {int(user)} or (state.uids[0] == 0 and "php-fpm" in name)
    wait_for(lambda: all(map(harness.connects, sockets)))
    assert all(path.owner() == "www-data" for path in sockets)


@pytest.mark.parametrize("name", PLANS)
def test_each_recipe_does_what_it_promises(name: str) -> None:
    with machine(SYSTEMD if name == "systemd" else INIT) as on:
        on.sh(SETUP)
        on.write("/usr/local/sbin/apt-get", APT_GET)
        for title, count, process, stay, saying, script in re.findall(STEP, PLANS[name], re.M):
            try:
                follow(on, title, int(count or 0), process, stay, saying)
                on.sh(PRELUDE + script)
            except Exception as error:
                raise AssertionError(f"{title}: {error}") from error


def test_each_block_of_both_pages_is_typed() -> None:
    assert {step[0] for step in re.findall(STEP, "".join(PLANS.values()), re.M)} == {*RECIPES}
    assert sum(map(len, RECIPES.values())) == (MANUAL + COOKBOOK).count("\n.Bd ")


def test_the_readmes_commands_are_the_manuals_examples() -> None:
    use = (ROOT / "README.md").read_text().partition("\n## Use\n")[2].partition("\n## ")[0]
    shown = re.findall(r"^```sh\n((?:.*\n)*?)```$", use, re.M)
    assert {""} < {"", *shown} <= {"", *(RECIPES[title][0][1] for title in EXAMPLES)}


def test_each_message_of_the_manual_is_one_of_the_program() -> None:
    program = re.sub("[{}]", "", (ROOT / "spawn_fcgi.py").read_text())
    reasons = {os.strerror(code) for code in errno.errorcode}
    messages = re.findall(r'^\.It Sy "(?!502)(.*)"$', MANUAL, re.M)
    assert messages
    for message in map(plain, messages):
        for part in {*re.split(r"(?: ?\.\.\.|: |; )+", message)} - reasons - {"''"}:
            assert part in program or part.isdecimal(), message


def test_the_pages_name_each_other() -> None:
    assert "spawn-fcgi-recipes(7)" in plain(MANUAL.partition(".Sh SEE ALSO")[2])
    assert "spawn-fcgi(1)" in plain(COOKBOOK.partition(".Sh SEE ALSO")[2])
