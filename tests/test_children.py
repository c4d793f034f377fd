"""The grace time, what is said of the children, and the exit status."""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import re
import resource
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import harness
import pytest
from harness import SLEEP, Arg, Result, assert_refused, by, run, tampering

GRACE = 0.1
SH = ("--", "/bin/sh", "-c")
# A user without processes, of ours or of a suite beside us: RLIMIT_NPROC is to count these alone.
STRANGER = 200000 + os.getpid()
SPAWNED = "spawn-fcgi: child spawned successfully: PID: {}"
# Ends as $END says, if it is one of the children in $DIE, counted from 1 in the order of the forks.
# Each number once: the C tool waits for the first before it forks the second, and may be gone
# when a later one looks.
CHOOSY = """#!/bin/sh
read -r children </proc/$PPID/task/$PPID/children
n=0
for pid in $children; do
  n=$((n + 1))
  [ "$pid" = $$ ] && break
done
set -C
case " $DIE " in *" $n "*) true >"$0.$n" && eval "$END" ;; esac
exec /bin/sleep 60
"""


@pytest.fixture
def where(work: pathlib.Path) -> tuple[str, ...]:
    """Return the options for a socket and a PID file in `work`."""
    return "-s", str(work / "sock"), "-P", str(work / "pid")


def written(work: pathlib.Path) -> list[int]:
    """Return the PIDs in the PID file."""
    return [int(line) for line in (work / "pid").read_bytes().split()]


def spawned(result: Result, work: pathlib.Path, count: int) -> list[int]:
    """Return the PIDs of so many living children, which are in the PID file, and no others."""
    assert result.out.decode().splitlines() == [SPAWNED.format(pid) for pid in result.pids]
    assert len(set(result.pids)) == count
    assert written(work) == result.pids
    assert sorted(result.pids) == sorted(harness.my_children())
    assert all(harness.alive(pid) for pid in result.pids)
    return result.pids


def wait_for_sleep(pid: int) -> None:
    """Wait until a child has become `sleep`; the C tool names them before."""
    harness.wait_for(lambda: harness.exe(pid).endswith("sleep"))


def seconds(*args: Arg, status: int = 0) -> float:
    """Return the seconds that a run takes."""
    start = time.monotonic()
    assert run(*args).status == status
    return time.monotonic() - start


def start_up() -> float:
    """Return the seconds that a run takes which does nothing."""
    return min(seconds("-s", "/x", "-p", "1", "--", "x", status=255) for _ in range(5))


# What is said of a child


@pytest.mark.parametrize("option", [(), ("-F", "1"), ("-F", "3")])
def test_living_children_are_named_on_stdout(
    option: tuple[str, ...], where: tuple[str, ...], work: pathlib.Path
) -> None:
    result = run(*where, *option, "--", *SLEEP)
    assert (result.status, result.err) == (0, b"")
    for pid in spawned(result, work, int(option[1]) if option else 1):
        wait_for_sleep(pid)


@pytest.mark.alone
@pytest.mark.parametrize("code", [0, 1, 3, 42, 125, 128, 200, 254, 255])
def test_a_child_that_exits_at_once_gives_its_status(
    code: int, where: tuple[str, ...], work: pathlib.Path
) -> None:
    result = run(*where, *SH, f"exit {code}")
    assert (result.status, result.out) == (code, b"")
    assert result.lines == [f"spawn-fcgi: child exited with: {code}"]
    assert written(work) == []


@pytest.mark.alone
@pytest.mark.parametrize(("code", "meaning"), [(126, "execut"), (127, "not found")])
def test_the_shells_statuses_are_given_and_explained(
    code: int, meaning: str, where: tuple[str, ...]
) -> None:
    result = run(*where, *SH, f"exit {code}")
    assert (result.status, result.out) == (code, b"")
    assert result.lines[0] == f"spawn-fcgi: child exited with: {code}"
    if not harness.on_c_tool():
        assert len(result.lines) == 2
        assert meaning in result.lines[1]


