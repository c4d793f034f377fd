"""The manual's commands and files, typed as they stand, do what it says of them."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex

import pytest
from harness import ROOT, connects, wait_for
from machine import FAST_CLOCK, INIT, SYSTEMD, Machine, machine

ESCAPES = {r"\(aq": "'", r"\(dq": '"', r"\(ha": "^", r"\(ti": "~", r"\-": "-", r"\e": "\\"}
MANUAL, COOKBOOK = (
    re.sub(r"\\(\(..|.)", lambda it: ESCAPES.get(it[0], it[0]), (ROOT / "man" / page).read_text())
    for page in ("spawn-fcgi.1", "spawn-fcgi-recipes.7")
)
EXAMPLES = dict(re.findall(r"^(.*):\n(\.Bd (?:.*\n)*?\.Ed$)", MANUAL, re.M))
PARTS = dict(re.findall(r"^\.Ss (.*)\n((?:(?!\.S[sh] ).*\n)*)", COOKBOOK, re.M))
BLOCK = re.compile(r"(?:^\.Pa (\S+) :\n)?^\.Bd -literal.*\n((?:.*\n)*?)\.Ed$", re.M)
# The path of a file, empty for commands, and the text.
RECIPES = {title: BLOCK.findall(part) for title, part in {**PARTS, **EXAMPLES}.items()}
# "# title" is all of a recipe, or of an example by what the manual says of it. Then so many
# processes run; when the first is killed, so many of these go on and the others come back; and the
# recipe's commands have said that. What is below is typed next.
STEP = r"^# ([^:>\n]*?)(?:: (\d+) (\S+))?(?:, killed: (\d) stay)?(?: > (.*))?\n((?:(?!# ).*\n)*)"
PERL = r"""# The user
# Perl: 4 app.fcgi
kill $(cat /run/app.pid); sed -i '2i warn "serving\\n";' /srv/app/app.fcgi
"""
PLANS = {
    "web servers": r"""# The user
# PHP: 5 php-cgi
# WSGI: 4 app.py
# CGI: 4 fcgiwrap
# lighttpd > PHP 8.*WSGI at /app and /here\n.*CGI at /cgi-bin/hello\n
old=$(pidof php-cgi); asked 2001 :80; [ "$old" != "$(pidof php-cgi)" ]; service lighttpd stop
# Apache > PHP 8.*WSGI at /app and /here\n.*CGI at /cgi-bin/hello\n
service apache2 stop
# nginx > PHP 8.*WSGI at /app and /here\n.*CGI at /cgi-bin/hello\n
kill $(cat /run/app.pid); await '! pgrep app.py'  # also those that another was faster than
# uWSGI: 5 uwsgi-core
curl -s http://127.0.0.1:8080/app/here | grep 'WSGI at /app and /here'; kill $(cat /run/php.pid)
# PHP-FPM: 5 php-fpm8.2
asked 6 :8080; kill $(cat /run/app.pid)
# Perl: 4 app.fcgi
curl -s http://127.0.0.1:8080/app/here | grep 'Perl at /app/here'; kill $(cat /run/php.pid)
ip addr add 10.0.0.2/24 dev lo; spawn-fcgi -a 10.0.0.3 -p 9000 -u app -C 4 -- /usr/bin/php-cgi
# Several hosts: 10 php-cgi
service nginx restart; asked 6 :8081; kill $(cat /run/php.pid)
await '! ss -Hltn | grep 10.0.0.2:9000'; asked 6 :8081; kill $(pidof php-cgi)
await '! pgrep php-cgi'; mkdir /srv/src; mv /var/www/html/hello.php /srv/src
tar -C "$ROOT" --exclude .venv --exclude .git -c . | tar -C /srv/src -x
# Containers
await '[ $(pgrep -cu www-data php-cgi) = 5 ]'; service nginx restart; asked 6 :8081
grep -P '^NSpid:.*\t1$' /proc/$(pgrep -o php-cgi)/status
""",
    "starters": rf"""{PERL}# Shell script: 4 app.fcgi > 4 of 4 run
