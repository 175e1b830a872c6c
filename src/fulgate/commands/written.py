"""Where `fulgate get` puts an answer: its head, its body, and what -w says of it."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import IO, Final

from fulgate.client.blocking import StreamedAnswer
from fulgate.errors import FulgateError

__all__ = ["WRITE", "Failed", "Output", "formatted"]

WRITE: Final = 23
LOOKED_AT: Final = 2000  # bytes in which a NUL is looked for, as in curl
ESCAPES: Final = {"n": "\n", "r": "\r", "t": "\t"}

_formats = re.compile(r"%%|%\{([^}]*)\}|%header\{([^}]*)\}|\\(.)", re.DOTALL)


class Failed(FulgateError):
    """There is no whole answer, or it is none to be had; `exit_status` is curl's."""

    def __init__(self, exit_status: int, message: str) -> None:
        super().__init__(message)
        self.exit_status = exit_status


@dataclass
class Output:
    """Files to write to: "-" is standard output. `head` has the head before the body.

    Without a name for the body it is standard output, too, but a terminal is given text alone.
    """

    body: str | None
    head: bool
    head_file: str | None = None
    written: int = field(default=0, init=False)  # bytes of the body

    def write(self, answer: StreamedAnswer) -> None:
        """Write the answer. Raises Failed where it cannot be written, and as `Client` says."""
        with self._errors():
            if self.head_file is not None:
                with _opened(self.head_file) as out:
                    out.write(_head(answer))
                    out.flush()
            with _opened(self.body) as out:
                if self.head:
                    out.write(_head(answer))
                for piece in answer:
                    self._is_text(piece, out)
                    out.write(piece)
                    out.flush()
                    self.written += len(piece)
                out.flush()

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if isinstance(error, FulgateError):
                raise
            if self.body is None:
                # What is left in the buffer would be an error again at the exit.
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            raise Failed(WRITE, f"the answer cannot be written: {error.strerror}") from error

    def _is_text(self, piece: bytes, out: IO[bytes]) -> None:
        if self.body is not None or self.written >= LOOKED_AT or b"\0" not in piece[:LOOKED_AT]:
            return
        if out.isatty():
            raise Failed(
                WRITE, "the answer is binary, and may spoil the terminal: --output FILE saves it,"
                " and --output - shows it all the same",
            )  # fmt: skip


def _head(answer: StreamedAnswer) -> bytes:
    lines = [f"Status: {answer.status} {answer.reason}".rstrip().encode("latin-1")]
    lines += [name + b": " + value for name, value in answer.head.headers]
    return b"\r\n".join([*lines, b"", b""])


@contextlib.contextmanager
def _opened(output: str | None) -> Iterator[IO[bytes]]:
    if output is None or output == "-":
        yield sys.stdout.buffer
        return
    try:
        file = open(output, "wb")  # noqa: SIM115
    except OSError as error:
        raise Failed(WRITE, f"{output}: {error.strerror}") from error
    with file:
        yield file


def formatted(
    text: str, facts: Mapping[str, str], header: Callable[[str], str], failed: bool
) -> tuple[str, str]:
    """Give what -w writes to standard output, and to standard error.

    `text` has %{NAME} for a fact, %header{NAME} for a header of the answer, and \\n, \\r and \\t.
    What follows %{stderr} goes there, and what follows %{onerror} is for an answer that `failed`.
    """
    out: list[str] = []
    errors: list[str] = []
    current = out
    at = 0
    for found in _formats.finditer(text):
        current.append(text[at : found.start()])
        at = found.end()
        name, wanted, escaped = found.groups()
        if name == "onerror" and not failed:
            return "".join(out), "".join(errors)
        if name in ("stdout", "stderr"):
            current = out if name == "stdout" else errors
        elif name is not None:
            current.append(facts.get(name, ""))
            if name not in facts and name != "onerror":
                errors.append(f"unknown --write-out variable: {name!r}\n")
        elif wanted is not None:
            current.append(header(wanted))
        elif escaped is not None:
            current.append(ESCAPES.get(escaped, "\\" + escaped))
        else:
            current.append("%")
    current.append(text[at:])
    return "".join(out), "".join(errors)
