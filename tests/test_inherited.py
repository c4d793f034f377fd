"""What the application inherits: the very state that its caller had, and nothing of Python."""

from __future__ import annotations

import ctypes
import os
import re
import resource
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import harness
import pytest
from harness import MODES, SLEEP, Arg, application, popen, run, state

ROOT = pytest.mark.root


@MODES
@pytest.mark.parametrize("bits", range(8), ids="closed-{:03b}".format)
def test_fd_0_is_the_socket_whatever_is_closed(bits: int, mode: str, work: Path) -> None:
    closed = {fd for fd in range(3) if bits >> fd & 1}
    output, pid_file = work / "output", work / "pids"

    def close() -> None:
        for fd in closed:
            os.close(fd)

    with open(output, "wb") as file:
        args: list[Arg] = ["-s", work / "s", "-P", pid_file]
        caller: dict[str, Any] = {"stdout": file, "stderr": file, "preexec_fn": close}
        if mode == "fork":
            assert run(*args, "--", *SLEEP, **caller).status == 0
            seen = state(int(pid_file.read_text())).fds
            others = {1: "/dev/null", 2: "/dev/null"}
        else:
            with application("-n", *args, **caller) as pid:
                seen = state(pid).fds
            others = {fd: str(output) for fd in {1, 2} - closed}
    assert seen[0].startswith("socket:")
    assert seen == {0: seen[0], **others}
    printed = 1 if mode == "fork" and 1 not in closed else 0
    assert len(output.read_bytes().splitlines()) == printed


@MODES
def test_inherited_descriptors_are_closed_with_fork_and_kept_without(mode: str) -> None:
    fds = [3, 50, *range(700, 1000, 2)]  # with gaps, and above the limit that holds by then
    with application(mode, preexec_fn=harness.inheriting(*fds), close_fds=False) as pid:
        seen = state(pid).fds
    if mode == "fork":
        assert sorted(seen) == [0, 1, 2]
    else:
        assert {seen[fd] for fd in fds} == {"/dev/zero"}


FEW = [
    *(pytest.param("-p PORT", limit, id=f"a-port-and-{limit}") for limit in (4, 5, 6)),
    *(pytest.param("-s s -P pid", limit, id=f"a-path-and-{limit}") for limit in range(4, 9)),
]


@pytest.mark.parametrize(("options", "limit"), FEW)
def test_too_few_descriptors_are_reported_in_one_line(
    options: str, limit: int, port: str, work: Path
) -> None:
    few = harness.limiting(resource.RLIMIT_NOFILE, limit)
    args = options.replace("PORT", port).split()
    result = run(*args, "--", *SLEEP, cwd=work, preexec_fn=few)
    assert re.fullmatch(rb"spawn-fcgi: [^\n\[]+: Too many open files\n", result.err), result
    assert result.status == (1 if b"fork failed" in result.err else 255)
    assert (work / "s").exists() is (b"fork failed" in result.err and "-s" in args)


def test_eight_descriptors_are_enough(port: str) -> None:
    few = harness.limiting(resource.RLIMIT_NOFILE, 8)
    result = run("-p", port, "-F9", "--", *SLEEP, preexec_fn=few)
    assert (result.status, len(result.pids)) == (0, 9), result


def test_each_forked_child_has_a_session_of_its_own(port: str) -> None:
    result = run("-p", port, "-F2", "--", *SLEEP)
    assert len(result.pids) == 2
    assert [state(pid).session for pid in result.pids] == result.pids


def test_without_fork_process_session_and_streams_are_the_callers(port: str) -> None:
    with application("-n") as pid:
        assert (state(pid).session, os.getpgid(pid)) == (os.getsid(0), os.getpgrp())
    with popen("-n", "-p", port, "--", "/bin/sh", "-c", "echo $$; echo err >&2") as process:
        assert process.communicate() == (b"%d\n" % process.pid, b"err\n")


@MODES
def test_umask_limits_priority_and_directory_are_the_callers(mode: str, work: Path) -> None:
    def restrict() -> None:
        os.umask(0o027)
        os.setpriority(os.PRIO_PROCESS, 0, 19)
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, 300))

    cwd = os.fsencode(work) + b"/\xff \n"
    os.mkdir(cwd)
    # A mode needs another umask for a moment.
    with application(mode, "-s", "s", "-M", "0600", preexec_fn=restrict, cwd=cwd) as pid:
        seen = state(pid)
        assert (seen.umask, os.getpriority(os.PRIO_PROCESS, pid)) == (0o027, 19)
    assert re.search("Max open files +200 +300 ", seen.limits)
    assert seen.cwd == os.fsdecode(cwd)


