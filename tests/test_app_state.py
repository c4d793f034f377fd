"""What the application inherits: the very state that its caller had, and nothing of Python."""

from __future__ import annotations

import ctypes
import fcntl
import functools
import os
import pathlib
import re
import resource
import signal
import stat
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import harness
import pytest

MODES = pytest.mark.parametrize("mode", ["fork", "-n"])
WHO = pytest.mark.parametrize("who", [pytest.param("root", marks=pytest.mark.root), "user"])
CLOSED = [{fd for fd in range(3) if bits >> fd & 1} for bits in range(8)]
libc = ctypes.CDLL(None, use_errno=True)


def ids(who: str) -> dict[str, Any]:
    """Return what makes popen() and run() use root or an ordinary user."""
    return {} if who == "root" else harness.as_user()


def by_user_and(root: str, name: str, values: Sequence[Any]) -> pytest.MarkDecorator:
    """Parametrize "who" and this name: an ordinary user for all of the values, root for one."""
    cases = [pytest.param("user", value, id=f"user-{value}") for value in values]
    cases.append(pytest.param("root", root, id=f"root-{root}", marks=pytest.mark.root))
    return pytest.mark.parametrize(("who", name), cases)


@contextmanager
def application(mode: str, *args: harness.Arg, **kwargs: Any) -> Iterator[int]:
    """Start `sleep` in the mode "fork" or "-n", on a port of its own unless -s is given.

    Yield its PID.
    """
    where = [] if "-s" in args else ["-p", str(harness.free_port())]
    if mode == "-n":
        with harness.running(*where, *args, **kwargs) as process:
            assert process.poll() is None, process.communicate()
            yield process.pid
    else:
        result = harness.run(*where, *args, "--", *harness.SLEEP, **kwargs)
        assert (result.status, len(result.pids), result.err) == (0, 1, b"")
        yield result.pids[0]


def before(*actions: Callable[[], Any]) -> Callable[[], None]:
    """Return a preexec_fn that does all of these."""

    def act() -> None:
        for action in actions:
            action()

    return act


def closing(fds: set[int]) -> Callable[[], None]:
    """Return a preexec_fn that closes these descriptors."""
    return before(*(functools.partial(os.close, fd) for fd in fds))


def executing(environment: Sequence[bytes], *args: harness.Arg) -> Callable[[], None]:
    """Return a preexec_fn that starts the program with exactly these environment strings.

    A dict, as subprocess wants one, has no double entries and none without "=".
    """
    argv = [os.fsencode(arg) for arg in (*harness.program, *args)]
    c_argv = (ctypes.c_char_p * (len(argv) + 1))(*argv, None)
    c_environment = (ctypes.c_char_p * (len(environment) + 1))(*environment, None)

    def execute() -> None:
        libc.execve(argv[0], c_argv, c_environment)
        raise OSError(ctypes.get_errno(), "execve")

    return execute


def listener(where: int | str) -> str:
    """Return the socket that listens on a TCP port or a Unix path, as /proc/<pid>/fd shows it."""
    if isinstance(where, int):
        pattern = rf"^ *\d+: \w+:{where:04X} \S+ 0A (?:\S+ +){{5}}(\d+) "
        table = pathlib.Path("/proc/net/tcp").read_text()
    else:
        pattern = rf"^\S+: \S+ \S+ 00010000 0001 \S+ +(\d+) {re.escape(where)}$"
        table = os.fsdecode(pathlib.Path("/proc/net/unix").read_bytes())  # others' paths are odd
    (inode,) = set(re.findall(pattern, table, re.M))  # a table that grows repeats its last row
    return f"socket:[{inode}]"


def blocks(pid: int) -> bool:
    """Say whether fd 0 of a process is in blocking mode."""
    flags = re.findall(r"^flags:\s+(\d+)", harness.proc(pid, "fdinfo/0").decode(), re.M)
    return not int(flags[0], 8) & os.O_NONBLOCK


