"""The roles beside the Responder: statements 27 and 28."""

from __future__ import annotations

from fulgate.conform.asking import Asking, Reply
from fulgate.conform.statements import Failed, NotApplicable, case, statement
from fulgate.conform.target import Target, begin, encode, stream
from fulgate.exchange import Role
from fulgate.protocols.fastcgi_records import DATA, PARAMS, STDIN, UNKNOWN_ROLE

__all__: list[str] = []

VARIABLE = b"variable-conform"
MODIFIED = 1_700_000_000  # seconds, as FCGI_DATA_LAST_MOD has them


@statement("27", "6.3", "Authorizer: no STDIN needed; a 200 passes Variable-* headers")
def authorizer(target: Target) -> None:
    with case("allowed"), Asking(target) as asking:
        reply = _authorized(target, asking, "allow")
        if reply.status != 200:
            raise Failed(f"the answer begins {reply.stdout[:60]!r}")
        if reply.header(VARIABLE) != b"yes":
            raise Failed(f"there is no Variable-CONFORM: yes in {b' | '.join(reply.head)!r}")
    with case("denied"), Asking(target) as asking:
        reply = _authorized(target, asking, "deny")
        if reply.status != 403:
            raise Failed(f"the answer begins {reply.stdout[:60]!r}")


def _authorized(target: Target, asking: Asking, wish: str) -> Reply:
    params = encode(target.params("/", more={"HTTP_X_CONFORM": wish}))
    asking.send(begin(role=Role.AUTHORIZER), stream(PARAMS, 1, params))
    return _served(asking)


def _served(asking: Asking) -> Reply:
    reply = asking.answer()
    if reply.protocol_status == UNKNOWN_ROLE:
        raise NotApplicable("it does not serve the role: UNKNOWN_ROLE")
    return reply


@statement("28", "6.4", "Filter: FCGI_DATA after STDIN, FCGI_DATA_LENGTH and FCGI_DATA_LAST_MOD")
def filter_role(target: Target) -> None:
    for body in (b"", b"a body"):
        for data in (b"", b"some data\n", b"much data\n" * 10_000):
            with case(f"{len(body)} bytes of STDIN, {len(data):,} of DATA"):
                with Asking(target) as asking:
                    _filtered(target, asking, body, data)


def _filtered(target: Target, asking: Asking, body: bytes, data: bytes) -> None:
    told = {"FCGI_DATA_LENGTH": str(len(data)), "FCGI_DATA_LAST_MOD": str(MODIFIED)}
    if body:
        told |= {"REQUEST_METHOD": "POST", "CONTENT_LENGTH": str(len(body))}
    params = encode(target.params("/", more=told))
    asking.send(begin(role=Role.FILTER), stream(PARAMS, 1, params), stream(STDIN, 1, body))
    asking.send(stream(DATA, 1, data))
    reply = _served(asking)
    wanted = f"{len(body)} {len(data)} {MODIFIED}\n".encode() + data.upper()
    if reply.status != 200 or reply.body != wanted:
        raise Failed(f"the answer begins {reply.body[:60]!r}, and not {wanted[:60]!r}")
