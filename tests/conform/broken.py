"""A FastCGI application server that keeps every statement, apart from one that it is told to break.

usage: python -m tests.conform.broken [--defect N] [--bind PATH]

Without --bind it listens on descriptor 0. It serves what `fulgate conform` expects, in one thread,
and shares no code with the package.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import struct
import sys
from collections.abc import Awaitable, Callable, Coroutine
from typing import Final

from tests.model import (
    ABORT_REQUEST,
    BEGIN_REQUEST,
    DATA,
    END_REQUEST,
    GET_VALUES,
    GET_VALUES_RESULT,
    OVERLOADED,
    PARAMS,
    REQUEST_COMPLETE,
    STDERR,
    STDIN,
    STDOUT,
    UNKNOWN_ROLE,
    UNKNOWN_TYPE,
)

DEFECTS: Final = (*map(str, range(1, 31)), *(f"R{n}" for n in range(1, 7)))
# Further ways to break a statement.
FURTHER: Final = ("1b", "2b", "3b", "6b", "9b", "10b", "16b", "18b", "20b", "21b", "24b", "30b")
RESPONDER, AUTHORIZER, FILTER = 1, 2, 3
VALUES: Final = {b"FCGI_MAX_CONNS": b"100", b"FCGI_MAX_REQS": b"100", b"FCGI_MPXS_CONNS": b"1"}
ROOM = 16  # requests that may hold something at once
PARAMS_SIZE, PARAMS_COUNT, BODY_SIZE = 500_000, 1000, 1 << 30
LONG = 65528  # the content of a record of a longer stream
PATIENCE = 3.0  # seconds for parameters to come, and for the next piece of a body


class Malformed(Exception):
    """The peer broke the rules: its connection is closed."""


class Refused(Exception):
    """The request gets this status instead of an answer."""


class Request:
    """A request, and the streams of it that came."""

    def __init__(self, id: int, role: int, keep: bool) -> None:
        self.id = id
        self.role = role
        self.keep = keep
        self.raw = b""
        self.params: dict[bytes, bytes] = {}
        self.params_ended = False
        self.streams = {STDIN: b"", DATA: b""}
        self.ended = {STDIN: False, DATA: False}
        self.changed = asyncio.Event()
        self.task: asyncio.Task[None] | None = None

    async def read(self, kind: int, size: int = 1 << 62) -> bytes:
        """Wait for the end of a stream, or for `size` bytes of it."""
        while not self.ended[kind] and len(self.streams[kind]) < size:
            self.changed.clear()
            await asyncio.wait_for(self.changed.wait(), PATIENCE)
        return self.streams[kind]


class Server:
    """What connections have in common."""

    def __init__(self, defect: str) -> None:
        self.defect = defect
        self.holding = 0
        self.arriving: set[Connection] = set()  # a request's parameters have begun to come

    def allowed(self, peer: object) -> bool:
        listed = os.environ.get("FCGI_WEB_SERVER_ADDRS", "")
        if not listed or not isinstance(peer, tuple) or self.defect == "2":
            return True
        if self.defect == "2b" and ":" in peer[0]:
            return True
        return peer[0] in [part.strip() for part in listed.split(",")]


class Connection(asyncio.Protocol):
    """One connection."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.defect = server.defect
        self.data = b""
        self.requests: dict[int, Request] = {}
        self.last = 0  # the id of the request that began last
        self.over_ids: set[int] = set()
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        if not self.server.allowed(transport.get_extra_info("peername")):
            transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        self.server.arriving.discard(self)
        for request in self.requests.values():
            if request.task is not None:
                request.task.cancel()

    def send(self, kind: int, id: int, content: bytes = b"", version: int = 1) -> None:
        if self.defect == "5":
            id &= 255
        self.transport.write(struct.pack(">BBHHBx", version, kind, id, len(content), 0) + content)

    def data_received(self, data: bytes) -> None:
        self.data += data
        try:
            while len(self.data) >= 8 and not self.transport.is_closing():
                version, kind, id, length, padding = struct.unpack(">BBHHBx", self.data[:8])
                if version != 1 and self.defect != "R2":
                    raise Malformed(f"version {version}")
                if (self.defect == "3" and not length) or (self.defect == "3b" and not id):
                    padding = 0
                if len(self.data) < 8 + length + padding:
                    break
                content = self.data[8 : 8 + length]
                self.data = self.data[8 + length + padding :]
                self.take(kind, id, content)
        except Malformed as error:
            if self.defect != "30b" or not str(error).startswith("version"):
                print(f"closed a connection: {error}", file=sys.stderr, flush=True)
            self.transport.close()

    def take(self, kind: int, id: int, content: bytes) -> None:
        request = self.requests.get(id)
        if id == 0:
            self.manage(kind, content)
        elif kind == BEGIN_REQUEST:
            self.begin(id, content)
        elif request is None:
            if self.defect == "6" and kind == ABORT_REQUEST:
                self.end(id)
            if self.defect == "6b" and id in self.over_ids:
                raise Malformed("a record of a request that is over")
        elif kind == ABORT_REQUEST:
            self.abort(request)
        elif kind == PARAMS:
            self.take_params(request, content)
        elif kind in request.streams:
            if not request.params_ended:
                raise Malformed("a stream before the end of PARAMS")
            if self.defect == "18b" and content and self.last in self.requests:
                request = self.requests[self.last]
            if not (kind == DATA and self.defect == "28"):
                request.streams[kind] += content
            request.ended[kind] = request.ended[kind] or not content
            request.changed.set()

    def manage(self, kind: int, content: bytes) -> None:
        if kind == GET_VALUES:
            if self.defect == "13" and self.requests:
                return
            known = dict(VALUES)
            if self.defect == "11":
                del known[b"FCGI_MAX_REQS"]
            told = b""
            for name in dict(read_pairs(content)):
                if name in known or (self.defect == "12" and name not in VALUES):
                    told += pair(name, known.get(name, b""))
            self.send(GET_VALUES_RESULT, 0, told)
        elif self.defect != "14":
            self.send(UNKNOWN_TYPE, 0, bytes([kind]) + bytes(7))

    def begin(self, id: int, content: bytes) -> None:
        if id in self.requests:
            if self.defect == "R4":
                return
            raise Malformed(f"BEGIN_REQUEST of {id}, which is active")
        if len(content) != 8:
            if self.defect == "R1":
                return
            raise Malformed(f"BEGIN_REQUEST of {len(content)} bytes")
        role, keep = content[0] << 8 | content[1], content[2] & 1 == 1
        if self.defect == "20b" and not role:
            role = RESPONDER
        if role not in (RESPONDER, AUTHORIZER, FILTER):
            self.end(id, protocol_status=UNKNOWN_ROLE)
            if self.defect == "20" or not (keep or self.requests or self.defect == "9b"):
                self.transport.close()
        elif not (self.defect == "18" and self.requests):
            self.requests[id] = Request(id, role, keep)
            self.last = id
            self.server.arriving.add(self)
            asyncio.get_running_loop().call_later(PATIENCE, self.arrived, self.requests[id])

    def arrived(self, request: Request) -> None:
        if not request.params_ended and self.requests.get(request.id) is request:
            self.transport.close()

    def abort(self, request: Request) -> None:
        state = "15" if not request.params_ended else "16" if request.ended[STDIN] else "17"
        if self.defect == state:
            return
        if request.task is not None and self.defect != "16b":
            request.task.cancel()
        self.over(request, 0)
        if self.defect == "16b" and state == "16":
            self.write(request, b"second\n")

    def end(self, id: int, app_status: int = 0, protocol_status: int = REQUEST_COMPLETE) -> None:
        self.send(END_REQUEST, id, struct.pack(">IB3x", app_status, protocol_status))

    def over(self, request: Request, app_status: int, refused: int = REQUEST_COMPLETE) -> None:
        self.requests.pop(request.id, None)
        self.over_ids.add(request.id)
        self.server.arriving.discard(self)
        self.end(request.id, 0 if self.defect == "25" else app_status, refused)
        if not self.requests:
            if not request.keep and self.defect != "9":
                self.transport.close()
            if self.defect == "10" and request.params_ended:
                self.transport.close()
            unread = request.streams[STDIN] and request.params.get(b"REQUEST_URI") == b"/hello"
            if self.defect == "10b" and unread:
                self.transport.close()

    def take_params(self, request: Request, content: bytes) -> None:
        if request.params_ended:
            raise Malformed("PARAMS after their end")
        if content:
            if self.defect == "7":
                request.raw = without_lengths_that_are_cut(request.raw)
            request.raw += content
            return
        request.params_ended = True
        self.server.arriving.discard(self)
        answer = self.answer(request)
        request.task = asyncio.get_running_loop().create_task(self.run(request, answer))

    # What the application does

    async def run(self, request: Request, answer: Coroutine[None, None, int]) -> None:
        try:
            app_status = await answer
        except Refused as error:
            self.write(request, head(str(error)))
            app_status = 0
        except OverflowError:  # there is no room
            if self.defect == "19":
                self.transport.close()
            else:
                self.over(request, 0, OVERLOADED)
            return
        except Malformed as error:
            print(f"closed a connection: {error}", file=sys.stderr, flush=True)
            self.transport.close()
            return
        except TimeoutError:
            self.transport.close()
            return
        if self.defect != "21":
            self.send(STDOUT, request.id)
        self.over(request, app_status)

    def write(self, request: Request, data: bytes) -> None:
        if self.defect == "24":
            data = data.replace(b"Status: ", b"HTTP/1.1 ", 1)
        if self.defect == "24b":
            data = data.replace(b"Status: 200 OK", b"200 OK", 1)
        if self.defect == "21b" and len(data) > LONG:
            self.send(STDOUT, request.id)
        version = 2 if self.defect == "4" and len(data) > 500_000 else 1
        for at in range(0, len(data), LONG):
            self.send(STDOUT, request.id, data[at : at + LONG], version)

    async def answer(self, request: Request) -> int:
        """Answer, and give the exit status."""
        if len(request.raw) > PARAMS_SIZE and self.defect != "R5":
            raise Refused("431 Request Header Fields Too Large")
        try:
            pairs = read_pairs(request.raw, self.defect)
        except Malformed as error:
            if self.defect == "30":
                self.write(request, head("400 Bad Request") + f"Error: {error}\n".encode())
                return 0
            raise
        if len(pairs) > PARAMS_COUNT and self.defect != "R5":
            raise Refused("431 Request Header Fields Too Large")
        request.params = dict(pairs)
        if int(request.params.get(b"CONTENT_LENGTH", b"0")) > BODY_SIZE and self.defect != "R5":
            raise Refused("413 Content Too Large")
        if request.role == AUTHORIZER:
            return await self.authorize(request)
        if request.role == FILTER:
            return await self.filter(request)
        path, _, query = request.params[b"REQUEST_URI"].partition(b"?")
        return await PATHS[path](self, request, query)

    async def authorize(self, request: Request) -> int:
        if self.defect == "27":
            await request.read(STDIN)
        if request.params.get(b"HTTP_X_CONFORM") == b"allow":
            self.write(request, head("200 OK\r\nVariable-CONFORM: yes"))
        else:
            self.write(request, head("403 Forbidden"))
        return 0

    async def filter(self, request: Request) -> int:
        body = await request.read(STDIN)
        data = await request.read(DATA)
        told = [request.params[b"FCGI_DATA_LENGTH"], request.params[b"FCGI_DATA_LAST_MOD"]]
        first = b" ".join([str(len(body)).encode(), *told]) + b"\n"
        self.write(request, head() + first + data.upper())
        return 0

    async def hello(self, request: Request, query: bytes) -> int:
        if self.defect == "23":
            await request.read(STDIN)
        if self.defect == "R6" and len(self.server.arriving) > ROOM:
            await asyncio.sleep(60)  # longer than anybody asks
        if self.defect == "22":
            self.send(STDERR, request.id, b"a word\n")
        bare = request.params[b"REQUEST_METHOD"] == b"HEAD"
        self.write(request, head() + (b"" if bare else b"Hello, world!\n"))
        return 0

    async def stderr(self, request: Request, query: bytes) -> int:
        self.send(STDERR, request.id, b"a line for the log\n")
        self.send(STDERR, request.id)
        return await self.hello(request, query)

    async def echo(self, request: Request, query: bytes) -> int:
        self.write(request, head() + await request.read(STDIN))
        return 0

    async def param(self, request: Request, query: bytes) -> int:
        self.write(request, head() + request.params.get(query, b""))
        return 0

    async def size(self, request: Request, query: bytes) -> int:
        self.write(request, head() + b"x" * int(query))
        return 0

    async def length(self, request: Request, query: bytes) -> int:
        body = await request.read(STDIN)
        told = request.params[b"CONTENT_LENGTH"]
        if self.defect == "26" and len(body) != int(told):
            raise Refused("400 Bad Request")
        self.write(request, head() + b"%d of %b\n" % (len(body), told))
        return 0

    async def hold(self, request: Request, query: bytes) -> int:
        if self.server.holding >= ROOM:
            raise OverflowError
        self.server.holding += 1
        try:
            self.write(request, head() + b"first\n")
            size = 0
            while not request.ended[STDIN]:
                size += 1
                await request.read(STDIN, max(size, len(request.streams[STDIN]) + 1))
        finally:
            self.server.holding -= 1
        self.write(request, b"second\n")
        return 0

    async def wait(self, request: Request, query: bytes) -> int:
        self.write(request, head() + b"first\n")
        await asyncio.sleep(float(query))
        self.write(request, b"second\n")
        return 0

    async def redirect(self, request: Request, query: bytes) -> int:
        self.write(request, head("302 Found\r\nLocation: http://localhost/elsewhere?a=1"))
        return 0

    async def exit(self, request: Request, query: bytes) -> int:
        self.write(request, head("500 Internal Server Error"))
        return int(query)


