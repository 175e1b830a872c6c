"""WebSockets through real web servers: lighttpd, which carries them, and nginx, which cannot."""

from __future__ import annotations

import json
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Ping,
    Pong,
    RejectConnection,
    RejectData,
    Request,
    TextMessage,
)
from wsproto.extensions import PerMessageDeflate

from tests.alone import free_port
from tests.driver_suite.kit import until
from tests.raw import PATIENCE
from tests.servers import Fulgate, LighttpdNext, Nginx, RealServer, Running
from tests.servers.nginx import location

OPTIONS = '"upgrade" => "enable"\n"fix-root-scriptname" => "enable"'


class Client:
    """A WebSocket's client on a socket."""

    def __init__(self, server: RealServer, target: str, *subprotocols: str) -> None:
        self.socket = socket.create_connection(("127.0.0.1", server.port), PATIENCE)
        self.wire = WSConnection(ConnectionType.CLIENT)
        self.send(
            Request(
                host="localhost",
                target=target,
                subprotocols=list(subprotocols),
                extensions=[PerMessageDeflate()],
            )
        )

    def send(self, event: Event) -> None:
        self.socket.sendall(self.wire.send(event))

    def receive(self) -> Event:
        while True:
            for event in self.wire.events():
                return event
            data = self.socket.recv(65536)
            self.wire.receive_data(data or None)

    def message(self) -> Any:
        pieces = []
        while True:
            event = self.receive()
            assert isinstance(event, (TextMessage, BytesMessage)), event
            pieces.append(event.data if isinstance(event.data, str) else bytes(event.data))
            if event.message_finished:
                return ("" if isinstance(pieces[0], str) else b"").join(pieces)  # type: ignore[arg-type]

    def close(self) -> None:
        self.send(CloseConnection(code=1000))
        while not isinstance(self.receive(), CloseConnection):
            pass
        self.socket.close()


@pytest.fixture
def chat(running: Running) -> LighttpdNext:
    env = {"PYTHONWARNINGS": "default"}
    fulgate = running(Fulgate, "tests.frameworks.chat_site:app", env=env)
    return running(LighttpdNext, fulgate.backend, options=OPTIONS)


def state(server: RealServer) -> dict[str, Any]:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/seen", timeout=30) as answer:
        found: dict[str, Any] = json.load(answer)
        return found


@pytest.mark.requires_server("lighttpd-next")
def test_a_chat_behind_lighttpd(chat: LighttpdNext) -> None:
    one, two = Client(chat, "/chat", "chat"), Client(chat, "/chat")
    for client, subprotocol in ((one, "chat"), (two, None)):
        accepted = client.receive()
        assert isinstance(accepted, AcceptConnection), accepted
        assert accepted.subprotocol == subprotocol
        assert [type(e).__name__ for e in accepted.extensions] == ["PerMessageDeflate"]
    until(lambda: state(chat)["there"] == 2, "they are not there")
    one.send(TextMessage(data="caf\u00e9"))
    assert two.message() == one.message() == "caf\u00e9"
    two.send(BytesMessage(data=bytes(300_000)))
    assert one.message() == two.message() == bytes(300_000)
    one.send(Ping(payload=b"?"))
    pong = one.receive()
    assert isinstance(pong, Pong)
    assert bytes(pong.payload) == b"?"
    one.close()
    two.socket.close()  # without a word
    until(lambda: state(chat)["there"] == 0, "they were not missed")


@pytest.mark.requires_server("lighttpd-next")
def test_a_denial_behind_lighttpd(chat: LighttpdNext) -> None:
    client = Client(chat, "/chat?forbidden")
    rejected = client.receive()
    assert isinstance(rejected, RejectConnection)
    assert rejected.status_code == 418
    data = client.receive()
    assert isinstance(data, RejectData)
    assert b'"forbidden"' in bytes(data.data)
    client.socket.close()


@contextmanager
def browser(url: str, folder: Path) -> Iterator[None]:
    process = subprocess.Popen(
        [
            "chromium",
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-proxy-server",
            "--remote-debugging-port=0",
            f"--user-data-dir={folder}",
            url,
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        process.terminate()
        process.wait(PATIENCE)


@pytest.mark.slow
@pytest.mark.requires_server("lighttpd-next")
@pytest.mark.requires_program("chromium")
def test_a_browser_behind_lighttpd(chat: LighttpdNext, tmp_path: Path) -> None:
    with browser(f"http://127.0.0.1:{chat.port}/", tmp_path):
        until(lambda: state(chat)["seen"], "the page did not get its message")
        (shown,) = state(chat)["seen"]
        assert shown.startswith("chat:permessage-deflate")
        assert shown.endswith(":hello from the page")
    until(lambda: state(chat)["there"] == 0, "it was not missed")


@pytest.mark.requires_server("nginx")
def test_nginx_cannot(running: Running) -> None:
    env = {"PYTHONWARNINGS": "default"}
    fulgate = running(Fulgate, "tests.frameworks.chat_site:app", env=env)
    nginx = running(Nginx, fulgate.backend, location("/", params="port"), keepalive=True)
    client = Client(nginx, "/chat")
    rejected = client.receive()
    assert isinstance(rejected, RejectConnection)
    assert rejected.status_code == 501
    client.socket.close()
    until(lambda: "carries no WebSocket over FastCGI" in fulgate.log(), "it was not logged")


def test_a_chat_behind_the_front_for_development(running: Running) -> None:
    port = free_port()
    env = {"PYTHONWARNINGS": "default"}
    options = ("--http", f"127.0.0.1:{port}")
    fulgate = running(Fulgate, "tests.frameworks.chat_site:app", *options, env=env)
    fulgate.port = port
    until(lambda: "Open http" in fulgate.log(), "the front does not answer")
    one = Client(fulgate, "/chat", "chat")
    accepted = one.receive()
    assert isinstance(accepted, AcceptConnection), accepted
    assert accepted.subprotocol == "chat"
    one.send(TextMessage(data="caf\u00e9"))
    assert one.message() == "caf\u00e9"
    one.send(BytesMessage(data=bytes(300_000)))
    assert one.message() == bytes(300_000)
    one.close()
    until(lambda: state(fulgate)["there"] == 0, "it was not missed")
    denied = Client(fulgate, "/chat?forbidden")
    rejected = denied.receive()
    assert isinstance(rejected, RejectConnection)
    assert rejected.status_code == 418
    denied.socket.close()
