"""Replays the attack corpus against a server that runs: `python -m tests.attacks.replay --help`."""

from __future__ import annotations

import argparse
import itertools
import re
import select
import socket
import struct
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

from tests.attacks import Attack, load
from tests.model import END_REQUEST, REQUEST_COMPLETE, STDOUT, Reader

SECONDS = 30.0  # for each attack
STALLED = 1.0  # seconds without progress: the server takes no more while its answers are not read
BATCH = 65536  # bytes of small pieces that are written at once, unless they have a size

# what an AJP connector sends
(SEND_BODY_CHUNK, SEND_HEADERS, END_RESPONSE) = (3, 4, 5)
CPONG = 9

Address = str | tuple[str, int]


class Broken(AssertionError):
    """The server did not do what it should."""


def connect(address: Address) -> socket.socket:
    if isinstance(address, tuple):
        return socket.create_connection(address, SECONDS)
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(SECONDS)
    sock.connect(address)
    return sock


class FastCGIAnswers(Reader):
    """Collects what comes, and finds whole answers in it."""

    def __init__(self) -> None:
        super().__init__()
        self.answers: list[bytes] = []
        self._stdout: dict[int, bytes] = {}

    def feed(self, data: bytes) -> None:
        for record in self.records(data):
            if record.kind == STDOUT:
                self._stdout[record.id] = self._stdout.get(record.id, b"") + record.content
            elif record.kind == END_REQUEST:
                stdout = self._stdout.pop(record.id, b"")
                if stdout and record.content[4] == REQUEST_COMPLETE:
                    self.answers.append(stdout)

    def end(self) -> None:
        """The connection has ended, which says nothing."""


class SCGIAnswers:
    """Collects what comes; the end of the connection is the answer's."""

    def __init__(self) -> None:
        self.answers: list[bytes] = []
        self._data = b""

    def feed(self, data: bytes) -> None:
        self._data += data

    def end(self) -> None:
        if self._data:
            self.answers.append(self._data)
            self._data = b""


class AJPAnswers:
    """Reads packets; an answer is given as CGI's head and body."""

    def __init__(self) -> None:
        self.answers: list[bytes] = []
        self._data = b""
        self._answer = b""

    def feed(self, data: bytes) -> None:
        self._data += data
        at = 0
        while len(self._data) >= at + 4:
            magic, size = struct.unpack_from(">2sH", self._data, at)
            if magic != b"AB":
                raise Broken(f"a packet begins with {magic!r}")
            if len(self._data) < at + 4 + size:
                break
            self._packet(self._data[at + 4 : at + 4 + size])
            at += 4 + size
        self._data = self._data[at:]

    def _packet(self, content: bytes) -> None:
        kind = content[0]
        if kind == SEND_HEADERS:
            (status,) = struct.unpack_from(">H", content, 1)
            self._answer = f"Status: {status}\r\n\r\n".encode()
        elif kind == SEND_BODY_CHUNK:
            (size,) = struct.unpack_from(">H", content, 1)
            self._answer += content[3 : 3 + size]
        elif kind in (END_RESPONSE, CPONG):
            self.answers.append(self._answer or b"Status: 200\r\n\r\n")
            self._answer = b""

    def end(self) -> None:
        """The connection has ended, which says nothing."""


class Conversation:
    """One connection, and what came of it."""

    def __init__(self, attack: Attack, address: Address, seconds: float) -> None:
        self.attack = attack
        self.seconds = seconds
        self.closed = False
        self.stalled = False
        self.reader = READERS[attack.protocol]()
        self.deadline = time.monotonic() + seconds
        self._socket = connect(address)
        self._socket.setblocking(False)

    def send(self, pieces: Iterable[bytes], read: bool) -> None:
        """Send everything, and take what comes meanwhile, if it is to be read."""
        for piece in pieces:
            rest = memoryview(piece)
            while rest and not self.closed and not self.stalled:
                try:
                    rest = rest[self._socket.send(rest) :]
                except BlockingIOError:
                    self._wait(read)
                except OSError:
                    self._receive()  # what it said before it closed
                    self._close()
            if read and not self.closed:
                self._receive()
            if self.closed or self.stalled:
                return

    def _wait(self, read: bool) -> None:
        events = select.POLLOUT | (select.POLLIN if read else 0)
        poll = select.poll()
        poll.register(self._socket, events)
        if not poll.poll(1000 * (self._left() if read else STALLED)):
            if read:
                raise Broken("neither takes nor says anything")
            self.stalled = True
        if read:
            self._receive()

    def _left(self) -> float:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise Broken(f"nothing of {self.attack.expect} in {self.seconds} seconds")
        return left

    def _receive(self) -> None:
        """Take what is there."""
        while not self.closed:
            try:
                data = self._socket.recv(BATCH)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if data:
                self.reader.feed(data)
            else:
                self._close()

    def _close(self) -> None:
        self.closed = True
        self.reader.end()

    def until(self, outcomes: Iterable[str]) -> str:
        """Wait for one of the outcomes."""
        while True:
            if self.reader.answers and not {"answer", "serve"}.isdisjoint(outcomes):
                return "answer"
            if self.closed:
                if "close" in outcomes:
                    return "close"
                raise Broken(f"closed, instead of {outcomes}")
            poll = select.poll()
            poll.register(self._socket, select.POLLIN)
            poll.poll(1000 * self._left())
            self._receive()

    def end(self) -> None:
        how = self.attack.end
        if how == "half" and not self.closed:
            self._socket.shutdown(socket.SHUT_WR)
            self.until(["close"])
        elif how == "reset":
            pack = struct.pack("ii", 1, 0)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, pack)

    def close(self) -> None:
        self._socket.close()


