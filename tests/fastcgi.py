"""The records of FastCGI and a client, for the sample application, the demo and the tests.

Names and numbers: https://fastcgi-archives.github.io/FastCGI_Specification.html
"""

from __future__ import annotations

import io
import os
import re
import socket
import struct
from collections.abc import Iterable, Mapping
from typing import NamedTuple, Union

FCGI_VERSION_1 = 1
FCGI_NULL_REQUEST_ID = 0
FCGI_RESPONDER = 1
FCGI_KEEP_CONN = 1
FCGI_BEGIN_REQUEST, FCGI_ABORT_REQUEST, FCGI_END_REQUEST, FCGI_PARAMS = range(1, 5)
FCGI_STDIN, FCGI_STDOUT, FCGI_STDERR, FCGI_DATA = range(5, 9)
FCGI_GET_VALUES, FCGI_GET_VALUES_RESULT, FCGI_UNKNOWN_TYPE = range(9, 12)
FCGI_REQUEST_COMPLETE, FCGI_CANT_MPX_CONN, FCGI_OVERLOADED, FCGI_UNKNOWN_ROLE = range(4)
MAX_CONTENT = 65528  # of the 65535 bytes that a record can hold, what needs no padding
HEADER = struct.Struct(">BBHHBx")  # version, type, request id, lengths of content and padding
BEGIN_REQUEST = struct.Struct(">HB5x")  # role, flags
END_REQUEST = struct.Struct(">IB3x")  # application status, protocol status

Address = Union[str, "os.PathLike[str]", "tuple[str, int]"]  # a Unix path, or host and port


class ProtocolError(Exception):
    """The peer has sent what is no FastCGI."""


class Record(NamedTuple):
    """A record without its padding."""

    type: int
    request_id: int
    content: bytes


class Response(NamedTuple):
    """What a request was answered with."""

    stdout: bytes
    stderr: bytes
    app_status: int
    protocol_status: int

    @property
    def status(self) -> int:
        """The HTTP status that the headers ask for."""
        found = re.search(rb"(?im)^Status: *(\d{3})", self.stdout.partition(b"\r\n\r\n")[0])
        return int(found[1]) if found else 200

    @property
    def body(self) -> bytes:
        """What follows the headers."""
        return self.stdout.partition(b"\r\n\r\n")[2]


def pack(type_: int, request_id: int, content: bytes = b"") -> bytes:
    """Return one record, padded to a multiple of eight bytes."""
    padding = -len(content) % 8
    header = HEADER.pack(FCGI_VERSION_1, type_, request_id, len(content), padding)
    return header + content + bytes(padding)


def pack_stream(type_: int, request_id: int, data: bytes) -> bytes:
    """Return a whole stream: as many records as it takes, and the empty one that ends it."""
    chunks = [data[at : at + MAX_CONTENT] for at in range(0, len(data), MAX_CONTENT)]
    return b"".join(pack(type_, request_id, chunk) for chunk in [*chunks, b""])


def pack_pairs(pairs: Mapping[bytes, bytes]) -> bytes:
    """Return name-value pairs; lengths from 128 on take four bytes, with the top bit set."""

    def length(text: bytes) -> bytes:
        size = len(text)
        return bytes([size]) if size < 128 else struct.pack(">I", size | 1 << 31)

    return b"".join(length(n) + length(v) + n + v for n, v in pairs.items())


def unpack_pairs(data: bytes) -> dict[bytes, bytes]:
    """Return the name-value pairs, or raise ProtocolError if the last one is cut off."""
    stream, pairs = io.BytesIO(data), {}

    def take(size: int) -> bytes:
        text = stream.read(size)
        if len(text) < size:
            raise ProtocolError("name-value pair is cut off")
        return text

    def length() -> int:
        first = take(1)
        return first[0] if first[0] < 128 else struct.unpack(">I", first + take(3))[0] & ~(1 << 31)

    while stream.tell() < len(data):
        sizes = length(), length()
        name, value = map(take, sizes)
        pairs[name] = value
    return pairs


def receive(sock: socket.socket, size: int) -> bytes:
    """Return so many bytes, or fewer if the peer closes before."""
    data = bytearray()
    while len(data) < size and (more := sock.recv(size - len(data))):
        data += more
    return bytes(data)


def receive_record(sock: socket.socket) -> Record | None:
    """Return the next record, None if there is no more, or raise ProtocolError."""
    header = receive(sock, HEADER.size)
    if not header:
        return None
    if header[0] != FCGI_VERSION_1 or len(header) < HEADER.size:
        raise ProtocolError(f"not the header of a record: {header!r}")
    _, type_, request_id, size, padding = HEADER.unpack(header)
    body = receive(sock, size + padding)
    if len(body) < size + padding:
        raise ProtocolError("record is cut off")
    return Record(type_, request_id, body[:size])


def connect(address: Address) -> socket.socket:
    """Return a connection to an application; one that does not answer times out."""
    if isinstance(address, tuple):
        return socket.create_connection(address, timeout=10)
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(10)
    try:
        sock.connect(os.fspath(address))
    except BaseException:
        sock.close()
        raise
    return sock


def begin(request_id: int = 1, flags: int = 0, role: int = FCGI_RESPONDER) -> bytes:
    """Return the record that begins a request."""
    return pack(FCGI_BEGIN_REQUEST, request_id, BEGIN_REQUEST.pack(role, flags))


def pack_input(params: Mapping[bytes, bytes], stdin: bytes = b"", request_id: int = 1) -> bytes:
    """Return the records that follow the begin of a request."""
    streams = (FCGI_PARAMS, pack_pairs(params)), (FCGI_STDIN, stdin)
    return b"".join(pack_stream(type_, request_id, data) for type_, data in streams)


def receive_response(sock: socket.socket, request_id: int = 1) -> Response:
    """Return the response to a request, or raise ProtocolError if there is none."""
    streams = {FCGI_STDOUT: bytearray(), FCGI_STDERR: bytearray()}
    while (record := receive_record(sock)) is not None:
        if record.request_id != request_id:
            continue
        if record.type == FCGI_END_REQUEST:
            status = END_REQUEST.unpack(record.content)
            return Response(bytes(streams[FCGI_STDOUT]), bytes(streams[FCGI_STDERR]), *status)
        if record.type not in streams:
            raise ProtocolError(f"no part of a response: {record}")
        streams[record.type] += record.content
    raise ProtocolError("closed before the end of the request")


def exchange(
    sock: socket.socket, params: Mapping[bytes, bytes], stdin: bytes = b"", flags: int = 0
) -> Response:
    """Send a request on a connection and return its response."""
    sock.sendall(begin(flags=flags) + pack_input(params, stdin))
    return receive_response(sock)


def request(address: Address, params: Mapping[bytes, bytes], stdin: bytes = b"") -> Response:
    """Send a request on a connection of its own and return its response."""
    with connect(address) as sock:
        return exchange(sock, params, stdin)


def manage(address: Address, type_: int, content: bytes = b"") -> Record | None:
    """Send a management record and return the record that answers it."""
    with connect(address) as sock:
        sock.sendall(pack(type_, FCGI_NULL_REQUEST_ID, content))
        return receive_record(sock)


def get_values(address: Address, names: Iterable[bytes]) -> dict[bytes, bytes]:
    """Ask an application for its limits; it leaves out what it does not know."""
    record = manage(address, FCGI_GET_VALUES, pack_pairs(dict.fromkeys(names, b"")))
    if record is None or record.type != FCGI_GET_VALUES_RESULT:
        raise ProtocolError(f"no answer to FCGI_GET_VALUES: {record}")
    return unpack_pairs(record.content)