@WHO
@MODES
@pytest.mark.parametrize("closed", CLOSED, ids=lambda fds: "closed " + ",".join(map(str, fds)))
def test_fd_0_is_the_blocking_socket_and_1_and_2_are_as_they_should_be(
    closed: set[int], mode: str, who: str, work: pathlib.Path
) -> None:
    work.chmod(0o777)
    port, output = harness.free_port(), work / "output"
    args = ["-p", str(port), "-P", str(work / "pids")]
    with open(output, "wb") as file:
        kwargs = {"stdout": file, "stderr": file, "preexec_fn": closing(closed), **ids(who)}
        if mode == "-n":
            process = harness.popen("-n", *args, "--", *harness.SLEEP, **kwargs)
        else:
            assert harness.run(*args, "--", *harness.SLEEP, **kwargs).status == 0
    try:
        pid = process.pid if mode == "-n" else int((work / "pids").read_text())
        harness.wait_for(lambda: harness.asleep(pid))
        others = str(output) if mode == "-n" else "/dev/null"
        expected = {0: listener(port), 1: others, 2: others}
        for fd in closed - {0} if mode == "-n" else ():
            del expected[fd]
        assert harness.state(pid).fds == expected
        assert blocks(pid)
        assert harness.connects(("127.0.0.1", port))
    finally:
        if mode == "-n":
            process.kill()
            process.wait()


@MODES
@pytest.mark.parametrize("closed", [set(), {0}], ids=["", "closed"])
def test_fd_0_is_the_blocking_unix_socket(closed: set[int], mode: str, work: pathlib.Path) -> None:
    path = work / "sock"
    with application(mode, "-s", path, preexec_fn=closing(closed)) as pid:
        assert harness.state(pid).fds[0] == listener(str(path))
        assert blocks(pid)


def inheriting(*fds: int) -> Callable[[], None]:
    """Return a preexec_fn, for close_fds=False, that leaves no descriptors above 2 but these."""

    def inherit() -> None:
        os.closerange(3, 4096)
        for fd in sorted(fds, reverse=True):
            source = os.open("/dev/zero", os.O_RDWR)
            os.dup2(source, fd)
            if source != fd:
                os.close(source)
            os.set_inheritable(fd, True)

    return inherit


@MODES
@by_user_and("3 9 700", "inherited", ["", "3", "9", "700", "3 9 700", "5 6 8 63 64"])
def test_inherited_descriptors_are_closed_with_fork_and_kept_without(
    inherited: str, mode: str, who: str, request: pytest.FixtureRequest
) -> None:
    if mode == "fork" and inherited not in ("", "3"):
        differs(request, 9)
    fds = [int(fd) for fd in inherited.split()]
    caller = {"preexec_fn": inheriting(*fds), "close_fds": False, "env": {}, **ids(who)}
    with application(mode, **caller) as pid:
        seen = harness.state(pid).fds
    kept = dict.fromkeys(fds if mode == "-n" else (), "/dev/zero")
    assert {fd: on for fd, on in seen.items() if fd > 2} == kept
    assert seen[0].startswith("socket:")
    assert mode == "-n" or seen[1] == seen[2] == "/dev/null"


def differs(request: pytest.FixtureRequest, item: int | str) -> None:
    """Mark this case of a test as one in which the C tool differs; see conftest."""
    if harness.on_c_tool():
        reason = f"the C tool differs (README.md): {item}"
        request.node.add_marker(pytest.mark.xfail(reason=reason, strict=True))


