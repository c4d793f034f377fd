"""The PID file: what is in it and when, and which files are left as they are."""

from __future__ import annotations

import errno
import os
import pathlib
import re
import resource
import select
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import harness
import pytest
from harness import (
    NOBODY,
    SLEEP,
    Result,
    as_user,
    assert_refused,
    by,
    free_port,
    run,
    snapshot,
    tampering,
    trace,
)

OLD = b"1111111\n2222222\n3333333\n4444444\n"  # longer than what a start writes
UNWRITTEN = "If it cannot be written (full disk), say so on stderr"
CHECKED = "Errors before any work: bad number or address"


def start(*args: harness.Arg, **kwargs: Any) -> Result:
    """Start some `sleep` that live, and return the Result."""
    result = run(*args, "--", *SLEEP, **kwargs)
    assert (result.status, result.err) == (0, b"")
    return result


def text_of(pids: list[int]) -> bytes:
    """Return what a PID file of these children has in it."""
    return "\n".join(map(str, pids)).encode()


# What is in it


@pytest.mark.parametrize("children", [1, 4])
def test_it_has_one_pid_a_line_and_no_newline_at_the_end(work: pathlib.Path, children: int) -> None:
    result = start("-s", work / "s", "-P", work / "pid", "-F", str(children))
    assert len(result.pids) == children
    assert all(map(harness.alive, result.pids))
    assert (work / "pid").read_bytes() == text_of(result.pids)


@pytest.mark.alone
@pytest.mark.differs(1)
def test_only_children_that_live_are_in_it(work: pathlib.Path) -> None:
    # mkdir(2) chooses two of the children, the others end.
    choose = "mkdir one 2>&- || mkdir two || exit 3; exec sleep 60"
    args = ["-s", "s", "-P", "pid", "-F", "5", "--", "/bin/sh", "-c", choose]
    result = run(*args, cwd=work)
    assert (result.status, len(result.pids)) == (3, 2)
    assert all(map(harness.alive, result.pids))
    assert (work / "pid").read_bytes() == text_of(result.pids)


@pytest.mark.alone
@pytest.mark.parametrize("children", ["1", pytest.param("3", marks=pytest.mark.differs(1))])
@pytest.mark.parametrize(("app", "status"), [("/bin/false", 1), ("/missing/app", 2)])
@pytest.mark.parametrize("before", [None, OLD], ids=["new", "old"])
def test_it_is_there_and_empty_when_no_child_lives(
    work: pathlib.Path, before: bytes | None, app: str, status: int, children: str
) -> None:
    if before:
        (work / "pid").write_bytes(before)
    result = run("-s", work / "s", "-P", work / "pid", "-F", children, "--", app)
    assert (result.status, result.out) == (status, b"")
    assert (work / "pid").read_bytes() == b""


@contextmanager
def full_pipe() -> Iterator[tuple[BinaryIO, BinaryIO, int]]:
    """Make a pipe that takes no more; yield its ends, and how much is to be read from it first."""
    reader, writer = os.pipe()
    with open(reader, "rb") as stdout, open(writer, "wb", buffering=0) as full:
        os.set_blocking(writer, False)
        size = 0
        while written := full.write(b"\0" * select.PIPE_BUF):
            size += written
        os.set_blocking(writer, True)
        yield stdout, full, size


@pytest.mark.parametrize("children", [1, 4])
def test_it_is_complete_before_anything_is_printed(work: pathlib.Path, children: int) -> None:
    (work / "pid").touch()
    lines = rb"\d+\n" * (children - 1) + rb"\d+"
    args = ["-s", "s", "-P", "pid", "-F", str(children), "--", *SLEEP]
    with (
        full_pipe() as (stdout, full, size),
        harness.popen(*args, cwd=work, stdout=full) as process,
    ):
        try:  # who writes to a full pipe stands still until it is read
            full.close()
            harness.wait_for(lambda: re.fullmatch(lines, (work / "pid").read_bytes()))
            assert process.poll() is None
            result = Result(0, stdout.read()[size:], b"")
            assert process.wait(10) == 0
        finally:
            process.kill()
    assert (work / "pid").read_bytes() == text_of(result.pids)


@pytest.mark.alone
@pytest.mark.differs(1)
def test_it_is_complete_before_a_death_is_told(work: pathlib.Path) -> None:
    # mkdir(2) chooses the child that lives; it has to end, though, for strace.
    args = ["-s", "s", "-P", "pid", "-F", "3", "--", "/bin/sh", "-c", "mkdir one && sleep 0.5"]
    result, calls = trace("write", work / "strace", *args, cwd=work)
    assert (result.status, len(result.pids), len(result.lines)) == (1, 1, 2)
    told = [number for number, call in enumerate(calls) if re.search(r"write\([12], \"spawn", call)]
    [written] = [number for number, call in enumerate(calls) if f'"{result.pids[0]}"' in call]
    assert written < told[0]


