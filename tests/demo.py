"""What `make demo` does: spawn four processes of the sample application, and send it requests."""

from __future__ import annotations

import socket
import struct
import sys
from functools import partial
from typing import Any

import harness

HEADER = struct.Struct(">BBHHBx")  # version, type, request id, lengths of content and padding
FCGI_BEGIN_REQUEST, FCGI_PARAMS, FCGI_STDIN, FCGI_STDOUT = 1, 4, 5, 6
CHILDREN = 4


def connect(address: Any) -> socket.socket:
    """Return a connection to a Unix path or a (host, port)."""
    sock = socket.socket(socket.AF_INET if isinstance(address, tuple) else socket.AF_UNIX)
    sock.settimeout(10)
    sock.connect(address)
    return sock


def ask(sock: socket.socket, **params: str) -> dict[str, str]:
    """Send a request of three bytes, with short parameters; return the sample's answer."""
    pairs = "".join(f"{chr(len(n))}{chr(len(v))}{n}{v}" for n, v in params.items()).encode()
    for kind, content in [
        (FCGI_BEGIN_REQUEST, b"\0\1" + bytes(6)),  # as a responder
        (FCGI_PARAMS, pairs),
        (FCGI_PARAMS, b""),  # which ends them
        (FCGI_STDIN, b"abc"),
        (FCGI_STDIN, b""),
    ]:
        sock.sendall(HEADER.pack(1, kind, 1, len(content), 0) + content)
    answer = b""
    with sock, sock.makefile("rb") as file:
        while header := file.read(HEADER.size):
            _, kind, _, size, padding = HEADER.unpack(header)
            content = file.read(size + padding)[:size]
            answer += content if kind == FCGI_STDOUT else b""
    lines = answer.decode().partition("\r\n\r\n")[2].splitlines()
    return dict(line.split("=", 1) for line in lines)


def ask_each(port: str) -> list[dict[str, str]]:
    """Return one answer of each process, or nothing if they are not all up yet."""
    # With so many open at once, each process that is up has one.
    connections = [connect(("127.0.0.1", int(port))) for _ in range(CHILDREN)]
    numbered = enumerate(connections, 1)
    answers = [ask(sock, REQUEST_URI=f"/hello/{number}") for number, sock in numbered]
    return answers if len({answer["PID"] for answer in answers}) == CHILDREN else []


def main(port: str) -> int:
    """Spawn, and send requests; end what was spawned; return the exit status of the spawner."""
    options = ["-a", "127.0.0.1", "-p", port, "-F", str(CHILDREN), "--"]
    app = harness.ROOT / "tests/app.fcgi"
    harness.program[:] = [sys.executable, str(harness.ROOT / "spawn_fcgi.py")]
    harness.adopt()
    try:
        print("$ spawn-fcgi", *options, app.relative_to(harness.ROOT), flush=True)
        with harness.popen(*options, sys.executable, app, stdout=None, stderr=None) as spawner:
            status = spawner.wait()
        if status == 0:
            for answer in harness.wait_for("an answer of each", partial(ask_each, port)):
                print(f"{answer['REQUEST_URI']} answered by PID {answer['PID']}", flush=True)
        return status
    except KeyboardInterrupt:
        return 130
    finally:
        harness.end_children()


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
