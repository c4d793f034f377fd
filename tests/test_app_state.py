"""What the application inherits: the very state that its caller had, and nothing of Python."""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import harness
import pytest
from harness import SLEEP, Arg, connects, free_port, popen, proc, run, state

MODES = pytest.mark.parametrize("mode", ["fork", "-n"])
libc = ctypes.CDLL(None)


@contextmanager
def application(mode: str, *args: Arg, app: Sequence[Arg] = SLEEP, **more: Any) -> Iterator[int]:
    """Start what sleeps, forked or by -n, on a port of its own unless -s is given; its PID."""
    where = () if "-s" in args else ("-p", str(free_port()))
    if mode == "fork":
        result = run(*where, *args, "--", *app, **more)
        assert (result.status, len(result.pids)) == (0, 1), result
        yield result.pids[0]
        return
    with popen(*where, *args, "-n", "--", *app, **more) as process:
        begins, pid = os.fsencode(app[0]) + b"\0", process.pid
        try:  # past exec, and, asleep, past the files that the dynamic linker opens
            harness.wait_for(lambda: proc(pid, "cmdline").startswith(begins) or process.poll())
            harness.wait_for(lambda: b") S" in proc(pid, "stat") or process.poll())
            yield pid
        finally:
            process.kill()


@MODES
@pytest.mark.parametrize("bits", range(8), ids="closed-{:03b}".format)
def test_fd_0_is_the_socket_whatever_is_closed(bits: int, mode: str, work: Path) -> None:
    closed = {fd for fd in range(3) if bits >> fd & 1}
    output, pids, others = work / "output", work / "pids", {1: "/dev/null", 2: "/dev/null"}
    args: list[Arg] = ["-s", work / "s", "-P", pids]
    with open(output, "wb") as file:
        caller: dict[str, Any] = {"stdout": file, "stderr": file}
        caller["preexec_fn"] = lambda: [*map(os.close, closed)]
        if mode == "fork":
            assert run(*args, "--", *SLEEP, **caller).status == 0
            seen = state(int(pids.read_text())).fds
        else:
            with application("-n", *args, **caller) as pid:
                seen, others = state(pid).fds, {fd: str(output) for fd in {1, 2} - closed}
    assert (seen[0][:7], seen) == ("socket:", {0: seen[0], **others})
    assert len(output.read_bytes().splitlines()) == (mode == "fork" and 1 not in closed)


def inheriting(*fds: int, limit: int = 100) -> Callable[[], None]:
    """Return a preexec_fn, for close_fds=False, that opens these and then limits them."""

    def inherit() -> None:
        zero = os.open("/dev/zero", os.O_RDWR)  # close-on-exec, as its copies are not
        for fd in fds:
            os.dup2(zero, fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))

    return inherit


@MODES
@pytest.mark.parametrize("fds", [[3], [50, 700]], ids=["the-next", "above-gap-and-limit"])
def test_inherited_fds_are_closed_with_fork_and_kept_without(fds: list[int], mode: str) -> None:
    with application(mode, preexec_fn=inheriting(*fds), close_fds=False) as pid:
        seen = state(pid).fds
    if mode == "fork":
        assert sorted(seen) == [0, 1, 2]
    else:
        assert [seen[fd] for fd in fds] == ["/dev/zero"] * len(fds)


def test_each_forked_child_has_a_session_of_its_own(port: str) -> None:
    result = run("-p", port, "-F2", "--", *SLEEP)
    assert [state(pid).session for pid in result.pids] == result.pids != []


def test_without_fork_process_session_and_streams_are_the_callers(port: str) -> None:
    with application("-n") as pid:
        assert (state(pid).session, os.getpgid(pid)) == (os.getsid(0), os.getpgrp())
    with popen("-n", "-p", port, "--", "/bin/sh", "-c", "echo $$; echo err >&2") as process:
        assert process.communicate() == (b"%d\n" % process.pid, b"err\n")


def getenv(entries: Sequence[bytes]) -> dict[bytes, bytes]:
    """Return what getenv finds: of one name the first entry, none without a name or a sign."""
    pairs = [entry.partition(b"=") for entry in entries]
    return {name: value for name, equals, value in reversed(pairs) if name and equals}