def assert_unwritten(result: Result, path: pathlib.Path) -> None:
    """Assert that stderr says that a PID file could not be written, and all else went well."""
    assert (result.status, len(result.pids)) == (0, 2)
    assert all(map(harness.alive, result.pids))
    assert result.err
    if not harness.on_c_tool():
        assert len(result.lines) == 1
        assert str(path) in result.lines[0]


@pytest.mark.root
def test_a_full_disk_is_named_and_the_children_go_on(work: pathlib.Path) -> None:
    full = work / "full"
    full.mkdir()
    fill = 'mount -t tmpfs -o size=4k none "$0" && cat /dev/zero 2>&- >"$0/fill"; exec "$@"'
    with by("unshare", "-m", "sh", "-c", fill, str(full)):
        result = run("-s", work / "s", "-P", full / "pid", "-F", "2", "--", *SLEEP)
    assert_unwritten(result, full / "pid")
    assert harness.connects(work / "s")


@pytest.mark.differs(UNWRITTEN)
def test_a_file_size_limit_is_named_and_the_children_go_on(work: pathlib.Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))

    path = work / "pid"
    result = run("-s", work / "s", "-P", path, "-F", "2", "--", *SLEEP, preexec_fn=limit)
    assert_unwritten(result, path)
    assert harness.connects(work / "s")


@pytest.mark.differs(UNWRITTEN)
def test_a_disk_that_does_nothing_any_more_is_named_and_the_children_go_on(
    work: pathlib.Path,
) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))

    path = work / "pid"
    with by(*tampering("ftruncate", "error=EIO:when=2+")):
        result = run("-s", work / "s", "-P", path, "-F", "2", "--", *SLEEP, preexec_fn=limit)
    assert_unwritten(result, path)
    assert harness.connects(work / "s")


@pytest.mark.differs(UNWRITTEN)
@pytest.mark.parametrize("size", [1, 3])
def test_half_a_pid_is_not_left_in_the_file(work: pathlib.Path, size: int) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    path = work / "pid"
    result = run("-s", work / "s", "-P", path, "-F", "2", "--", *SLEEP, preexec_fn=limit)
    assert_unwritten(result, path)
    assert path.read_bytes() == b""  # the PID of somebody else, as likely as not


# Which file it is


@pytest.mark.parametrize("umask", [0, 0o022, 0o027, 0o077, 0o777], ids=oct)
def test_a_new_file_has_mode_0644_less_the_umask(work: pathlib.Path, umask: int) -> None:
    start("-s", work / "s", "-P", work / "pid", umask=umask)
    assert stat.S_IMODE((work / "pid").stat().st_mode) == 0o644 & ~umask


def test_an_old_file_is_written_anew_and_keeps_inode_owner_and_mode(work: pathlib.Path) -> None:
    path = work / "pid"
    path.write_bytes(OLD)
    path.chmod(0o606)
    if os.getuid() == 0:
        os.chown(path, NOBODY, NOBODY)
    before = path.stat()
    result = start("-s", work / "s", "-P", path)
    after = path.stat()
    assert path.read_bytes() == text_of(result.pids)
    assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)
    assert (after.st_uid, after.st_gid) == (before.st_uid, before.st_gid)


def test_a_link_to_a_file_is_followed(work: pathlib.Path) -> None:
    (work / "target").write_bytes(OLD)
    (work / "pid").symlink_to("target")
    result = start("-s", work / "s", "-P", work / "pid")
    assert (work / "pid").is_symlink()
    assert (work / "target").read_bytes() == text_of(result.pids)


@pytest.mark.parametrize("name", [b" a b ", b"\xff\xfe\xe9", b"a\nb", b"-P"])
def test_its_path_is_taken_byte_for_byte(work: pathlib.Path, name: bytes) -> None:
    result = start("-s", "s", "-P", name, cwd=work)
    assert sorted(os.listdir(os.fsencode(work))) == sorted([name, b"s"])
    with open(os.fsencode(work) + b"/" + name, "rb") as file:
        assert file.read() == text_of(result.pids)


