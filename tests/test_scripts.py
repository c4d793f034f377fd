"""The scripts that call it: init scripts, cron, runit, start-stop-daemon, containers, proxies.

The first test starts a cron daemon, whose short minutes pass while the others run; the last ones
see what it has done.
"""

from __future__ import annotations

import os
import pathlib
import pwd
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import fastcgi
import harness
import pytest
from harness import STAND_IN, Arg, ask, kill, run, wait_for

Script = Callable[[str], "subprocess.CompletedProcess[bytes]"]
REQUESTS = 1000
SCRIPTS_PATH = b"PATH=/usr/local/sbin:/usr/local/bin:/sbin:/bin:/usr/sbin:/usr/bin"
WWW_DATA = pwd.getpwnam("www-data")


def install_app(directory: pathlib.Path) -> pathlib.Path:
    """Copy the sample application to where every user can execute it; return its path."""
    for name in ("app.fcgi", "fastcgi.py"):
        shutil.copy(harness.ROOT / "tests" / name, directory)
    return directory / "app.fcgi"


def serving_pid(address: fastcgi.Address) -> int:
    """Return the PID of the sample application's process that answers a request."""
    return int(fastcgi.request(address, {}).body.split()[1])


def pids_in(pid_file: pathlib.Path) -> list[int]:
    """Return the PIDs of a PID file, one a line and no newline at the end."""
    return [int(line) for line in pid_file.read_text().split("\n")]


def children_of(pid: int) -> list[int]:
    """Return the PIDs of a process's children."""
    return [int(word) for word in harness.proc(pid, f"task/{pid}/children").split()]


def call(*command: Arg, **kwargs: Any) -> subprocess.CompletedProcess[bytes]:
    """Run a command of somebody else's to its end; kwargs as of subprocess.run."""
    defaults = {"cwd": "/", "env": harness.clean_environment(), "timeout": 20}
    return subprocess.run(command, check=False, capture_output=True, **{**defaults, **kwargs})


def sh(script: str, *args: Arg) -> subprocess.CompletedProcess[bytes]:
    """Run a script of sh with set -e; its $@ is the program and these arguments."""
    return call("/bin/sh", "-ec", script, "sh", *harness.program, *args)


def await_end(*pids: int) -> None:
    """Wait until somebody has ended processes that the program has left to us."""
    left = set(pids)

    def reap() -> bool:
        left.difference_update([pid for pid in left if os.waitpid(pid, os.WNOHANG)[0]])
        return not left

    wait_for(reap)


class Cron(NamedTuple):
    """A cron daemon, PID 1 of a namespace, the directory of its service, the PID file at first."""

    init: int
    directory: pathlib.Path
    pid_file_at_boot: tuple[bytes, int, int] = (b"", 0, 0)

    @property
    def workers(self) -> dict[int, int]:
        """The PIDs of the service's processes that have no parent but init, outside: inside."""
        app, found = os.fsencode(self.directory / "app.fcgi"), {}
        for pid in filter(harness.alive, children_of(self.init)):
            with suppress(OSError):  # it has ended meanwhile
                if app in harness.proc(pid, "cmdline").split(b"\0"):
                    found[pid] = int(harness.proc(pid, "status").partition(b"NSpid:")[2].split()[1])
        return found


def pid_file_of(directory: pathlib.Path) -> tuple[bytes, int, int]:
    """Return content, inode and time of change of the PID file."""
    file = directory / "pid"
    return file.read_bytes(), file.stat().st_ino, file.stat().st_mtime_ns


@pytest.fixture(scope="module")
def cron() -> Iterator[Cron]:
    """Run Debian's cron, unseen by the machine's own, with a line for each boot and minute."""
    directory = pathlib.Path(tempfile.mkdtemp(prefix="sf-cron-"))
    (directory / "none").mkdir()
    start = [*harness.program, "-F", "2", "-s", str(directory / "s"), "-P", str(directory / "pid")]
    line = f"flock -n {directory}/lock {shlex.join(start)} -- {install_app(directory)}"
    jobs = [f"{when} root {line} >>{directory}/log 2>&1" for when in ("@reboot", "* * * * *")]
    crontab = ["SHELL=/bin/sh", f"PATH={harness.PATH}", 'MAILTO=""', *jobs, ""]
    (directory / "crontab").write_text("\n".join(crontab))
    mounts = (
        "mount -t tmpfs none /run; mount --bind crontab /etc/crontab;"
        "mount --bind none /etc/cron.d; mount --bind none /var/spool/cron/crontabs;"
    )
    command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    command += ["/bin/sh", "-ec", f"{mounts} exec /usr/sbin/cron -f"]
    environment = harness.clean_environment(**harness.FAST_CLOCK)
    with subprocess.Popen(command, cwd=directory, env=environment) as process:
        try:
            [init] = wait_for(lambda: process.poll() is None and children_of(process.pid))
            booted = Cron(init, directory)
            wait_for(lambda: len(booted.workers) == 2)
            yield booted._replace(pid_file_at_boot=pid_file_of(directory))
        finally:
            process.kill()  # cron with it, and with cron all of its namespace
            process.wait()
            shutil.rmtree(directory)


