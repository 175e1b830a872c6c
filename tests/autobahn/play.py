"""Do what a case says: with plain frames, or with wsproto as the client's library."""

from __future__ import annotations

import contextlib
import json
import random
import struct
from collections import deque
from functools import cache

from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, TextMessage
from wsproto.extensions import PerMessageDeflate

from tests.autobahn.cases import WRONG, Bulk, Case, Closed
from tests.autobahn.frames import BINARY, CLOSE, TEXT, Frame, Reader
from tests.autobahn.wires import Wire


class Peer:
    """What the server sends, frame by frame."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.reader = Reader()
        self.frames: deque[Frame] = deque()
        self.ended = False

    def next(self) -> Frame | None:
        """Give the next frame; None when the server has ended."""
        while not self.frames and not self.ended:
            data = self.wire.receive()
            self.ended = not data
            self.frames += self.reader.feed(data)
        return self.frames.popleft() if self.frames else None

    def close(self, case: Case, expected: Closed, drops: bool) -> None:
        """Wait for the server's close frame, and its end. `drops`: it may end without one."""
        found = self.next()
        while case.echoes and found is not None and found.opcode in (TEXT, BINARY):
            found = self.next()
        if found is None:
            assert drops, "no close frame"
            assert {1002, 1007} & set(expected.codes), "dropped, but nothing was wrong"
        else:
            assert found.opcode == CLOSE, found
            code = struct.unpack(">H", found.payload[:2])[0] if found.payload else None
            assert code in expected.codes, found
            found.payload[2:].decode()
        assert self.next() is None, "a frame after the close frame"
        assert self.reader.rest == b""


def play(case: Case, wire: Wire, drops: bool = False) -> None:
    """Do the steps. `drops`: what is wrong may be answered by the end, and by nothing else."""
    peer = Peer(wire)
    for step in case.steps:
        if isinstance(step, bytes):
            # Who was told something wrong may have gone before it is told all of it.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                wire.send(step)
        elif isinstance(step, Frame):
            found = peer.next()
            if drops and found is None and case.steps[-1] == WRONG:
                return  # it failed at once; Autobahn calls that non-strict
            assert found == step, f"{found} instead of {step}"
        else:
            peer.close(case, step, drops)


@cache
def material(name: str) -> bytes:
    """Give 64 KiB or more, the same each time, of what compresses well, badly or not at all."""
    chance = random.Random(name)
    if name == "words":
        return "m\u00fcnze und fr\u00fcchte, ".encode() * 4000
    if name == "json":
        rows = [{"id": n, "name": f"row {n}", "at": chance.random()} for n in range(2000)]
        return json.dumps(rows).encode()
    if name == "html":
        cells = (f"<td class=c{n % 7}>{chance.randrange(10**6)}</td>" for n in range(4000))
        return f"<table><tr>{'</tr><tr>'.join(cells)}</tr></table>".encode()
    if name == "bitmap":
        return bytes(
            (x * y // 64 + chance.randrange(3)) & 255 for x in range(256) for y in range(256)
        )
    if name == "document":  # which is compressed already
        return chance.randbytes(70_000)
    syllables = ["wer", "rei", "tet", "so", "sp\u00e4t", "durch", "nacht", "und", "wind"]
    return " ".join(chance.choice(syllables) for _ in range(16_000)).encode()


def piece(name: str, start: int, size: int, text: bool) -> str | bytes:
    """Give `size` bytes; of a text, they may be fewer by a part of a character at either end."""
    whole = material(name)
    start %= len(whole)
    data = (whole[start:] + whole * (size // len(whole) + 1))[:size]
    return data.decode("utf-8", "ignore") if text else data


def connection(bulk: Bulk, wire: Wire) -> Connection:
    extensions: list[PerMessageDeflate] = []
    if bulk.offers:
        assert wire.extensions.partition(";")[0] == "permessage-deflate"
        assert "," not in wire.extensions, "several of the offers were accepted"
        for asked in ("server_no_context_takeover", "server_max_window_bits=9"):
            assert (asked in bulk.offers[0]) <= (asked in wire.extensions), wire.extensions
        agreed = PerMessageDeflate()
        agreed.finalize(wire.extensions)
        extensions.append(agreed)
    else:
        assert wire.extensions == ""
    return Connection(ConnectionType.CLIENT, list(extensions))


def sent(bulk: Bulk, frames: Connection, data: str | bytes) -> bytes:
    """Give a message's frames."""
    size = bulk.fragment or len(data) or 1
    pieces = [data[at : at + size] for at in range(0, len(data), size)] or [data]
    last = len(pieces) - 1
    found = bytearray()
    for n, part in enumerate(pieces):
        if isinstance(part, str):
            found += frames.send(TextMessage(part, message_finished=n == last))
        else:
            found += frames.send(BytesMessage(part, message_finished=n == last))
    return bytes(found)


def received(frames: Connection, wire: Wire) -> str | bytes | CloseConnection:
    """Give the next message, or the close."""
    pieces: list[str | bytes] = []
    while True:
        for event in frames.events():
            if isinstance(event, CloseConnection):
                return event
            assert isinstance(event, (TextMessage, BytesMessage)), event
            pieces.append(event.data if isinstance(event.data, str) else bytes(event.data))
            if event.message_finished:
                return ("" if isinstance(pieces[0], str) else b"").join(pieces)  # type: ignore[arg-type]
        data = wire.receive()
        assert data, "the server has ended"
        frames.receive_data(data)


def exchange(bulk: Bulk, wire: Wire) -> None:
    frames = connection(bulk, wire)
    for n in range(bulk.count):
        data = piece(bulk.material, n * bulk.size, bulk.size, bulk.text)
        whole = sent(bulk, frames, data)
        chop = bulk.chop or len(whole)
        for at in range(0, len(whole), chop):
            wire.send(whole[at : at + chop])
        assert received(frames, wire) == data
    wire.send(frames.send(CloseConnection(code=1000)))
    closed = received(frames, wire)
    assert isinstance(closed, CloseConnection)
    assert closed.code == 1000
    assert wire.receive() == b""