def executing(entries: Sequence[bytes], *args: Arg) -> Callable[[], None]:
    """Return a preexec_fn that starts the program with just these entries; no dict has them all."""
    argv = [os.fsencode(arg) for arg in (*harness.program, *args)]
    arrays = [(ctypes.c_char_p * (len(strings) + 1))(*strings) for strings in (argv, entries)]
    return lambda: os._exit(libc.execve(argv[0], *arrays))


PYTHONS = b"LC_CTYPE=C PYTHONHOME=/none PYTHONPATH=\xff PYTHONINSPECT=1 PYTHONMALLOC=x PYTHONUTF8=x"
LINES = [b"", b"PATH=/bin HOME=", b"LC_ALL=C LANG=C", b"A=1 LC_CTYPE=C B=2", b"LC_CTYPE= A=1"]
LINES += [b"LC_CTYPE=nonsense", b"LC_ALL=C LC_CTYPE=\xff", b"LC_CTYPE=C LC_CTYPE=POSIX"]
LINES += [b"A=\xff\xfe \xffB=\xc3 C=\xc3\xa9", b"A=1 B=2 A=3 A=1", b"A =B  = C=1 =D=2", PYTHONS]
CASES: list[Any] = [*(("-n", line) for line in LINES), *(("-F1", line) for line in LINES[2::3])]
CASES += [pytest.param("-n -u 65534", LINES[3], marks=pytest.mark.root)]
SEVEN = b"PHP_FCGI_CHILDREN=7"
CASES += [("-n", SEVEN), ("-n -C -1", SEVEN), ("-n -C 0", b""), ("-n -C 5 -C -1", b"")]
CASES += [("-n -C 5", SEVEN), ("-F1 -C 5", SEVEN), ("-n -C -1 -C 5 -C 6", SEVEN)]


@pytest.mark.parametrize(("options", "line"), CASES)
def test_the_environment_is_the_callers_but_for_C(options: str, line: bytes, port: str) -> None:
    entries = line.split(b" ") if line else []
    app = SLEEP if "-F1" in options else ("/bin/cat", "/proc/self/environ")
    result = run(preexec_fn=executing(entries, "-p", port, *options.split(), "--", *app))
    assert (result.status, result.err) == (0, b""), result
    seen = state(result.pids[0]).environ if "-F1" in options else result.out.split(b"\0")
    last = options.encode().split()[-1]
    asked = [b"PHP_FCGI_CHILDREN=" + last] if "-C" in options and last != b"-1" else []
    assert getenv(seen) == getenv([*asked, *entries])


EVERY = {*map(int, signal.valid_signals())} - {signal.SIGKILL, signal.SIGSTOP}
# Of these two nobody can know what the caller had; the third is the parent's need.
RESET = {"-n": {signal.SIGPIPE, signal.SIGXFSZ}}
RESET["fork"] = {*RESET["-n"], signal.SIGCHLD}


def dispositions(ignored: set[int], blocked: set[int]) -> Callable[[], None]:
    """Return a preexec_fn that ignores and blocks these signals and no others."""

    def dispose() -> None:
        for number in EVERY:
            signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

    return dispose


@MODES
@pytest.mark.parametrize(
    ("ignored", "blocked"), [(set(), EVERY), ({signal.SIGHUP}, set()), (EVERY, {signal.SIGCHLD})]
)
def test_signals_are_as_the_callers(ignored: set[int], blocked: set[int], mode: str) -> None:
    with application(mode, preexec_fn=dispositions(ignored, blocked)) as pid:
        seen = state(pid)
    assert (seen.ignored, seen.blocked) == (ignored - RESET[mode], blocked)


def test_a_dead_child_is_seen_by_a_parent_that_ignores_SIGCHLD(port: str) -> None:
    caller = dispositions({signal.SIGCHLD}, set())
    result = run("-p", port, "--", "/bin/sh", "-c", "exit 3", preexec_fn=caller)
    assert (result.status, result.pids) == (3, [])