@pytest.mark.alone
@pytest.mark.parametrize(
    ("line", "code"), [("/no/such/command", 127), ("/etc/passwd", 126), ("no-such-command", 127)]
)
def test_a_shell_line_that_cannot_be_run_fails_as_the_shell_says(
    line: str, code: int, where: tuple[str, ...]
) -> None:
    result = run(*where, "-f", line)
    assert (result.status, result.out) == (code, b"")
    assert result.lines[0] == f"spawn-fcgi: child exited with: {code}"


@pytest.mark.alone
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGPIPE])
def test_a_killed_child_is_status_1(
    number: int, where: tuple[str, ...], work: pathlib.Path
) -> None:
    result = run(*where, *SH, f"kill -{number} $$")
    assert (result.status, result.out) == (1, b"")
    assert result.lines == [f"spawn-fcgi: child signaled: {number}"]
    assert written(work) == []


def test_a_stopped_child_is_alive(where: tuple[str, ...], work: pathlib.Path) -> None:
    result = run(*where, *SH, "kill -STOP $$; exec sleep 60")
    assert (result.status, result.err) == (0, b"")
    spawned(result, work, 1)


def test_a_child_that_dies_after_the_grace_time_is_a_success(
    where: tuple[str, ...], work: pathlib.Path
) -> None:
    result = run(*where, *SH, f"until [ -e {work}/end ]; do sleep 0.01; done; exit 3")
    assert (result.status, result.err) == (0, b"")
    (pid,) = result.pids
    assert harness.my_children() == [pid], "the parent is gone, and nothing but the child is there"
    (work / "end").touch()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3
    assert written(work) == [pid]


@pytest.mark.alone
def test_a_child_that_dies_within_the_grace_time_is_a_failure(where: tuple[str, ...]) -> None:
    # On a loaded machine 20 ms of sleep may end after the grace time, but hardly five times.
    results = (run(*where, *SH, "sleep 0.02; exit 3").status for _ in range(5))
    assert 3 in results


# exec failures


def bad_apps() -> list[tuple[str, int, str]]:
    """Return names of what cannot be exec'ed, as `make_bad_app` makes it, errno and reason."""
    return [
        ("missing", errno.ENOENT, os.strerror(errno.ENOENT)),
        ("", errno.ENOENT, os.strerror(errno.ENOENT)),
        ("directory", errno.EACCES, os.strerror(errno.EACCES)),
        ("plain", errno.EACCES, os.strerror(errno.EACCES)),
        ("fifo", errno.EACCES, os.strerror(errno.EACCES)),
        ("plain/x", errno.ENOTDIR, os.strerror(errno.ENOTDIR)),
        ("loop", errno.ELOOP, os.strerror(errno.ELOOP)),
        ("x" * 256, errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG)),
        ("text", errno.ENOEXEC, "#!"),
        ("empty", errno.ENOEXEC, "#!"),
        ("script", errno.ENOENT, "interpreter"),
        ("no\udcff\n", errno.ENOENT, os.strerror(errno.ENOENT)),
    ]


@pytest.fixture
def bad_app(work: pathlib.Path) -> Callable[[str], str]:
    """Return what gives the path of a bad app, all of which are in `work`."""
    (work / "directory").mkdir()
    (work / "loop").symlink_to("loop")
    os.mkfifo(work / "fifo", 0o755)
    files = {"plain": "x", "text": "exit 0\n", "empty": "", "script": "#!/no/such/interpreter\n"}
    for name, text in files.items():
        (work / name).write_text(text)
        (work / name).chmod(0o644 if name == "plain" else 0o755)
    return lambda name: name and f"{work}/{name}"


