"""Has nobody connect any more to a listening TCP socket, before it is closed. Linux.

The close of a listening socket resets whoever is in its queue, and who came between the last
`accept` and the close has been told by the kernel that the connection stands, and may have sent a
request. So the socket first gets a filter (socket(7), SO_ATTACH_FILTER) that drops what would begin
another connection (SYN); those that are being opened (SYN-RECEIVED) get there, in a round trip.
From then on the queue only gets shorter. Who was not answered tries again, and is refused.
"""

from __future__ import annotations

import socket
import struct
import sys
from array import array
from time import monotonic, sleep
from typing import Final

__all__ = ["quiesce"]

PATIENCE: Final = 0.2  # seconds for connections that are being opened
PAUSE: Final = 0.001  # seconds between two looks at them
UNSEEN: Final = 0.02  # seconds for them, where the kernel does not tell of them

SO_ATTACH_FILTER: Final = 26
# struct sock_filter, linux/filter.h: code, two jumps, a number. Byte 13 of a TCP segment has flags.
FILTER: Final = (
    (0x30, 0, 0, 13),  # load it
    (0x54, 0, 0, 0x12),  # leave SYN and ACK of it
    (0x15, 0, 1, 0x02),  # is it SYN alone?
    (0x06, 0, 0, 0),  # then drop it,
    (0x06, 0, 0, 0xFFFFFFFF),  # else take all of it
)

NETLINK_SOCK_DIAG: Final = 4
SOCK_DIAG_BY_FAMILY: Final = 20
NLM_F_REQUEST_DUMP: Final = 0x301
NLMSG_ERROR: Final = 2
SYN_RECV: Final = 3


def quiesce(listener: socket.socket) -> None:
    """Return when nothing more gets into the queue of a listening TCP socket.

    That takes a round trip, where connections are being opened, and 0.2 s at most. It is so for all
    processes that share the socket, and for good. Where there is no such filter it does nothing.
    """
    if sys.platform != "linux":
        return
    program = array("B", b"".join(struct.pack("=HBBI", *step) for step in FILTER))
    where, _ = program.buffer_info()
    try:
        listener.setsockopt(
            socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("@HP", len(FILTER), where)
        )
    except OSError:
        return
    end = monotonic() + PATIENCE
    try:
        while half_open(listener) and monotonic() < end:
            sleep(PAUSE)
    except OSError:  # no sock_diag(7) in this kernel, or not for us
        sleep(UNSEEN)


def half_open(listener: socket.socket) -> bool:
    """Are connections to the socket's port being opened? Raises OSError."""
    port = listener.getsockname()[1]
    family = listener.family
    request = struct.pack("=BBBBI", family, socket.IPPROTO_TCP, 0, 0, 1 << SYN_RECV)
    request += struct.pack("!H46x", port)  # struct inet_diag_sockid
    head = struct.pack("=IHHII", 16 + len(request), SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST_DUMP, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG) as link:
        link.settimeout(PATIENCE)
        link.send(head + request)
        kind: int
        _, kind = struct.unpack_from("=IH", link.recv(1 << 16))
    if kind == NLMSG_ERROR:
        raise OSError("sock_diag")
    return kind == SOCK_DIAG_BY_FAMILY  # else it is NLMSG_DONE