cd /srv/app; kill -9 $(pgrep -o app.fcgi); await './ctl status | grep "3 of 4 run"'
./ctl start; ./ctl status | grep '3 of 4 run'; ./ctl restart; ./ctl status | grep '4 of 4 run'
kill -STOP $(pgrep -o app.fcgi); fast ./ctl stop; pgrep app.fcgi && exit 1
ls /run/app.pid && exit 1; [ "$(echo $(./ctl status || echo $?))" = '0 of 4 run 3' ]
sleep 99 & echo $! >/run/app.pid; ./ctl stop; readlink /proc/$!/exe; kill $!
rm -f /etc/cron.d/*; : >/etc/crontab; touch -d @1 /etc/crontab /etc/cron.d; fast cron
# cron: 4 app.fcgi
kill -9 $(pgrep app.fcgi); await '/srv/app/ctl status | grep "4 of 4 run"'
rm /etc/cron.d/app; kill $(cat /run/crond.pid); /srv/app/ctl stop
# SysV init: 4 app.fcgi
ls /etc/rc2.d/S*app; service app status; service app stop; service app status && exit 1
runsvdir -P /etc/service >/dev/null 2>&1 &
# runit: 1 app.fcgi, killed: 0 stay
await 'grep serving /var/log/app/current'; rm /etc/service/app; sv exit /etc/sv/app
service supervisor start; await 'supervisorctl pid'
# supervisord: 1 app.fcgi, killed: 0 stay
await 'grep serving /var/log/supervisor/app*'; service supervisor stop; await '! pgrep supervisord'
# Start four workers on a TCP port, and keep their PIDs: 4 app.fcgi
ss -Hltn | grep 127.0.0.1:9000; touch /var/log/app.log; chown app /var/log/app.log
# Stop them: 0 app.fcgi
# Start PHP as the user app, on a Unix socket for www-data alone: 5 php-cgi
# Become the application, as the last line of a run script: 1 app.fcgi
kill $(pgrep app.fcgi); cp --parents /bin/sh $(ldd /bin/sh | grep -o '/[^ ]*') /srv/app
printf '#!/bin/sh\necho serving >&2\nkill -STOP $$\n' >/srv/app/app.fcgi
# Run it in a new root, with its socket outside: 1 app.fcgi
[ $(readlink /proc/$(pgrep app.fcgi)/root) = /srv/app ]; kill -9 $(pgrep app.fcgi)
# Keep what it says on standard error, in a file that app may write to: 1 app.fcgi
await 'grep serving /var/log/app.log'; kill -9 $(pgrep app.fcgi)
# multiwatch: 4 app.fcgi, killed: 3 stay
""",
    "systemd": rf"""{PERL}# systemd, Type=forking: 4 app.fcgi, killed: 0 stay
systemctl is-enabled app; systemctl disable --now app
# systemd, Type=simple: 1 app.fcgi, killed: 0 stay
systemctl is-enabled app; await 'journalctl -u app | grep serving'
""",
}
STEPS = {name: re.findall(STEP, plan, re.M) for name, plan in PLANS.items()}
PRELUDE = f"""
await() {{ for n in $(seq 150); do eval "$1" && return; sleep 0.1; done; false; }}
asked() {{ [ $(curl -s "http://127.0.0.1$2/hello.php?[1-$1]" | grep -c 'from PHP') = $1 ]; }}
fast() {{ {FAST_CLOCK} "$@" >/dev/null; }}
FROM() {{ :; }}; EXPOSE() {{ :; }}; RUN() {{ "$@"; }}; COPY() {{ mkdir -p "$2"; cp -r "$1" "$2"; }}
set -x; ROOT={shlex.quote(str(ROOT))}
"""
APT_GET = "#!/bin/sh\n[ $1 = update ] || dpkg -s $(echo $* | sed 's/^install//; s/ -[^ ]*//g')\n"


def follow(on: Machine, title: str, count: str, name: str, stay: str, saying: str) -> None:
    """Do what a recipe says, and see that what it promises is so."""
    said, recipe = "", "".join(text for _, text in RECIPES[title])
    sockets = [on.path(path) for path in re.findall(r"-s (/run/\S+)", recipe)]
    wait_for(lambda: not any(map(connects, sockets)))
    for path, text in RECIPES[title]:
        if path == "Dockerfile":
            *steps, command = text.replace("\\\n", "").splitlines()
            on.sh("\n".join([PRELUDE, "cd /srv/src", *steps]))
            on.start(f"unshare -pf --kill-child --mount-proc {shlex.join(json.loads(command[4:]))}")
        elif path:
            on.write(path, text, "644")
        elif " -n " in text:  # stays in the foreground
            on.start(text.rstrip())
        else:
            said += on.sh(text, network="pip install" in text)
    assert re.search(saying, said, re.S), said
    running = on.running(name, int(count or 0))
    for path in re.findall(r"^ .*-P (\S+)", recipe, re.M):
        assert {*map(int, on.path(path).read_text().split())} <= running
    if stay:
        on.sh(f"kill -9 {min(running)}")
        wait_for(lambda: len(running & on.running(name, len(running))) == int(stay), 20)
    user = on.sh(f"id -u {(re.findall('-u ([^ ]+)', recipe) or ['app'])[0]}")
    for state in on.processes(name).values():
        assert {*state.uids} == {int(user)} or (state.uids[0] == 0 and "php-fpm" in name)
    wait_for(lambda: all(map(connects, sockets)))
    assert {path.owner() for path in sockets} <= {"www-data"}


@pytest.mark.parametrize("plan", STEPS)
def test_each_recipe_does_what_it_promises(plan: str) -> None:
    with machine(SYSTEMD if plan == "systemd" else INIT) as on:
        # Nothing is installed; full paths count.
        on.write("/usr/local/sbin/apt-get", APT_GET)
        on.sh("ln -sf /bin/false /usr/bin/spawn-fcgi")
        for *recipe, script in STEPS[plan]:
            try:
                follow(on, *recipe)
                on.sh(PRELUDE + script)
            except Exception as error:
                raise AssertionError(f"{recipe[0]}: {error}") from error


def test_each_block_of_both_pages_is_typed_and_they_name_each_other() -> None:
    assert {step[0] for steps in STEPS.values() for step in steps} == {*RECIPES}
    assert sum(map(len, RECIPES.values())) == (MANUAL + COOKBOOK).count("\n.Bd ")
    assert "\nspawn-fcgi-recipes(7)" in MANUAL
    assert "\nspawn-fcgi(1)" in COOKBOOK


def test_the_readmes_commands_are_the_manuals_examples() -> None:
    use = (ROOT / "README.md").read_text().partition("\n## Use\n")[2].partition("\n## ")[0]
    shown = re.findall(r"^```sh\n((?:.*\n)*?)```$", use, re.M)
    assert {""} < {"", *shown} <= {"", *(RECIPES[title][0][1] for title in EXAMPLES)}


def test_each_message_of_the_manual_is_one_of_the_program() -> None:
    known = re.sub("[{}]", "", (ROOT / "spawn_fcgi.py").read_text())
    known += "\n".join(["''", *map(os.strerror, errno.errorcode)])
    messages = re.findall(r'^\.It Sy "(?!502)(.*)"$', MANUAL, re.M)
    parts = {part for text in messages for part in re.split(r"(?: ?\.\.\.|: \d*|; )+", text)}
    assert set() < parts <= {part for part in parts if part in known}