@pytest.mark.root
def test_cron_starts_workers_at_boot(cron: Cron) -> None:
    content = cron.pid_file_at_boot[0]
    assert sorted(map(int, content.split(b"\n"))) == sorted(cron.workers.values())
    assert len(cron.workers) == 2
    assert serving_pid(cron.directory / "s") in cron.workers.values()


@pytest.mark.parametrize(
    "script",
    [
        'flock -n {} "$@"',
        pytest.param('exec 9>{}; flock -n 9; "$@"', marks=pytest.mark.differs(9)),
    ],
    ids=["command", "fd"],
)
def test_workers_do_not_hold_the_lock_under_which_they_were_started(
    work: pathlib.Path, script: str
) -> None:
    lock = work / "lock"
    started = sh(script.format(lock), "-s", work / "s", "--", *harness.SLEEP)
    assert (started.returncode, started.stderr) == (0, b"")
    assert call("flock", "-n", lock, "true").returncode == 0


@pytest.fixture
def fcgiwrap(work: pathlib.Path) -> Script:
    """Return what runs Debian's init script of fcgiwrap, with a page to serve at work/page."""
    script = (work / "fcgiwrap").with_suffix(".init")
    changes = {
        'SPAWN_FCGI="/usr/bin/spawn-fcgi"': f'SPAWN_FCGI="{harness.program[0]}"',
        'PIDFILE="/run/$NAME.pid"': f'PIDFILE="{work}/pid"',
        'FCGI_SOCKET="/run/$NAME.socket"': f'FCGI_SOCKET="{work}/s"',
        "DIETIME=10 ": "DIETIME=0.1 ",
        "QDIETIME=0.5 ": "QDIETIME=0.1 ",
    }
    sed = [f"s|^{re.escape(old)}|{new}|" for old, new in changes.items()]
    arguments = [word for expression in sed for word in ("-e", expression)]
    with script.open("wb") as file:
        subprocess.run(["sed", *arguments, "/etc/init.d/fcgiwrap"], check=True, stdout=file)
    assert all(f"\n{new}" in script.read_text() for new in changes.values())
    (work / "default").mkdir()  # of it the script reads its number of children
    (work / "default/fcgiwrap").write_text('FCGI_CHILDREN="3"\n')
    (work / "page").write_text("#!/bin/sh\nprintf 'Content-Type: text/plain\\n\\n'; echo $PPID\n")
    for executable in (script, work / "page"):
        executable.chmod(0o755)

    def run_script(action: str) -> subprocess.CompletedProcess[bytes]:
        mounts = harness.mounting((work / "default", "/etc/default"))
        return call(script, action, preexec_fn=mounts)

    return run_script


def page_from(work: pathlib.Path) -> int:
    """Fetch the page through fcgiwrap; return the PID of the process that ran it."""
    params = {b"SCRIPT_FILENAME": bytes(work / "page"), b"REQUEST_METHOD": b"GET"}
    return int(fastcgi.request(work / "s", params).body)


@pytest.mark.root
def test_debians_init_script_starts_three_children_of_www_data(
    work: pathlib.Path, fcgiwrap: Script
) -> None:
    started = fcgiwrap("start")
    assert (started.returncode, started.stderr) == (0, b"")
    pids = pids_in(work / "pid")
    assert len(pids) == 3
    for pid in pids:
        state = harness.state(pid)
        assert state.argv == [b"/usr/sbin/fcgiwrap", b"-f"]
        assert set(state.uids) == {WWW_DATA.pw_uid}
        assert set(state.gids) == {WWW_DATA.pw_gid}
        assert state.environ == [SCRIPTS_PATH]
    socket = (work / "s").stat()
    assert (socket.st_uid, socket.st_gid) == (WWW_DATA.pw_uid, WWW_DATA.pw_gid)
    assert page_from(work) in pids


@pytest.mark.root
def test_debians_init_script_tells_whether_it_runs(work: pathlib.Path, fcgiwrap: Script) -> None:
    assert fcgiwrap("status").returncode == 1
    fcgiwrap("start")
    assert fcgiwrap("status").returncode == 0
    before = harness.snapshot(work)
    again = fcgiwrap("start")
    assert (again.returncode, harness.snapshot(work)) == (0, before)
    assert b"already running" in again.stdout


