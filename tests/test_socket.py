"""The listening socket: address, backlog, mode and owner, what may be at its path, who wins."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import stat
import struct
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from socket import AF_INET, AF_INET6, AF_UNIX, SOCK_DGRAM, SOCK_STREAM, getaddrinfo, socket

import harness
import pytest
from harness import NOBODY, SLEEP, Arg, as_user, assert_refused, connects, run, snapshot

TRUE = ("--", "/bin/true")
SOMAXCONN = int(Path("/proc/sys/net/core/somaxconn").read_text())
ROUNDS = int(os.environ.get("SPAWN_FCGI_ROUNDS", "2"))  # of several starts at once
IN_CREATE, IN_ATTRIB = 0x100, 0x4
# Says what fd 0 is. On a listening TCP socket tcpi_sacked, in TCP_INFO, is the backlog.
DESCRIBE = """import os, socket, sys
s = socket.socket(fileno=0)
options = socket.SO_TYPE, socket.SO_REUSEADDR, socket.SO_ACCEPTCONN
print(*[s.getsockopt(socket.SOL_SOCKET, option) for option in options], os.get_blocking(0))
print(s.getsockname())
if s.family != socket.AF_UNIX:
    print(int.from_bytes(s.getsockopt(6, 11, 104)[28:32], sys.byteorder))
