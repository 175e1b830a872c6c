"""permessage-deflate (RFC 7692) for a server: wsproto's, and what that leaves out."""

# Where what is compiled is compiled, wsproto is not installed.
# mypy: allow-subclassing-any

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from wsproto.extensions import PerMessageDeflate
from wsproto.frame_protocol import CloseReason, FrameDecoder, FrameProtocol, Opcode, RsvBits

__all__ = ["Deflate", "agree"]

NAME: Final = "permessage-deflate"
FLAGS: Final = frozenset(["client_no_context_takeover", "server_no_context_takeover"])
WINDOWS: Final = frozenset(str(bits) for bits in range(8, 16))


class Deflate(PerMessageDeflate):
    """Leaves control frames alone: wsproto's ends a message with a ping that comes amid it, and
    takes the fragments after it for plain ones.
    """

    _control = False  # the frame that is being read is one

    def frame_inbound_header(
        self,
        proto: FrameDecoder | FrameProtocol,
        opcode: Opcode,
        rsv: RsvBits,
        payload_length: int,
    ) -> CloseReason | RsvBits:
        self._control = opcode.iscontrol()
        if self._control:
            return RsvBits(False, False, False)
        return super().frame_inbound_header(proto, opcode, rsv, payload_length)

    def frame_inbound_payload_data(
        self, proto: FrameDecoder | FrameProtocol, data: bytes
    ) -> bytes | CloseReason:
        return data if self._control else super().frame_inbound_payload_data(proto, data)

    def frame_inbound_complete(
        self, proto: FrameDecoder | FrameProtocol, fin: bool
    ) -> bytes | CloseReason | None:
        return None if self._control else super().frame_inbound_complete(proto, fin)


def agree(offers: str) -> tuple[Deflate, str] | None:
    """Give the extension by the first offer that can be met, and what to answer; else None.

    `offers` is the client's Sec-WebSocket-Extensions. An offer with a parameter that is unknown,
    repeated or of a wrong value is declined (RFC 7692, section 7); so is, by wsproto, a window of
    8 bits, which zlib does not have.
    """
    for offer in offers.split(","):
        name, *parameters = [part.strip() for part in offer.split(";")]
        if name != NAME or not _known(parameters):
            continue
        # One for each offer: what a declined one has set must not stay.
        extension = Deflate()
        accepted = extension.accept(offer.replace('"', ""))
        if isinstance(accepted, str):
            return extension, f"{NAME}; {accepted}" if accepted else NAME
    return None


def _known(parameters: Sequence[str]) -> bool:
    seen: set[str] = set()
    for parameter in parameters:
        name, sign, value = (part.strip() for part in parameter.partition("="))
        if name in seen:
            return False
        seen.add(name)
        if name in FLAGS:
            good = not sign
        elif name == "client_max_window_bits":
            good = not sign or value.strip('"') in WINDOWS
        else:
            good = name == "server_max_window_bits" and value.strip('"') in WINDOWS
        if not good:
            return False
    return True