@pytest.mark.root
def test_debians_init_script_fails_to_start_what_runs_without_a_pid_file(
    work: pathlib.Path, fcgiwrap: Script
) -> None:
    fcgiwrap("start")
    pids = pids_in(work / "pid")
    (work / "pid").rename(work / "lost")
    again = fcgiwrap("start")
    assert again.returncode != 0
    assert b"already in use" in again.stderr
    assert page_from(work) in pids


@pytest.mark.root
def test_debians_init_script_restarts_and_stops(work: pathlib.Path, fcgiwrap: Script) -> None:
    fcgiwrap("start")
    first = pids_in(work / "pid")
    restarted = fcgiwrap("restart")
    assert (restarted.returncode, restarted.stderr) == (0, b"")
    second = pids_in(work / "pid")
    assert len(set(first + second)) == 6
    assert not any(map(harness.alive, first))
    assert page_from(work) in second
    stopped = fcgiwrap("stop")
    assert (stopped.returncode, stopped.stderr) == (0, b"")
    assert not any(map(harness.alive, second))
    assert not (work / "pid").exists()
    assert not (work / "s").exists()
    assert fcgiwrap("status").returncode == 1


@contextmanager
def supervised(directory: pathlib.Path, run_script: str) -> Iterator[pathlib.Path]:
    """Supervise a service by runit's runsv; yield its log."""
    scripts = {
        directory / "run": run_script,
        directory / "log/run": f"#!/bin/sh\nexec svlogd {shlex.quote(str(directory / 'log'))}\n",
    }
    for path, text in scripts.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    environment = harness.clean_environment(SECRET="not for the application")
    with subprocess.Popen(["runsv", directory], env=environment) as process:
        try:
            yield directory / "log/current"
        finally:
            process.terminate()  # its services with it
            process.wait(20)


@pytest.mark.root
def test_a_runit_service_is_brought_back_and_its_stderr_is_in_the_log(work: pathlib.Path) -> None:
    (work / "service/env").mkdir(parents=True)
    (work / "service/env/GREETING").write_text("hello")
    command = shlex.join(harness.program)
    run_script = (
        "#!/bin/sh\nexec 2>&1\n"
        f'exec env -i PATH="$PATH" chpst -e ./env {command} -n -s {work}/s -n'
        f" -u nobody -U www-data -- {shlex.join(STAND_IN)}\n"
    )
    environment = sorted([b"GREETING=hello", b"PATH=" + os.fsencode(harness.PATH)])
    with supervised(work / "service", run_script) as log:
        wait_for(lambda: harness.connects(work / "s"))
        pids = [ask(work / "s")]
        os.kill(pids[0], signal.SIGKILL)
        wait_for(lambda: not harness.alive(pids[0]))  # until then it may have the socket
        wait_for(lambda: harness.connects(work / "s"), 20)
        pids.append(ask(work / "s"))
        assert pids[0] != pids[1]
        state = harness.state(pids[1])
        assert sorted(state.environ) == environment
        assert (state.uids[0], (work / "s").stat().st_uid) == (harness.NOBODY, WWW_DATA.pw_uid)
        assert state.argv == [word.encode() for word in STAND_IN]
        said = [f"serving as {pid}" for pid in pids]
        wait_for(lambda: [line for line in log.read_text().splitlines() if line in said] == said)
        supervised_pid = (work / "service/supervise/pid").read_text()
        assert int(supervised_pid) == pids[1]  # no process between runsv and the application
    assert not harness.alive(pids[1])


@pytest.mark.root
def test_start_stop_daemon_knows_and_stops_what_the_pid_file_names(work: pathlib.Path) -> None:
    def daemon(*args: Arg) -> int:
        done = call("start-stop-daemon", "--quiet", "--pidfile", work / "pid", *args)
        return done.returncode

    start: list[Arg] = ["--start", "--startas", *harness.program, "--", "-s", work / "s"]
    start += ["-P", work / "pid", "--", *STAND_IN]
    assert daemon(*start) == 0
    [pid] = pids_in(work / "pid")
    assert ask(work / "s") == pid
    assert daemon("--status") == 0
    assert daemon(*start) == 1  # it runs already
    assert daemon("--stop") == 0
    await_end(pid)
    assert daemon("--status") == 1  # dead, and its PID file is there
    assert daemon(*start) == 0
    assert pids_in(work / "pid") == [ask(work / "s")] != [pid]


