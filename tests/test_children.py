"""The children: how they end within the grace time, what is said of it, and the exit status."""

from __future__ import annotations

import errno
import os
import re
import resource
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from shlex import split
from typing import Any

import harness
import pytest
from harness import Result, as_user, limiting, run

FOR_ROOT = pytest.mark.root
HINT = "spawn-fcgi: the child's stderr went to /dev/null: run with -n to see it"
STRANGER = 200000 + os.getpid()  # a user without processes, so that RLIMIT_NPROC counts ours alone
LIVES = "exec sleep 60"
# Runs its first argument in the first child, counted in the order of the forks, and so on.
EACH_ITS_OWN = """n=1; read -r all </proc/$PPID/task/$PPID/children
for pid in $all; do [ $pid = $$ ] && break; n=$((n + 1)); done
shift $((n - 1)); eval "$1"
"""


def spawn(ends: Sequence[str], deaths: int, work: Path, **more: Any) -> Result:
    """Start a child for each script; again, on a busy machine, until so many deaths are told."""
    app = ("/bin/sh", "-c", EACH_ITS_OWN, "sh", *ends)
    for _ in range(5):
        result = run("-s", "s", "-P", "pid", f"-F{len(ends)}", "--", *app, cwd=work, **more)
        if len(re.findall(rb"(?m)^spawn-fcgi: child [es]", result.err)) >= deaths:
            break
        harness.end_children()
        (work / "s").unlink()
    return result


def assert_living(result: Result, work: Path, count: int) -> None:
    """Assert that so many children live, are named on stdout and in the PID file, and no others."""
    said = "spawn-fcgi: child spawned successfully: PID: {}\n"
    assert result.out.decode() == "".join(map(said.format, result.pids))
    assert len(result.pids) == count
    assert sorted(result.pids) == sorted(harness.my_children())
    assert [pid for pid in result.pids if not harness.alive(pid)] == []
    assert (work / "pid").read_text() == "\n".join(map(str, result.pids))


SEVEN, ZERO, KILLED = "child exited with: 7", "child exited with: 0", "child signaled: 9"
NOT_EXECUTABLE = "126 means: not executable"
NOT_FOUND = "127 means: command not found, or a shared library is missing"
# What each child does, the exit status, and what is said of those that have ended.
ENDS = [
    pytest.param(["sleep 2; exit 7"], 0, [], id="ends-after-two-seconds"),
    pytest.param(["sleep 0.08; exit 7"], 7, [SEVEN], id="ends-after-80-ms"),
    pytest.param(["exit 126"], 126, ["child exited with: 126", NOT_EXECUTABLE], id="126"),
    pytest.param(["exit 127"], 127, ["child exited with: 127", NOT_FOUND], id="127"),
    pytest.param(["exit 0", LIVES, "exit 0"], 0, [ZERO, ZERO], id="two-exit-with-0"),
    pytest.param([LIVES, "exit 7", LIVES, LIVES], 7, [SEVEN], id="one-of-four-fails"),
    pytest.param(["exit 7", "exit 0"], 7, [SEVEN, ZERO], id="first-fails"),
    pytest.param(["exit 7", "kill -9 $$"], 1, [SEVEN, KILLED], id="last-is-killed"),
    pytest.param(["kill -9 $$", "exit 7"], 7, [KILLED, SEVEN], id="last-fails"),
]


@pytest.mark.parametrize(("ends", "status", "said"), ENDS)
def test_each_end_is_told_the_last_failure_counts_and_living_ones_go_on(
    ends: list[str], status: int, said: list[str], work: Path
) -> None:
    deaths = len([line for line in said if line.startswith("child")])
    result = spawn(ends, deaths, work)
    lines = [f"spawn-fcgi: {line}" for line in said]
    assert (result.status, result.lines) == (status, [*lines, HINT] if lines else [])
    assert_living(result, work, len(ends) - deaths)


@pytest.mark.parametrize(("end", "status"), [("exit 127", 127), ("kill -PIPE $$", -13)])
def test_without_a_fork_the_end_is_the_applications(end: str, status: int, work: Path) -> None:
    args = ("-n", "-F3", "-s", work / "s", "--", "/bin/sh", "-c", f"echo out; echo err >&2; {end}")
    assert run(*args) == (status, b"out\n", b"err\n")


