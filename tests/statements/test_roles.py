"""25, 27, 28: the exit status, and the roles of the Authorizer and of the Filter."""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.model import DATA, PARAMS, STDIN, Answer
from tests.raw import Raw, begin, pairs, stream
from tests.servers import Fulgate
from tests.statements import statement

AUTHORIZER = 2
FILTER = 3


@pytest.fixture(scope="module")
def server() -> Iterator[Fulgate]:
    with tempfile.TemporaryDirectory(prefix="fulgate-", dir="/tmp") as folder:
        with Fulgate(Path(folder), "tests.auth_site:three") as server:
            yield server
            assert server.stop() == 0


def ask(raw: Raw, **params: str) -> Answer:
    """Ask an Authorizer: with PARAMS alone, and without SCRIPT_NAME and PATH_INFO."""
    raw.expect()
    raw.send(begin(1, AUTHORIZER), stream(PARAMS, 1, pairs(params.items())))
    return raw.answer()


@statement("25")
def test_the_exit_status_is_told(server: Fulgate) -> None:
    with Raw(server.socket) as raw:
        assert raw.request("/exit").app_status == 7
        assert raw.request("/").app_status == 0
        assert ask(raw, REQUEST_URI="/raise").app_status == 1


@statement("27")
def test_an_authorizer_needs_no_stdin_and_passes_variables(server: Fulgate) -> None:
    credentials = "Basic " + base64.b64encode(b"jo:sesame").decode()
    with Raw(server.socket) as raw:
        allowed = ask(raw, HTTP_AUTHORIZATION=credentials)
        assert allowed.stdout.startswith(b"Status: 200 OK\r\nVariable-WHO: jo\r\n")
        denied = ask(raw)
        assert denied.stdout.startswith(b"Status: 401 Unauthorized\r\n")
        assert b"Variable-" not in denied.stdout
        assert denied.body == b"who?\n"


def filtered(raw: Raw, uri: str = "/page", body: bytes = b"", data: bytes = b"") -> Answer:
    params = {"REQUEST_URI": uri, "FCGI_DATA_LENGTH": "4", "FCGI_DATA_LAST_MOD": "86400"}
    raw.expect()
    raw.send(begin(1, FILTER), stream(PARAMS, 1, pairs(params.items())))
    raw.send(stream(STDIN, 1, body), stream(DATA, 1, data))
    return raw.answer()


@statement("28")
def test_a_filter_gets_data_its_length_and_its_last_change(server: Fulgate) -> None:
    with Raw(server.socket) as raw:
        for _ in range(2):
            assert filtered(raw, data=b"page").body == b"4 1970-01-02\nPAGE"
            assert filtered(raw, body=b"x=1", data=b"p").body == b"4 1970-01-02\nPx=1"
        assert ask(raw).stdout.startswith(b"Status: 401 ")
        assert raw.request("/").body == b"None None\n"


@statement("25")
@statement("28")
def test_a_filter_has_an_exit_status(server: Fulgate) -> None:
    with Raw(server.socket) as raw:
        assert filtered(raw, "/exit").app_status == 7
        assert filtered(raw).app_status == 0
