"""The listening socket: its kind, address and mode, and what may be at its path before."""

from __future__ import annotations

import ctypes
import fcntl
import os
import pathlib
import re
import socket
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import harness
import pytest
from harness import (
    NOBODY,
    SLEEP,
    as_user,
    assert_refused,
    by,
    connects,
    free_port,
    run,
    snapshot,
    tampering,
)

SYS_PIDFD_OPEN, SYS_PIDFD_GETFD = 434, 438  # on every architecture but alpha
SOMAXCONN = int(pathlib.Path("/proc/sys/net/core/somaxconn").read_text())
STARTS = 10


def start(*args: harness.Arg, **kwargs: Any) -> int:
    """Start one `sleep` on the socket that the arguments ask for, and return its PID."""
    result = run(*args, "--", *SLEEP, **kwargs)
    assert (result.status, result.err) == (0, b"")
    (pid,) = result.pids
    return pid


def socket_of(pid: int) -> socket.socket:
    """Return a duplicate of the socket that a process has as fd 0."""
    libc = ctypes.CDLL(None, use_errno=True)
    pidfd = libc.syscall(SYS_PIDFD_OPEN, pid, 0)
    fd = libc.syscall(SYS_PIDFD_GETFD, pidfd, 0, 0)
    assert fd >= 0, os.strerror(ctypes.get_errno())
    os.close(pidfd)
    return socket.socket(fileno=fd)


def backlog_of(name: str) -> int:
    """Return the backlog of the socket that listens at a Unix path, or at address:port."""
    lines = subprocess.run(["ss", "-lntxH"], check=True, stdout=subprocess.PIPE).stdout
    # Not every line is whole: the path of somebody else's socket may have a newline in it.
    row = rb"(?m)^\S+ +LISTEN +\d+ +(\d+) +%b " % re.escape(name).encode()
    (backlog,) = set(re.findall(row, lines))
    return int(backlog)


def mode_of(path: pathlib.Path) -> int:
    """Return the permission bits of a file."""
    return stat.S_IMODE(path.stat().st_mode)


def sockets_below(directory: pathlib.Path) -> list[pathlib.Path]:
    """Return all Unix sockets in a directory and below it."""
    return [path for path in directory.rglob("*") if path.is_socket()]


def bind(path: harness.Arg, kind: int = socket.SOCK_STREAM) -> socket.socket:
    """Return a socket that is bound to a Unix path and does not listen."""
    sock = socket.socket(socket.AF_UNIX, kind)
    sock.bind(os.fspath(path))
    return sock


@contextmanager
def listener(path: harness.Arg, kind: int = socket.SOCK_STREAM) -> Iterator[socket.socket]:
    """Listen at a Unix path, with a queue that one connection fills."""
    with bind(path, kind) as sock:
        sock.listen(0)
        yield sock