AS_USER = f"; tried as user {os.getuid()}"
NO_PATH = "; PATH is not searched: give the full path"
INTERPRETER = "; the file exists, but its interpreter does not"
NO_INTERPRETER = "; it does not begin with #!, or is for another machine"
NEW_ROOT = " in the new root ."
# An application, options, the errno, and what is said after its text.
EXEC = [
    pytest.param("./missing", "", errno.ENOENT, "", id="missing"),
    pytest.param(".", "", errno.EACCES, AS_USER + NO_PATH, id="a-directory"),
    pytest.param("./plain", "", errno.EACCES, AS_USER, id="not-executable"),
    pytest.param("./text", "", errno.ENOEXEC, NO_INTERPRETER, id="without-an-interpreter"),
    pytest.param("./script", "", errno.ENOENT, INTERPRETER, id="of-a-missing-interpreter"),
    pytest.param("sleep", "", errno.ENOENT, NO_PATH, id="of-PATH"),
    pytest.param("/bin/true", "-c .", errno.ENOENT, NEW_ROOT, id="in-a-chroot", marks=FOR_ROOT),
]


@pytest.mark.parametrize("mode", ["-n", "-F4"])
@pytest.mark.parametrize(("app", "options", "number", "hints"), EXEC)
def test_what_cannot_be_executed_is_named_once_with_the_reason_and_the_socket_stays(
    app: str, options: str, number: int, hints: str, mode: str, work: Path
) -> None:
    (work / "plain").write_text("x")
    (work / "text").write_text("exit 0\n")
    (work / "script").write_text("#!/no/interpreter\n")
    for executable in "text", "script":
        (work / executable).chmod(0o755)
    result = run("-s", "s", "-P", "pid", *options.split(), mode, "--", app, "arg", cwd=work)
    line = f"spawn-fcgi: exec failed: {app}: {os.strerror(number)}{hints}\n"
    assert result == (number, b"", line.encode())
    assert (work / "s").is_socket()
    assert harness.my_children() == []
    if mode != "-n":
        assert (work / "pid").read_bytes() == b""


def test_what_lives_goes_on_beside_what_could_not_be_executed(work: Path) -> None:
    shutil.copy("/bin/sh", work / "app")  # which the first child removes while others are started
    app = ("./app", "-c", f"rm -f app; {LIVES}")
    result = run("-s", "s", "-P", "pid", "-F", "500", "--", *app, cwd=work)
    assert (result.status, len(result.lines)) == (errno.ENOENT, 1), result
    assert "exec failed: ./app: " in result.lines[0]
    assert_living(result, work, len(result.pids) or 1)


# The limit of processes, the parent among them; of the started children, which end and live.
FORKS = [
    pytest.param(1, 0, 0, id="no-child"),
    pytest.param(4, 1, 2, id="three-children", marks=FOR_ROOT),
]


@pytest.mark.parametrize(("most", "deaths", "living"), FORKS)
def test_a_failed_fork_is_status_1_and_leaves_the_started_children(
    most: int, deaths: int, living: int, work: Path
) -> None:
    work.chmod(0o777)
    limit = limiting(resource.RLIMIT_NPROC, most)
    ends = ["exit 3", LIVES, LIVES, LIVES]
    result = spawn(ends, deaths, work, preexec_fn=limit, **as_user(STRANGER))
    lines = ["spawn-fcgi: child exited with: 3", HINT] * deaths
    lines += [f"spawn-fcgi: fork failed: {os.strerror(errno.EAGAIN)}"]
    assert (result.status, result.lines) == (1, lines), "the fork is the last failure"
    assert_living(result, work, living)


def spoil(fd: int, kind: str) -> None:
    """Close an fd, or make it a pipe that nobody reads from."""
    if kind == "closed":
        os.close(fd)
    else:
        reader, writer = os.pipe()
        os.close(reader)
        os.dup2(writer, fd)


# An fd, what is wrong with it, a line, the exit status, and the number of children that live.
STREAMS = [
    pytest.param(1, "closed", "-- /bin/sleep 60", 0, 1, id="closed-stdout"),
    pytest.param(1, "unread", "-- /bin/sleep 60", 0, 1, id="unread-stdout"),
    pytest.param(2, "unread", "-- /bin/sh -c 'exit 3'", 3, 0, id="unread-stderr-of-a-dead-child"),
    pytest.param(2, "closed", "-n -- /no/app", 2, 0, id="closed-stderr-without-a-fork"),
    pytest.param(2, "unread", "-n -- /no/app", 2, 0, id="unread-stderr-without-a-fork"),
]


@pytest.mark.parametrize(("fd", "kind", "line", "status", "living"), STREAMS)
def test_a_stream_that_takes_nothing_changes_nothing(
    fd: int, kind: str, line: str, status: int, living: int, work: Path
) -> None:
    args = ("-s", "s", "-P", "pid", *split(line))
    assert run(*args, cwd=work, preexec_fn=partial(spoil, fd, kind)) == (status, b"", b"")
    pids = harness.my_children()
    assert len(pids) == living
    if "-n" not in line:
        assert (work / "pid").read_text() == "".join(map(str, pids))
