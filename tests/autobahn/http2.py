"""A WebSocket on a stream of HTTP/2 (RFC 8441), with h2 as the client's library."""

from __future__ import annotations

import socket

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    RemoteSettingsChanged,
    ResponseReceived,
    StreamEnded,
    StreamReset,
)
from h2.settings import SettingCodes

from tests.autobahn.wires import Wire
from tests.raw import PATIENCE

STREAM = 1


class HTTP2Wire(Wire):
    """An extended CONNECT to a port of loopback, which speaks HTTP/2 without TLS.

    `status` is the answer's, and `headers` are its headers.
    """

    def __init__(self, port: int, offers: str = "", path: str = "/", **headers: str) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), PATIENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        config = H2Configuration(client_side=True, header_encoding="utf-8")
        self.h2 = H2Connection(config)
        self.data: list[bytes] = []
        self.settled = self.ended = False
        self.headers: dict[str, str] = {}
        self.h2.initiate_connection()
        # Only then may the client ask (section 3).
        while not self.settled:
            self._turn()
        assert self.h2.remote_settings[SettingCodes.ENABLE_CONNECT_PROTOCOL] == 1
        request = [
            (":method", "CONNECT"),
            (":protocol", "websocket"),
            (":scheme", "http"),
            (":path", path),
            (":authority", "localhost"),
            ("sec-websocket-version", "13"),
            *((name.replace("_", "-"), value) for name, value in headers.items()),
        ]
        if offers:
            request.append(("sec-websocket-extensions", offers))
        self.h2.send_headers(STREAM, request)
        while not self.headers and not self.ended:
            self._turn()
        self.status = self.headers.get(":status", "")
        self.extensions = self.headers.get("sec-websocket-extensions", "")

    def _turn(self) -> None:
        """Send what is to be sent, and take what comes next."""
        self.socket.sendall(self.h2.data_to_send())
        data = self.socket.recv(1 << 18)
        self.ended = self.ended or not data
        for event in self.h2.receive_data(data):
            if isinstance(event, RemoteSettingsChanged):
                self.settled = True
            elif isinstance(event, ResponseReceived):
                self.headers = {str(name): str(value) for name, value in event.headers or ()}
            elif isinstance(event, DataReceived):
                self.data.append(event.data or b"")
                self.h2.acknowledge_received_data(event.flow_controlled_length or 0, STREAM)
            elif isinstance(event, (StreamEnded, StreamReset, ConnectionTerminated)):
                self.ended = True
        self.socket.sendall(self.h2.data_to_send())

    def send(self, data: bytes) -> None:
        while data:
            if self.ended:
                raise BrokenPipeError("the stream has ended")
            window = self.h2.local_flow_control_window(STREAM)
            size = min(len(data), window, self.h2.max_outbound_frame_size)
            if size == 0:
                self._turn()
                continue
            self.h2.send_data(STREAM, data[:size])
            self.socket.sendall(self.h2.data_to_send())
            data = data[size:]

    def receive(self) -> bytes:
        while not self.data and not self.ended:
            self._turn()
        found, self.data = b"".join(self.data), []
        return found

    def close(self) -> None:
        self.socket.close()
