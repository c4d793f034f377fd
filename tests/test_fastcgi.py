"""The sample application, started by the spawner, speaks FastCGI as the specification says."""

from __future__ import annotations

import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, suppress
from typing import Any

import fastcgi
import harness
import pytest
from fastcgi import Address, begin, connect, exchange, pack, pack_input, receive_record

APP = str(harness.ROOT / "tests/app.fcgi")
KEEP = fastcgi.FCGI_KEEP_CONN
HEADERS = b"Content-Type: text/plain\r\n\r\n"


def spawn(*args: harness.Arg, **kwargs: Any) -> list[int]:
    """Spawn the application with these options; return the PIDs that are said to live."""
    result = harness.run(*args, "--", sys.executable, "-I", APP, **kwargs)
    assert (result.status, result.err) == (0, b"")
    return result.pids


def tcp_address() -> tuple[Address, list[str]]:
    """Return a TCP address and the options that make a socket there."""
    port = harness.free_port()
    return ("127.0.0.1", port), ["-a", "127.0.0.1", "-p", str(port)]


@pytest.fixture
def app() -> Address:
    """Spawn one process on a TCP port; return the address."""
    address, options = tcp_address()
    spawn(*options)
    return address


def pid_of(response: fastcgi.Response) -> int:
    """Return the PID that has answered."""
    found = re.match(rb"pid: (\d+)\n", response.body)
    assert found, response
    return int(found[1])


def everything(sock: socket.socket) -> bytes:
    """Return all that comes until the application closes; it may reset a faulty connection."""
    data = b""
    with suppress(ConnectionResetError):
        while more := sock.recv(65536):
            data += more
    return data


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_the_application_answers_with_its_pid_and_the_sorted_parameters(
    kind: str, work: pathlib.Path
) -> None:
    address, options = tcp_address() if kind == "tcp" else (work / "s", ["-s", str(work / "s")])
    (pid,) = spawn(*options)
    params = {b"REQUEST_URI": b"/a?b=c", b"EMPTY": b"", b"ODD": b"\xff\n="}
    stdout = HEADERS + b"pid: %d\nEMPTY=\nODD=\xff\n=\nREQUEST_URI=/a?b=c\nstdin: 3\n" % pid
    assert fastcgi.request(address, params, b"abc") == (stdout, b"", 0, 0)


def test_the_bytes_on_the_wire_are_those_of_the_specification(app: Address) -> None:
    request = (
        (b"\x01\x01\x12\x34\x00\x08\x00\x00", b"\x00\x01\x00\x00\x00\x00\x00\x00"),
        (b"\x01\x04\x12\x34\x00\x0d\x03\xff", b"\x01\x02Nxx\x01\x80\x00\x00\x04Lon???"),
        (b"\x01\x04\x12\x34\x00\x02\x00\x00", b"gg"),
        (b"\x01\x04\x12\x34\x00\x00\x00\x00", b""),
        (b"\x01\x05\x12\x34\x00\x01\x01\x00", b"i?"),
        (b"\x01\x05\x12\x34\x00\x00\x00\x00", b""),
    )
    with connect(app) as sock:
        sock.sendall(b"".join(header + body for header, body in request))
        received = everything(sock)
    found = re.search(rb"pid: \d+\nL=ongg\nN=xx\nstdin: 1\n", received)
    assert found, received
    stdout = HEADERS + found[0]
    padding = -len(stdout) % 8
    assert received == (
        b"\x01\x06\x12\x34\x00%c%c\x00%b%b" % (len(stdout), padding, stdout, bytes(padding))
        + b"\x01\x06\x12\x34\x00\x00\x00\x00"
        + b"\x01\x03\x12\x34\x00\x08\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
    )


@pytest.mark.parametrize("size", [0, 1, 127, 128, 255, 256, 70_000])
def test_names_and_values_of_any_length_come_back_whole(app: Address, size: int) -> None:
    name, value = b"N" * max(1, size), bytes(byte % 251 for byte in range(1, size + 1))
    response = fastcgi.request(app, {name: value, b"Z": b"z"})
    assert response.body.partition(b"\n")[2] == name + b"=" + value + b"\nZ=z\nstdin: 0\n"


