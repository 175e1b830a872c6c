"""What tests of AJP have in common: the package's words for what the model reads and writes."""

from __future__ import annotations

from fulgate.exchange import Buffer, Exchange, Limits
from fulgate.protocols.ajp import AJP
from fulgate.protocols.ajp_packets import decode_forward
from tests import ajp_model
from tests.ajp_model import (
    Answer,
    WebServer,
)

NO_LIMITS = Limits(params_size=0, params=0, body=0)


def begun(data: bytes, protocol: AJP | None = None) -> Exchange:
    """Feed what begins one request."""
    [exchange] = (protocol or AJP(NO_LIMITS)).feed(data)
    return exchange


def answers(*buffers: Buffer, size: int = 8192) -> list[Answer]:
    server = WebServer(size)
    server.read(b"".join(buffers))
    assert not server.data, "the last packet is cut short"
    return server.answers


def owed(protocol: AJP) -> list[int]:
    """Take what the protocol has to say, and give how much body it asks for."""
    server = WebServer(65536)
    out, protocol.out = protocol.out, []
    server.read(b"".join(out))
    return server.answer.asked


def facts(content: bytes) -> object:
    """What the package reads of a FORWARD_REQUEST, in the model's words."""
    read = decode_forward(content)
    fields = [read.protocol, read.uri, read.remote_addr, read.remote_host, read.server_name]
    return ajp_model.Request(
        read.method, fields, read.server_port, read.is_ssl, read.headers, read.attributes,
        read.named,
    )  # fmt: skip