@pytest.mark.parametrize(("name", "number"), [app[:2] for app in bad_apps()])
@pytest.mark.parametrize(
    "option", [(), pytest.param(("-F", "4"), marks=pytest.mark.differs(1)), ("-n",)]
)
def test_an_app_that_cannot_be_execed_gives_errno(
    option: tuple[str, ...],
    name: str,
    number: int,
    where: tuple[str, ...],
    work: pathlib.Path,
    bad_app: Callable[[str], str],
) -> None:
    result = run(*where, *option, "--", bad_app(name), "arg")
    assert (result.status, result.out) == (number, b"")
    assert result.err
    assert harness.my_children() == []
    assert option == ("-n",) or written(work) == []


@pytest.mark.differs(6)
@pytest.mark.parametrize(("name", "reason"), [app[::2] for app in bad_apps()])
@pytest.mark.parametrize("option", [(), ("-F", "4"), ("-n",)])
def test_an_app_that_cannot_be_execed_is_named_once_with_the_reason(
    option: tuple[str, ...],
    name: str,
    reason: str,
    where: tuple[str, ...],
    bad_app: Callable[[str], str],
) -> None:
    result = run(*where, *option, "--", bad_app(name), "arg")
    shown = os.fsencode(bad_app(name).replace("\n", "\\x0a"))
    assert result.err.startswith(b"spawn-fcgi: exec failed: " + shown + b": ")
    assert result.err.count(b"\n") == 1
    assert reason.encode() in result.err[len(shown) + 25 :]


@pytest.mark.parametrize("name", ["missing", "text"])
def test_a_reason_is_not_made_up(
    name: str, where: tuple[str, ...], bad_app: Callable[[str], str]
) -> None:
    err = run(*where, "--", bad_app(name)).err
    assert b"interpreter" not in err
    assert (b"#!" in err) == (name == "text" and not harness.on_c_tool())


# Grace time


@pytest.mark.alone
def test_the_grace_time_is_100_ms(where: tuple[str, ...]) -> None:
    times = [seconds(*where, *SH, "sleep 0.01; exit 3", status=3)]
    for _ in range(5):
        times.append(seconds(*where, "--", *SLEEP))
        harness.end_children()
    assert GRACE <= min(times[1:]) < start_up() + 2 * GRACE


def test_a_child_has_no_less_than_100_ms(where: tuple[str, ...], work: pathlib.Path) -> None:
    stamped = ["strace", "-ttt", "-o", str(work / "log")]
    with by(*stamped, "-e", "trace=?clone,?clone3,?fork,?vfork,?wait4,?waitid"):
        spawned(run(*where, "--", *SLEEP), work, 1)
    calls = re.findall(r"(?m)^([0-9.]+) (\w+)\(", (work / "log").read_text())
    forks = [float(when) for when, call in calls if "wait" not in call]
    looks = [float(when) for when, call in calls if "wait" in call]
    assert looks[0] - forks[-1] >= GRACE


@pytest.mark.differs("It does not wait where no child could be exec'ed")
@pytest.mark.parametrize("option", [(), ("-F", "8")])
def test_where_no_child_could_be_execed_there_is_no_wait(
    option: tuple[str, ...], where: tuple[str, ...]
) -> None:
    least = min(seconds(*where, *option, "--", "/no/such/app", status=2) for _ in range(10))
    assert least < start_up() + GRACE / 2


def test_the_grace_time_is_waited_once_for_all_children(
    where: tuple[str, ...], work: pathlib.Path
) -> None:
    start = time.monotonic()
    result = run(*where, "-F", "64", "--", *SLEEP)
    assert time.monotonic() - start < 64 * GRACE / 2, "they are not exec'ed one after the other"
    assert (result.status, result.err) == (0, b"")
    spawned(result, work, 64)


def test_nothing_but_the_children_stays(where: tuple[str, ...], work: pathlib.Path) -> None:
    pids = spawned(run(*where, "-F", "3", "--", *SLEEP), work, 3)
    for pid in pids:
        wait_for_sleep(pid)
    assert {harness.exe(pid) for pid in harness.my_children()} == {os.path.realpath(SLEEP[0])}
    assert all(harness.state(pid).parent == os.getpid() for pid in pids)


