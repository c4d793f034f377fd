"""What `make demo` does: spawn four processes of the sample application, and send it requests."""

from __future__ import annotations

import pathlib
import socket
import struct
import sys
import tempfile
from contextlib import ExitStack
from functools import partial
from typing import Any

import harness

HEADER = struct.Struct(">BBHHBx")  # version, type, request id, lengths of content and padding
FCGI_BEGIN_REQUEST, FCGI_PARAMS, FCGI_STDIN, FCGI_STDOUT = 1, 4, 5, 6
CHILDREN, REQUESTS = 4, 8


def connect(address: Any) -> socket.socket:
    """Return a connection to a Unix path or a (host, port)."""
    sock = socket.socket(socket.AF_INET if isinstance(address, tuple) else socket.AF_UNIX)
    sock.settimeout(10)
    sock.connect(address)
    return sock


def ask(sock: socket.socket, stdin: bytes = b"", **params: str) -> dict[str, str]:
    """Send a request, with names and values below 128 bytes; return the sample's answer."""
    pairs = "".join(f"{chr(len(n))}{chr(len(v))}{n}{v}" for n, v in params.items()).encode()
    begin = b"\0\1" + bytes(6)  # as a responder
    streams = [(FCGI_PARAMS, pairs), (FCGI_PARAMS, b""), (FCGI_STDIN, stdin), (FCGI_STDIN, b"")]
    for kind, content in ((FCGI_BEGIN_REQUEST, begin), *dict.fromkeys(streams)):  # "" ends one
        sock.sendall(HEADER.pack(1, kind, 1, len(content), 0) + content)
    answer = b""
    with sock, sock.makefile("rb") as file:
        while header := file.read(HEADER.size):
            _, kind, _, size, padding = HEADER.unpack(header)
            content = file.read(size + padding)[:size]
            answer += content if kind == FCGI_STDOUT else b""
    lines = answer.decode().partition("\r\n\r\n")[2].splitlines()
    return dict(line.split("=", 1) for line in lines)


def ask_each(port: str, first: int) -> list[dict[str, str]]:
    """Return one answer of each process, or nothing if they are not all up yet."""
    with ExitStack() as stack:  # with so many open, each process that is up has one
        connections = [connect(("127.0.0.1", int(port))) for _ in range(CHILDREN)]
        answers = [
            ask(sock, REQUEST_URI=f"/hello/{number}")
            for number, sock in enumerate(map(stack.enter_context, connections), first)
        ]
    return answers if len({answer["PID"] for answer in answers}) == CHILDREN else []


def demonstrate(port: str, pid_file: pathlib.Path) -> int:
    """Spawn, and send requests; return the exit status of the spawner."""
    options = ["-a", "127.0.0.1", "-p", port, "-F", str(CHILDREN), "-P", str(pid_file), "--"]
    app = harness.ROOT / "tests/app.fcgi"
    print("$ spawn-fcgi", *options, app.relative_to(harness.ROOT), flush=True)
    harness.program[:] = [sys.executable, str(harness.ROOT / "spawn_fcgi.py")]
    with harness.popen(*options, sys.executable, app, stdout=None, stderr=None) as spawner:
        status = spawner.wait()
    if status == 0:
        for first in range(1, REQUESTS, CHILDREN):
            for answer in harness.wait_for(
                "each process to answer", partial(ask_each, port, first)
            ):
                print(f"{answer['REQUEST_URI']} answered by PID {answer['PID']}", flush=True)
    return status


def main() -> int:
    """Run the demo on the port of the command line; end all that it has spawned."""
    harness.adopt()
    with tempfile.TemporaryDirectory(prefix="spawn-fcgi-demo-") as directory:
        try:
            return demonstrate((sys.argv[1:] or ["9000"])[0], pathlib.Path(directory, "app.pid"))
        except KeyboardInterrupt:
            return 130
        finally:
            harness.end_children()


if __name__ == "__main__":
    raise SystemExit(main())
