"""What came of a request's body while nobody read it, in temporary files."""

from __future__ import annotations

import os
from typing import Final

from fulgate.exchange import Exchange, Store

__all__ = ["Spool", "forget", "kept", "spool"]

PIECE: Final = 65536  # bytes that are taken at once
# Where temporary files are, as tempfile.gettempdir has it. That module takes as long to import as
# the threads driver does, and cannot be imported later, where the root folder has changed.
FOLDERS: Final = ("TMPDIR", "TEMP", "TMP")
ELSE: Final = ("/tmp", "/var/tmp", "/usr/tmp", ".")


def nameless() -> int:
    """Open a new file without a name, in the folder for temporary files. Raises OSError."""
    named = [os.environ[name] for name in FOLDERS if os.environ.get(name)]
    last: OSError | None = None
    for folder in (*named, *ELSE):
        path = f"{folder}/fulgate-{os.urandom(16).hex()}"
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as error:
            last = last or error
            continue
        os.unlink(path)
        return fd
    raise last or FileNotFoundError()


class Kept:
    """A queue of bytes in a file without a name, in the folder for temporary files."""

    def __init__(self) -> None:
        self._fd = nameless()
        self._start = 0
        self.size = 0

    @property
    def end(self) -> int:
        """Where the next byte goes."""
        return self._start + self.size

    def put(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            written = os.pwrite(self._fd, view, self.end)
            self.size += written
            view = view[written:]

    def take(self) -> bytes:
        data = os.pread(self._fd, min(PIECE, self.size), self._start)
        self._start += len(data)
        self.size -= len(data)
        if not self.size:
            os.ftruncate(self._fd, 0)
            self._start = 0
        return data

    def close(self) -> None:
        os.close(self._fd)


class Spool(Store):
    """Keeps a request's streams in files. Raises OSError.

    What is written and soon read is in the system's memory as long as there is some. So it is
    written and read under a connection's lock, or in a loop's thread.
    """

    def __init__(self) -> None:
        self._kept: dict[bool, Kept] = {}  # STDIN by False, DATA by True

    def put(self, data: bool, content: bytes) -> None:
        """Append to STDIN, or to DATA."""
        if data not in self._kept:
            self._kept[data] = Kept()
        self._kept[data].put(content)

    def has(self, data: bool) -> bool:
        return data in self._kept and self._kept[data].size > 0

    def take(self, data: bool) -> bytes:
        return self._kept[data].take() if self.has(data) else b""

    @property
    def size(self) -> int:
        """How many bytes have its files? What was taken counts until there is nothing more."""
        return sum([kept.end for kept in self._kept.values()])

    def close(self) -> None:
        """Give the disk's space back; from now on there is nothing."""
        for kept in self._kept.values():
            kept.close()
        self._kept.clear()


def spool(exchange: Exchange, limit: int) -> None:
    """Keep what waits of a body in files once it is more than `limit` bytes. Raises OSError.

    Behind what is kept already, all is kept: `Exchange.take` gives that first.
    """
    store = exchange.store
    if exchange.body_size <= limit and (store is None or not (store.has(False) or store.has(True))):
        return
    if store is None:
        store = exchange.store = Spool()
    if isinstance(store, Spool):
        if exchange.body:
            store.put(False, b"".join(exchange.body))
        if exchange.data:
            store.put(True, b"".join(exchange.data))
        exchange.drop()


def kept(exchange: Exchange) -> int:
    """Give how many bytes the files of a body have."""
    store = exchange.store
    return store.size if isinstance(store, Spool) else 0


def forget(exchange: Exchange) -> None:
    """Close the files that keep something of a body, if there are any."""
    store = exchange.store
    if isinstance(store, Spool):
        store.close()
