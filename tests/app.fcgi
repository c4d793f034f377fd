#!/usr/bin/env python3
"""A sample FastCGI application: answers with its PID and what it was asked, one request at a time.

spawn-fcgi starts it with the listening socket as fd 0, which forked copies share.
"""

from __future__ import annotations

import os
import socket
import struct
from contextlib import suppress
from typing import BinaryIO

HEADER = struct.Struct(">BBHHBx")  # version, type, request id, lengths of content and padding
FCGI_END_REQUEST, FCGI_PARAMS, FCGI_STDIN, FCGI_STDOUT = range(3, 7)
REPORTED = ("SCRIPT_NAME", "PATH_INFO", "REQUEST_METHOD", "REQUEST_URI", "QUERY_STRING")


def unpack_pairs(data: bytes) -> dict[str, str]:
    """Return the name-value pairs; a length from 128 on takes four bytes, with the top bit set."""
    pairs, at = {}, 0
    while at < len(data):
        lengths = []
        for _ in ("name", "value"):
            size = 4 if data[at] & 0x80 else 1
            lengths.append(int.from_bytes(data[at : at + size], "big") & 0x7FFFFFFF)
            at += size
        middle, end = at + lengths[0], at + sum(lengths)
        pairs[os.fsdecode(data[at:middle])] = os.fsdecode(data[middle:end])
        at = end
    return pairs


def serve(file: BinaryIO) -> None:
    """Read a request and write its response; raise struct.error if the peer goes meanwhile."""
    streams = {FCGI_PARAMS: b"", FCGI_STDIN: b""}
    kind, content = 0, b""
    while kind != FCGI_STDIN or content:  # the empty record ends a stream
        _, kind, request_id, size, padding = HEADER.unpack(file.read(HEADER.size))
        content = file.read(size + padding)[:size]
        if kind in streams:
            streams[kind] += content
    params = unpack_pairs(streams[FCGI_PARAMS])
    text = f"Content-Type: text/plain\r\n\r\nPID={os.getpid()}\n"
    for name in REPORTED:
        text += f"{name}={params.get(name, '')}\n"
    text += f"STDIN={len(streams[FCGI_STDIN])}\n"
    for kind, content in ((FCGI_STDOUT, os.fsencode(text)), (FCGI_END_REQUEST, bytes(8))):
        file.write(HEADER.pack(1, kind, request_id, len(content), 0) + content)


if __name__ == "__main__":
    listener = socket.socket(fileno=0)
    while True:
        connection, _ = listener.accept()
        with connection, suppress(OSError, struct.error), connection.makefile("rwb") as stream:
            serve(stream)  # type: ignore[arg-type]