def test_a_request_may_come_in_single_bytes_and_tiny_padded_records(app: Address) -> None:
    pairs = fastcgi.pack_pairs({b"NAME": b"v" * 200})
    params = b"".join(pack(fastcgi.FCGI_PARAMS, 1, pairs[at : at + 1]) for at in range(len(pairs)))
    rest = pack(fastcgi.FCGI_PARAMS, 1) + fastcgi.pack_stream(fastcgi.FCGI_STDIN, 1, b"12345")
    with connect(app) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in begin() + params + rest:
            sock.sendall(bytes([byte]))
        response = fastcgi.receive_response(sock)
    assert response.body.partition(b"\n")[2] == b"NAME=" + b"v" * 200 + b"\nstdin: 5\n"


def test_of_a_big_stdin_no_byte_is_missed(app: Address) -> None:
    assert fastcgi.request(app, {}, b"x" * 200_001).body.endswith(b"\nstdin: 200001\n")


def test_a_long_answer_comes_in_records_that_are_padded_to_eight_bytes(app: Address) -> None:
    value, sizes, stdout, end = b"v" * 200_001, [], b"", 0
    with connect(app) as sock:
        sock.sendall(begin() + pack_input({b"V": value}))
        data = everything(sock)
    while data[end + 1] == fastcgi.FCGI_STDOUT:  # not with the codec, that is under test, too
        size, padding = int.from_bytes(data[end + 4 : end + 6], "big"), data[end + 6]
        assert (size + padding) % 8 == 0
        stdout += data[end + 8 : end + 8 + size]
        sizes.append(size)
        end += 8 + size + padding
    assert len(sizes) > 3
    assert [size for size in sizes if size == 0] == sizes[-1:]
    assert stdout.endswith(b"\nV=" + value + b"\nstdin: 0\n")
    assert data[end:] == pack(fastcgi.FCGI_END_REQUEST, 1, bytes(8))


def test_a_connection_that_is_kept_takes_request_after_request(app: Address) -> None:
    with connect(app) as sock:
        for number in range(3):
            response = exchange(sock, {b"NUMBER": b"%d" % number}, flags=KEEP)
            assert b"\nNUMBER=%d\n" % number in response.body
        exchange(sock, {})
        assert sock.recv(1) == b""


def test_a_request_beside_another_one_on_a_connection_is_refused(app: Address) -> None:
    with connect(app) as sock:
        sock.sendall(begin(7, KEEP) + begin(8) + pack_input({b"OF": b"8"}, b"88", request_id=8))
        refused = (b"", b"", 0, fastcgi.FCGI_CANT_MPX_CONN)
        assert fastcgi.receive_response(sock, 8) == refused
        sock.sendall(begin(7))
        assert fastcgi.receive_response(sock, 7) == refused
        sock.sendall(pack_input({b"OF": b"7"}, b"7", request_id=7))
        assert fastcgi.receive_response(sock, 7).body.endswith(b"\nOF=7\nstdin: 1\n")
        sock.sendall(begin(8) + pack_input({b"OF": b"8"}, request_id=8))
        assert fastcgi.receive_response(sock, 8).body.endswith(b"\nOF=8\nstdin: 0\n")


@pytest.mark.parametrize("role", [0, 2, 3, 65535])
@pytest.mark.parametrize("flags", [0, KEEP])
def test_an_unknown_role_is_refused(app: Address, role: int, flags: int) -> None:
    with connect(app) as sock:
        sock.sendall(begin(1, flags, role) + pack_input({b"A": b"b"}, b"x" * 200_000))
        refusal = fastcgi.receive_response(sock)
        assert refusal == (b"", b"", 0, fastcgi.FCGI_UNKNOWN_ROLE)
        if flags:
            assert exchange(sock, {}).protocol_status == fastcgi.FCGI_REQUEST_COMPLETE
        assert sock.recv(1) == b""


