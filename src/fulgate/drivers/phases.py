"""What a connection waits for, how long, when accepting pauses, and how one more request is turned
away: the same in each driver.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import time
from typing import Final

from fulgate.errors import LimitExceeded

# A constant is there for compiled code without a look into a module's dictionary.
clock: Final = time.monotonic

# What the deadline of a connection is for, in their order.
NEW: Final = 0  # accepted, nothing heard yet
IDLE: Final = 1  # between requests
ARRIVING: Final = 2  # a part of a request is here
WAITING: Final = 3  # PARAMS are here, a small body is waited for
RUNNING: Final = 4  # the application has it
CLOSING: Final = 5  # what is unsent goes, then the connection
LINGER: Final = 6  # all is sent, the peer may still be sending
SHARED: Final = 7  # several requests are on it, each with a phase of its own

FOREVER: Final = float("inf")
# Where several requests may come on a connection, and it is not known whether they do: seconds in
# which nobody reads of a body, after which we look behind it, and how many bytes are kept of it.
AHEAD_AFTER: Final = 0.1
AHEAD_MOST: Final = 1 << 20
LINGER_PAUSE: Final = 2.0  # seconds of silence after which a peer that does not close is closed
LINGER_TIME: Final = 30.0  # seconds of lingering in all
ARRIVED_AT_STOP: Final = 2.0  # seconds, for the rest of a request that has begun to arrive
HEARD_AT_STOP: Final = 0.2  # seconds, for a new connection to say something when we stop
# Bytes at a time: a body that is waited for, at the default of `body_buffer`, comes together with
# its PARAMS. Of 128 KiB on the C library would map the memory for each call anew.
RECEIVE: Final = 98304

ACCEPTS_A_ROUND: Final = 64
AT_ONCE: Final = struct.pack("ii", 1, 0)  # struct linger
# Where other processes accept from the same socket: who took all that wait would have them all, and
# leave the other processes' cores idle for as long as web servers keep the connections. So each
# takes few at a time, and who holds more than another leaves them to that one for a moment.
ACCEPTS_IF_SHARED: Final = 1
GIVE_WAY: Final = 0.005  # seconds
ACCEPTS_AFTER: Final = 8  # a round, when nobody has taken them in that time
ACCEPT_PAUSE: Final = 0.5  # seconds without accepting, after the descriptors ran out
OUT_OF_DESCRIPTORS: Final = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))

RETRY_AFTER: Final = [("Retry-After", "1")]  # seconds

LARGE: Final = 4 << 20  # bytes


def keep_memory() -> None:
    """Have the C library keep the memory that bodies take, instead of giving it back each time.

    malloc of glibc maps what is above a threshold, and gives back what is free at the end of its
    memory above twice that. It raises both to the size of what was mapped, and is freed now
    (mallopt(3), M_MMAP_THRESHOLD): so does an application that frees something large. Without it
    a few bodies at once cost a page fault for each 4 KiB, which takes longer than copying them.
    """
    bytes(LARGE)


def no_room() -> LimitExceeded:
    """Give why a request is turned away that may neither begin nor wait."""
    return LimitExceeded("503 Service Unavailable", "there is no room for another request")


def reset_at_close(sock: socket.SocketType) -> None:
    """Have the close of a TCP connection be a reset (RFC 9293, section 3.10.5), and no end."""
    if sock.family != socket.AF_UNIX:
        with contextlib.suppress(OSError):  # the peer is gone
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AT_ONCE)