def is_locked(fd: int) -> bool:
    """Say whether somebody else has the lock of a directory."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(fd, fcntl.LOCK_UN)
    return False


def start_together(*args: harness.Arg) -> list[harness.Result]:
    """Make several starts at once with the same arguments and return how they ended."""
    with ExitStack() as stack:
        processes = []
        for _ in range(STARTS):
            processes.append(stack.enter_context(harness.popen(*args, "--", *SLEEP)))
            stack.callback(processes[-1].kill)
        outputs = [process.communicate(timeout=30) for process in processes]
    return [harness.Result(p.returncode, *output) for p, output in zip(processes, outputs)]


def assert_one_won(results: list[harness.Result]) -> None:
    """Assert that one start has a child that lives, and all others met a socket in use."""
    (winner,) = [result for result in results if result.status == 0]
    (pid,) = winner.pids
    assert harness.alive(pid)
    for result in results:
        if result is not winner:
            assert (result.status, result.out) == (255, b"")
            assert b"already in use" in result.err


# Kind of socket


@pytest.mark.parametrize("unix", [True, False], ids=["unix", "tcp"])
def test_the_socket_is_a_blocking_reusable_stream_that_listens(
    work: pathlib.Path, unix: bool
) -> None:
    pid = start("-s", work / "s") if unix else start("-p", str(free_port()))
    (flags,) = re.findall(rb"flags:\s*(\d+)", harness.proc(pid, "fdinfo/0"))
    assert int(flags, 8) & os.O_NONBLOCK == 0
    with socket_of(pid) as sock:
        assert sock.family == (socket.AF_UNIX if unix else socket.AF_INET)
        assert sock.type == socket.SOCK_STREAM
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR) == 1
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1


@pytest.mark.parametrize("unix", [True, False], ids=["unix", "tcp"])
@pytest.mark.parametrize(
    ("asked", "given"),
    [
        (None, 1024),
        ("0", 0),
        ("7", 7),
        ("1025", 1025),
        ("-1", SOMAXCONN),
        ("2147483647", SOMAXCONN),
        ("-2147483648", SOMAXCONN),
    ],
)
def test_the_backlog_is_as_asked_and_a_negative_one_what_the_kernel_allows(
    work: pathlib.Path, unix: bool, asked: str | None, given: int
) -> None:
    port = str(free_port())
    where = ["-s", str(work / "s")] if unix else ["-p", port]
    start(*where, *([] if asked is None else ["-b", asked]))
    assert backlog_of(str(work / "s") if unix else f"0.0.0.0:{port}") == min(given, SOMAXCONN)


# TCP

ACCEPTED = "-a accepts 127.1 and fe80::1%eth0"


@pytest.mark.parametrize(
    ("address", "bound"),
    [
        (None, "0.0.0.0"),
        ("0.0.0.0", "0.0.0.0"),
        ("127.0.0.2", "127.0.0.2"),
        pytest.param("127.1", "127.0.0.1", marks=pytest.mark.differs(ACCEPTED)),
        ("::1", "::1"),
        ("::", "::"),
    ],
)
def test_the_socket_is_bound_to_the_address_and_port_asked_for(
    address: str | None, bound: str
) -> None:
    port = free_port()
    pid = start("-p", str(port), *([] if address is None else ["-a", address]))
    with socket_of(pid) as sock:
        assert sock.family == (socket.AF_INET6 if ":" in bound else socket.AF_INET)
        assert sock.getsockname()[:2] == (bound, port)
    socket.create_connection((bound, port), 5).close()


def test_a_socket_on_all_ipv6_addresses_takes_ipv4_connections_too() -> None:
    port = free_port()
    start("-a", "::", "-p", str(port))
    assert connects(("127.0.0.1", port))


@pytest.mark.root
@pytest.mark.differs(ACCEPTED)
def test_a_link_local_address_is_bound_on_the_interface_it_names() -> None:
    script = 'ip link set lo up && ip addr add fe80::7/64 dev lo nodad && exec "$@"'
    own_network = by("unshare", "-n", "sh", "-c", script, "sh")
    with own_network, harness.running("-a", "fe80::7%lo", "-p", "9000") as process:
        assert process.poll() is None, process.communicate()
        listening = harness.proc(process.pid, "net/tcp6").decode()
    assert re.search(r"^ *0: 000080FE0{16}07000000:2328 0{32}:0000 0A ", listening, re.M)


def test_a_busy_tcp_port_is_already_in_use() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        port = sock.getsockname()[1]
        result = run("-a", "127.0.0.1", "-p", str(port), "--", *SLEEP)
        assert_refused(result, str(port))
        assert b"already in use" in result.err
        assert connects(("127.0.0.1", port))


def test_an_address_of_no_interface_is_named() -> None:
    port = str(free_port())
    assert_refused(run("-a", "192.0.2.1", "-p", port, "--", *SLEEP), "192.0.2.1", port)


def test_one_of_ten_starts_on_one_port_wins() -> None:
    for _ in range(3):
        port = free_port()
        assert_one_won(start_together("-a", "127.0.0.1", "-p", str(port)))
        assert connects(("127.0.0.1", port))
        harness.end_children()


# Mode and order


@pytest.mark.parametrize("umask", [0, 0o022, 0o027, 0o077, 0o117, 0o777], ids=oct)
def test_the_mode_is_0660_less_the_umask(work: pathlib.Path, umask: int) -> None:
    start("-s", work / "s", umask=umask)
    assert mode_of(work / "s") == 0o660 & ~umask


@pytest.mark.parametrize("mode", ["0", "600", "0666", "0777", "1777", "4755", "2070", "07777"])
def test_the_mode_asked_for_is_set_whatever_the_umask(work: pathlib.Path, mode: str) -> None:
    start("-s", work / "s", "-M", mode, umask=0o077)
    assert mode_of(work / "s") == int(mode, 8)


def system_calls(work: pathlib.Path, *args: str) -> list[str]:
    """Return the calls of a start that concern its Unix socket, in order, by their family."""
    calls = "bind,listen,?chmod,fchmod,fchmodat,?chown,?lchown,fchown,fchownat"
    log = work / "trace"
    with by("strace", "-o", str(log), "-e", f"trace={calls}"):
        start("-s", work / "s", *args)
    found = re.findall(r"^[fl]?(bind|listen|chmod|chown)\w*\(.*= 0$", log.read_text(), re.M)
    log.unlink()
    return list(found)


@pytest.mark.parametrize("mode", [[], ["-M", "0600"]], ids=["default-mode", "mode"])
def test_the_mode_is_right_before_anybody_can_connect(work: pathlib.Path, mode: list[str]) -> None:
    assert system_calls(work, *mode) == ["bind", "chmod", "listen"]


@pytest.mark.root
def test_mode_and_owner_are_right_before_anybody_can_connect(work: pathlib.Path) -> None:
    assert system_calls(work, "-U", str(NOBODY)) == ["bind", "chmod", "chown", "listen"]


# The path


def test_nothing_but_the_socket_is_made_and_it_stays(work: pathlib.Path) -> None:
    start("-s", work / "s")
    assert [*snapshot(work)] == ["s"]
    assert connects(work / "s")


def test_the_socket_stays_without_a_fork(work: pathlib.Path) -> None:
    with harness.running("-s", work / "s"):
        assert connects(work / "s")
    assert [*snapshot(work)] == ["s"]


def test_a_relative_path_is_the_callers_whatever_the_directory_of_the_children(
    work: pathlib.Path,
) -> None:
    (work / "other").mkdir()
    pid = start("-s", "s", "-d", "other", cwd=work)
    assert harness.state(pid).cwd == str(work / "other")
    assert sockets_below(work) == [work / "s"]
    assert connects(work / "s")


@pytest.mark.parametrize("name", [b" a b ", b"\xff\xfe\xe9", b"a\n\tb", "żółw ☃".encode(), b"-s"])
def test_a_path_is_taken_byte_for_byte(work: pathlib.Path, name: bytes) -> None:
    start("-s", name, cwd=work)
    assert os.listdir(os.fsencode(work)) == [name]
    assert_refused(run("-s", name, "--", *SLEEP, cwd=work))


def test_a_path_of_107_bytes_is_not_too_long(work: pathlib.Path) -> None:
    name = "s" * (107 - len(f"{work}/"))
    start("-s", work / name)
    assert connects(work / name)


def test_a_path_in_no_directory_is_named(work: pathlib.Path) -> None:
    assert_refused(run("-s", work / "missing/s", "--", *SLEEP), work / "missing/s")
    assert not snapshot(work)


def test_a_directory_that_cannot_be_read_holds_a_socket(work: pathlib.Path) -> None:
    closed = work / "closed"
    closed.mkdir()
    closed.chmod(0o333)
    try:
        start("-s", closed / "s", **as_user())
        assert connects(closed / "s")
        result = run("-s", closed / "s", "--", *SLEEP, **as_user())
        assert_refused(result, closed / "s")
        assert b"already in use" in result.err
    finally:
        closed.chmod(0o755)


def test_a_start_does_not_wait_long_for_a_lock_of_a_stranger(work: pathlib.Path) -> None:
    fd = os.open(work, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        start("-s", work / "s", timeout=5)
        assert connects(work / "s")
    finally:
        os.close(fd)


def test_a_live_socket_is_refused_at_once_whoever_has_the_lock(work: pathlib.Path) -> None:
    start("-s", work / "s")
    fd = os.open(work, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        began = time.monotonic()
        assert_refused(run("-s", work / "s", "--", *SLEEP), "already in use")
        assert time.monotonic() - began < 0.8  # waiting for the lock takes a second
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("call", "stale"),
    [
        ("?unlink,?unlinkat", True),
        *((call, stale) for call in ("bind", "?chmod,?fchmodat", "listen") for stale in (0, 1)),
    ],
)
def test_one_of_two_starts_wins_though_the_first_is_held_up(
    work: pathlib.Path, call: str, stale: bool
) -> None:
    if harness.on_c_tool():
        pytest.xfail("the C tool differs (README.md): 5; it has no lock to wait for")
    if stale:
        bind(work / "s").close()
    # Longer than the other waits for the lock.
    with by(*tampering(call, "delay_enter=1600000")):
        first = harness.popen("-s", work / "s", "--", *SLEEP)
    try:
        fd = os.open(work, os.O_RDONLY)
        try:
            harness.wait_for(lambda: first.poll() is not None or is_locked(fd))
        finally:
            os.close(fd)
        second = run("-s", work / "s", "--", *SLEEP)
    finally:
        out, err = first.communicate(timeout=20)
    assert_one_won([harness.Result(first.returncode, out, err), second])
    assert connects(work / "s")


def test_a_directory_that_cannot_be_locked_holds_a_socket(work: pathlib.Path) -> None:
    with by(*tampering("flock", "error=ENOLCK")):
        start("-s", work / "s")
    assert connects(work / "s")


def test_the_lock_of_a_start_ends_with_it(work: pathlib.Path) -> None:
    start("-s", work / "s")
    fd = os.open(work, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(fd)


# What is at the path


def test_a_stale_socket_is_replaced(work: pathlib.Path) -> None:
    bind(work / "s").close()
    (work / "s").chmod(0o777)
    start("-s", work / "s", umask=0o027)
    assert connects(work / "s")
    assert mode_of(work / "s") == 0o640


def test_a_live_socket_is_already_in_use_and_goes_on(work: pathlib.Path) -> None:
    start("-s", work / "s")
    before = snapshot(work)
    result = run("-s", work / "s", "-M", "0777", "--", *SLEEP)
    assert_refused(result, work / "s")
    assert b"already in use" in result.err
    assert snapshot(work) == before
    assert connects(work / "s")


def test_a_service_that_accepts_is_not_disturbed(work: pathlib.Path) -> None:
    with listener(work / "s") as sock:
        assert_refused(run("-s", work / "s", "--", *SLEEP), work / "s")
        sock.settimeout(5)
        sock.accept()[0].close()  # of the start that looked who is there
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(work / "s"))
            connection = sock.accept()[0]
            connection.sendall(b"still here")
            connection.close()
            assert client.recv(64) == b"still here"


@pytest.mark.differs(4)
def test_a_service_whose_queue_is_full_is_in_use_at_once(work: pathlib.Path) -> None:
    with ExitStack() as stack:
        stack.enter_context(listener(work / "s"))
        while True:
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.setblocking(False)
            if client.connect_ex(str(work / "s")):
                break
        before = snapshot(work)
        began = time.monotonic()
        result = run("-s", work / "s", "--", *SLEEP, timeout=5)
        assert time.monotonic() - began < 1.5
        assert_refused(result, work / "s")
        assert b"already in use" in result.err
        assert snapshot(work) == before


def make_file(path: pathlib.Path) -> None:
    """Make a file with something to lose."""
    path.write_bytes(b"precious")


def link_to_file(path: pathlib.Path) -> None:
    """Make a symbolic link to a file."""
    make_file(path.with_name("target"))
    path.symlink_to("target")


def link_to_stale(path: pathlib.Path) -> None:
    """Make a symbolic link to a socket that nobody has open."""
    bind(path.with_name("target")).close()
    path.symlink_to("target")


def dangling_link(path: pathlib.Path) -> None:
    """Make a symbolic link to nothing."""
    path.symlink_to("missing")


def device(path: pathlib.Path) -> None:
    """Make a character device: the null device."""
    os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 3))


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(make_file, marks=pytest.mark.differs(3)),
        pytest.param(link_to_file, marks=pytest.mark.differs(3)),
        pytest.param(link_to_stale, marks=pytest.mark.differs(3)),
        pytest.param(dangling_link, marks=pytest.mark.differs(3)),
        pytest.param(os.mkfifo, marks=pytest.mark.differs(3)),
        pytest.param(device, marks=[pytest.mark.differs(3), pytest.mark.root]),
        os.mkdir,
    ],
)
def test_what_is_no_socket_is_refused_and_stays_as_it_is(
    work: pathlib.Path, make: Callable[[pathlib.Path], object]
) -> None:
    make(work / "s")
    before = snapshot(work)
    assert_refused(run("-s", work / "s", "--", *SLEEP, timeout=5), work / "s")
    assert snapshot(work) == before


def test_a_link_to_a_live_socket_is_refused_and_stays_as_it_is(work: pathlib.Path) -> None:
    (work / "s").symlink_to("target")
    with listener(work / "target"):
        before = snapshot(work)
        assert_refused(run("-s", work / "s", "--", *SLEEP), work / "s")
        assert snapshot(work) == before


@pytest.mark.differs(3)
def test_a_live_datagram_socket_is_refused_and_goes_on(work: pathlib.Path) -> None:
    with bind(work / "s", socket.SOCK_DGRAM) as sock:
        before = snapshot(work)
        assert_refused(run("-s", work / "s", "--", *SLEEP), work / "s")
        assert snapshot(work) == before
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
            client.sendto(b"still here", str(work / "s"))
        assert sock.recv(64) == b"still here"


@pytest.mark.differs(3)
def test_a_live_sequential_socket_is_refused_and_stays_as_it_is(work: pathlib.Path) -> None:
    with listener(work / "s", socket.SOCK_SEQPACKET):
        before = snapshot(work)
        assert_refused(run("-s", work / "s", "--", *SLEEP), work / "s")
        assert snapshot(work) == before


@pytest.mark.differs(3)
def test_a_live_socket_that_we_may_not_connect_to_is_refused_and_stays(work: pathlib.Path) -> None:
    work.chmod(0o777)  # so that the user could unlink it
    with listener(work / "s"):
        (work / "s").chmod(0o600 if os.getuid() == 0 else 0)
        before = snapshot(work)
        assert_refused(run("-s", work / "s", "--", *SLEEP, **as_user()), work / "s")
        assert snapshot(work) == before


@pytest.mark.differs(5)
@pytest.mark.parametrize("stale", [False, True], ids=["nothing there", "a stale socket there"])
def test_one_of_ten_starts_on_one_path_wins(work: pathlib.Path, stale: bool) -> None:
    # The delays hold open what would be windows of microseconds: between the look at the path
    # and the removal, and between bind and listen, where the socket refuses connections.
    slowly = tampering("?unlink,?unlinkat,listen", "delay_enter=20000")
    for number in range(3):
        path = work / f"s{number}"
        if stale:
            bind(path).close()
        with by(*slowly):
            results = start_together("-s", path)
        assert_one_won(results)
        assert connects(path)
        harness.end_children()


# A step that fails after the bind


def assert_nothing_left(work: pathlib.Path, *args: harness.Arg, status: int = 255) -> None:
    """Assert that a start with these arguments fails and leaves no socket."""
    result = run(*args, cwd=work)
    assert (result.status, result.pids) == (status, [])
    assert result.err
    assert sockets_below(work) == []


LEFT = "If a step after bind fails, the new socket file is removed."


@pytest.mark.differs(LEFT)
def test_the_socket_goes_if_the_directory_is_missing(work: pathlib.Path) -> None:
    assert_nothing_left(work, "-s", work / "s", "-d", work / "missing", "--", *SLEEP)


@pytest.mark.differs(LEFT)
@pytest.mark.parametrize("options", ["", "-F 3", "-n", "-d other", "-n -d other"])
@pytest.mark.parametrize("path", ["{}/s", "s"], ids=["absolute", "relative"])
def test_the_socket_goes_if_no_child_can_be_executed(
    work: pathlib.Path, options: str, path: str
) -> None:
    (work / "other").mkdir()
    args = ["-s", path.format(work), *options.split(), "--", "/missing/app"]
    assert_nothing_left(work, *args, status=2)


@pytest.mark.differs(LEFT)
def test_the_socket_goes_from_a_directory_that_cannot_be_read(work: pathlib.Path) -> None:
    (work / "other").mkdir()
    closed = work / "closed"
    closed.mkdir()
    closed.chmod(0o333)
    try:
        args = ["-s", "closed/s", "-d", "other", "--", "/missing/app"]
        result = run(*args, cwd=work, **as_user())
        assert (result.status, result.out) == (2, b"")
    finally:
        closed.chmod(0o755)
    assert not snapshot(closed)


@pytest.mark.differs(LEFT)
def test_a_stale_socket_that_was_replaced_goes_as_well(work: pathlib.Path) -> None:
    bind(work / "s").close()
    assert_nothing_left(work, "-s", work / "s", "--", "/missing/app", status=2)


@pytest.mark.parametrize("calls", ["?chmod,?fchmodat", "listen"])
def test_the_socket_goes_if_it_cannot_be_made_ready(work: pathlib.Path, calls: str) -> None:
    with by(*tampering(calls, "error=EIO")):
        assert_nothing_left(work, "-s", work / "s", "--", *SLEEP)


@pytest.mark.root
def test_the_socket_goes_if_its_owner_cannot_be_set(work: pathlib.Path) -> None:
    with by(*tampering("?chown,?lchown,?fchownat", "error=EPERM")):
        assert_nothing_left(work, "-s", work / "s", "-U", str(NOBODY), "--", *SLEEP)


@pytest.mark.root
@pytest.mark.differs(LEFT)
@pytest.mark.parametrize(
    ("status", "args"),
    [
        pytest.param(255, ["-s", "s", "-S", "-c", "missing", "--", *SLEEP], id="no chroot"),
        pytest.param(255, ["-s", "/s", "-c", "jail", "-d", "/no", "--", *SLEEP], id="no directory"),
        pytest.param(2, ["-s", "/s", "-c", "jail", "--", "/app"], id="no application"),
        pytest.param(2, ["-s", "s", "-S", "-c", "jail", "--", "/app"], id="outside the chroot"),
        pytest.param(
            255, ["-s", "s", "-u", "nobody", "-d", "closed", "--", *SLEEP], id="closed directory"
        ),
        pytest.param(2, ["-s", "open/s", "-u", "nobody", "--", "/app"], id="of another user, too"),
    ],
)
def test_the_socket_of_root_goes_too(work: pathlib.Path, status: int, args: list[str]) -> None:
    (work / "jail").mkdir()
    (work / "closed").mkdir(mode=0o700)
    (work / "open").mkdir()
    (work / "open").chmod(0o777)
    assert_nothing_left(work, *args, status=status)


@pytest.mark.alone
def test_the_socket_stays_if_only_some_children_fail(work: pathlib.Path) -> None:
    # mkdir(2) chooses one of the children, the others end.
    choose_one = "mkdir chosen && exec sleep 60; exit 3"
    result = run("-s", "s", "-F", "4", "--", "/bin/sh", "-c", choose_one, cwd=work)
    if not harness.on_c_tool():  # it watches the first of them only
        assert (result.status, len(result.pids)) == (3, 1)
    assert connects(work / "s")


def test_starts_on_unlike_paths_of_one_directory_all_win(work: pathlib.Path) -> None:
    paths = [work / f"s{number}" for number in range(5)]
    for path in paths:
        bind(path).close()
    with by(*tampering("?unlink,?unlinkat", "delay_enter=50000")):  # with the lock held
        processes = [harness.popen("-s", path, "--", *SLEEP) for path in paths]
    for process in processes:
        _, err = process.communicate(timeout=20)
        assert (process.returncode, err) == (0, b"")
    assert all(connects(path) for path in paths)


@pytest.mark.root
@pytest.mark.differs("it gives the file that a link leads to away, if one comes after the bind")
def test_the_owner_is_not_set_through_a_link(work: pathlib.Path) -> None:
    (work / "precious").touch()
    with by(*tampering("?chown,?lchown,?fchownat", "delay_enter=500000")):
        process = harness.popen("-s", work / "s", "-U", str(NOBODY), "-M", "0600", "--", *SLEEP)
    try:
        harness.wait_for(lambda: (work / "s").exists() and mode_of(work / "s") == 0o600)
        (work / "s").unlink()
        (work / "s").symlink_to("precious")
    finally:
        process.communicate(timeout=20)
    assert (work / "precious").stat().st_uid == 0


def test_the_lock_ends_before_the_fork(work: pathlib.Path) -> None:
    fd = os.open(work, os.O_RDONLY)
    try:
        with by(*tampering("?clone,?clone3,?fork,?vfork", "delay_enter=1000000")):
            process = harness.popen("-s", work / "s", "--", *SLEEP)
        try:
            harness.wait_for(lambda: (work / "s").exists() and connects(work / "s"))
            harness.wait_for(lambda: not is_locked(fd), 0.7)
            assert not process.poll()
        finally:
            process.communicate(timeout=20)
    finally:
        os.close(fd)


def test_in_a_directory_that_cannot_be_locked_a_stale_socket_is_replaced(
    work: pathlib.Path,
) -> None:
    bind(work / "s").close()
    with by(*tampering("flock", "error=ENOLCK")):
        assert run("-s", work / "s", "--", *SLEEP).status == 0
    assert connects(work / "s")


def test_a_directory_that_cannot_be_opened_holds_a_socket(work: pathlib.Path) -> None:
    with by("strace", "-P", str(work), *tampering("?open,openat", "error=EMFILE")[1:]):
        assert run("-s", work / "s", "--", *SLEEP).status == 0
    assert connects(work / "s")
