"""SCGI 1, the web server's side: one request for each connection. No I/O."""

from __future__ import annotations

from collections.abc import Iterable

from fulgate.errors import ProtocolError
from fulgate.exchange import Buffer, Role
from fulgate.protocols.fastcgi_client import FastCGIClient, Params, Request

__all__ = ["SCGIClient", "SCGIRequest", "encode_headers"]


def encode_headers(params: Params) -> bytes:
    """Give the netstring of headers: CONTENT_LENGTH first, 0 where it is empty, and SCGI.

    Raises UnicodeEncodeError for text outside latin-1, ValueError for an empty name, and for NUL in
    a name or a value.
    """
    length = b""
    fields: list[bytes] = []
    for pair in params:
        name, value = (v.encode("latin-1") if isinstance(v, str) else v for v in pair)
        if name == b"CONTENT_LENGTH":
            length = value
        elif name != b"SCGI":
            fields += (name, value)
        if not name or b"\0" in name + value:
            raise ValueError(f"SCGI cannot send {name!r}={value!r}")
    fields[:0] = (b"CONTENT_LENGTH", length or b"0", b"SCGI", b"1")
    block = b"\0".join([*fields, b""])
    return b"%d:%s," % (len(block), block)


class SCGIRequest(Request):
    """One request, and what came back for it. Nothing on the wire ends its body, or aborts it."""

    def send(self, data: Buffer) -> list[Buffer]:
        """Give a piece of the body, of which there are CONTENT_LENGTH bytes in all."""
        if self.stdin_ended:
            raise RuntimeError("the body of this request has ended already")
        return [] if self.ended or self.aborted or not data else [data]

    def end(self) -> list[Buffer]:
        if self.stdin_ended:
            raise RuntimeError("the body of this request has ended already")
        self.stdin_ended = True
        return []

    def abort(self) -> list[Buffer]:
        """Note that it is given up. The application learns of it by the end of the connection."""
        self.aborted = self.aborted or not self.ended
        return []


class SCGIClient(FastCGIClient):
    """One connection to an application, with the interface of FastCGI's."""

    def __init__(self) -> None:
        super().__init__()
        self._request: SCGIRequest | None = None
        self._used = False

    @property
    def idle(self) -> bool:
        """May a request begin? There is one on each connection."""
        return not self._used

    def begin(
        self, params: Params, role: Role = Role.RESPONDER, keep: bool = True, id: int = 0
    ) -> tuple[Request, list[Buffer]]:
        """Begin the request; give it and the bytes of its headers. `keep` and `id` mean nothing.

        Raises RuntimeError for a second one, ValueError for another role, and as `encode_headers`.
        """
        if self._used:
            raise RuntimeError("SCGI has one request for each connection")
        if role is not Role.RESPONDER:
            raise ValueError("SCGI has no roles")
        out: list[Buffer] = [encode_headers(params)]
        self._used = True
        self._request = request = SCGIRequest(1, role, False)
        return request, out

    def get_values(self, names: Iterable[str] = ()) -> list[Buffer]:
        """Raise ValueError: there is no such thing."""
        raise ValueError("SCGI has no GET_VALUES")

    def feed(self, data: bytes) -> list[Request]:
        """Take received bytes, all of which are of the answer. Raises ProtocolError."""
        request = self._request
        if request is None:
            raise ProtocolError("an answer that nobody has asked for")
        request.stdout.append(data)
        request.received += len(data)
        return [request]

    def eof(self, reset: bool = False) -> list[Request]:
        """Take note of the connection's end, which is the answer's unless it was a `reset`."""
        request, self._request = self._request, None
        if request is None:
            return []
        if reset or not request.received:
            request.cut = True
        else:
            request.ended = request.stdout_ended = True
        return [request]