PATHS: Final[dict[bytes, Callable[[Connection, Request, bytes], Awaitable[int]]]] = {
    b"/hello": Connection.hello,
    b"/stderr": Connection.stderr,
    b"/echo": Connection.echo,
    b"/param": Connection.param,
    b"/size": Connection.size,
    b"/length": Connection.length,
    b"/hold": Connection.hold,
    b"/wait": Connection.wait,
    b"/redirect": Connection.redirect,
    b"/exit": Connection.exit,
}


def head(status: str = "200 OK") -> bytes:
    return f"Status: {status}\r\nContent-Type: text/plain\r\n\r\n".encode()


def pair(name: bytes, value: bytes) -> bytes:
    return bytes([len(name), len(value)]) + name + value


def length_at(data: bytes, at: int) -> tuple[int, int]:
    """Give a length, and where it ends; raise Malformed where it is cut short."""
    size = 1 if data[at : at + 1] < b"\x80" else 4
    if len(data) < at + size:
        raise Malformed("a length is cut short")
    number = data[at] if size == 1 else struct.unpack_from(">I", data, at)[0] & 0x7FFFFFFF
    return number, at + size


def read_pairs(data: bytes, defect: str = "") -> list[tuple[bytes, bytes]]:
    found: list[tuple[bytes, bytes]] = []
    at = 0
    while at < len(data):
        try:
            name_length, at = length_at(data, at)
            value_length, at = length_at(data, at)
            end = at + name_length + value_length
            if end > len(data):
                raise Malformed("a pair is cut short")
        except Malformed:
            if defect == "R3":
                break
            raise
        value = data[at + name_length : end]
        if defect == "8":
            value = value[:65_535]
        found.append((data[at : at + name_length], value))
        at = end
    return found


