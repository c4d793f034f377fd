#!/usr/bin/env python3
"""A sample FastCGI application: answers with its PID and the parameters of the request.

Started by spawn-fcgi with the listening socket as fd 0; serves one connection after the other.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import sys
from contextlib import suppress
from typing import Any, NoReturn

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))  # not there with -I

import fastcgi as fcgi  # noqa: E402

FCGI_LISTENSOCK_FILENO = 0
LIMITS = {b"FCGI_MAX_CONNS": b"1", b"FCGI_MAX_REQS": b"1", b"FCGI_MPXS_CONNS": b"0"}
LINGER = 1.0  # seconds that a client may take to close its end
# What accept(2) reports of a connection that is gone, and of a sibling that was faster.
TRANSIENT = {errno.EAGAIN, errno.EINTR, errno.ECONNABORTED, errno.EPROTO, errno.EPERM}


class Request:
    """A request while its streams come in; of stdin only the length is kept."""

    def __init__(self, request_id: int, flags: int) -> None:
        self.id, self.keep = request_id, bool(flags & fcgi.FCGI_KEEP_CONN)
        self.params, self.stdin_length = bytearray(), 0
        self.open_streams = {fcgi.FCGI_PARAMS, fcgi.FCGI_STDIN}

    def add(self, record: fcgi.Record) -> None:
        """Take a record of a stream; an empty one ends it."""
        if not record.content:
            self.open_streams.discard(record.type)
        elif record.type == fcgi.FCGI_PARAMS:
            self.params += record.content
        elif record.type == fcgi.FCGI_STDIN:
            self.stdin_length += len(record.content)

    def respond(self) -> bytes:
        """Return the records of the response."""
        params = sorted(fcgi.unpack_pairs(bytes(self.params)).items())
        lines = [b"pid: %d" % os.getpid(), *(b"%s=%s" % pair for pair in params)]
        lines += [b"stdin: %d" % self.stdin_length, b""]
        stdout = b"Content-Type: text/plain\r\n\r\n" + b"\n".join(lines)
        return fcgi.pack_stream(fcgi.FCGI_STDOUT, self.id, stdout) + end_request(self.id)


def end_request(request_id: int, status: int = fcgi.FCGI_REQUEST_COMPLETE) -> bytes:
    """Return the record that ends a request."""
    return fcgi.pack(fcgi.FCGI_END_REQUEST, request_id, fcgi.END_REQUEST.pack(0, status))


def manage(record: fcgi.Record) -> bytes:
    """Return the answer to a management record."""
    if record.type == fcgi.FCGI_GET_VALUES:
        asked = fcgi.unpack_pairs(record.content)
        known = {name: value for name, value in LIMITS.items() if name in asked}
        return fcgi.pack(fcgi.FCGI_GET_VALUES_RESULT, 0, fcgi.pack_pairs(known))
    return fcgi.pack(fcgi.FCGI_UNKNOWN_TYPE, 0, bytes([record.type]) + bytes(7))


def serve(connection: socket.socket) -> None:
    """Answer until the client closes or has asked for no more than one request."""
    request: Request | None = None
    while (record := fcgi.receive_record(connection)) is not None:
        if record.request_id == fcgi.FCGI_NULL_REQUEST_ID:
            connection.sendall(manage(record))
        elif record.type == fcgi.FCGI_BEGIN_REQUEST:
            if len(record.content) != fcgi.BEGIN_REQUEST.size:
                raise fcgi.ProtocolError("wrong size of FCGI_BEGIN_REQUEST")
            role, flags = fcgi.BEGIN_REQUEST.unpack(record.content)
            if request is not None:  # its records, that may follow, are of an unknown id
                connection.sendall(end_request(record.request_id, fcgi.FCGI_CANT_MPX_CONN))
            elif role == fcgi.FCGI_RESPONDER:
                request = Request(record.request_id, flags)
            else:
                connection.sendall(end_request(record.request_id, fcgi.FCGI_UNKNOWN_ROLE))
                if not flags & fcgi.FCGI_KEEP_CONN:
                    return
        elif request is not None and record.request_id == request.id:
            request.add(record)
            aborted = record.type == fcgi.FCGI_ABORT_REQUEST
            if aborted or not request.open_streams:
                connection.sendall(end_request(request.id) if aborted else request.respond())
                if not request.keep:
                    return
                request = None


def hang_up(connection: socket.socket) -> None:
    """Close after the client; closed with data unread, TCP would take back the response."""
    connection.shutdown(socket.SHUT_WR)
    connection.settimeout(LINGER)
    while connection.recv(65536):
        pass


def is_welcome(peer: Any) -> bool:
    """Say whether the environment admits a peer; Unix sockets have their mode for that."""
    servers = os.environ.get("FCGI_WEB_SERVER_ADDRS")
    if not servers or not isinstance(peer, tuple):
        return True
    return peer[0].removeprefix("::ffff:") in servers.replace(" ", "").split(",")


def main() -> NoReturn:
    """Serve for ever, one of several processes on the same socket."""
    try:
        listener = socket.socket(fileno=FCGI_LISTENSOCK_FILENO)
    except OSError as error:
        raise SystemExit(f"app.fcgi: fd 0 must be a listening socket: {error}") from None
    while True:
        select.select([listener], [], [])  # as the socket may be non-blocking
        try:
            connection, peer = listener.accept()
        except OSError as error:
            if error.errno not in TRANSIENT:
                raise SystemExit(f"app.fcgi: cannot accept on fd 0: {error}") from None
            continue
        with connection, suppress(OSError, fcgi.ProtocolError):
            if is_welcome(peer):
                serve(connection)
                hang_up(connection)


if __name__ == "__main__":
    main()
