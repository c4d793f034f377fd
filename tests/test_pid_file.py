"""The PID file: what is in it and when, which files are taken, and which starts leave it alone."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
from pathlib import Path
from resource import RLIMIT_FSIZE
from typing import Any

import harness
import pytest
from harness import NOBODY, SLEEP, Make, Result, assert_refused, run, snapshot

HOSTILE = pytest.mark.hostile
F_GETPIPE_SZ = 1032  # in fcntl since Python 3.10
OLD = b"1111111\n2222222\n3333333\n4444444\n"  # longer than what a start writes
# What was in the file, None if there was none; how many children are started.
CONTENT = [
    pytest.param(None, 1, id="no-file"),
    pytest.param(OLD, 3, id="more-pids-than-will-be-written"),
    pytest.param(b" 12\t\n345\n\n", 1, id="blanks"),
    pytest.param(bytes(9), 1, id="what-a-crash-leaves"),
]


@pytest.mark.parametrize(("old", "children"), CONTENT)
def test_it_has_one_pid_a_line_and_nothing_else(old: Any, children: int, work: Path) -> None:
    (work / "other").mkdir()
    path = work / "p\udcff\nd"  # whatever bytes its name has
    if old is not None:
        path.write_bytes(old)
        path.chmod(0o606)
    args = ("-s", "s", "-P", path.name, "-d", "other", "-F", str(children), "--", *SLEEP)
    result = run(*args, cwd=work, umask=0o027)
    assert (result.status, len(result.pids)) == (0, children), result
    assert path.read_text() == "\n".join(map(str, result.pids))
    assert f"{stat.S_IMODE(path.stat().st_mode):o}" == ("640" if old is None else "606")
    assert os.listdir(work / "other") == [], "its path begins where the caller is"


def test_it_is_complete_and_the_lock_free_before_anything_is_printed(work: Path) -> None:
    path = work / "pid"
    reader, full = os.pipe()
    size = os.write(full, bytes(fcntl.fcntl(full, F_GETPIPE_SZ)))
    args = ("-s", "s", "-P", "pid", "-F", "2", "--", *SLEEP)
    with open(reader, "rb") as out, harness.popen(*args, cwd=work, stdout=full) as process:
        os.close(full)
        try:  # who writes to a full pipe stands still until it is read
            harness.wait_for("the PID file", path.exists)
            harness.wait_for("two PIDs", lambda: re.fullmatch(r"\d+\n\d+", path.read_text()))
            lock = os.open(work, os.O_RDONLY)
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails if somebody has it
            os.close(lock)
            assert process.poll() is None, "it has not printed yet"
            printed = Result(0, out.read()[size:], b"").pids
        finally:
            process.kill()
    assert path.read_text() == "\n".join(map(str, printed))


LINK = "Too many levels of symbolic links"
FAR = " " * 2**21 + "x"  # more than is read at once
# What stays as it is, "secret" being a file with a number beside it.
AT_THE_PATH = [
    pytest.param("pid", lambda path: path.write_text("-1"), "not a PID file", id="negative-number"),
    pytest.param("pid", lambda path: path.write_text(FAR), "not a PID file", id="letter-far-away"),
    pytest.param("pid", os.mkfifo, "not a regular file", id="FIFO", marks=HOSTILE),
    pytest.param("pid", lambda path: path.symlink_to("secret"), LINK, id="link", marks=HOSTILE),
    pytest.param("pid", lambda path: os.link(path.with_name("secret"), path), "another hard link",
                 id="hard-link", marks=HOSTILE),
]  # fmt: skip


@pytest.mark.parametrize(("path", "make", "reason"), AT_THE_PATH)
def test_what_is_no_pid_file_stays(path: str, make: Make, reason: str, work: Path) -> None:
    work.chmod(0o777)
    (work / "secret").write_text("4711")
    make(work / path)
    for entry in work.iterdir():
        entry.chmod(0o666)  # so that the user could write to it
    before = snapshot(work)
    result = run("-s", "s", "-P", path, "--", *SLEEP, cwd=work, timeout=5, **harness.as_user())
    assert_refused(result, f"PID file '{path}'", reason)
    assert snapshot(work) == before


# Owner of the file, mode of its directory; the exit status, and what the file has then.
# The directory is not for all to write, where the kernel itself may refuse.
STICKY = [
    pytest.param(NOBODY, 0o1755, 255, OLD, id="of-another-stays"),
    pytest.param(NOBODY, 0o0755, errno.ENOENT, b"", id="of-another-is-emptied-elsewhere"),
    pytest.param(0, 0o1755, errno.ENOENT, b"", id="of-the-caller-is-emptied"),
]


@pytest.mark.root
@pytest.mark.hostile
@pytest.mark.parametrize(("owner", "mode", "status", "left"), STICKY)
def test_a_strangers_file_in_a_sticky_directory_is_refused(
    owner: int, mode: int, status: int, left: bytes, work: Path
) -> None:
    (work / "pid").write_bytes(OLD)
    os.chown(work / "pid", owner, owner)
    work.chmod(mode)
    result = run("-s", work / "s", "-P", work / "pid", "--", "/no/app")
    assert result.status == status, result
    assert (b"owned by another user" in result.err) is (status == 255), result
    assert (work / "pid").read_bytes() == left


@pytest.mark.hostile
def test_a_link_swapped_in_at_the_path_of_P_leads_nowhere(work: Path, port: str) -> None:
    (work / "secret").write_text("4711")
    before = snapshot(work)["secret"]
    (work / "link").symlink_to("secret")

    def swap() -> None:
        if (work / "pid").exists() and (work / "link").is_symlink():
            os.rename(work / "link", work / "pid")

    args = ("-p", port, "-P", "pid", "--", "/bin/true")
    assert harness.step_through(swap, *args, cwd=work) == 0
    assert (work / "pid").is_symlink(), "it has been swapped in"
    assert snapshot(work)["secret"] == before


def test_a_service_that_runs_keeps_its_pid_file(port: str, work: Path) -> None:
    args = ("-p", port, "-P", "pid", "--", *SLEEP)
    assert run(*args, cwd=work).status == 0
    before = snapshot(work)
    assert_refused(run(*args, cwd=work), port, "already in use")
    assert snapshot(work) == before
    assert (work / "pid").read_bytes() != b""


# What fails after the PID file is opened, what is said, and what the file has then.
LATER = [
    pytest.param(["-s", "no/s", "app"], "bind to no/s", OLD, id="no-socket"),
    pytest.param(["-s", "s", "-d", "no", "app"], "chdir to 'no'", b"", id="no-directory"),
    pytest.param(["-n", "-s", "s", "app"], "exec failed", OLD, id="ignored-without-a-fork"),
]


@pytest.mark.parametrize(("args", "said", "left"), LATER)
def test_old_pids_go_as_soon_as_the_socket_is_ours_and_not_before(
    args: list[str], said: str, left: bytes, work: Path
) -> None:
    (work / "pid").write_bytes(OLD)
    result = run("-P", "pid", *args, cwd=work)
    assert said in result.err.decode(), result
    assert (work / "pid").read_bytes() == left


def test_a_full_disk_is_told_and_ends_no_child(work: Path, port: str) -> None:
    full = harness.limiting(RLIMIT_FSIZE, 3)  # within a PID
    result = run("-p", port, "-F2", "-P", "pid", "--", *SLEEP, cwd=work, preexec_fn=full)
    assert (result.status, len(result.lines)) == (0, 1), result
    assert result.lines[0].endswith("cannot write PID file 'pid': File too large")
    assert [harness.alive(pid) for pid in result.pids] == [True, True]
    assert (work / "pid").read_bytes() == b""