def test_the_limits_that_are_known_are_told(app: Address) -> None:
    known = {b"FCGI_MAX_CONNS": b"1", b"FCGI_MAX_REQS": b"1", b"FCGI_MPXS_CONNS": b"0"}
    assert fastcgi.get_values(app, [*known, b"FCGI_OTHER"]) == known
    assert fastcgi.get_values(app, [b"FCGI_MAX_REQS"]) == {b"FCGI_MAX_REQS": b"1"}


@pytest.mark.parametrize("type_", [fastcgi.FCGI_BEGIN_REQUEST, 12, 255])
def test_another_management_record_is_of_unknown_type(app: Address, type_: int) -> None:
    answer = fastcgi.manage(app, type_, b"content")
    assert answer == (fastcgi.FCGI_UNKNOWN_TYPE, 0, bytes([type_, 0, 0, 0, 0, 0, 0, 0]))


def test_a_management_record_may_come_amid_a_request(app: Address) -> None:
    with connect(app) as sock:
        sock.sendall(begin() + pack(fastcgi.FCGI_GET_VALUES, 0))
        assert receive_record(sock) == (fastcgi.FCGI_GET_VALUES_RESULT, 0, b"")
        sock.sendall(pack_input({}))
        assert fastcgi.receive_response(sock).body.endswith(b"\nstdin: 0\n")


def test_an_aborted_request_is_ended_and_its_connection_of_use(app: Address) -> None:
    with connect(app) as sock:
        abort = pack(fastcgi.FCGI_ABORT_REQUEST, 1)
        sock.sendall(begin(flags=KEEP) + pack_input({b"OLD": b"1"}, b"12")[:-8] + abort)
        assert fastcgi.receive_response(sock) == (b"", b"", 0, fastcgi.FCGI_REQUEST_COMPLETE)
        assert exchange(sock, {b"NEW": b"2"}).body.endswith(b"\nNEW=2\nstdin: 0\n")


def test_records_of_an_unknown_id_are_ignored(app: Address) -> None:
    stray = pack(fastcgi.FCGI_ABORT_REQUEST, 2) + pack_input({b"STRAY": b"1"}, b"stray", 3)
    with connect(app) as sock:
        sock.sendall(stray + begin() + stray + pack_input({b"MINE": b"1"}) + stray)
        assert fastcgi.receive_response(sock).body.endswith(b"\nMINE=1\nstdin: 0\n")


FAULTY = {
    "HTTP": b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n",
    "version 2": b"\2" + begin()[1:],
    "begin too short": pack(fastcgi.FCGI_BEGIN_REQUEST, 1, b"\0\1\0"),
    "begin too long": pack(fastcgi.FCGI_BEGIN_REQUEST, 1, bytes([0, 1, *[0] * 7])),
    "pair cut off": begin()
    + fastcgi.pack_stream(fastcgi.FCGI_PARAMS, 1, b"\5\5NAME")
    + pack(fastcgi.FCGI_STDIN, 1),
    "length cut off": begin()
    + fastcgi.pack_stream(fastcgi.FCGI_PARAMS, 1, b"\1\x80\0")
    + pack(fastcgi.FCGI_STDIN, 1),
    "values cut off": pack(fastcgi.FCGI_GET_VALUES, 0, b"\x0e\0FCGI"),
}


@pytest.mark.parametrize("fault", FAULTY)
def test_what_is_no_fastcgi_ends_the_connection_and_not_the_process(
    app: Address, fault: str
) -> None:
    pid = pid_of(fastcgi.request(app, {}))
    with connect(app) as sock:
        sock.sendall(FAULTY[fault])
        assert everything(sock) == b""
    assert pid_of(fastcgi.request(app, {})) == pid


@pytest.mark.parametrize("size", [5, 8, 12])
def test_a_record_that_is_cut_off_is_not_answered(app: Address, size: int) -> None:
    pairs = fastcgi.pack_pairs({b"FCGI_MAX_REQS": b""})
    with connect(app) as sock:
        sock.sendall(pack(fastcgi.FCGI_GET_VALUES, 0, pairs)[:size])
        sock.shutdown(socket.SHUT_WR)
        assert everything(sock) == b""
    assert pid_of(fastcgi.request(app, {}))