READERS: dict[str, Any] = {"fastcgi": FastCGIAnswers, "scgi": SCGIAnswers, "ajp": AJPAnswers}


def batches(attack: Attack) -> Iterator[bytes]:
    if attack.chunk:
        yield from attack.pieces()
        return
    pending = b""
    for piece in attack.pieces():
        pending += piece
        if len(pending) >= BATCH:
            yield pending
            pending = b""
    if pending:
        yield pending


def check_answers(attack: Attack, answers: list[bytes]) -> None:
    for answer in answers:
        found = re.match(rb"(?:Status: |HTTP/\S+ )(\d{3})", answer)
        status = int(found[1]) if found else 200
        if attack.status and status not in attack.status:
            raise Broken(f"status {status}, not one of {attack.status}: {answer[:300]!r}")
        for text in attack.absent:
            if text.encode() in answer:
                raise Broken(f"{text!r} is in the answer: {answer[:1000]!r}")
        if status == 200:
            for text in attack.present:
                if text.encode() not in answer:
                    raise Broken(f"{text!r} is not in the answer: {answer[:1000]!r}")


def replay(attack: Attack, address: Address, seconds: float = SECONDS) -> str:
    """Make one attack; give what came of it: one of what it expects. Raises Broken."""
    if attack.connections > 1:
        return _crowd(attack, address)
    conversation = Conversation(attack, address, seconds)
    try:
        conversation.send(batches(attack), attack.read)
        if "serve" in attack.expect and not conversation.closed:
            before = len(conversation.reader.answers)
            conversation.send([attack.probe_bytes()], True)
            if "answer" not in attack.expect:
                del conversation.reader.answers[:before]
        outcome = "wait" if "wait" in attack.expect else conversation.until(attack.expect)
        conversation.end()
    finally:
        conversation.close()
    check_answers(attack, conversation.reader.answers)
    return outcome


def _crowd(attack: Attack, address: Address) -> str:
    """Many connections at a time, which stay while a good request is made, or come and go."""
    data = b"".join(batches(attack))
    held = []
    try:
        for _ in range(attack.connections):
            sock = connect(address)
            sock.sendall(data)
            if attack.hold:
                held.append(sock)
                continue
            if attack.end == "reset":
                pack = struct.pack("ii", 1, 0)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, pack)
            sock.close()
        probe(attack, address)
    finally:
        for sock in held:
            sock.close()
    return "wait"


def probe(attack: Attack, address: Address) -> None:
    """Make a good request on a connection of its own. Raises Broken unless it is answered."""
    good = Attack("probe", "", ["answer"], attack.protocol, [], attack.probe, status=[200])
    replay(good, address)


def parse(text: str) -> Address:
    """Read "unix:/path", "tcp:host:port", a path, or host:port."""
    text = text.removeprefix("tcp:")
    host, colon, port = text.rpartition(":")
    if colon and port.isdecimal() and not text.startswith(("unix:", "/")):
        return host.strip("[]"), int(port)
    return text.removeprefix("unix:")


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.attacks.replay", description=__doc__)
    parser.add_argument("protocol", choices=sorted(READERS))
    parser.add_argument("address", help="unix:/path or tcp:host:port")
    parser.add_argument("--only", default="", help="what a name must contain")
    arguments = parser.parse_args()
    address = parse(arguments.address)
    broken = 0
    chosen = [attack for attack in load(arguments.protocol) if arguments.only in attack.name]
    for attack, number in zip(chosen, itertools.count(1), strict=False):
        began = time.monotonic()
        try:
            outcome = replay(attack, address)
            probe(attack, address)
        except (Broken, OSError) as error:
            broken += 1
            outcome = f"FAILED: {error}"
        print(f"{number:3} {attack.name}: {outcome} ({time.monotonic() - began:.2f} s)", flush=True)
    print(f"{len(chosen) - broken} of {len(chosen)} as they should be")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