@MODES
def test_a_lock_that_the_caller_holds_is_inherited_without_fork_only(
    mode: str, work: pathlib.Path, request: pytest.FixtureRequest
) -> None:
    if mode == "fork":
        differs(request, 9)
    lock = work / "lock"
    lock.touch()

    def hold() -> None:
        fd = os.open(lock, os.O_RDWR)
        os.dup2(fd, 9)
        fcntl.flock(9, fcntl.LOCK_EX)

    with application(mode, preexec_fn=before(inheriting(), hold), close_fds=False) as pid:
        with open(lock, "rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                held = False
            except BlockingIOError:
                held = True
        assert held == (mode == "-n")
        assert harness.alive(pid)


@WHO
def test_a_forked_child_has_a_session_of_its_own(who: str) -> None:
    with application("fork", env={}, **ids(who)) as pid:
        seen = harness.state(pid)
        assert (seen.session, seen.process_group) == (pid, pid)


@WHO
@pytest.mark.parametrize("own_session", [False, True])
def test_without_fork_pid_parent_session_and_group_are_the_callers(
    own_session: bool, who: str
) -> None:
    port = str(harness.free_port())
    with harness.running("-p", port, start_new_session=own_session, **ids(who)) as process:
        seen = harness.state(process.pid)
        assert seen.parent == os.getpid()
        assert seen.session == (process.pid if own_session else os.getsid(0))
        assert seen.process_group == (process.pid if own_session else os.getpgrp())


def test_without_fork_the_application_writes_to_the_callers_stdout_and_stderr() -> None:
    args = ["-n", "-p", str(harness.free_port()), "--", "/bin/sh", "-c", "echo out; echo err >&2"]
    assert harness.run(*args) == (0, b"out\n", b"err\n")


def test_without_fork_the_callers_stdin_is_given_up() -> None:
    reader, writer = os.pipe()
    try:
        with harness.running("-p", str(harness.free_port()), stdin=reader):
            os.close(reader)
            with pytest.raises(BrokenPipeError):  # nobody has the reading end any more
                os.write(writer, b"request")
    finally:
        os.close(writer)


PYTHONS = [
    b"PYTHONHOME=/nonexistent",
    b"PYTHONPATH=/nonexistent:\xff",
    b"PYTHONINSPECT=1",
    b"PYTHONSTARTUP=/nonexistent",
    b"PYTHONHASHSEED=nonsense",
    b"PYTHONWARNINGS=nonsense",
    b"PYTHONOPTIMIZE=nonsense",
    b"PYTHONUTF8=nonsense",
    b"PYTHONCOERCECLOCALE=warn",
    b"PYTHONIOENCODING=nonsense",
    b"PYTHONMALLOC=nonsense",
    b"PYTHONVERBOSE=1",
    b"PYTHONPLATLIBDIR=nonsense",
    b"PYTHONEXECUTABLE=/nonexistent",
    b"PYTHONDONTWRITEBYTECODE=",
]
ENVIRONMENTS = {
    "empty": [],
    "small": [b"PATH=/bin", b"HOME=/"],
    "LANG": [b"LANG=C"],
    "LC_ALL": [b"LC_ALL=C", b"LANG=en_US.UTF-8"],
    "LC_ALL empty": [b"LC_ALL=", b"A=1"],
    "LC_CTYPE C": [b"A=1", b"LC_CTYPE=C", b"B=2"],
    "LC_CTYPE POSIX": [b"LC_CTYPE=POSIX", b"B=2"],
    "LC_CTYPE UTF-8": [b"A=1", b"LC_CTYPE=C.UTF-8"],
    "LC_CTYPE other": [b"A=1", b"LC_CTYPE=nonsense", b"LANG=C"],
    "LC_CTYPE empty": [b"LC_CTYPE=", b"A=1"],
    "LC_CTYPE undecodable": [b"LC_CTYPE=\xff", b"A=1"],
    "LC_CTYPE after LC_ALL": [b"LC_ALL=C", b"LC_CTYPE=POSIX"],
    "LC_CTYPE twice": [b"A=1", b"LC_CTYPE=C", b"B=2", b"LC_CTYPE=POSIX"],
    "LC_CTYPE no value": [b"LC_CTYPE", b"A=1"],
    "like LC_CTYPE": [b"LC_CTYPE_=C", b"XLC_CTYPE=C"],
    "undecodable": [b"A=\xff\xfe", b"\xffB=\xc3", b"C=\xc3\xa9"],
    "double": [b"A=1", b"B=2", b"A=3", b"A=1"],
    "malformed": [b"A", b"=B", b"", b"=", b"C=1=2", b"D=\n"],
    "unsorted": [b"Z=1", b"A=2", b"M=3", b"LC_CTYPE=C", b"B=4"],
    "large": [b"N%d=%s" % (n, b"x" * 1000) for n in range(300)],
    "Python's": PYTHONS,
    "Python's in the C locale": [b"LC_CTYPE=C", *PYTHONS, b"LC_ALL="],
}


@MODES
@by_user_and("Python's in the C locale", "name", list(ENVIRONMENTS))
def test_the_environment_is_the_callers_byte_for_byte(name: str, mode: str, who: str) -> None:
    port, entries = str(harness.free_port()), ENVIRONMENTS[name]
    args = ["-p", port, "--", *harness.SLEEP]
    if mode == "fork":
        result = harness.run(preexec_fn=executing(entries, *args), **ids(who))
        assert (result.status, len(result.pids), result.err) == (0, 1, b"")
        assert harness.state(result.pids[0]).environ == entries
    else:
        execute = executing(entries, "-n", *args)
        with harness.running(preexec_fn=execute, **ids(who)) as process:
            assert process.poll() is None, process.communicate()
            assert harness.state(process.pid).environ == entries


COERCED = {"LC_CTYPE C", "LC_CTYPE POSIX", "LC_CTYPE other", "LC_CTYPE twice", "unsorted"}
COERCED |= {"LC_CTYPE empty", "LC_CTYPE undecodable", "Python's in the C locale"}


@pytest.mark.root
@pytest.mark.parametrize("name", [name for name in ENVIRONMENTS if name not in COERCED])
def test_without_proc_the_environment_is_exact_unless_python_has_overwritten_it(name: str) -> None:
    entries = ENVIRONMENTS[name]
    args = ["-n", "-p", str(harness.free_port()), "--", "/usr/bin/env", "-0"]
    start = before(harness.mounting(("tmpfs", "/proc")), executing(entries, *args))
    result = harness.run(preexec_fn=start)
    assert (result.status, result.err) == (0, b"")
    assert result.out == b"".join(entry + b"\0" for entry in entries)


@pytest.mark.root
@MODES
def test_without_proc_descriptors_and_all_else_are_as_with_it(
    mode: str, request: pytest.FixtureRequest
) -> None:
    if mode == "fork":
        differs(request, 9)
    start = before(harness.mounting(("tmpfs", "/proc")), inheriting(3, 9, 700))
    with application(mode, preexec_fn=start, close_fds=False, env={}) as pid:
        seen = harness.state(pid)
        assert set(seen.fds) == {0, 1, 2, *((3, 9, 700) if mode == "-n" else ())}
        assert (seen.environ, seen.ignored, seen.caught) == ([], set(), set())


def assert_output_is_lost(pid: int) -> None:
    """Assert that fds 1 and 2 are neither the caller's nor a way out of a chroot; the C tool's are.

    Without a /dev/null they are a pipe that nobody can write to.
    """
    assert harness.alive(pid)
    if not harness.on_c_tool():
        for fd in (1, 2):
            assert stat.S_ISFIFO(os.stat(f"/proc/{pid}/fd/{fd}").st_mode)
            assert b"flags:\t00\n" in harness.proc(pid, f"fdinfo/{fd}"), "not only to be read"


@pytest.mark.alone
@pytest.mark.root
@MODES
@pytest.mark.parametrize("closed", [set(), {1}, {0, 1, 2}], ids=["", "closed 1", "closed"])
def test_without_a_dev_null_it_starts_all_the_same(mode: str, closed: set[int]) -> None:
    def close() -> None:
        for fd in closed:
            os.close(fd)

    start = before(harness.mounting(("tmpfs", "/dev")), close)
    if mode == "-n":
        with application(mode, preexec_fn=start) as pid:
            assert set(harness.state(pid).fds) == {0, 1, 2} - (closed - {0})
    else:
        # The C tool's child keeps the caller's stdout then, and a pipe would wait for its end.
        lost = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        where = ["-p", str(harness.free_port()), "--", *harness.SLEEP]
        began = time.monotonic()
        assert harness.run(*where, preexec_fn=start, **lost).status == 0
        assert time.monotonic() - began < 1, "it waits for no reader where it has no stdout"
        [pid] = harness.my_children()
        assert_output_is_lost(pid)


ALONE, OTHERS = [b"PHP_FCGI_CHILDREN=7"], [b"A=1", b"LC_CTYPE=C", b"B=\xff"]
BETWEEN = [b"A=1", b"PHP_FCGI_CHILDREN=7", b"B=2"]


@MODES
@pytest.mark.parametrize(
    ("options", "given", "expected"),
    [
        ("-C 0", [], [b"PHP_FCGI_CHILDREN=0"]),
        ("-C 3", OTHERS, [*OTHERS, b"PHP_FCGI_CHILDREN=3"]),
        ("-C +3", [], [b"PHP_FCGI_CHILDREN=3"]),
        ("-C 0003", [], [b"PHP_FCGI_CHILDREN=3"]),
        ("-C 2147483647", ALONE, [b"PHP_FCGI_CHILDREN=2147483647"]),
        ("-C 0", BETWEEN, [b"A=1", b"PHP_FCGI_CHILDREN=0", b"B=2"]),
        ("-C -1", BETWEEN, BETWEEN),
        ("-C -2147483648", OTHERS, OTHERS),
        ("-C 5 -C -1", ALONE, ALONE),
        ("", ALONE, ALONE),
        ("", [], []),
    ],
)
def test_php_fcgi_children_is_what_c_says_and_else_the_callers(
    options: str, given: list[bytes], expected: list[bytes], mode: str
) -> None:
    args = ["-p", str(harness.free_port()), *options.split(), "--", *harness.SLEEP]
    if mode == "fork":
        (pid,) = harness.run(preexec_fn=executing(given, *args)).pids
        assert harness.state(pid).environ == expected
    else:
        with harness.running(preexec_fn=executing(given, "-n", *args)) as process:
            assert harness.state(process.pid).environ == expected


def dispositions(ignored: set[int], blocked: set[int]) -> Callable[[], None]:
    """Return a preexec_fn that ignores and blocks these signals and has all others by default."""

    def dispose() -> None:
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

    return dispose


EVERY = {*map(int, signal.valid_signals())} - {signal.SIGKILL, signal.SIGSTOP}
# What a Python program finds ignored as SIGPIPE and SIGXFSZ is its own doing, so nobody can tell.
OF_PYTHON = {signal.SIGPIPE, signal.SIGXFSZ}
SIGNALS: dict[str, set[int]] = {
    "none": set(),
    "HUP": {signal.SIGHUP},
    "CHLD": {signal.SIGCHLD},
    "INT QUIT": {signal.SIGINT, signal.SIGQUIT},
    "USR1 TERM": {signal.SIGUSR1, signal.SIGTERM},
    "real-time": {signal.SIGRTMIN, signal.SIGRTMAX},
    "all": EVERY,
}


@MODES
@by_user_and("all", "name", list(SIGNALS))
def test_the_callers_ignored_signals_and_no_others_are_ignored(
    name: str, mode: str, who: str
) -> None:
    ignored = SIGNALS[name] - OF_PYTHON
    with application(mode, preexec_fn=dispositions(ignored, set()), **ids(who)) as pid:
        seen = harness.state(pid)
        assert (seen.ignored, seen.blocked, seen.caught) == (ignored, set(), set())


@MODES
@by_user_and("all", "name", list(SIGNALS))
def test_the_callers_blocked_signals_and_no_others_are_blocked(
    name: str, mode: str, who: str
) -> None:
    blocked = SIGNALS[name]
    with application(mode, preexec_fn=dispositions(set(), blocked), **ids(who)) as pid:
        seen = harness.state(pid)
        assert (seen.ignored, seen.blocked, seen.caught) == (set(), blocked, set())


@MODES
@pytest.mark.parametrize("umask", [0, 0o027, 0o777])
def test_the_umask_is_the_callers_also_after_the_mode_of_a_socket(
    umask: int, mode: str, work: pathlib.Path
) -> None:
    options = ["-s", str(work / "sock"), "-M", "0600"]
    with application(mode, *options, umask=umask) as pid:
        assert harness.state(pid).umask == umask


@WHO
@MODES
def test_limits_priorities_and_other_traits_are_the_callers(mode: str, who: str) -> None:
    def restrict() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, 300))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 4096))
        resource.setrlimit(resource.RLIMIT_STACK, (2**22, 2**23))
        os.nice(5)

    def traits(pid: int) -> list[Any]:
        status = harness.proc(pid, "status").decode()
        fields = r"^(?:Cap\w+|NoNewPrivs|Seccomp|Cpus_allowed|CoreDumping|THP_enabled):.*$"
        return [
            harness.state(pid).limits,
            os.getpriority(os.PRIO_PROCESS, pid),
            os.sched_getscheduler(pid),
            re.findall(fields, status, re.M),
            *(harness.proc(pid, name) for name in ("oom_score_adj", "personality")),
            harness.proc(pid, "coredump_filter"),
        ]

    with subprocess.Popen(harness.SLEEP, preexec_fn=restrict, **ids(who)) as caller:
        try:
            with application(mode, preexec_fn=restrict, **ids(who)) as pid:
                harness.wait_for(lambda: harness.asleep(caller.pid))
                assert "Max open files            200                  300" in traits(pid)[0]
                assert traits(pid) == traits(caller.pid)
        finally:
            caller.kill()