def test_a_relative_path_is_the_callers_whatever_the_directory_of_the_children(
    work: pathlib.Path,
) -> None:
    (work / "other").mkdir()
    result = start("-s", work / "s", "-P", "pid", "-d", work / "other", cwd=work)
    assert (work / "pid").read_bytes() == text_of(result.pids)
    assert not snapshot(work / "other")


@pytest.mark.root
def test_it_is_opened_as_the_caller_and_not_as_the_user(work: pathlib.Path) -> None:
    result = start("-p", str(free_port()), "-P", work / "pid", "-u", str(NOBODY))
    assert harness.state(result.pids[0]).uids == [NOBODY] * 4
    assert (work / "pid").read_bytes() == text_of(result.pids)
    assert ((work / "pid").stat().st_uid, (work / "pid").stat().st_gid) == (0, 0)


@pytest.mark.root
@pytest.mark.parametrize("full", [True, False], ids=["full path", "relative path"])
def test_it_is_outside_the_chroot(work: pathlib.Path, full: bool) -> None:
    (work / "jail").mkdir()
    path = str(work / "pid") if full else "pid"
    result = run("-s", "/s", "-P", path, "-c", "jail", "--", "/missing/app", cwd=work)
    assert result.status == 2
    assert (work / "pid").read_bytes() == b""
    assert not snapshot(work / "jail").keys() - {"s"}


@pytest.mark.parametrize("make", [None, os.mkfifo, pathlib.Path.touch])
def test_without_a_fork_it_is_ignored(
    work: pathlib.Path, make: Callable[[pathlib.Path], None] | None
) -> None:
    if make:
        make(work / "pid")
    before = snapshot(work)
    with harness.running("-s", work / "s", "-P", work / "pid") as process:
        assert process.poll() is None
        assert {name: seen for name, seen in snapshot(work).items() if name != "s"} == before


# Which files are refused


def link_to_itself(path: pathlib.Path) -> None:
    """Make a symbolic link that leads nowhere for ever."""
    path.symlink_to(path.name)


def dangling_link(path: pathlib.Path) -> None:
    """Make a symbolic link to nothing."""
    path.symlink_to("missing")


def link_to_fifo(path: pathlib.Path) -> None:
    """Make a symbolic link to a FIFO."""
    os.mkfifo(path.with_name("target"))
    path.symlink_to("target")


