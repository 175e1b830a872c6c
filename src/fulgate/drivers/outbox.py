"""What the socket did not take at once: written, and not yet sent."""

from __future__ import annotations

import errno
import os
import socket
from typing import Any, Final

from fulgate.exchange import Buffer, Exchange

__all__ = ["File", "Outbox"]

AT_ONCE: Final = 64  # buffers in one sendmsg; the system's IOV_MAX is 1,024 or, rarely, 16
JOIN_BELOW: Final = 4096  # a buffer this small is not worth an entry of its own
FILE_TURN: Final = 1 << 20  # bytes of files in one `send`: others want the thread, too

MORE: Final[int] = getattr(socket, "MSG_MORE", 0)
_sendfile: Any = getattr(os, "sendfile", None)
# What is not the socket's: a filesystem, or a system, that cannot do it. Then we read.
NO_SENDFILE: Final = frozenset(
    (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EOVERFLOW, errno.ENOTSOCK)
)


class File:
    """The rest of an answer's body, which stands in a file; `fd` is closed when it has left.

    `size` bytes from `offset` on are still to go. `short`: the file had fewer.
    """

    def __init__(self, exchange: Exchange, fd: int, offset: int, size: int) -> None:
        self.exchange = exchange
        self.fd = fd
        self.offset = offset
        self.size = size
        self.short = False
        self.by_reading = _sendfile is None

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def has(self, size: int) -> bool:
        """Are there as many bytes yet?"""
        return os.fstat(self.fd).st_size >= self.offset + size


class Outbox:
    """A queue of buffers, and of files behind them. Guarded by its connection's lock.

    `size` is what it keeps in memory, in bytes; a file counts as one byte until it has left, so
    that `size` is 0 only when nothing is unsent. Files that have left, or cannot, are in `left`,
    for the connection to end their answers; those of requests that were aborted are not.
    """

    def __init__(self) -> None:
        self.size = 0
        self.left: list[File] = []
        # Lists, since there are few: an idle connection would pay 1.4 KB for two deques.
        self._buffers: list[Buffer] = []
        self._files: list[File] = []
        # The piece that is being sent: nothing else may come in between.
        self._piece: File | None = None
        self._before: Buffer = b""  # what the protocol puts before it
        self._piece_left = 0  # bytes of the file

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

    def put_file(self, file: File) -> None:
        """Append a file, which is closed once it has left. It gives way to buffers put later."""
        self.size += 1
        self._files.append(file)

    def send(self, sock: socket.SocketType) -> bool:
        """Send what the socket takes without blocking. Did any byte leave?

        Raises OSError when the peer is gone.
        """
        if self._files:
            return self._send_all(sock)
        return self._send_buffers(sock)

    def _send_buffers(self, sock: socket.SocketType) -> bool:
        buffers = self._buffers
        progress = False
        while buffers:
            try:
                if len(buffers) == 1:
                    sent = sock.send(buffers[0])
                else:
                    sent = sock.sendmsg(buffers[:AT_ONCE])
            except BlockingIOError:
                break
            progress = True
            self.size -= sent
            whole = 0
            while sent:
                size = len(buffers[whole])
                if size > sent:
                    buffers[whole] = memoryview(buffers[whole])[sent:]
                    break
                sent -= size
                whole += 1
            del buffers[:whole]
        return progress

    # Files: a piece of each in turn, and buffers before the next piece.

    def _send_all(self, sock: socket.SocketType) -> bool:
        turn = FILE_TURN
        progress = False
        while True:
            piece = self._piece
            if piece is not None:
                before = piece.size
                try:
                    self._send_piece(sock, piece)
                except BlockingIOError:
                    return progress or piece.size < before
                progress = True
                turn -= before - piece.size
            progress = self._send_buffers(sock) or progress
            if self._buffers or not self._files or turn <= 0:
                return progress
            self._begin_piece(self._files[0])

    def _begin_piece(self, file: File) -> None:
        exchange = file.exchange
        size = min(file.size, exchange.frame_size)
        if exchange.aborted or not file.has(size):
            file.short = True
            self._forget(file)
            return
        self._piece = file
        self._before = exchange.frame(size)
        self._piece_left = size

    def _send_piece(self, sock: socket.SocketType, file: File) -> None:
        """Send a piece to its end. Raises BlockingIOError when the socket takes no more."""
        while self._piece_left or self._before:
            if self._before:
                sent = sock.send(self._before, MORE if self._piece_left else 0)
                self._before = memoryview(self._before)[sent:]
                continue
            sent = self._send_file(sock, file)
            if not sent:
                # The piece's length was told. A connection that closes within it is a whole answer
                # to nginx without fastcgi_keep_conn; so it goes on, and the answer breaks after it.
                file.short = True
                self._before = bytes(self._piece_left)
                self._piece_left = 0
            file.offset += sent
            file.size -= sent
            self._piece_left -= sent
        self._piece = None
        if not file.size or file.short or file.exchange.aborted:
            self._forget(file)
        else:
            self._files.append(self._files.pop(0))

    def _send_file(self, sock: socket.SocketType, file: File) -> int:
        """Send some of a piece; 0 when the file has no more."""
        if not file.by_reading:
            try:
                sent: int = _sendfile(sock.fileno(), file.fd, file.offset, self._piece_left)
                return sent
            except OSError as error:
                if error.errno not in NO_SENDFILE:
                    raise
                file.by_reading = True
        try:
            data = os.pread(file.fd, self._piece_left, file.offset)
        except OSError:
            return 0
        return sock.send(data) if data else 0

    def _forget(self, file: File) -> None:
        self._files.pop(0)
        self.size -= 1
        file.close()
        if not file.exchange.aborted:
            self.left.append(file)

    def clear(self) -> None:
        """Drop all, and close the files."""
        self._buffers.clear()
        for file in self._files:
            file.close()
        self._files.clear()
        self.left = []
        self._piece = None
        self._before = b""
        self._piece_left = 0
        self.size = 0