@pytest.mark.parametrize("size", [0, 5, 8, 12, 40])
def test_a_client_that_goes_amid_a_request_does_not_end_the_process(
    app: Address, size: int
) -> None:
    pid = pid_of(fastcgi.request(app, {}))
    with connect(app) as sock:
        sock.sendall((begin() + pack_input({b"NAME": b"value"}))[:size])
    assert pid_of(fastcgi.request(app, {})) == pid


def test_a_client_that_does_not_read_its_answer_does_not_end_the_process(app: Address) -> None:
    pid = pid_of(fastcgi.request(app, {}))
    for _ in range(3):
        with connect(app) as sock:
            reset = (1).to_bytes(4, sys.byteorder) + bytes(4)  # close(2) sends RST
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
            sock.sendall(begin() + pack_input({b"V": b"v" * 10_000_000}))
    assert pid_of(fastcgi.request(app, {})) == pid


def test_four_clients_at_once_are_answered_by_the_four_processes_of_the_pid_file(
    work: pathlib.Path,
) -> None:
    address, options = tcp_address()
    spawn("-F", "4", "-P", work / "pids", *options)
    with ExitStack() as stack:
        clients = [stack.enter_context(connect(address)) for _ in range(4)]
        pids = [pid_of(exchange(client, {}, flags=KEEP)) for client in clients]
    assert sorted(pids) == sorted(map(int, (work / "pids").read_text().split()))


def test_sigterm_ends_the_application() -> None:
    address, options = tcp_address()
    (pid,) = spawn(*options)
    with connect(address) as sock:
        exchange(sock, {}, flags=KEEP)
        os.kill(pid, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGTERM


@pytest.mark.parametrize(
    ("servers", "welcome"), [("", 1), ("127.0.0.1", 1), ("::1,127.0.0.1", 1), ("127.0.0.10", 0)]
)
@pytest.mark.parametrize("listening", ["127.0.0.1", "::"])
def test_only_the_web_servers_of_the_environment_are_served(
    servers: str, welcome: bool, listening: str
) -> None:
    port = harness.free_port()
    environment = harness.clean_environment(FCGI_WEB_SERVER_ADDRS=servers)
    spawn("-a", listening, "-p", str(port), env=environment)
    with connect(("127.0.0.1", port)) as sock:
        with suppress(ConnectionError):
            sock.sendall(begin() + pack_input({}))
        assert bool(everything(sock)) == welcome


@pytest.mark.parametrize("command", [(), (sys.executable, "-I")])
def test_the_application_runs_by_any_name_in_any_directory(
    work: pathlib.Path, command: tuple[str, ...]
) -> None:
    address, options = tcp_address()
    (work / "link.fcgi").symlink_to(APP)
    result = harness.run(*options, "-d", work, "--", *command, "./link.fcgi")
    assert [pid_of(fastcgi.request(address, {}))] == result.pids


def test_the_application_sleeps_on_a_socket_that_does_not_block() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        with subprocess.Popen([sys.executable, APP], stdin=listener.fileno()) as process:
            try:
                assert pid_of(fastcgi.request(listener.getsockname(), {})) == process.pid
                harness.wait_for(lambda: b") S " in harness.proc(process.pid, "stat"))
            finally:
                process.kill()


def test_the_application_without_a_listening_socket_says_so() -> None:
    with open(os.devnull, "rb") as null:
        done = subprocess.run([sys.executable, APP], stdin=null, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (1, b"", 1)
    assert b"fd 0" in done.stderr


def test_the_client_tells_both_streams_and_both_statuses() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(
            b"\x01\x07\x00\x01\x00\x03\x05\x00ebb....."
            b"\x01\x06\x00\x01\x00\x1b\x00\x00Status: 404 Gone\r\nA: b\r\n\r\nc"
            b"\x01\x06\x00\x02\x00\x01\x00\x00?"
            b"\x01\x07\x00\x01\x00\x01\x00\x00!"
            b"\x01\x03\x00\x01\x00\x08\x00\x00\x00\x00\x01\x02\x02\x00\x00\x00"
        )
        response = fastcgi.receive_response(ours)
    assert response[1:] == (b"ebb!", 258, fastcgi.FCGI_OVERLOADED)
    assert (response.status, response.body) == (404, b"c")