def test_a_script_with_set_e_starts_and_kills_by_the_pid_file(work: pathlib.Path) -> None:
    script = f'"$@"; cp {work}/pid {work}/copy; kill $(cat {work}/pid); echo done'
    done = sh(script, "-s", work / "s", "-P", work / "pid", "-F", "3", "--", *STAND_IN)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.endswith(b"\ndone\n")
    pids = pids_in(work / "copy")
    assert len(pids) == 3
    await_end(*pids)


@pytest.mark.alone
@pytest.mark.parametrize(
    ("app", "status"),
    [("/bin/false", 1), ("/nowhere/app", 2), ("/etc/passwd", 13)],
)
def test_a_script_with_set_e_ends_where_the_start_fails(
    work: pathlib.Path, app: str, status: int
) -> None:
    done = sh('"$@"; echo not reached', "-s", work / "s", "--", app)
    assert (done.returncode, done.stdout) == (status, b"")
    assert done.stderr


CONTAINER = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
ENDS_WELL = ("/usr/bin/perl", "-e", '$SIG{TERM} = sub { exit 7 }; warn "up\n"; sleep 9 while 1')


@contextmanager
def container(*command: Arg) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command as PID 1 of its own PID namespace; end all of that afterwards."""
    with subprocess.Popen(
        [*CONTAINER, *command], env=harness.clean_environment(), stderr=subprocess.PIPE
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.root
def test_in_a_container_the_application_is_pid_1(work: pathlib.Path) -> None:
    port = harness.free_port()
    script = f'exec "$@" -n -a 127.0.0.1 -p {port} -- {install_app(work)}'
    with container("/bin/sh", "-c", script, "sh", *harness.program):
        wait_for(lambda: harness.connects(("127.0.0.1", port)))
        assert serving_pid(("127.0.0.1", port)) == 1


@pytest.mark.root
def test_a_container_ends_with_the_status_of_its_application(work: pathlib.Path) -> None:
    # In the words of a Dockerfile's CMD: no shell, and blanks where none belong.
    command = [*harness.program, "-n", f"-p {harness.free_port()}", "--", *ENDS_WELL]
    with container(*command) as process:
        assert process.stderr
        assert process.stderr.readline() == b"up\n"  # its stderr is the container's
        [init] = children_of(process.pid)
        assert children_of(init) == []
        os.kill(init, signal.SIGTERM)
        assert process.wait(20) == 7


def test_of_two_hosts_one_goes_down_and_every_request_is_answered(work: pathlib.Path) -> None:
    app, port, hosts = install_app(work), harness.free_port(), ["127.0.0.2", "127.0.0.3"]

    def start(host: str) -> set[int]:
        where = ("-a", host, "-p", str(port), "-P", work / host)
        assert run(*where, "-F", "2", "--", app).status == 0
        return set(pids_in(work / host))

    first, second = map(start, hosts)
    with harness.nginx(work, *(f"{host}:{port} fail_timeout=1s" for host in hosts)) as http:

        def fetch(_: object = None) -> int:
            with urllib.request.urlopen(f"http://127.0.0.1:{http}/", timeout=20) as answer:
                return int(answer.read().split()[1])

        answers = []
        with ThreadPoolExecutor(4) as pool:
            for answer in pool.map(fetch, range(REQUESTS)):
                answers.append(answer)
                if len(answers) == REQUESTS // 4:
                    for pid in first:
                        kill(pid)
        assert set(answers[: REQUESTS // 4]) == first | second
        assert set(answers[-REQUESTS // 4 :]) == second
        first = start(hosts[0])
        wait_for(lambda: fetch() in first)


@pytest.mark.root
@pytest.mark.long
def test_the_next_run_of_crons_line_says_why_it_changes_nothing(cron: Cron) -> None:
    wait_for(lambda: b"already in use" in (cron.directory / "log").read_bytes(), 20)
    assert len(cron.workers) == 2
    assert serving_pid(cron.directory / "s") in cron.workers.values()


@pytest.mark.root
@pytest.mark.long
@pytest.mark.differs(2)
def test_the_next_run_of_crons_line_leaves_the_pid_file_alone(cron: Cron) -> None:
    wait_for(lambda: b"already in use" in (cron.directory / "log").read_bytes(), 20)
    assert pid_file_of(cron.directory) == cron.pid_file_at_boot


@pytest.mark.root
@pytest.mark.long
def test_a_minute_after_they_were_killed_cron_has_the_workers_back(cron: Cron) -> None:
    killed = cron.workers
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: len(cron.workers) == 2 and not cron.workers.keys() & killed.keys(), 20)
    assert serving_pid(cron.directory / "s") in cron.workers.values()
    wait_for(lambda: sorted(pids_in(cron.directory / "pid")) == sorted(cron.workers.values()))
    wait_for(lambda: call("flock", "-n", cron.directory / "lock", "true").returncode == 0)
