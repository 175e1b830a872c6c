"""What the two clients have in common: a request that is asked for, and judging its answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from fulgate.client.head import Head, HeadReader
from fulgate.client.params import BadRequest, request_params
from fulgate.endpoint import FASTCGI, PROTOCOLS, Endpoint
from fulgate.errors import AnswerCut, ConfigError, ProtocolError, Refused
from fulgate.exchange import Role
from fulgate.protocols.ajp_client import AJPClient
from fulgate.protocols.fastcgi_client import FastCGIClient, Request
from fulgate.protocols.scgi_client import SCGIClient

__all__ = [
    "SPOKEN",
    "Asked",
    "HeadOf",
    "Pairs",
    "check_body",
    "check_size",
    "connectable",
    "speakable",
]

Pairs = Mapping[str, str] | Iterable[tuple[str, str]]
"""Names and values of headers or variables, which may be repeated."""

# RFC 9110, section 9.2.2: asked for twice they do no more than once.
IDEMPOTENT: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})

MAX_INTERIM: Final = 100  # heads of 100 to 199 before the one that counts


SPOKEN: Final[dict[str, type[FastCGIClient]]] = {
    FASTCGI: FastCGIClient,
    "scgi": SCGIClient,
    "ajp": AJPClient,
}
"""What a client speaks, by the protocol of an endpoint."""


def connectable(endpoint: str | Endpoint) -> Endpoint:
    """Give an endpoint of FastCGI that one can connect to. Raises ConfigError for any other."""
    endpoint = speakable(endpoint)
    if endpoint.protocol != FASTCGI:
        raise ConfigError(f"endpoint {endpoint}: this speaks FastCGI, and not {endpoint.protocol}")
    return endpoint


def speakable(endpoint: str | Endpoint) -> Endpoint:
    """Give an endpoint that one can connect to, and speak to. Raises ConfigError for any other."""
    if isinstance(endpoint, str):
        endpoint = Endpoint.parse(endpoint)
    if endpoint.kind not in ("unix", "tcp") or (endpoint.kind == "tcp" and not endpoint.port):
        raise ConfigError(f"endpoint {endpoint}: one cannot connect to it")
    if endpoint.protocol not in SPOKEN:
        raise ConfigError(f"endpoint {endpoint}: this does not speak {endpoint.protocol}")
    return endpoint


@dataclass(frozen=True)
class Asked:
    """One request that is asked for: its variables, and how it may be treated."""

    params: dict[str, str]
    role: Role
    replayable: bool  # may it be sent again when it is not known whether it was served?
    bare: bool  # the answer has no body

    @classmethod
    def of(
        cls,
        method: str,
        target: str,
        headers: Pairs,
        params: Pairs,
        script_filename: str,
        length: int | None,
        role: Role,
    ) -> Asked:
        """Make one. Raises BadRequest as `request_params` does."""
        made = request_params(
            method,
            target,
            headers=_pairs(headers),
            length=length,
            script_filename=script_filename,
            params=_pairs(params),
        )
        return cls(made, role, method in IDEMPOTENT and length is not None, method == "HEAD")

    def check(self, endpoint: Endpoint, body: object) -> None:
        """Raise BadRequest where SCGI or AJP, if that is spoken there, has no words for it."""
        if endpoint.protocol == FASTCGI:
            return
        name = PROTOCOLS[endpoint.protocol]
        if self.role is not Role.RESPONDER:
            raise BadRequest(f"{name} has no roles")
        if not isinstance(body, bytes) and not self.params.get("CONTENT_LENGTH"):
            raise BadRequest(f"{name} wants a body's length before it: give it whole, as bytes")


def _pairs(pairs: Pairs) -> Iterable[tuple[str, str]]:
    return pairs.items() if isinstance(pairs, Mapping) else pairs


class HeadOf:
    """Finds the head of an answer; heads of 100 to 199, which announce another, are passed over."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._reader = HeadReader()
        self._interim = 0

    def feed(self, data: bytes) -> tuple[Head, bytes] | None:
        """Take a piece of STDOUT, b"" at its end; give the head and what follows it, once whole.

        Raises Refused, and ProtocolError for an answer without a whole head, and for one that
        switches protocols, which nobody asked for.
        """
        if not data:
            if not self._request.whole:
                raise Refused(self._request.protocol_status)
            raise ProtocolError("the answer ended inside its head")
        found = self._reader.feed(data)
        while found is not None and found[0].status < 200:
            if found[0].status == 101:
                raise ProtocolError("the application switches protocols: not served")
            self._interim += 1
            if self._interim > MAX_INTERIM:
                raise ProtocolError(f"more than {MAX_INTERIM} heads that announce another")
            self._reader = HeadReader()
            found = self._reader.feed(found[1])
        return found


def check_body(head: Head, size: int, request: Request, bare: bool) -> None:
    """Hold a body that has ended to what its head said.

    Raises AnswerCut for one that is too short, ProtocolError for one that is too long, Refused.
    """
    if not request.whole:
        raise Refused(request.protocol_status)
    length = head.get("Content-Length")
    if not length or bare or head.status in (204, 304):
        return
    text = f"a body of {size} bytes with Content-Length {length}"
    if size < int(length):
        raise AnswerCut(text)
    if size > int(length):
        raise ProtocolError(text)


def check_size(size: int, limit: int | None) -> None:
    """Raise ProtocolError for a body of which more has come than is to be gathered."""
    if limit is not None and size > limit:
        raise ProtocolError(f"the body is longer than {limit} bytes")