"""


def described(*args: Arg) -> list[str]:
    """Return the address and, of TCP, the backlog that an application finds fd 0 to have."""
    result = run("-n", *args, "--", sys.executable, "-ISc", DESCRIBE)
    assert result.status == 0, result
    kind, *more = result.out.decode().splitlines()
    assert kind == f"{int(SOCK_STREAM)} 1 1 True", "a stream, reusable, listens, blocks"
    return more


def bind(path: Path, kind: int = SOCK_STREAM) -> socket:
    """Return a socket that is bound to a Unix path and does not listen."""
    sock = socket(AF_UNIX, kind)
    sock.bind(str(path))
    return sock


@pytest.mark.parametrize(
    ("args", "host"),
    [([], "0.0.0.0"), (["-a127.0.0.1"], "127.0.0.1"), (["-a192.0.2.1"], "192.0.2.1"),
     (["-a", "::1"], "::1"), (["-a", "::"], "::"), (["-a", "fe80::1%lo"], "fe80::1%lo")],
)  # fmt: skip
def test_an_address_is_bound_or_named_where_the_machine_has_it_not(
    args: list[str], host: str, port: str
) -> None:
    family = AF_INET6 if ":" in host else AF_INET
    try:
        with socket(family) as probe:
            probe.bind(getaddrinfo(host, port, family)[0][4])
    except OSError as error:  # it may have no IPv6
        result = run("-n", "-p", port, *args, *TRUE)
        assert_refused(result, host.partition("%")[0], port, f"{error.strerror}")
    else:  # the port as Docker's ["-p 9000"] gives it
        assert described(f"-p {port}", *args)[0].startswith(f"('{host}', {port}")


@pytest.mark.parametrize(
    ("line", "backlog"),
    [("", 1024), ("-b 0", 0), ("-b7", 7), ("-b -1", SOMAXCONN), ("-b2147483647", SOMAXCONN)],
)
def test_a_negative_backlog_is_all_the_kernel_allows(line: str, backlog: int, port: str) -> None:
    assert described("-p", port, *line.split())[1] == str(min(backlog, SOMAXCONN))


MODES = [
    (0, "", 0o660), (0o027, "", 0o640), (0o111, "", 0o660), (0o777, "", 0), (0, "-M 0", 0),
    (0o077, "-M0666", 0o666), (0o022, "-M2660", 0o660), (0o777, "-M 7777", 0o777),
    pytest.param(0o022, "-U 65534", 0o640, marks=pytest.mark.root),
]  # fmt: skip


def set_default_acl(directory: Path, user: int, group: int, other: int) -> None:
    """Give what is created in a directory at most these permissions, see acl(5)."""
    tags = {0x01: user, 0x04: group, 0x20: other}
    entries = [struct.pack("<HHI", tag, bits, 0xFFFFFFFF) for tag, bits in tags.items()]
    os.setxattr(directory, "system.posix_acl_default", b"\2\0\0\0" + b"".join(entries))


ACL = [("-M 0666", 0o666), ("-M 7777", 0o777), ("", 0o660)]
ACL_ROOT = [pytest.param("-M 0606 -u 65534", 0o606, marks=pytest.mark.root)]


@pytest.mark.parametrize(("line", "mode"), ACL + ACL_ROOT)
def test_the_mode_is_the_same_where_a_default_acl_narrows_it(
    line: str, mode: int, work: Path
) -> None:
    set_default_acl(work, 7, 5, 5)
    assert run("-n", "-s", work / "s", *line.split(), *TRUE, umask=0o007).status == 0
    assert stat.S_IMODE((work / "s").stat().st_mode) == mode


@pytest.mark.parametrize(("umask", "line", "mode"), MODES, ids=str)
def test_the_mode_is_0660_less_the_umask_or_as_asked_from_birth_on(
    umask: int, line: str, mode: int, work: Path
) -> None:
    libc, events = ctypes.CDLL(None), []
    with open(libc.inotify_init1(os.O_NONBLOCK), "rb", buffering=0) as file:
        libc.inotify_add_watch(file.fileno(), os.fsencode(work), IN_CREATE | IN_ATTRIB)
        assert run("-n", "-s", work / "s", *line.split(), *TRUE, umask=umask) == (0, b"", b"")
        data = file.read(4096)
    while data:
        events.append(int.from_bytes(data[4:8], sys.byteorder))
        data = data[16 + int.from_bytes(data[12:16], sys.byteorder) :]
    assert stat.S_IMODE((work / "s").stat().st_mode) == mode
    assert events == ([IN_CREATE, IN_ATTRIB] if "-U" in line else [IN_CREATE])


@pytest.mark.root
def test_a_failed_chown_is_named_as_such_and_leaves_no_socket(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without = ["setpriv", "--bounding-set=-chown", "--inh-caps=-chown", *harness.program]
    monkeypatch.setattr(harness, "program", without)
    result = run("-n", "-s", work / "s", "-U", str(NOBODY), *TRUE)
    assert_refused(result, work / "s", "owner", os.strerror(errno.EPERM))
    assert not re.search(rb"bind|listen", result.err)
    assert os.listdir(work) == []


def locked_out(path: Path) -> socket:
    """Make a service to which an ordinary user may not connect."""
    service = bind(path)
    service.listen()
    path.chmod(0)
    return service


Make = Callable[[Path], object]
OTHERS: dict[str, Make] = {
    "file-with-content": lambda path: path.write_text("x"),
    "link-to-an-empty-file": lambda path: path.symlink_to("empty"),
    "link-to-a-stale-socket": lambda path: path.symlink_to("stale"),
    "link-to-nothing": lambda path: path.symlink_to("nothing"),
    "datagram-socket": lambda path: bind(path, SOCK_DGRAM),
    "service-that-it-may-not-connect-to": locked_out, "directory": os.mkdir, "FIFO": os.mkfifo,
}  # fmt: skip


@pytest.mark.parametrize("make", OTHERS.values(), ids=OTHERS)
def test_what_may_be_somebodys_is_refused_and_stays(make: Make, work: Path) -> None:
    work.chmod(0o777)  # so that the user could remove it
    (work / "empty").touch()
    bind(work / "stale").close()
    kept = make(work / "s")  # and open
    before = snapshot(work)
    assert_refused(run("-s", work / "s", *TRUE, timeout=5, **as_user()), work / "s")
    assert snapshot(work) == before
    del kept


def test_a_stale_socket_and_an_empty_file_are_replaced(work: Path) -> None:
    bind(work / "stale").close()
    (work / "empty").touch()
    for name in "stale", "empty":
        (work / name).chmod(0o777)
        assert described("-s", work / name) == [str(work / name)]
        assert stat.S_IMODE((work / name).stat().st_mode) & 0o007 == 0


def test_a_live_service_is_already_in_use_and_goes_on(work: Path) -> None:
    with bind(work / "s") as service:
        service.listen()
        before = snapshot(work)
        assert_refused(run("-s", work / "s", *TRUE), work / "s", "already in use")
        assert snapshot(work) == before
        assert service.accept()


@pytest.mark.parametrize("starts", [2, 10])
def test_of_several_starts_at_once_exactly_one_wins(starts: int, work: Path) -> None:
    for number in range(ROUNDS):
        path = work / f"s{number}"
        if number % 2 == 0:
            bind(path).close()
        with ExitStack() as stack:
            begun = []
            for _ in range(starts):
                begun.append(stack.enter_context(harness.popen("-s", path, "--", *SLEEP)))
                stack.callback(begun[-1].kill)
            errors = [process.communicate(timeout=30)[1] for process in begun]
        assert sorted(process.returncode for process in begun) == [0] + [255] * (starts - 1)
        assert sum(b"already in use" in error for error in errors) == starts - 1
        assert connects(path)


def test_a_start_waits_for_one_that_is_under_way_but_not_for_ever(work: Path) -> None:
    lock = os.open(work, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with ExitStack() as stack:
        for path in "relative", work / "absolute":
            process = harness.popen("-n", "-s", path, *TRUE, cwd=work)
            stack.enter_context(process)
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.3)
            stack.callback(process.communicate, timeout=10)
    os.close(lock)
    assert {*os.listdir(work)} == {"relative", "absolute"}


def test_a_directory_that_cannot_be_locked_stops_nobody(work: Path) -> None:
    work.chmod(0o333)
    assert run("-n", "-s", work / "s", *TRUE, **as_user()).status == 0
    work.chmod(0o755)


def test_a_free_lock_is_not_waited_for(work: Path) -> None:
    for _ in range(10):  # on a busy machine a start may take as long as a wait would
        with suppress(subprocess.TimeoutExpired):
            assert run("-n", "-s", work / "s", *TRUE, timeout=0.9).status == 0
            return
    pytest.fail("each start takes as long as it waits for a lock")
