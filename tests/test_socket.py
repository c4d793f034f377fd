"""The listening socket: address, backlog, mode and owner, what may be at its path, who wins."""

from __future__ import annotations

import fcntl
import itertools
import os
import stat
import struct
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from socket import AF_UNIX, SOCK_DGRAM, SOCK_STREAM, socket
from typing import Any

import harness
import pytest
from harness import SLEEP, Arg, Make, as_user, assert_refused, libc, nothing, popen, run, snapshot

ROOT, HOSTILE = pytest.mark.root, pytest.mark.hostile
TRUE = ("--", "/bin/true")
SOMAXCONN = int(Path("/proc/sys/net/core/somaxconn").read_text())
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
    assert (result.status, result.err) == (0, b""), result
    kind, *more = result.out.decode().split("\n")
    assert kind == f"{int(SOCK_STREAM)} 1 1 True", "a stream, reusable, listens, blocks"
    return more


IF_INET6 = Path("/proc/net/if_inet6")  # the IPv6 addresses, if any
HAS_IPV6 = IF_INET6.exists() and IF_INET6.read_text()
IPV6 = pytest.mark.skipif(not HAS_IPV6, reason="this machine has no IPv6")
# Options, the address and the backlog.
LISTENING = [
    pytest.param([], "0.0.0.0", 1024, id="all-of-IPv4-and-1024-by-default"),
    pytest.param(["-a127.0.0.1"], "127.0.0.1", 1024, id="IPv4"),
    pytest.param(["-a", "::1"], "::1", 1024, id="IPv6", marks=IPV6),
    pytest.param(["-b", "0"], "0.0.0.0", 0, id="no-backlog"),
    pytest.param(["-b", "-1"], "0.0.0.0", SOMAXCONN, id="negative-is-all-the-kernel-allows"),
    pytest.param(["-b2147483647"], "0.0.0.0", SOMAXCONN, id="the-highest-backlog"),
]


@pytest.mark.parametrize(("args", "host", "backlog"), LISTENING)
def test_address_and_backlog_are_as_asked_for(
    args: list[str], host: str, backlog: int, port: str
) -> None:
    address, found, *_ = described(f"-p {port}", *args)  # as Docker's ["-p 9000"] gives it
    assert address.startswith(f"('{host}', {port}")
    assert int(found) == min(backlog, SOMAXCONN)


# A link's address fails in another way (EINVAL) where its link is lost.
@pytest.mark.parametrize("host", ["192.0.2.1", pytest.param("fe80::1%lo", marks=IPV6)])
def test_an_address_that_the_machine_does_not_have_is_named(host: str, port: str) -> None:
    result = run("-p", port, "-a", host, *TRUE)
    assert_refused(result, host, port, "Cannot assign requested address")


IN_CREATE, IN_ATTRIB = 0x100, 0x4
BORN, CHANGED = [IN_CREATE], [IN_CREATE, IN_ATTRIB]
# The umask, a default ACL or none, options; then the socket's mode and what befell it.
MODES = [
    pytest.param(0o000, False, [], 0o660, BORN, id="0660-by-default"),
    pytest.param(0o027, False, [], 0o640, BORN, id="less-the-umask"),
    pytest.param(0o000, False, ["-M", "0"], 0o000, BORN, id="M-of-zero"),
    pytest.param(0o777, False, ["-M7777"], 0o777, BORN, id="M-of-all-bits-whatever-the-umask"),
    pytest.param(0o022, False, ["-U", "65534"], 0o640, CHANGED, id="with-an-owner", marks=ROOT),
    pytest.param(0o007, True, [], 0o660, CHANGED, id="acl-and-the-default"),
    pytest.param(0o007, True, ["-M606", "-u65534"], 0o606, CHANGED, id="acl-and-u", marks=ROOT),
]


