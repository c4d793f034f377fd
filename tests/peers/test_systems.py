"""What starts it in the real world: an init script of Debian, cron, runit, systemd, and shells."""

from __future__ import annotations

from collections.abc import Iterator

import demo
import harness
import pytest
from harness import wait_for
from machine import FAST_CLOCK, SYSTEMD, Machine, machine

APP = "/srv/app.fcgi"
START = "spawn-fcgi -s /run/app.sock -P /run/app.pid -u www-data -F"
WWW_DATA = 33  # on every Debian


@pytest.fixture
def on() -> Iterator[Machine]:
    """Run a machine with the sample application in it."""
    with machine() as made:
        app = (harness.ROOT / "tests/app.fcgi").read_text()
        made.write(APP, app.replace("env python3", "python3"))  # for the name of the process
        yield made


def pid_file(on: Machine, path: str = "/run/app.pid") -> set[int]:
    """Return the PIDs in a file, one a line."""
    return {int(line) for line in on.path(path).read_text().split("\n")}


def answers(on: Machine) -> int:
    """Return the PID of the process that answers a request."""
    path = on.path("/run/app.sock")
    wait_for("the socket", lambda: harness.connects(path), 20)
    return int(demo.ask(demo.connect(str(path)))["PID"])


def test_debians_init_script_starts_restarts_and_stops_three_of_fcgiwrap(on: Machine) -> None:
    on.write("/etc/default/fcgiwrap", 'FCGI_CHILDREN="3"\nDIETIME=0.1\nQDIETIME=0.1\n')
    assert "not running" in on.sh("service fcgiwrap status", check=False)
    seen = []
    for action in ("start", "start", "restart"):  # the second changes nothing
        on.sh(f"service fcgiwrap {action}; service fcgiwrap status")
        seen.append(on.running("fcgiwrap", 3))
        assert pid_file(on, "/run/fcgiwrap.pid") == seen[-1]
    assert seen[0] == seen[1]
    assert not seen[1] & seen[2]
    states = on.processes("fcgiwrap").values()
    assert {(*state.uids, *state.gids) for state in states} == {(WWW_DATA,) * 8}
    assert {entry.partition(b"=")[0] for state in states for entry in state.environ} == {b"PATH"}
    on.sh("mv /run/fcgiwrap.pid /run/lost")
    assert "already in use" in on.sh("service fcgiwrap start", check=False)
    on.sh("mv /run/lost /run/fcgiwrap.pid; service fcgiwrap stop")
    assert on.running("fcgiwrap", 0) == set()


def test_cron_holds_no_lock_leaves_the_living_alone_and_brings_the_dead_back(on: Machine) -> None:
    line = f"exec 9>/run/lock/app; flock -n 9 && {START} 2 -- {APP}"
    on.sh("rm -f /etc/cron.d/*; : >/etc/crontab")
    on.write("/etc/cron.d/app", f"* * * * * root exec >>/run/log 2>&1; {line}\n", "644")
    on.start(f"{FAST_CLOCK} cron -f")
    first = on.running("app.fcgi", 2)
    wait_for("cron's second start", lambda: b"in use" in on.path("/run/log").read_bytes(), 20)
    assert pid_file(on) == first
    wait_for("the lock", lambda: "free" in on.sh("flock -n /run/lock/app echo free || :"))
    on.sh("kill -9 $(cat /run/app.pid)")
    wait_for("new workers", lambda: on.running("app.fcgi", 2).isdisjoint(first))
    assert answers(on) in on.running("app.fcgi", 2)
    wait_for("their PIDs", lambda: pid_file(on) == on.running("app.fcgi", 2))


def test_start_stop_daemon_and_kill_go_by_the_pid_file(on: Machine) -> None:
    daemon = "start-stop-daemon --quiet --pidfile /run/app.pid"
    start = f"{daemon} --start --startas /usr/bin/spawn-fcgi -- {START[10:]} 2 -- {APP}"
    on.sh(start)
    first = pid_file(on)
    assert answers(on) in first
    assert on.sh(f"{daemon} --status; {start} || echo $?") == "1\n"  # it runs already
    on.sh("kill $(cat /run/app.pid)")
    assert on.running("app.fcgi", 0) == set()
    on.sh(start)  # on the same socket, which is stale now
    assert answers(on) in pid_file(on)
    assert first.isdisjoint(pid_file(on))
    on.sh(f"{daemon} --stop --retry 5")
    assert on.running("app.fcgi", 1) < pid_file(on)  # it stops but one


def test_runit_has_the_application_for_a_child_and_brings_it_back(on: Machine) -> None:
    run = f"#!/bin/sh\nexec 2>&1\nexec env -i A=1 /usr/bin/{START} 1 -n -U daemon -- {APP}\n"
    on.write("/srv/service/run", run)
    on.start("runsv /srv/service")
    [first] = on.running("app.fcgi", 1)
    assert answers(on) == first == int(on.path("/srv/service/supervise/pid").read_text())
    assert on.processes("app.fcgi")[first].environ == [b"A=1"]
    on.sh(f"kill -9 {first}")
    wait_for("a new worker", lambda: on.running("app.fcgi", 1) - {first})
    assert {answers(on)} == on.running("app.fcgi", 1)


@pytest.mark.parametrize(
    ("words", "ignored"),
    [("/bin/sleep 99", set()), ("/bin/sh -c 'trap \"\" PIPE; exec sleep 99'", {13})],
    ids=["by itself", "by the shell"],
)
def test_systemd_knows_all_children_and_sigpipe_is_ignored(words: str, ignored: set[int]) -> None:
    unit = "[Service]\nType=forking\nPIDFile=/run/app.pid\nRestart=always\n"
    unit += f"ExecStart=/usr/bin/{START} 2 -- {words}\n"
    with machine(SYSTEMD) as on:
        on.write("/etc/systemd/system/app.service", unit, "644")
        on.sh("systemctl start app")
        first = on.running("sleep", 2)
        main = int(on.sh("systemctl show --value -p MainPID app"))
        assert main == int(on.path("/run/app.pid").read_text().split()[0])
        assert pid_file(on) == first
        assert [state.ignored for state in on.processes("sleep").values()] == [ignored] * 2
        on.sh(f"kill -9 {main}")
        wait_for("all of them anew", lambda: not on.running("sleep", 2) & first)
        on.sh("systemctl stop app")
        assert on.running("sleep", 0) == set()
