"""The PID file: what is in it and when, which files are taken, and which starts leave it alone."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import select
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from resource import RLIMIT_FSIZE, getpagesize
from typing import Any

import harness
import pytest
from harness import NOBODY, SLEEP, Make, Result, assert_refused, nothing, run, snapshot

ROOT, HOSTILE = pytest.mark.root, pytest.mark.hostile
OLD = b"1111111\n2222222\n3333333\n4444444\n"  # longer than what a start writes


def text_of(result: Result) -> bytes:
    """Return what a PID file has to hold after a run."""
    return "\n".join(map(str, result.pids)).encode()


# What was in the file, None if there was none; how many children are started.
CONTENT = [
    pytest.param(None, 1, id="no-file"),
    pytest.param(b"", 2, id="nothing"),
    pytest.param(b"1", 3, id="one-pid"),
    pytest.param(OLD, 3, id="more-pids-than-will-be-written"),
    pytest.param(b" 12\t\n345\n\n", 1, id="blanks"),
    pytest.param(bytes(9), 1, id="what-a-crash-leaves"),
    pytest.param(b"1" * 70000, 1, id="more-digits-than-are-read-at-once"),
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
    assert path.read_bytes() == text_of(result)
    assert f"{stat.S_IMODE(path.stat().st_mode):o}" == ("640" if old is None else "606")
    assert os.listdir(work / "other") == [], "its path begins where the caller is"


def test_without_a_fork_it_is_ignored(work: Path) -> None:
    result = run("-n", "-s", work / "s", "-P", work / "no/pid", "--", "/bin/true")
    assert result == (0, b"", b"")
    assert (work / "s").is_socket()


def test_it_is_complete_and_the_lock_free_before_anything_is_printed(work: Path) -> None:
    reader, full = os.pipe()
    size = 0
    while select.select([], [full], [], 0)[1]:
        size += os.write(full, bytes(select.PIPE_BUF))
    args = ("-s", "s", "-P", "pid", "-F", "2", "--", *SLEEP)
    path = work / "pid"
    with open(reader, "rb") as out, harness.popen(*args, cwd=work, stdout=full) as process:
        os.close(full)

        def complete() -> bool:
            return path.exists() and bool(re.fullmatch(rb"\d+\n\d+", path.read_bytes()))

        try:  # who writes to a full pipe stands still until it is read
            harness.wait_for("two PIDs in the PID file", complete)
            lock = os.open(work, os.O_RDONLY)
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails if somebody has it
            os.close(lock)
            assert process.poll() is None, "it has not printed yet"
            printed = Result(process.returncode, out.read()[size:], b"")
        finally:
            process.kill()
    assert path.read_bytes() == text_of(printed)


def fifo_with_reader(path: Path) -> Any:
    """Make a FIFO that has a reader, as long as the result is kept."""
    os.mkfifo(path)
    return open(path, "r+b", buffering=0)


def content(text: bytes) -> Make:
    """Return what puts a file with this content somewhere."""
    return lambda path: path.write_bytes(text)


NOT_REGULAR, NOT_PIDS = "not a regular file", "not a PID file"
LINK = "Too many levels of symbolic links"
# What stays as it is, "secret" being a file with a number beside it, and "s" a stale socket.
AT_THE_PATH = [
    pytest.param("pid", content(b"#!/bin/sh\n"), NOT_PIDS, id="script"),
    pytest.param("pid", content(b"12x"), NOT_PIDS, id="number-and-a-letter"),
    pytest.param("pid", content(b"-1"), NOT_PIDS, id="negative-number"),
    pytest.param("pid", content(b" " * 70000 + b"x"), NOT_PIDS, id="letter-far-behind"),
    pytest.param("pid", os.mkdir, "Is a directory", id="directory"),
    pytest.param("pid", os.mkfifo, NOT_REGULAR, id="FIFO", marks=HOSTILE),
    pytest.param("pid", fifo_with_reader, NOT_REGULAR, id="FIFO-with-a-reader", marks=HOSTILE),
    pytest.param("pid", lambda path: path.symlink_to("secret"), LINK, id="link", marks=HOSTILE),
    pytest.param("pid", lambda path: path.symlink_to("no"), LINK, id="link-to-none", marks=HOSTILE),
    pytest.param("pid", lambda path: os.link(path.with_name("secret"), path), "another hard link",
                 id="hard-link", marks=HOSTILE),
    pytest.param("pid", lambda path: path.touch(0o444), "Permission denied", id="of-others"),
    pytest.param("fifo/pid", lambda path: os.mkfifo(path.parent), "Not a directory",
                 id="in-a-FIFO", marks=HOSTILE),
    pytest.param("file/pid", lambda path: path.parent.touch(), "Not a directory", id="in-a-file"),
    pytest.param("no/pid", nothing, "No such file or directory", id="in-no-directory"),
    pytest.param("", nothing, "No such file or directory", id="no-name"),
    pytest.param("/dev/null", nothing, NOT_REGULAR, id="device"),
    pytest.param("s", nothing, "No such device or address", id="socket"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "make", "reason"), AT_THE_PATH)
def test_what_is_no_pid_file_stays(path: str, make: Make, reason: str, work: Path) -> None:
    umask = os.umask(0)  # the user could do anything
    try:
        work.chmod(0o777)
        (work / "secret").write_text("4711")
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(str(work / "s"))
        kept = make(work / path)
    finally:
        os.umask(umask)
    before = snapshot(work)
    result = run("-s", "s", "-P", path, "--", *SLEEP, cwd=work, timeout=5, **harness.as_user())
    assert_refused(result, f"PID file '{path}'", reason)
    assert snapshot(work) == before
    del kept


# Owner and content of the file, mode of its directory; the exit status, and what the file has then.
# The directory is not for all to write, where the kernel itself may refuse.
STICKY = [
    pytest.param(NOBODY, OLD, 0o1755, 255, OLD, id="PIDs-of-another-stay"),
    pytest.param(NOBODY, b"", 0o1755, 255, b"", id="empty-file-of-another-is-refused"),
    pytest.param(NOBODY, OLD, 0o0755, errno.ENOENT, b"", id="PIDs-of-another-go-elsewhere"),
    pytest.param(0, OLD, 0o1755, errno.ENOENT, b"", id="PIDs-of-the-caller-go"),
]


@pytest.mark.root
@pytest.mark.hostile
@pytest.mark.parametrize(("owner", "old", "mode", "status", "left"), STICKY)
def test_a_strangers_file_in_a_sticky_directory_is_refused(
    owner: int, old: bytes, mode: int, status: int, left: bytes, work: Path
) -> None:
    (work / "pid").write_bytes(old)
    os.chown(work / "pid", owner, owner)
    work.chmod(mode)
    result = run("-s", work / "s", "-P", work / "pid", "--", "/no/app")
    assert result.status == status, result
    assert (b"belongs to another user" in result.err) is (status == 255), result
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


@pytest.mark.parametrize("where", ["-s", "-p"], ids=["Unix", "TCP"])
def test_a_service_that_runs_keeps_its_pid_file(where: str, port: str, work: Path) -> None:
    address = port if where == "-p" else "s"
    args = (where, address, "-P", "pid", "--", *SLEEP)
    assert run(*args, cwd=work).status == 0
    before = snapshot(work)
    assert_refused(run(*args, cwd=work), address, "already in use")
    assert snapshot(work) == before
    assert (work / "pid").read_bytes() != b""


# What fails after the PID file is opened, what is said, and what the file has then.
LATER = [
    pytest.param(["-s", "no/s", "app"], "bind to no/s", OLD, id="no-socket"),
    pytest.param(["-s", "s", "-d", "no", "app"], "chdir to 'no'", b"", id="no-directory"),
    pytest.param(["-s", "s", "app"], "exec failed", b"", id="no-application"),
    pytest.param(["-s", "s", "-Sc", "no", "app"], "chroot to 'no'", b"", id="no-root", marks=ROOT),
    pytest.param(["-s", "s", "-Su", "no", "app"], "no such user", OLD, id="no-user", marks=ROOT),
]


@pytest.mark.parametrize(("args", "said", "left"), LATER)
def test_old_pids_go_as_soon_as_the_socket_is_ours_and_not_before(
    args: list[str], said: str, left: bytes, work: Path
) -> None:
    (work / "pid").write_bytes(OLD)
    result = run("-P", "pid", *args, cwd=work)
    assert said in result.err.decode(), result
    assert (work / "pid").read_bytes() == left


def fill_disk() -> None:
    """Make the current directory a disk of one page, and fill that."""
    harness.own_mounts()
    harness.call("mount", b"none", os.fsencode(os.getcwd()), b"tmpfs", 0, b"size=4k")
    os.chdir(os.getcwd())
    Path("filler").write_bytes(bytes(getpagesize()))


FULL = [
    pytest.param(harness.limiting(RLIMIT_FSIZE, 0), "File too large", id="limit-of-no-byte"),
    pytest.param(harness.limiting(RLIMIT_FSIZE, 3), "File too large", id="limit-within-a-PID"),
    pytest.param(fill_disk, "No space left on device", id="disk", marks=ROOT),
]


@pytest.mark.parametrize(("prepare", "reason"), FULL)
def test_a_full_disk_is_told_and_ends_no_child(
    prepare: Callable[[], None], reason: str, work: Path, port: str
) -> None:
    args = ("-p", port, "-F2", "-P", "pid", "--", *SLEEP)
    result = run(*args, cwd=work, preexec_fn=prepare)
    assert (result.status, len(result.lines)) == (0, 1), result
    assert result.lines[0].endswith(f"cannot write PID file 'pid': {reason}")
    assert [harness.alive(pid) for pid in result.pids] == [True, True]
    pid_file = Path(f"/proc/{result.pids[0]}/cwd/pid")  # the disk is theirs alone
    assert pid_file.read_bytes() == b""
