"""Which files a driver may send by itself, and what of them (PEP 3333, file_wrapper)."""

from __future__ import annotations

import io
import os
import stat
from dataclasses import dataclass
from typing import Any

__all__ = ["Stretch", "stretch"]


@dataclass(frozen=True, slots=True)
class Stretch:
    """The rest of a regular file, from where it would be read on: `size` bytes from `offset`."""

    fd: int
    offset: int
    size: int


def stretch(file: Any) -> Stretch | None:
    """Give what reading `file` to its end would give; None where only reading can tell.

    A `fileno` alone says nothing: that of a GzipFile is the compressed file's. So these are the
    files that `open` gives for bytes, unbuffered ones included, and those of `tempfile`.
    """
    if type(file).__module__ == "tempfile":
        file = getattr(file, "file", file)
    raw = file.raw if type(file) in (io.BufferedReader, io.BufferedRandom) else file
    if type(raw) is not io.FileIO:
        return None
    try:
        if file is not raw and file.writable():
            file.flush()
        fd = raw.fileno()
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or not raw.readable():
            return None
        offset = file.tell()
    except (OSError, ValueError):  # closed, say: reading will say so
        return None
    return Stretch(fd, offset, max(0, found.st_size - offset))