# Several children


@pytest.fixture
def choosy(work: pathlib.Path) -> str:
    """Return the path of an app that ends only if it is the child to do so."""
    (work / "choosy").write_text(CHOOSY)
    (work / "choosy").chmod(0o755)
    return str(work / "choosy")


DEATHS = ["2", "3", "4", "1 3", "2 3 4", "1 2 3", "1 2 4", "1 2 3 4"]


@pytest.mark.alone
@pytest.mark.parametrize(
    "dying", ["1", *(pytest.param(dying, marks=pytest.mark.differs(1)) for dying in DEATHS)]
)
@pytest.mark.parametrize("end", ["exit $((n + 10))", "kill -$n $$"])
def test_every_child_is_looked_at_and_the_last_failure_counts(
    dying: str, end: str, where: tuple[str, ...], work: pathlib.Path, choosy: str
) -> None:
    env = harness.clean_environment(DIE=dying, END=end)
    result = run(*where, "-F", "4", "--", choosy, env=env)
    dead = [int(n) for n in dying.split()]
    if end.startswith("exit"):
        said = [f"spawn-fcgi: child exited with: {n + 10}" for n in dead]
        status = dead[-1] + 10
    else:
        said, status = [f"spawn-fcgi: child signaled: {n}" for n in dead], 1
    assert (result.status, result.lines) == (status, said)
    for pid in spawned(result, work, 4 - len(dead)):
        wait_for_sleep(pid)


@pytest.mark.alone
@pytest.mark.differs(1)
@pytest.mark.parametrize(
    ("end", "status"),
    [
        ("[ $n = 2 ] && exit 7; kill -9 $$", 1),
        ("[ $n = 2 ] && kill -9 $$; exit 7", 7),
        ("[ $n = 2 ] && exit 7; exit 0", 7),
        ("exit 0", 0),
    ],
)
def test_of_unlike_ends_the_last_failure_is_the_status(
    end: str, status: int, where: tuple[str, ...], work: pathlib.Path, choosy: str
) -> None:
    env = harness.clean_environment(DIE="2 3", END=end)
    result = run(*where, "-F", "4", "--", choosy, env=env)
    assert (result.status, len(result.lines)) == (status, 2)
    spawned(result, work, 2)


# The caller's SIGCHLD