def getenv(entries: Sequence[bytes]) -> dict[bytes, bytes]:
    """Return what getenv finds: of one name the first entry, none without a name or a sign."""
    pairs = [entry.partition(b"=") for entry in entries]
    return {name: value for name, equals, value in reversed(pairs) if name and equals}


def executing(entries: Sequence[bytes], *args: Arg) -> Callable[[], None]:
    """Return a preexec_fn that starts the program with just these entries; no dict has them all."""
    argv = [os.fsencode(arg) for arg in (*harness.program, *args)]
    arrays = [(ctypes.c_char_p * (len(strings) + 1))(*strings) for strings in (argv, entries)]
    return lambda: os._exit(harness.libc.execve(argv[0], *arrays))


PYTHONS = [b"PYTHONHOME=/none", b"PYTHONPATH=\xff", b"PYTHONINSPECT=1", b"PYTHONMALLOC=x"]
PHP_7, PHP_5 = b"PHP_FCGI_CHILDREN=7", b"PHP_FCGI_CHILDREN=5"
FORK, AS_NOBODY = ["-F1"], ["-n", "-u", "65534"]
# Options; the caller's entries; the entry that -C sets, if there is one.
ENVIRONMENT = [
    pytest.param(FORK, [], None, id="empty"),
    pytest.param(["-n"], [b"PATH=/bin", b"HOME="], None, id="an-empty-value"),
    pytest.param(["-n"], [b"A=1", b"LC_CTYPE=C", b"B=2"], None, id="LC_CTYPE-is-C"),
    pytest.param(AS_NOBODY, [b"LC_CTYPE=C"], None, id="LC_CTYPE-is-C-as-another", marks=ROOT),
    pytest.param(["-n"], [b"A=\xff\xfe", b"\xffB=\xc3", b"C=\xc3\xa9"], None, id="any-bytes"),
    pytest.param(["-n"], [b"A=1", b"B=2", b"A=3", b"A=2"], None, id="the-first-of-a-name"),
    pytest.param(["-n"], [b"A", b"=B", b"", b"C=1", b"=D=2"], None, id="no-name-or-no-sign"),
    pytest.param(FORK, PYTHONS, None, id="what-python-heeds-forked"),
    pytest.param(["-n", "-C", "-1"], [PHP_7], None, id="php-children-left-alone-if-negative"),
    pytest.param(["-n", "-C", "0"], [], b"PHP_FCGI_CHILDREN=0", id="php-children-are-zero"),
    pytest.param(["-F1", "-C", "5"], [PHP_7, b"A=1"], PHP_5, id="php-children-replaced-forked"),
]


@pytest.mark.parametrize(("options", "entries", "added"), ENVIRONMENT)
def test_the_environment_is_the_callers_but_for_C(
    options: list[str], entries: list[bytes], added: bytes | None, port: str
) -> None:
    app = ("/bin/cat", "/proc/self/environ") if "-n" in options else SLEEP
    result = run(preexec_fn=executing(entries, "-p", port, *options, "--", *app))
    assert (result.status, result.err) == (0, b""), result
    seen = result.out.split(b"\0") if "-n" in options else state(result.pids[0]).environ
    assert getenv(seen) == getenv(entries if added is None else [added, *entries])


EVERY = {*map(int, signal.valid_signals())} - {signal.SIGKILL, signal.SIGSTOP}
# Nobody can know what the caller had of these two. The third, the parent needs.
RESET_BY_PYTHON = {signal.SIGPIPE, signal.SIGXFSZ}
RESET = {"-n": RESET_BY_PYTHON, "fork": RESET_BY_PYTHON | {signal.SIGCHLD}}


def dispositions(ignored: set[int], blocked: set[int]) -> Callable[[], None]:
    """Return a preexec_fn that ignores and blocks these signals and no others."""

    def dispose() -> None:
        for number in EVERY:
            signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

    return dispose


SIGNALS = [
    pytest.param(set(), EVERY, id="all-blocked"),
    pytest.param({signal.SIGHUP}, set(), id="one-ignored"),
    pytest.param(EVERY, {signal.SIGCHLD}, id="all-ignored"),
]


