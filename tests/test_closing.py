"""Closing an idle connection: what the web server wrote before is served, and nothing after."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from fulgate import Config, Server
from tests.driver_suite.kit import hello
from tests.model import STDIN
from tests.raw import Raw, head, stream


class Client:
    """Asks again and again on one connection, until it is closed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.answered = 0
        self.lost = 0
        self.started = threading.Event()
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self) -> None:
        with Raw(self.path) as raw:
            while True:
                raw.expect()
                try:
                    raw.send(head(), stream(STDIN, 1, b""))
                except OSError:
                    return  # it was told that it was not sent
                try:
                    assert raw.answer().body == b"hello\n"
                except (EOFError, OSError):
                    self.lost += 1
                    return
                self.answered += 1
                self.started.set()


@pytest.mark.parametrize("round", range(10))
def test_what_was_sent_before_a_stop_is_answered(folder: Path, round: int) -> None:
    with Server(hello, Config(bind=(f"unix:{folder}/sock",)), threads=2) as server:
        clients = [Client(folder / "sock") for _ in range(3)]
        for client in clients:
            assert client.started.wait(20)
        server.stop(5)
    for client in clients:
        client.thread.join(20)
        assert client.lost == 0
        assert client.answered
