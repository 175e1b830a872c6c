"""The records of FastCGI 1.0 and its name-value pairs, for both sides. No I/O.

Names are the specification's own; the sections in brackets are its sections.
"""

from __future__ import annotations

import re
import struct
from typing import Any, Final

from fulgate.errors import ProtocolError
from fulgate.exchange import Buffer

__all__ = [
    "ABORT_REQUEST",
    "BEGIN_REQUEST",
    "CANT_MPX_CONN",
    "DATA",
    "END_REQUEST",
    "GET_VALUES",
    "GET_VALUES_RESULT",
    "HEADER_LEN",
    "KEEP_CONN",
    "MAX_LENGTH",
    "NULL_REQUEST_ID",
    "OVERLOADED",
    "PARAMS",
    "REQUEST_COMPLETE",
    "STDERR",
    "STDIN",
    "STDOUT",
    "UNKNOWN_ROLE",
    "UNKNOWN_TYPE",
    "VERSION_1",
    "decode_pairs",
    "decode_params",
    "encode_length",
    "encode_pair",
    "pack_end_request",
    "pack_header",
    "read_header",
    "record",
]

VERSION_1: Final = 1
HEADER_LEN: Final = 8
MAX_LENGTH: Final = 0xFFFF
NULL_REQUEST_ID: Final = 0

# types of record [8]
BEGIN_REQUEST: Final = 1
ABORT_REQUEST: Final = 2
END_REQUEST: Final = 3
PARAMS: Final = 4
STDIN: Final = 5
STDOUT: Final = 6
STDERR: Final = 7
DATA: Final = 8
GET_VALUES: Final = 9
GET_VALUES_RESULT: Final = 10
UNKNOWN_TYPE: Final = 11

KEEP_CONN: Final = 1  # the flag of BEGIN_REQUEST

# values of protocolStatus in END_REQUEST [5.5]
REQUEST_COMPLETE: Final = 0
CANT_MPX_CONN: Final = 1
OVERLOADED: Final = 2
UNKNOWN_ROLE: Final = 3

_high_byte: Final = re.compile(rb"[\x80-\xff]").search

pack_header: Final = struct.Struct(">BBHHBx").pack
read_header: Final = struct.Struct(">BBHHBx").unpack_from
pack_end_request: Final = struct.Struct(">BBHHBxIB3x").pack


def record(kind: int, request_id: int, content: Buffer = b"", padding: int = 0) -> bytes:
    """Give one record [3.3]; `content` has at most 65,535 bytes, `padding` is 0 to 255."""
    head = pack_header(VERSION_1, kind, request_id, len(content), padding)
    return b"".join((head, content, bytes(padding)))


def encode_length(n: int) -> bytes:
    """Give a length of a name or a value in 1 byte or in 4 [3.4]; `n` is below 2**31."""
    return bytes((n,)) if n < 0x80 else (n | 0x80000000).to_bytes(4, "big")


def encode_pair(name: bytes, value: bytes) -> bytes:
    """Give one name-value pair [3.4]."""
    return b"".join((encode_length(len(name)), encode_length(len(value)), name, value))


def _next_length(raw: bytes, pos: int) -> tuple[int, int]:
    """Read the length of a name or a value at `pos`; give it, and the position behind it."""
    four = raw[pos : pos + 4]
    if four and four[0] < 0x80:
        return four[0], pos + 1
    if len(four) < 4:
        raise ProtocolError("a name-value pair is cut short")
    return int.from_bytes(four, "big") & 0x7FFFFFFF, pos + 4


def decode_pairs(raw: bytes) -> list[tuple[str, str]]:
    """Give the name-value pairs [3.4] in their order, decoded as latin-1.

    Raises ProtocolError when the last pair is cut short.
    """
    pairs: list[tuple[str, str]] = []
    text = raw.decode("latin-1")  # the indices of bytes and text agree
    pos = 0
    while pos < len(raw):
        name_length, pos = _next_length(raw, pos)
        value_length, pos = _next_length(raw, pos)
        middle = pos + name_length
        pos = middle + value_length
        pairs.append((text[middle - name_length : middle], text[middle:pos]))
    if pos != len(raw):
        raise ProtocolError("a name-value pair is cut short")
    return pairs


def decode_params(raw: bytes) -> tuple[dict[str, Any], int]:
    """Give what `decode_pairs` does as a dictionary, and the count of pairs.

    The last of a repeated name stays. This runs for every request. A pair whose lengths stand
    before the next byte of 0x80 or more has short ones: so nearly all are read without a look.
    """
    params: dict[str, Any] = {}
    text = raw.decode("latin-1")
    end = len(raw)
    stop = count = 0
    limit = end if text.isascii() else 0  # lengths before it are short
    try:
        while True:
            while stop < limit:
                pos = stop + 2
                middle = pos + raw[stop]
                stop = middle + raw[stop + 1]
                params[text[pos:middle]] = text[middle:stop]
                count += 1
            if stop >= end:
                break
            found = _high_byte(raw, stop)
            limit = end if found is None else found.start() - 1
            if stop >= limit:
                name_length, pos = _next_length(raw, stop)
                value_length, pos = _next_length(raw, pos)
                middle = pos + name_length
                stop = middle + value_length
                params[text[pos:middle]] = text[middle:stop]
                count += 1
    except IndexError:
        stop = -1
    if stop != end:
        raise ProtocolError("a name-value pair is cut short")
    return params, count
