"""What no recipe shows: an init script of Debian, a cron line with a lock, start-stop-daemon."""

from __future__ import annotations

import pytest

from peers.machine import WORDS, machine

# What is typed for each claim; each command must succeed, or exit is called.
SCRIPTS = {
    "Debian's init script starts, restarts and stops three of fcgiwrap": r"""
        printf '%s\n' FCGI_CHILDREN=3 DIETIME=0.1 QDIETIME=0.1 >/etc/default/fcgiwrap
        service fcgiwrap status | grep 'not running'
        service fcgiwrap start; service fcgiwrap status
        first=$(cat /run/fcgiwrap.pid); [ "$(pgrep fcgiwrap)" = "$first" ]
        service fcgiwrap start; [ "$(pgrep fcgiwrap)" = "$(cat /run/fcgiwrap.pid)" ]
        [ "$(pgrep fcgiwrap)" = "$first" ]; service fcgiwrap restart; service fcgiwrap status
        second=$(cat /run/fcgiwrap.pid); [ $(echo $second | wc -w) = 3 ]
        for pid in $first; do kill -0 $pid && exit 1; done
        for pid in $second; do
            [ $(grep -c '^[UG]id:.33.33.33.33$' /proc/$pid/status) = 2 ]  # www-data
            [ "$(tr '\0' '\n' </proc/$pid/environ | cut -d= -f1)" = PATH ]
        done
        mv /run/fcgiwrap.pid /run/lost; service fcgiwrap start 2>&1 | grep 'already in use'
        mv /run/lost /run/fcgiwrap.pid; service fcgiwrap stop; pgrep fcgiwrap && exit 1; true
    """,
    "what cron starts holds no lock, and the next start leaves it alone": """
        rm -f /etc/cron.d/*; : >/etc/crontab
        line='exec >>/run/log 2>&1 9>/run/lock/app; flock -n 9 &&'
        echo "* * * * * root $line spawn-fcgi $options" >/etc/cron.d/app
        fast cron; await 'grep "in use" /run/log'; await 'flock -n /run/lock/app true'
        [ $(pgrep -c fcgiwrap) = 2 ]; [ "$(pgrep fcgiwrap)" = "$(cat /run/app.pid)" ]
    """,
    "start-stop-daemon goes by the first in the PID file": """
        daemon='start-stop-daemon --quiet --pidfile /run/app.pid'
        start="$daemon --start --startas /usr/bin/spawn-fcgi -- $options"
        $start; first=$(cat /run/app.pid); $daemon --status; $start && exit 1
        [ "$(pgrep fcgiwrap)" = "$first" ]; kill $first
        while $daemon --status; do sleep 0.1; done; await '! pgrep fcgiwrap'
        $start  # on the same socket, which is stale now
        [ "$(pgrep fcgiwrap)" = "$(cat /run/app.pid)" ]; $daemon --stop --retry 5
        [ "$(pgrep fcgiwrap)" = "$(tail -n 1 /run/app.pid)" ]  # it stops but one
    """,
}
OPTIONS = "-s /run/app.sock -P /run/app.pid -u www-data -F 2 -- /usr/sbin/fcgiwrap"


@pytest.mark.parametrize("claim", SCRIPTS)
def test_with_what_no_recipe_shows(claim: str) -> None:
    with machine() as on:
        on.sh(f"{WORDS} options='{OPTIONS}'; set -x\n{SCRIPTS[claim]}")