@WHO
@MODES
def test_the_working_directory_is_the_callers(mode: str, who: str, work: pathlib.Path) -> None:
    directory = os.fsencode(work) + b"/\xff \n"
    os.mkdir(directory, 0o755)
    with application(mode, cwd=directory, env={}, **ids(who)) as pid:
        assert os.fsencode(harness.state(pid).cwd) == directory


@MODES
def test_a_working_directory_that_is_gone_disturbs_nothing(mode: str, work: pathlib.Path) -> None:
    gone = work / "gone"
    gone.mkdir()
    with application(mode, cwd=gone, preexec_fn=gone.rmdir) as pid:
        assert harness.state(pid).cwd == f"{gone} (deleted)"


ARGUMENTS = [b"", b" ", b"\xff\xfe", b"\xc3\xa9", b"--", b"-n", b"a\nb", b"'\"$x\\", b"x" * 99999]


@WHO
@pytest.mark.parametrize("env", [None, {}, {"LC_ALL": "C"}], ids=["", "C locale", "LC_ALL"])
def test_arguments_are_the_callers_byte_for_byte(env: dict[str, str] | None, who: str) -> None:
    app = [b"/bin/sh", b"-c", b"/bin/sleep 60; :", *ARGUMENTS]
    result = harness.run("-p", str(harness.free_port()), "--", *app, env=env, **ids(who))
    (pid,) = result.pids
    assert harness.state(pid).argv == app
    app[2] = b'printf "%s\\0" "$0" "$@"'
    result = harness.run("-n", "-p", str(harness.free_port()), "--", *app, env=env, **ids(who))
    assert result.out == b"".join(argument + b"\0" for argument in ARGUMENTS)


