"""The children: how they end within the grace time, what is said of it, and the exit status."""

from __future__ import annotations

import errno
import os
import re
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import harness
import pytest
from harness import SLEEP, Arg, Result, as_user, run

STRANGER = 200000 + os.getpid()  # a user without processes, so that RLIMIT_NPROC counts ours alone
# Sets n to the number of the child, counted from 1 in the order of the forks.
NTH = """n=1; read -r all </proc/$PPID/task/$PPID/children
for pid in $all; do [ $pid = $$ ] && break; n=$((n + 1)); done
"""


def spawn(deaths: int, work: Path, *args: Arg, **more: Any) -> Result:
    """Run until so many deaths are told: a child that starts late on a busy machine is alive."""
    for _ in range(5):
        result = run("-s", "s", "-P", "pid", *args, cwd=work, **more)
        if len(re.findall(rb"(?m)^spawn-fcgi: child [es]", result.err)) >= deaths:
            break
        harness.end_children()
        (work / "s").unlink()
    return result


def assert_living(result: Result, work: Path, count: int) -> None:
    """Assert that so many children live, are named on stdout and in the PID file, and no others."""
    said = "spawn-fcgi: child spawned successfully: PID: {}\n"
    assert result.out.decode() == "".join(map(said.format, result.pids))
    assert (len(result.pids), sorted(result.pids)) == (count, sorted(harness.my_children()))
    assert all(map(harness.alive, result.pids))
    assert (work / "pid").read_text().splitlines() == [*map(str, result.pids)]


# How one child or the numbered of four end, the exit status, and what is said line by line.
ENDS = [
    ("exec sleep 60", 0, []), ("kill -STOP $$", 0, []), ("exit 0", 0, ["exited with: 0"]),
    ("sleep 0.03; exit 3", 3, ["exited with: 3"]), ("exit 255", 255, ["exited with: 255"]),
    ("exit 126", 126, ["exited with: 126", "not executable"]),
    ("exit 127", 127, ["exited with: 127", "not found"]),
    ("kill -9 $$", 1, ["signaled: 9"]), ("kill -PIPE $$", 1, ["signaled: 13"]),
    ("2) exit 7", 7, ["exited with: 7"]), ("1) exit 0;; 3) exit 0", 0, ["exited with: 0"] * 2),
    ("1) exit 7;; 4) kill -9 $$", 1, ["exited with: 7", "signaled: 9"]),
    ("2) kill -9 $$;; 3) exit 7;; 4) exit 0", 7,
     ["signaled: 9", "exited with: 7", "exited with: 0"]),
    ("*) exit $((n + 10))", 14, [f"exited with: {n}" for n in (11, 12, 13, 14)]),
]  # fmt: skip


@pytest.mark.parametrize(("ends", "status", "said"), ENDS)
def test_each_end_is_told_the_last_failure_counts_and_living_ones_go_on(
    ends: str, status: int, said: list[str], work: Path
) -> None:
    several = ") " in ends
    script = f"{NTH} case $n in {ends};; esac; exec sleep 60" if several else ends
    deaths = sum("not " not in text for text in said)
    args = ("-F", "4" if several else "1", "--", "/bin/sh", "-c", script)
    result = spawn(deaths, work, *args)
    assert (result.status, len(result.lines)) == (status, len(said) + (deaths > 0))
    assert all(text in line for text, line in zip(said, result.lines)), result.lines
    assert deaths == 0 or " -n " in result.lines[-1], "once, after these"
    assert_living(result, work, (4 if several else 1) - deaths)


EXEC = [
    ("./missing", errno.ENOENT, ""), ("./plain/x", errno.ENOTDIR, ""),
    (".", errno.EACCES, "user PATH"), ("./plain", errno.EACCES, "user"),
    ("./text", errno.ENOEXEC, "#!"), ("sleep", errno.ENOENT, "PATH"),
    ("./script", errno.ENOENT, "interpreter"), ("./a\nb\udcff", errno.ENOENT, ""),
    pytest.param("/bin/true", errno.ENOENT, "root", marks=pytest.mark.root),
]  # fmt: skip