@MODES
@pytest.mark.parametrize(("ignored", "blocked"), SIGNALS)
def test_signals_are_as_the_callers(ignored: set[int], blocked: set[int], mode: str) -> None:
    with application(mode, preexec_fn=dispositions(ignored, blocked)) as pid:
        seen = state(pid)
    assert seen.ignored == ignored - RESET[mode], "the ignored signals"
    assert seen.blocked == blocked, "the blocked signals"


def test_a_dead_child_is_seen_by_a_parent_that_ignores_SIGCHLD(port: str) -> None:
    caller = dispositions({signal.SIGCHLD}, set())
    result = run("-p", port, "--", "/bin/sh", "-c", "exit 3", preexec_fn=caller)
    assert (result.status, result.pids) == (3, [])


ARGUMENTS = [b"", b" ", b"\xff\xfe", b"\xc3\xa9", b"--", b"-n", b"a\nb", b"'\"$x\\", b"x" * 99999]
LOCALES = [
    pytest.param("-n", "C", id="C"),
    pytest.param("-n", "C.UTF-8", id="UTF-8"),
    pytest.param("-n", "Latin-1", id="Latin-1"),
    pytest.param("fork", "", id="none-forked"),
]


@pytest.mark.parametrize(("mode", "locale"), LOCALES)
def test_arguments_and_messages_are_the_callers_bytes(locale: str, mode: str, work: Path) -> None:
    env = harness.latin_1(work) if locale == "Latin-1" else {"LC_ALL": locale}
    path = os.fsencode(work) + b"/\xe9\xff"
    app = [b"/bin/sh", b"-c", b"/bin/sleep 60; :", *ARGUMENTS]
    with application(mode, "-s", path, app=app, env=env) as pid:
        assert state(pid).argv == app
        assert harness.connects(os.fsdecode(path))
    refused = run("-p", "9", "-P", path + b"/pid", "--", "/bin/true", env=env)
    assert path + b"/pid" in refused.err


@MODES
def test_a_bare_name_is_a_file_in_the_directory_and_not_of_PATH(mode: str, work: Path) -> None:
    (work / "app").symlink_to("/bin/sleep")
    with application(mode, app=("app", "60"), cwd=work) as pid:
        assert state(pid).argv == [b"app", b"60"]


@ROOT
@MODES
def test_without_proc_it_does_the_same(mode: str, work: Path) -> None:
    def prepare() -> None:
        harness.inheriting(3, 50)()
        harness.own_mounts()
        harness.call("umount2", b"/proc", harness.MNT_DETACH)

    owner = ("-s", "s", "-u", "4101", "-g", "4201")
    env = {"A": "1", "B": "\udcff"}
    caller: dict[str, Any] = {"preexec_fn": prepare, "close_fds": False, "cwd": work, "env": env}
    with application(mode, *owner, **caller) as pid:
        seen = state(pid)
    assert {b"A=1", b"B=\xff"} <= {*seen.environ}
    if mode == "fork":
        assert seen.fds.keys() & {0, 1, 2, 3, 50} == {0, 1, 2}
    else:
        assert seen.fds.keys() >= {0, 1, 2, 3, 50}
    found = (work / "s").stat()
    assert (found.st_uid, found.st_gid) == (4101, 4201)


def our_interpreter_with(statement: str, work: Path) -> list[str]:
    """Return a command that runs the installed script in a copy of this interpreter."""
    shutil.copy(os.path.realpath(sys.executable), work / "python")
    library = Path(harness.program[0]).parents[1] / "lib/spawn-fcgi"
    path = f"sys.path.append({str(library)!r})"
    script = f"import os, sys; {path}; {statement}; from spawn_fcgi import main"
    return [str(work / "python"), "-ISWignore", "-c", f"{script}; os._exit(main())"]


@ROOT
@MODES
def test_an_unreadable_interpreter_starts_it_too(mode: str, work: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(harness, "program", our_interpreter_with("0", work))
    (work / "python").chmod(0o711)
    work.chmod(0o777)
    with application(mode, "-s", work / "s", env={"A": "1"}, **harness.as_user()) as pid:
        assert b"A=1" in state(pid).environ


@ROOT
def test_without_O_PATH_the_socket_gets_its_owner(work: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(harness, "program", our_interpreter_with("del os.O_PATH", work))
    assert run("-n", "-s", work / "s", "-U", "4101", "--", "/bin/true").status == 0
    assert (work / "s").stat().st_uid == 4101