def set_default_acl(directory: Path) -> None:
    """Let only the owner write to what is created in a directory, see acl(5)."""
    permissions = {0x01: 7, 0x04: 5, 0x20: 5}  # of the owner, the group and others
    entries = [struct.pack("<HHI", tag, bits, 0xFFFFFFFF) for tag, bits in permissions.items()]
    os.setxattr(directory, "system.posix_acl_default", b"\2\0\0\0" + b"".join(entries))


@pytest.mark.parametrize(("umask", "acl", "args", "mode", "events"), MODES)
def test_the_mode_is_right_from_birth_on(
    umask: int, acl: bool, args: list[str], mode: int, events: list[int], work: Path
) -> None:
    if acl:
        set_default_acl(work)
    with open(libc.inotify_init1(os.O_NONBLOCK), "rb", buffering=0) as inotify:
        libc.inotify_add_watch(inotify.fileno(), os.fsencode(work), IN_CREATE | IN_ATTRIB)
        result = run("-n", "-s", work / "s", *args, *TRUE, umask=umask)
        data = inotify.read(4096) or b""
    assert result == (0, b"", b"")
    assert f"{stat.S_IMODE((work / 's').stat().st_mode):04o}" == f"{mode:04o}"
    # Each inotify_event ends with the name, which is padded: see inotify(7).
    assert [event for _, event, *_ in struct.iter_unpack("iIII16s", data)] == events


def bind(path: Path, kind: int = SOCK_STREAM) -> socket:
    """Return a socket at a Unix path that everybody may write to, and that does not listen."""
    sock = socket(AF_UNIX, kind)
    sock.bind(str(path))
    path.chmod(0o777)
    return sock


def stale_socket(path: Path) -> None:
    """Leave a socket that nobody has open."""
    bind(path).close()


def service(path: Path) -> socket:
    """Return a service to which everybody may connect."""
    listening = bind(path)
    listening.listen(0)
    return listening


def full_service(path: Path) -> tuple[socket, socket]:
    """Return a service whose queue is full, and the client that fills it."""
    listening, client = service(path), socket(AF_UNIX)
    client.connect(str(path))
    return listening, client


NOT_A_SOCKET = "exists and is not a socket"
# What stays as it is, "stale" being a stale socket beside it.
AT_THE_PATH = [
    pytest.param("s", service, "already in use", id="service"),
    pytest.param("s", full_service, "already in use", id="service-with-a-full-queue"),
    pytest.param("s", lambda path: bind(path, SOCK_DGRAM), "wrong type", id="datagram-socket"),
    pytest.param("s", lambda path: path.write_text("x"), NOT_A_SOCKET, id="file-with-content"),
    pytest.param("s", lambda path: path.symlink_to("stale"), NOT_A_SOCKET, id="link-to-a-socket"),
    pytest.param("s", os.mkfifo, NOT_A_SOCKET, id="FIFO"),
]


@pytest.mark.parametrize(("path", "make", "reason"), AT_THE_PATH)
def test_what_may_be_somebodys_stays(path: str, make: Make, reason: str, work: Path) -> None:
    work.chmod(0o777)  # so that the user could remove it
    stale_socket(work / "stale")
    kept = make(work / path)
    before = snapshot(work)
    result = run("-s", path, *TRUE, cwd=work, timeout=5, **as_user())
    assert_refused(result, path, reason)
    assert snapshot(work) == before
    del kept


@pytest.mark.parametrize("make", [stale_socket, Path.touch], ids=["stale-socket", "empty-file"])
def test_what_is_nobodys_is_replaced(make: Make, work: Path) -> None:
    make(work / "s")
    (work / "s").chmod(0o777)
    assert described("-s", work / "s")[0] == str(work / "s")
    assert stat.S_IMODE((work / "s").stat().st_mode) & 0o007 == 0, "it is a new one"


def start_and_swap(moment: int, work: Path) -> bool:
    """Start; put "other" at "s", at this stop of those that see the socket; say if there was one.

    The application is missing, as its own system calls would only cost time.
    """
    seen = 0

    def swap() -> None:
        nonlocal seen
        if (work / "s").is_socket():
            seen += 1
            if seen == moment:
                os.rename(work / "other", work / "s")

    args = ("-s", "s", "-M666", "-U4199", "-n", "--", "./missing")  # -U: ignored if not by root
    harness.step_through(swap, *args, cwd=work)
    return seen == moment