def unix_socket(path: pathlib.Path) -> None:
    """Make a Unix socket that nobody has open."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))


def device(path: pathlib.Path) -> None:
    """Make a character device: the null device."""
    os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 3))


@pytest.mark.parametrize(
    "make",
    [
        os.mkfifo,
        os.mkdir,
        unix_socket,
        link_to_fifo,
        dangling_link,
        link_to_itself,
        pytest.param(device, marks=pytest.mark.root),
    ],
)
def test_what_is_no_regular_file_is_refused_and_stays_as_it_is(
    work: pathlib.Path, make: Callable[[pathlib.Path], object]
) -> None:
    make(work / "pid")
    before = snapshot(work)
    result = run("-s", work / "s", "-P", work / "pid", "--", *SLEEP, timeout=5)
    assert_refused(result, work / "pid")
    assert snapshot(work) == before


@pytest.mark.parametrize("path", ["missing/pid", "file/pid", ""])
def test_a_path_that_cannot_be_opened_is_refused(work: pathlib.Path, path: str) -> None:
    (work / "file").write_bytes(OLD)
    before = snapshot(work)
    assert_refused(run("-s", "s", "-P", path, "--", *SLEEP, cwd=work), path)
    assert snapshot(work) == before


@pytest.mark.parametrize("there", [True, False], ids=["read-only file", "read-only directory"])
def test_a_file_that_the_caller_may_not_write_is_refused(work: pathlib.Path, there: bool) -> None:
    (work / "open").mkdir()
    (work / "open").chmod(0o777)
    if there:
        (work / "pid").write_bytes(OLD)
        (work / "pid").chmod(0o444)
    work.chmod(0o555)
    try:
        before = snapshot(work)
        result = run("-s", work / "open/s", "-P", work / "pid", "--", *SLEEP, **as_user())
        assert_refused(result, work / "pid")
        assert snapshot(work) == before
        assert not snapshot(work / "open")
    finally:
        work.chmod(0o755)


# Starts that fail


@pytest.mark.differs(2)
@pytest.mark.parametrize("unix", [True, False], ids=["unix", "tcp"])
def test_a_start_while_the_service_runs_leaves_its_pid_file_alone(
    work: pathlib.Path, unix: bool
) -> None:
    where = ["-s", str(work / "s")] if unix else ["-p", str(free_port())]
    start(*where, "-P", work / "pid", "-F", "2")
    before = snapshot(work)
    assert_refused(run(*where, "-P", work / "pid", "--", *SLEEP), where[1])
    assert snapshot(work) == before


@pytest.mark.parametrize("unix", [True, False], ids=["unix", "tcp"])
def test_a_new_file_stays_if_the_address_is_in_use(work: pathlib.Path, unix: bool) -> None:
    # Another start, the one that has the address, may have opened the same file by now.
    where = ["-s", str(work / "s")] if unix else ["-p", str(free_port())]
    start(*where)
    assert_refused(run(*where, "-P", work / "pid", "--", *SLEEP), where[1])
    assert (work / "pid").read_bytes() == b""


SOME_USE = ["-s", "s", "--", *SLEEP]
wrong_use = pytest.mark.parametrize(
    "args",
    [
        pytest.param(["-Z", *SOME_USE], id="option", marks=pytest.mark.differs(7)),
        pytest.param(["-F", "x", *SOME_USE], id="number", marks=pytest.mark.differs(8)),
        pytest.param(["-b", "1.5", *SOME_USE], id="backlog", marks=pytest.mark.differs(8)),
        pytest.param(
            ["-a", "localhost", "-p", "9", "--", *SLEEP],
            id="host name",
            marks=pytest.mark.differs(CHECKED),
        ),
        pytest.param(["-p", "9", *SOME_USE], id="two sockets"),
        pytest.param(["--", *SLEEP], id="no socket"),
        pytest.param(["-s", "s"], id="no application"),
        pytest.param(["-s", "s" * 108, "--", *SLEEP], id="long path"),
    ],
)
failed_step = pytest.mark.parametrize(
    "args",
    [
        pytest.param(["-u", "nosuchuser", *SOME_USE], id="user", marks=pytest.mark.root),
        pytest.param(["-G", "nosuchgroup", *SOME_USE], id="group", marks=pytest.mark.root),
        pytest.param(["-u", "0", *SOME_USE], id="root", marks=pytest.mark.root),
        pytest.param(["-c", "missing", *SOME_USE], id="chroot", marks=pytest.mark.root),
        pytest.param(["-d", "missing", *SOME_USE], id="directory"),
        pytest.param(["-a", "192.0.2.1", "-p", "54321", "--", *SLEEP], id="address"),
        pytest.param(["-s", "missing/s", "--", *SLEEP], id="no directory for the socket"),
        pytest.param(["-s", "/dev", "--", *SLEEP], id="no socket at its path"),
    ],
)


@wrong_use
@pytest.mark.parametrize("old", [True, False], ids=["old", "new"])
def test_wrong_use_leaves_the_file_alone(work: pathlib.Path, args: list[str], old: bool) -> None:
    if old:
        (work / "pid").write_bytes(OLD)
    before = snapshot(work)
    result = run("-P", "pid", *args, cwd=work)
    assert (result.status, result.out) == (255, b"")
    assert snapshot(work) == before


@failed_step
@pytest.mark.differs(2)
def test_a_start_that_fails_leaves_an_old_file_alone(work: pathlib.Path, args: list[str]) -> None:
    (work / "pid").write_bytes(OLD)
    before = snapshot(work)
    assert_refused(run("-P", "pid", *args, cwd=work))
    assert snapshot(work) == before


@failed_step
def test_a_start_that_fails_leaves_a_new_file_empty(work: pathlib.Path, args: list[str]) -> None:
    # It does not remove it: another start, one that works, may have it open by now.
    assert_refused(run("-P", "pid", *args, cwd=work))
    assert (work / "pid").read_bytes() == b""


def test_what_is_no_regular_file_is_refused_before_a_stale_socket_goes(work: pathlib.Path) -> None:
    os.mkfifo(work / "pid")
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(os.fspath(work / "s"))
    before = snapshot(work)
    reader = os.open(work / "pid", os.O_RDONLY | os.O_NONBLOCK)
    try:
        result = run("-s", work / "s", "-P", work / "pid", "--", *SLEEP, timeout=5)
    finally:
        os.close(reader)
    assert_refused(result, work / "pid")
    assert snapshot(work) == before


@pytest.mark.differs("it has no such step")
def test_a_file_that_cannot_be_emptied_is_named_and_nothing_is_spawned(work: pathlib.Path) -> None:
    with by(*tampering("ftruncate", "error=EIO")):
        result = run("-s", work / "s", "-P", work / "pid", "--", *SLEEP)
    assert_refused(result, work / "pid", os.strerror(errno.EIO))
    assert [*snapshot(work)] == ["pid"]
