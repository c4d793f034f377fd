"""The PID file: what is in it and when, which files are taken, and which starts leave it alone."""

from __future__ import annotations

import fcntl
import os
import re
import select
import socket
import stat
from pathlib import Path
from typing import Any

import harness
import pytest
from harness import NOBODY, SLEEP, Result, as_user, assert_refused, run, snapshot

OLD = b"1111111\n2222222\n3333333\n4444444\n"  # longer than what a start writes


def text_of(result: Result) -> bytes:
    """Return what a PID file has to hold after a run."""
    return "\n".join(map(str, result.pids)).encode()


@pytest.mark.parametrize(("children", "old"), [(1, None), (3, OLD)], ids=["new", "old"])
def test_it_has_one_pid_a_line_and_no_newline_at_the_end(
    children: int, old: bytes | None, work: Path
) -> None:
    (work / "other").mkdir()
    path = work / "p\udcff\nd"  # whatever bytes its name has
    if old:
        path.write_bytes(old)
        path.chmod(0o606)
    args = ("-s", "s", "-P", path.name, "-d", "other", "-F", str(children), "--", *SLEEP)
    result = run(*args, cwd=work, umask=0o027)
    assert (result.status, len(result.pids)) == (0, children)
    assert path.read_bytes() == text_of(result)
    assert stat.S_IMODE(path.stat().st_mode) == (0o606 if old else 0o640)
    assert os.listdir(work / "other") == []


def test_without_a_fork_it_is_ignored(work: Path) -> None:
    assert run("-n", "-s", work / "s", "-P", work / "no/pid", "--", "/bin/true") == (0, b"", b"")


def test_it_is_complete_and_the_lock_free_before_anything_is_printed(work: Path) -> None:
    reader, full = os.pipe()
    size = 0
    while select.select([], [full], [], 0)[1]:
        size += os.write(full, bytes(select.PIPE_BUF))
    args = ("-s", "s", "-P", "pid", "-F", "2", "--", *SLEEP)
    path = work / "pid"
    with open(reader, "rb") as out, harness.popen(*args, cwd=work, stdout=full) as process:
        os.close(full)
        try:  # who writes to a full pipe stands still until it is read
            harness.wait_for(path.exists)
            harness.wait_for(lambda: re.fullmatch(rb"\d+\n\d+", path.read_bytes()))
            lock = os.open(work, os.O_RDONLY)
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails if somebody has it
            os.close(lock)
            assert process.poll() is None
            printed = Result(process.returncode, out.read()[size:], b"")
        finally:
            process.kill()
    assert path.read_bytes() == text_of(printed)


@pytest.mark.parametrize("path", ["/dev/null", "no/pid", "", "file/pid", "not-ours", "stale"])
def test_what_is_no_pid_file_is_named_before_a_stale_socket_goes(path: str, work: Path) -> None:
    (work / "file").touch()
    (work / "not-ours").touch(mode=0o444)
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(work / "stale"))
    work.chmod(0o777)
    before = snapshot(work)
    assert_refused(run("-s", "stale", "-P", path, "--", *SLEEP, cwd=work, **as_user()), path)
    assert snapshot(work) == before


@pytest.mark.root
@pytest.mark.parametrize(("owner", "mode"), [(NOBODY, 0o1755), (NOBODY, 0o755), (0, 0o1755)])
def test_a_strangers_file_in_a_sticky_directory_is_refused(
    owner: int, mode: int, work: Path
) -> None:
    (work / "pid").write_bytes(OLD)
    os.chown(work / "pid", owner, owner)
    work.chmod(mode)  # not for all to write, where the kernel itself may refuse
    result = run("-s", work / "s", "-P", work / "pid", "--", "/no/app")
    refused = owner == NOBODY and mode == 0o1755
    assert (result.status == 255) is refused
    assert (work / "pid").read_bytes() == (OLD if refused else b""), "nothing lives"


@pytest.mark.parametrize("where", ["-s", "-p"])
def test_a_start_while_the_service_runs_leaves_its_pid_file_alone(
    where: str, port: str, work: Path
) -> None:
    args: tuple[Any, ...] = (where, work / "s" if where == "-s" else port, "-P", work / "pid")
    assert run(*args, "--", *SLEEP).status == 0
    before = snapshot(work)
    assert_refused(run(*args, "--", *SLEEP), args[1], "already in use")
    assert snapshot(work) == before


@pytest.mark.parametrize(
    ("line", "left"),
    [("-s no/s", OLD), ("-s s -d missing", b""), ("-s s -- ./missing", b""),
     pytest.param("-s s -S -c missing", b"", marks=pytest.mark.root),
     pytest.param("-s s -S -u nosuch", OLD, marks=pytest.mark.root)],
)  # fmt: skip
def test_old_pids_go_as_soon_as_the_socket_is_ours_and_not_before(
    line: str, left: bytes, work: Path
) -> None:
    (work / "pid").write_bytes(OLD)
    app = () if "--" in line else ("--", *SLEEP)
    assert run("-P", "pid", *line.split(), *app, cwd=work).status != 0
    assert (work / "pid").read_bytes() == left


CONTENTS = [
    (b"#!/bin/sh\n", False), (b"12x", False), (b"-1", False), (b" " * 70000 + b"x", False),
    (b"", True), (b"1", True), (b" 12\t\n345\n\n", True), (b"1" * 70000, True), (bytes(9), True),
]  # fmt: skip


@pytest.mark.parametrize(("content", "taken"), CONTENTS, ids=lambda value: ascii(value)[:20])
def test_only_what_looks_like_a_pid_file_is_overwritten(
    content: bytes, taken: bool, work: Path
) -> None:
    (work / "pid").write_bytes(content)
    before = snapshot(work)
    result = run("-s", "s", "-P", "pid", "--", *SLEEP, cwd=work)
    if taken:
        assert (work / "pid").read_bytes() == text_of(result) != b""
    else:
        assert_refused(result, "pid", "not a PID file")
        assert snapshot(work) == before