@pytest.mark.parametrize("option", ["-n", "-F4"])
@pytest.mark.parametrize(("app", "number", "hint"), EXEC, ids=ascii)
def test_what_cannot_be_executed_is_named_once_with_the_reason_and_the_socket_stays(
    app: str, number: int, hint: str, option: str, work: Path
) -> None:
    for name, text in ("plain", "x"), ("text", "exit 0\n"), ("script", "#!/no/interpreter\n"):
        (work / name).write_text(text)
        (work / name).chmod(0o644 if name == "plain" else 0o755)
    root = ("-c", work) if hint == "root" else ()
    result = run("-s", "s", "-P", "pid", *root, option, "--", app, "arg", cwd=work)
    assert (result.status, result.out, result.err.count(b"\n")) == (number, b"", 1)
    line = os.fsdecode(result.err)
    reason = line.partition("exec failed: " + app.replace("\n", "\\x0a") + ": ")[2]
    assert os.strerror(number) in reason
    hints = [word for word in ("#!", "interpreter", "user", "PATH", "root") if word in reason]
    assert hints == hint.split()
    assert hint != "root" or str(work) in reason
    assert "user" not in hints or f"user {os.getuid()}" in reason
    assert (work / "s").is_socket()
    assert harness.my_children() == []
    assert option == "-n" or (work / "pid").read_bytes() == b""


def test_what_lives_goes_on_beside_what_could_not_be_executed(work: Path) -> None:
    shutil.copy("/bin/sh", work / "app")  # which the first child removes while others are started
    result = spawn(0, work, "-F", "500", "--", "./app", "-c", "rm -f app; exec sleep 60")
    assert (result.status, len(result.lines)) == (errno.ENOENT, 1)
    assert "exec failed: ./app: " in result.lines[0]
    assert_living(result, work, len(result.pids) or 1)


@pytest.mark.parametrize("most", [1, pytest.param(4, marks=pytest.mark.root)])  # with the parent
def test_a_failed_fork_is_status_1_and_leaves_the_started_children(most: int, work: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NPROC, (most, most))

    work.chmod(0o777)
    app = ("/bin/sh", "-c", f"{NTH} [ $n = 1 ] && exit 3; exec sleep 60")
    deaths = int(most > 1)
    result = spawn(deaths, work, "-F", "4", "--", *app, **as_user(STRANGER), preexec_fn=limit)
    assert result.status == 1, "it is the last failure"
    assert f"fork failed: {os.strerror(errno.EAGAIN)}" in result.lines[-1]
    assert len(result.lines) == (3 if deaths else 1)
    assert_living(result, work, most - 1 - deaths)


@contextmanager
def deaf(fd: int, kind: str) -> Iterator[dict[str, Any]]:
    """Yield what makes popen() start the program with an fd that is closed, full or unread."""
    name = {1: "stdout", 2: "stderr"}[fd]
    if kind == "closed":
        yield {name: None, "preexec_fn": lambda: os.close(fd)}
    else:
        reader, writer = os.pipe()
        os.close(reader)
        with open(writer, "wb") as unread, open("/dev/full", "wb") as full:
            yield {name: full if kind == "full" else unread}


FORK, NO_FORK, DIE = ["--", *SLEEP], ["-n", "--", "/no/app"], ["--", "/bin/sh", "-c", "exit 3"]
DEAF = [
    (1, "closed", FORK, 0), (1, "full", FORK, 0), (1, "unread", FORK, 0), (2, "unread", DIE, 3),
    (2, "closed", NO_FORK, 2), (2, "full", NO_FORK, 2), (2, "unread", NO_FORK, 2),
    (2, "closed", ["--", "/no/app"], 2), (2, "unread", ["-d", "missing", *FORK], 255),
]  # fmt: skip


@pytest.mark.parametrize(("fd", "kind", "args", "status"), DEAF)
def test_a_stream_that_takes_nothing_changes_nothing(
    fd: int, kind: str, args: list[str], status: int, work: Path
) -> None:
    with deaf(fd, kind) as stream:
        result = run("-s", "s", "-P", "pid", *args, cwd=work, **stream)
    assert result == (status, b"", b"")
    pids = harness.my_children()
    assert len(pids) == (status == 0)
    assert "-n" in args or (work / "pid").read_text() == "".join(map(str, pids))


@pytest.mark.parametrize(
    ("end", "status"), [("exit 0", 0), ("exit 127", 127), ("kill -PIPE $$", -13)]
)
def test_without_a_fork_the_end_is_the_applications(end: str, status: int, work: Path) -> None:
    args = ("-n", "-F3", "-s", work / "s", "--", "/bin/sh", "-c", f"echo out; echo err >&2; {end}")
    assert run(*args) == (status, b"out\n", b"err\n")
