"""Load that counts: each request has a number, and is to be answered exactly once."""

from __future__ import annotations

import http.client
import threading
import time
from pathlib import Path
from typing import Self

# Notes each number that it is asked for, in a file that all workers append to.
APP = """\
import os

NOTES = os.open("notes", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

def app(environ, start_response):
    number = environ["PATH_INFO"][1:]
    body = environ["wsgi.input"].read()
    os.write(NOTES, f"{number}\\n".encode())
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{number} {len(body)} {VERSION} {os.getpid()}".encode()]

VERSION = 1
"""


class Sequence:
    """Clients that keep their connections, and ask by GET and POST until `end`."""

    def __init__(self, port: int, clients: int = 8) -> None:
        self.port = port
        self.failures: list[str] = []
        self.asked: list[int] = []  # of each client
        self.pids: set[str] = set()
        self.versions: set[str] = set()
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(number,)) for number in range(clients)
        ]

    def __enter__(self) -> Self:
        self.asked = [0] * len(self._threads)
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(60)

    @property
    def total(self) -> int:
        return sum(self.asked)

    def some_more(self, requests: int = 100) -> None:
        """Wait until so many more were answered."""
        end, wanted = time.monotonic() + 90, self.total + requests
        while self.total < wanted:
            assert time.monotonic() < end, "no more requests are answered"
            assert not self.failures, self.failures
            time.sleep(0.01)

    def connect(self) -> http.client.HTTPConnection:
        """Give a client's connection, on which nothing was sent yet."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)

    def ask(self, connection: http.client.HTTPConnection, number: str, size: int) -> str:
        """Make the request of a number, by POST if it has a body; give what is wrong with it."""
        connection.request("POST" if size else "GET", f"/{number}", b"x" * size or None)
        answer = connection.getresponse()
        said = answer.read().decode(errors="replace")
        if answer.status != 200 or not said.startswith(f"{number} {size} "):
            return f"{answer.status} {said[:100]}"
        self.versions.add(said.split()[2])
        self.pids.add(said.split()[3])
        return ""

    def _run(self, client: int) -> None:
        connection = self.connect()
        while not self._over.is_set() and len(self.failures) < 10:
            asked = self.asked[client]
            number = f"{client}-{asked}"
            try:
                wrong = self.ask(connection, number, size_of(asked))
            except (OSError, http.client.HTTPException) as error:
                wrong = repr(error)
                connection.close()
            if wrong:
                self.failures.append(f"{number}: {wrong}")
            self.asked[client] += 1
            if asked % 50 == 48:
                time.sleep(0.02)  # so that connections are idle now and then
        connection.close()

    def numbers(self, *, posts_only: bool = False) -> list[str]:
        """Give the numbers that were asked for, sorted."""
        return sorted(
            f"{client}-{number}"
            for client, asked in enumerate(self.asked)
            for number in range(asked)
            if size_of(number) or not posts_only
        )

    def check(self, notes: Path) -> None:
        """Was each number answered exactly once, and rightly?"""
        assert self.failures == []
        assert sorted(notes.read_text().split()) == self.numbers()


def size_of(number: int) -> int:
    """Give the size of a request's body: every third has none, and is a GET."""
    return number % 3 * 1000