@pytest.mark.alone
@pytest.mark.differs(13)
def test_a_dead_child_is_told_though_the_caller_ignores_sigchld() -> None:
    caller = dispositions({signal.SIGCHLD}, set())
    args = ["-p", str(harness.free_port()), "--", "/bin/sh", "-c", "exit 3"]
    result = harness.run(*args, preexec_fn=caller)
    assert (result.status, result.out) == (3, b"")
    assert result.lines == ["spawn-fcgi: child exited with: 3"]


@pytest.mark.root
@pytest.mark.parametrize(
    "mounts",
    [
        'mount --bind "$0" /dev/null && mount -o remount,bind,ro /dev/null',
        "mount -t tmpfs -o nodev none /dev && mknod -m 666 /dev/null c 1 3",
    ],
    ids=["read-only", "nodev"],
)
def test_with_a_dev_null_that_cannot_be_used_it_starts_all_the_same(
    mounts: str, work: pathlib.Path
) -> None:
    (work / "null").touch()
    # The C tool's child keeps the caller's stdout then, and a pipe would wait for its end.
    with open(os.devnull, "r+b") as lost:
        script = f'{mounts} && exec "$@"'
        with harness.by("unshare", "-m", "sh", "-c", script, str(work / "null")):
            args = ["-s", str(work / "s"), "--", *harness.SLEEP]
            assert harness.run(*args, stdout=lost, stderr=lost).status == 0
    [pid] = harness.my_children()
    assert_output_is_lost(pid)


def test_a_child_can_write_to_and_read_from_dev_null(work: pathlib.Path) -> None:
    script = "echo out && echo err >&2 && cat <&1 <&2 && exec sleep 60; exit 3"
    result = harness.run("-s", work / "s", "--", "/bin/sh", "-c", script)
    assert (result.status, result.err, len(result.pids)) == (0, b"", 1)