@pytest.mark.hostile
@pytest.mark.parametrize("plant", [os.link, os.symlink], ids=["file", "link"])
def test_what_takes_the_path_gets_no_owner_or_mode(plant: Any, work: Path) -> None:
    set_default_acl(work)  # for there to be a change of mode
    secret = work / "secret"
    secret.write_text("secret")  # an empty file may go
    secret.chmod(0o600)
    # One system call ends and the next one begins: every other stop sees nothing new.
    for moment in itertools.count(1, 2):
        plant(secret, work / "other")
        if not start_and_swap(moment, work):
            break
        found = (f"{stat.S_IMODE(secret.stat().st_mode):o}", secret.stat().st_uid)
        assert found == ("600", os.getuid()), f"the secret's mode and owner, after stop {moment}"
        assert (work / "s").lstat().st_uid == os.getuid(), "the owner of what took the path"
        (work / "s").unlink()
    assert moment > 10, "so many system calls see the socket"


@ROOT
def test_an_owner_that_the_file_system_gives_is_left_alone(work: Path) -> None:
    def give() -> None:  # as NFS does with root_squash
        if (work / "s").is_socket():
            os.chown(work / "s", 4199, 4199)

    assert harness.step_through(give, "-s", "s", "-n", *TRUE, cwd=work) == 0


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold a shared lock on a directory, for which a start, with an exclusive one, waits."""
    lock = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        yield
    finally:
        os.close(lock)


def test_the_directory_is_locked_until_the_socket_listens(work: Path) -> None:
    stops = []

    def look() -> None:
        if (work / "s").is_socket() and not harness.connects(work / "s"):
            stops.append("locked")
            with suppress(BlockingIOError), locked(work):
                stops.append("free")

    harness.step_through(look, "-s", "s", "-n", "--", "./missing", cwd=work)
    assert {*stops} == {"locked"}, "while another start would take the socket for a stale one"


@pytest.mark.parametrize("mode", [0o777, 0o333], ids=["held", "held-where-nobody-can-read"])
def test_no_lock_is_waited_for_for_ever(mode: int, work: Path) -> None:
    with locked(work):
        work.chmod(mode)
        result = run("-n", "-s", work / "s", *TRUE, timeout=8, **as_user())
        work.chmod(0o755)
    assert result == (0, b"", b"")
    assert (work / "s").is_socket()


@pytest.mark.parametrize("path", ["s", "/proc/self/cwd/s"], ids=["relative", "absolute"])
def test_a_start_waits_for_one_that_is_under_way(path: str, work: Path) -> None:
    with ExitStack() as lock:
        lock.enter_context(locked(work))
        with popen("-s", path, "-P", "pid", *TRUE, cwd=work) as process:
            try:
                harness.wait_for("the PID file, which comes before the lock", (work / "pid").exists)
                assert not (work / "s").exists(), "it has not waited for the lock"
                with service(work / "s"):  # what the one under way makes
                    lock.close()
                    _, err = process.communicate(timeout=10)
            finally:
                process.kill()
    assert (process.returncode, b"already in use" in err) == (255, True), err


@pytest.mark.parametrize("make", [nothing, stale_socket], ids=["new", "for-a-stale-socket"])
def test_of_several_starts_at_once_exactly_one_wins(make: Make, work: Path) -> None:
    make(work / "s")
    with ExitStack() as stack:
        begun = []
        for _ in range(10):
            begun.append(stack.enter_context(popen("-s", work / "s", "--", *SLEEP)))
            stack.callback(begun[-1].kill)
        errors = [process.communicate(timeout=30)[1] for process in begun]
    assert sorted(process.returncode for process in begun) == [0] + [255] * 9, errors
    assert sum(b"already in use" in error for error in errors) == 9, errors
    assert harness.connects(work / "s")