def without_lengths_that_are_cut(data: bytes) -> bytes:
    """Leave out what stands at the end of a record of a pair whose lengths go on in the next."""
    at = 0
    while at < len(data):
        start = at
        try:
            name_length, at = length_at(data, at)
            value_length, at = length_at(data, at)
        except Malformed:
            return data[:start]
        at += name_length + value_length
    return data


async def serve(path: str, server: Server) -> int:
    loop = asyncio.get_running_loop()
    stopped: asyncio.Future[int] = loop.create_future()
    loop.add_signal_handler(signal.SIGTERM, stopped.set_result, int(server.defect == "29"))
    if path:
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(path)
    else:
        sock = socket.socket(fileno=os.dup(0))
        if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            if server.defect == "1b":
                await loop.connect_accepted_socket(lambda: Connection(server), sock)
                return await stopped
            return 0
        if server.defect == "1" and sock.family == socket.AF_UNIX:
            return 3
    make = loop.create_unix_server if sock.family == socket.AF_UNIX else loop.create_server
    await make(lambda: Connection(server), sock=sock, backlog=1000)
    print("serving", flush=True)
    return await stopped


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--defect", default="", choices=["", *DEFECTS, *FURTHER])
    parser.add_argument("--bind", default="")
    given = parser.parse_args()
    return asyncio.run(serve(given.bind, Server(given.defect)))


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # what goes on in tasks is of no account
