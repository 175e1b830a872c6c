"""19: a server that has no room for a request says so, in the way that was asked for."""

from __future__ import annotations

from pathlib import Path

from tests.model import OVERLOADED, REQUEST_COMPLETE, STDIN
from tests.raw import Raw, head, record
from tests.servers import Fulgate, Running
from tests.statements import APP, eventually, query, statement


@statement("19")
def test_overloaded_on_request(running: Running, tmp_path: Path) -> None:
    go = tmp_path / "go"
    options = ("--threads", "1", "--queue", "0", "--overload", "overloaded")
    server = running(Fulgate, APP, *options)
    with Raw(server.socket) as busy, Raw(server.socket) as raw:
        busy.expect()
        busy.send(head("/stream", query(go=go)), record(STDIN, 1))
        busy.until(1, b"first\n")
        for _ in range(2):  # and the connection is kept
            answer = raw.request()
            assert (answer.protocol_status, answer.stdout) == (OVERLOADED, b"")
        with Raw(server.socket) as other:
            assert other.request(keep=False).protocol_status == OVERLOADED
            assert other.closed()
        go.touch()
        assert busy.answer().protocol_status == REQUEST_COMPLETE
        eventually(lambda: raw.request().body == b"Hello, world!\n", "a free thread")