@MODES
def test_umask_limits_priority_and_directory_are_the_callers(mode: str, work: Path) -> None:
    def restrict() -> None:
        os.umask(0o027)
        os.nice(5)
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, 300))

    def traits(pid: int) -> tuple[Any, ...]:
        seen = state(pid)
        return seen.umask, seen.limits, os.getpriority(os.PRIO_PROCESS, pid), seen.cwd

    cwd = os.fsencode(work) + b"/\xff \n"
    os.mkdir(cwd)
    with subprocess.Popen(SLEEP, preexec_fn=restrict, cwd=cwd) as caller:
        try:  # a mode needs another umask for a moment
            with application(mode, "-s", "s", "-M", "0600", preexec_fn=restrict, cwd=cwd) as pid:
                assert traits(pid) == traits(caller.pid)
        finally:
            caller.kill()


ARGUMENTS = [b"", b" ", b"\xff\xfe", b"\xc3\xa9", b"--", b"-n", b"a\nb", b"'\"$x\\", b"x" * 99999]
LOCALES = [("-n", "C"), ("-n", "C.UTF-8"), ("fork", ""), ("fork", "C.UTF-8")]
LOCALES += [("-n", "Latin-1")] if os.path.exists(harness.LATIN_1) else []


@pytest.mark.parametrize(("mode", "locale"), LOCALES)
def test_arguments_are_the_callers_bytes(locale: str, mode: str, work: Path) -> None:
    if locale == "Latin-1":
        harness.make_latin_1(work)
    env = {"LC_ALL": locale, "LOCPATH": str(work)} if locale else {}
    path = os.fsencode(work) + b"/\xe9\xff"
    app = [b"/bin/sh", b"-c", b"/bin/sleep 60; :", *ARGUMENTS]
    with application(mode, "-s", path, app=app, env=env) as pid:
        assert state(pid).argv == app
        assert connects(os.fsdecode(path))
    refused = run("-p", "9", "-P", path + b"/pid", "--", "/bin/true", env=env)
    assert path + b"/pid" in refused.err, "what is said is in the caller's bytes, too"


@MODES
def test_a_bare_name_is_a_file_in_the_directory_and_not_of_PATH(mode: str, work: Path) -> None:
    (work / "app").symlink_to("/bin/sleep")
    with application(mode, app=("app", "60"), cwd=work) as pid:
        assert state(pid).argv == [b"app", b"60"]


def without_proc() -> None:
    """Leave the caller's mount namespace for one that has no /proc."""
    assert libc.unshare(0x20000) == 0  # CLONE_NEWNS
    assert libc.mount(b"none", b"/", None, 0x44000, None) == 0  # MS_REC | MS_PRIVATE
    assert libc.umount2(b"/proc", 2) == 0  # MNT_DETACH


@pytest.mark.root
@MODES
@pytest.mark.parametrize("line", ["", "-s s", "-s s -u 4101 -g 4201"])
def test_without_proc_it_starts_and_closes_and_passes_on_the_same(
    line: str, mode: str, work: Path
) -> None:
    def prepare() -> None:
        inheriting(3, 50)()
        without_proc()

    env = {"A": "1", "B": "\udcff"}
    caller: dict[str, Any] = {"preexec_fn": prepare, "close_fds": False, "cwd": work, "env": env}
    with application(mode, *line.split(), **caller) as pid:
        seen = state(pid)
    assert {b"A=1", b"B=\xff"} <= {*seen.environ}
    if mode == "fork":
        assert {*seen.fds} == {0, 1, 2}
    else:
        assert {*seen.fds} >= {0, 1, 2, 3, 50}
    if line:
        about = (work / "s").stat()
        owner = (4101, 4201) if "-u" in line else (os.getuid(), os.getgid())
        assert (about.st_uid, about.st_gid) == owner


@pytest.mark.root
@MODES
def test_an_interpreter_that_nobody_may_read_starts_it_too(
    mode: str, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(os.path.realpath(sys.executable), work / "python")
    (work / "python").chmod(0o711)
    library = Path(harness.program[0]).parents[1] / "lib/spawn-fcgi"
    script = f"import sys; sys.path += {[str(library), *sys.path]}; import spawn_fcgi"
    command = [str(work / "python"), "-ISc", f"{script}; sys.exit(spawn_fcgi.main())"]
    monkeypatch.setattr(harness, "program", command)
    work.chmod(0o777)
    with application(mode, "-s", work / "s", env={"A": "1"}, **harness.as_user()) as pid:
        assert b"A=1" in state(pid).environ