def ignore_sigchld() -> None:
    """Make the kernel forget how children end."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)


@pytest.mark.alone
@pytest.mark.differs(13)
@pytest.mark.parametrize(
    ("line", "status", "said"),
    [
        ("exit 3", 3, "child exited with: 3"),
        ("exit 0", 0, "child exited with: 0"),
        ("kill -9 $$", 1, "child signaled: 9"),
    ],
)
@pytest.mark.parametrize("count", [1, 3])
def test_a_dead_child_is_seen_though_the_caller_ignores_sigchld(
    count: int, line: str, status: int, said: str, where: tuple[str, ...]
) -> None:
    result = run(*where, "-F", str(count), *SH, line, preexec_fn=ignore_sigchld)
    assert (result.status, result.out) == (status, b"")
    assert result.lines == [f"spawn-fcgi: {said}"] * count


@pytest.mark.differs(13)
def test_an_exec_failure_is_seen_though_the_caller_ignores_sigchld(where: tuple[str, ...]) -> None:
    result = run(*where, "--", "/no/such/app", preexec_fn=ignore_sigchld)
    assert (result.status, result.out, len(result.lines)) == (errno.ENOENT, b"", 1)


def test_a_living_child_ignores_sigchld_as_the_caller_does(
    where: tuple[str, ...], work: pathlib.Path
) -> None:
    result = run(*where, "--", *SLEEP, preexec_fn=ignore_sigchld)
    assert (result.status, result.err) == (0, b"")
    assert signal.SIGCHLD in harness.state(spawned(result, work, 1)[0]).ignored


# A fork that fails


def with_processes(count: int) -> Callable[[], None]:
    """Return what makes the caller a user who may have so many processes, itself included."""

    def preexec() -> None:
        resource.setrlimit(resource.RLIMIT_NPROC, (count, count))
        os.setgroups([])
        os.setresgid(STRANGER, STRANGER, STRANGER)
        os.setresuid(STRANGER, STRANGER, STRANGER)

    return preexec


@pytest.mark.root
@pytest.mark.differs(10)
@pytest.mark.parametrize("good", [0, 1, 2])
def test_a_failed_fork_is_status_1_and_leaves_the_forked_children(
    good: int, where: tuple[str, ...], work: pathlib.Path
) -> None:
    work.chmod(0o777)
    result = run(*where, "-F", "4", "--", *SLEEP, preexec_fn=with_processes(good + 1))
    assert result.status == 1
    assert len(result.lines) == 1
    assert os.strerror(errno.EAGAIN) in result.lines[0]
    spawned(result, work, good)
    assert harness.connects(work / "sock") == (work / "sock").exists() == (good > 0)


@pytest.mark.root
@pytest.mark.differs(10)
def test_a_failed_fork_outranks_how_the_forked_children_end(
    where: tuple[str, ...], work: pathlib.Path
) -> None:
    work.chmod(0o777)
    args = (*where, "-F", "4", *SH, "exit 3")
    result = run(*args, preexec_fn=with_processes(3))
    assert result.status == 1
    assert result.err.count(b"spawn-fcgi: child exited with: 3\n") == 2
    assert os.strerror(errno.EAGAIN).encode() in result.err


# stdout and stderr that take nothing


@contextlib.contextmanager
def deaf(fd: int, kind: str) -> Iterator[dict[str, Any]]:
    """Give what makes popen() start the program with an fd that is closed, full or unread."""
    name = {1: "stdout", 2: "stderr"}[fd]
    if kind == "closed":
        yield {name: None, "preexec_fn": lambda: os.close(fd)}
    elif kind == "full":
        with open("/dev/full", "wb") as full:
            yield {name: full}
    else:
        reader, writer = os.pipe()
        os.close(reader)
        try:
            yield {name: writer}
        finally:
            os.close(writer)


@pytest.mark.differs("A stdout that is closed, full or without a reader changes nothing")
def test_a_stdout_that_nobody_empties_does_not_hold_a_start_up(where: tuple[str, ...]) -> None:
    reader, writer = os.pipe()
    try:
        os.set_blocking(writer, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(writer, b"x" * 4096)
        os.set_blocking(writer, True)
        assert run(*where, "-F", "9", "--", *SLEEP, stdout=writer, timeout=5).status == 0
    finally:
        os.close(reader)
        os.close(writer)


KINDS = ("closed", "full", "unread")


def streams(*c_tool_fails: tuple[int, str], fds: tuple[int, ...] = (1, 2)) -> pytest.MarkDecorator:
    """Parametrize a test with (fd, kind) for all kinds of deaf stdout and stderr."""
    sentence = "A stdout that is closed, full or without a reader changes nothing"
    mark = pytest.mark.differs(sentence)
    pairs = [(fd, kind) for fd in fds for kind in KINDS]
    params = [pytest.param(*pair, marks=[mark] * (pair in c_tool_fails)) for pair in pairs]
    return pytest.mark.parametrize(("fd", "kind"), params)


@streams((1, "unread"))
@pytest.mark.parametrize("count", [1, 3])
def test_a_deaf_stream_changes_nothing_of_a_good_start(
    count: int, fd: int, kind: str, where: tuple[str, ...], work: pathlib.Path
) -> None:
    with deaf(fd, kind) as stream:
        result = run(*where, "-F", str(count), "--", *SLEEP, **stream)
    assert (result.status, result.err) == (0, b"")
    assert len(written(work)) == count
    assert sorted(written(work)) == sorted(harness.my_children())
    assert fd == 1 or sorted(result.pids) == sorted(written(work))


@pytest.mark.alone
@streams((2, "closed"), (2, "unread"))
@pytest.mark.parametrize(("line", "status"), [("exit 3", 3), ("exit 127", 127), ("kill $$", 1)])
def test_the_status_of_a_dead_child_gets_past_a_deaf_stream(
    line: str, status: int, fd: int, kind: str, where: tuple[str, ...], work: pathlib.Path
) -> None:
    with deaf(fd, kind) as stream:
        result = run(*where, *SH, line, **stream)
    assert (result.status, result.out) == (status, b"")
    assert bool(result.err) == (fd == 1)
    assert (work / "pid").read_bytes() == b""


@streams((2, "closed"), (2, "unread"))
def test_the_status_of_an_exec_failure_gets_past_a_deaf_stream(
    fd: int, kind: str, where: tuple[str, ...], work: pathlib.Path
) -> None:
    with deaf(fd, kind) as stream:
        result = run(*where, "--", "/no/such/app", **stream)
    assert (result.status, result.out) == (errno.ENOENT, b"")
    assert bool(result.err) == (fd == 1)
    assert (work / "pid").read_bytes() == b""


@streams((2, "closed"), (2, "full"), (2, "unread"))
def test_without_fork_the_status_of_an_exec_failure_gets_past_a_deaf_stream(
    fd: int, kind: str, where: tuple[str, ...]
) -> None:
    with deaf(fd, kind) as stream:
        result = run("-n", *where, "--", "/no/such/app", **stream)
    assert (result.status, result.out) == (errno.ENOENT, b"")
    assert bool(result.err) == (fd == 1)


@streams((2, "unread"))
@pytest.mark.parametrize(
    "args", [("-s", "x" * 108), ("-s", "/no/such/directory/sock"), ("-p", "x")]
)
def test_the_status_of_wrong_use_gets_past_a_deaf_stream(
    args: tuple[str, ...], fd: int, kind: str
) -> None:
    with deaf(fd, kind) as stream:
        result = run(*args, "--", *SLEEP, **stream)
    assert (result.status, result.out) == (255, b"")
    assert bool(result.err) == (fd == 1)


@streams((1, "unread"), fds=(1,))
@pytest.mark.parametrize("args", [("-h",), ("-v",), ()])
def test_help_that_nobody_hears_makes_no_noise(args: tuple[str, ...], fd: int, kind: str) -> None:
    with deaf(fd, kind) as stream:
        result = run(*args, **stream)
    assert (result.status, result.err) == (0 if args else 255, b"")


# -n


@pytest.mark.parametrize("code", [0, 3, 126, 127, 255])
def test_without_fork_the_status_is_the_applications(code: int, where: tuple[str, ...]) -> None:
    result = run("-n", *where, *SH, f"echo out; echo err >&2; exit {code}")
    assert result == Result(code, b"out\n", b"err\n")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGPIPE])
def test_without_fork_a_signal_is_the_applications(number: int, where: tuple[str, ...]) -> None:
    assert run("-n", *where, *SH, f"kill -{number} $$") == Result(-number, b"", b"")


def test_without_fork_the_process_becomes_the_application(where: tuple[str, ...]) -> None:
    with harness.running(*where) as process:
        assert harness.state(process.pid).parent == os.getpid()
        assert harness.proc(process.pid, f"task/{process.pid}/children") == b""


@pytest.mark.differs("it has no pipe")
def test_a_start_that_runs_out_of_descriptors_says_so_and_leaves_no_socket(
    work: pathlib.Path,
) -> None:
    with by(*tampering("?pipe,pipe2", "error=EMFILE")):
        result = run("-s", work / "s", "--", *SLEEP)
    assert_refused(result, "cannot start", os.strerror(errno.EMFILE))
    assert os.listdir(work) == []


@pytest.mark.differs(6)
def test_an_exec_that_fails_late_is_a_failure_all_the_same(work: pathlib.Path) -> None:
    slow = ["strace", "-f", "-o", os.devnull, "-e", "trace=execve"]
    with by(*slow, "-e", "inject=execve:delay_enter=600000"):  # as on a slow disk
        result = run("-s", work / "s", "-P", work / "pid", "--", "/no/such/app")
    assert (result.status, result.out) == (errno.ENOENT, b"")
    assert "exec failed: /no/such/app" in result.lines[0]
    assert (work / "pid").read_bytes() == b""


@pytest.mark.root
@pytest.mark.differs(6)
@pytest.mark.parametrize("option", [(), ("-n",)])
def test_a_chroot_without_a_shell_for_f_names_the_shell(
    option: tuple[str, ...], work: pathlib.Path
) -> None:
    result = run("-c", work, "-s", "/s", *option, "-f", "true")
    assert (result.status, result.out, len(result.lines)) == (errno.ENOENT, b"", 1)
    assert "exec failed: /bin/sh: " in result.lines[0]


@pytest.mark.long
def test_an_exec_that_does_not_end_does_not_hold_a_start_up(work: pathlib.Path) -> None:
    hanging = ["strace", "-f", "-o", os.devnull, "-e", "trace=execve"]
    with by(*hanging, "-e", "inject=execve:delay_enter=20000000"):  # as on a dead file server
        process = harness.popen("-s", work / "s", "-P", work / "pid", "--", *SLEEP)
    try:
        harness.wait_for(lambda: (work / "pid").exists() and (work / "pid").read_bytes(), 10)
    finally:
        process.kill()
        process.communicate()


SWAPPED = """#!/bin/sh
rm "$0"
sleep 0.75
printf '#!/bin/sh\\nexit 3\\n' >"$0.new"
chmod +x "$0.new"
mv "$0.new" "$0"
exec sleep 60
"""


@pytest.mark.alone
@pytest.mark.differs(1)
@pytest.mark.parametrize(("count", "status"), [(2, errno.ENOENT), (3, 3)])
def test_what_lives_goes_on_beside_what_could_not_be_execed(
    count: int, status: int, where: tuple[str, ...], work: pathlib.Path
) -> None:
    (work / "app").write_text(SWAPPED)
    (work / "app").chmod(0o755)
    # The second child finds no app, a third one finds another.
    with by(*tampering("?clone,?clone3,?fork,?vfork", "delay_enter=500000:when=2+")):
        result = run(*where, "-F", str(count), "--", work / "app")
    assert (result.status, len(result.pids), len(result.lines)) == (status, 1, count - 1)
    assert b"exec failed" in result.err
    assert (b"exited with: 3" in result.err) == (count == 3)
    spawned(result, work, 1)
    assert harness.connects(work / "sock")


@pytest.mark.alone
@pytest.mark.differs(1)
def test_the_grace_time_is_waited_though_one_of_two_children_could_not_be_execed(
    work: pathlib.Path,
) -> None:
    def start() -> Result:
        harness.end_children()
        (work / "app").write_text('#!/bin/sh\nrm "$0"\nsleep 0.25\nexit 3\n')
        (work / "app").chmod(0o755)
        with by(*tampering("?clone,?clone3,?fork,?vfork", "delay_enter=200000:when=2")):
            return run("-s", work / "s", "-F", "2", "--", work / "app")

    # The second child finds no app, and 50 ms later the first one ends: half of the grace time.
    results = [start() for _ in range(3)]
    assert all("exec failed" in result.err.decode() for result in results)
    assert [result for result in results if b"exited with: 3" in result.err and not result.pids]
