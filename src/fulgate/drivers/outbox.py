"""What the socket did not take at once: written, and not yet sent."""

from __future__ import annotations

import socket
from collections import deque
from typing import Final

from fulgate.exchange import Buffer

__all__ = ["Outbox"]

AT_ONCE: Final = 64  # buffers in one sendmsg; the system's IOV_MAX is 1,024 or, rarely, 16
JOIN_BELOW: Final = 4096  # a buffer this small is not worth an entry of its own


class Outbox:
    """A queue of buffers, and its size in bytes. Guarded by its connection's lock."""

    def __init__(self) -> None:
        self.size = 0
        self._buffers: deque[Buffer] = deque()

    def put(self, data: Buffer) -> None:
        """Append a buffer; the caller does not change it any more."""
        size = len(data)
        if not size:
            return
        self.size += size
        buffers = self._buffers
        # An application that writes a byte at a time must not make a million entries.
        if size < JOIN_BELOW and buffers and len(buffers[-1]) < JOIN_BELOW and len(buffers) > 1:
            buffers[-1] = b"".join((buffers[-1], data))
        else:
            buffers.append(data)

    def send(self, sock: socket.socket) -> bool:
        """Send what the socket takes without blocking. Did any byte leave?

        Raises OSError when the peer is gone.
        """
        buffers = self._buffers
        progress = False
        while buffers:
            try:
                if len(buffers) == 1:
                    sent = sock.send(buffers[0])
                else:
                    sent = sock.sendmsg([buffers[i] for i in range(min(len(buffers), AT_ONCE))])
            except BlockingIOError:
                break
            progress = True
            self.size -= sent
            while sent:
                size = len(buffers[0])
                if size > sent:
                    buffers[0] = memoryview(buffers[0])[sent:]
                    break
                sent -= size
                buffers.popleft()
        return progress

    def clear(self) -> None:
        self._buffers.clear()
        self.size = 0
