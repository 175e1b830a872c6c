"""The role of the Authorizer: by itself, and behind the web servers that have it."""

from __future__ import annotations

import base64
import io
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fulgate import (
    Allow,
    AuthorizerRequest,
    ConfigError,
    Deny,
    Filtered,
    FilterRequest,
    Roles,
    Server,
    authorizer,
    filter,
)
from fulgate.exchange import Exchange, Role
from fulgate.processes.notes import ERROR
from tests.auth_site import both, check
from tests.driver_suite.kit import until
from tests.model import PARAMS, STDIN, UNKNOWN_ROLE, Answer
from tests.raw import Raw, begin, environ, pairs, record, stream
from tests.servers import Fulgate, Lighttpd, RealServer, Running
from tests.servers.apache import MODULES
from tests.servers.web import request
from tests.spawned import Account, page
from tests.spawned.servers import fcgid

AUTHORIZER = 2
MakeServer = Callable[[Any], str]


@pytest.fixture
def make_server(folder: Path) -> Iterator[MakeServer]:
    started: list[Server] = []

    def make(app: Any) -> str:
        path = folder / "sock"
        server = Server(app, bind=(f"unix:{path}",), stderr=True, threads=2)
        server.start()
        started.append(server)
        return str(path)

    yield make
    for server in started:
        server.stop(1.0)


def basic(text: str) -> str:
    return "Basic " + base64.b64encode(text.encode()).decode()


def ask(
    raw: Raw, uri: str = "/", keep: bool = True, role: int = AUTHORIZER, **params: str
) -> Answer:
    """Ask with PARAMS alone; some web servers never end STDIN."""
    raw.expect()
    sent = [("REQUEST_METHOD", "GET"), ("REQUEST_URI", uri), *params.items()]
    raw.send(begin(1, role, keep), stream(PARAMS, 1, pairs(sent)))
    return raw.answer()


@pytest.mark.statement("27")
def test_an_authorizer_needs_no_body_and_names_variables(make_server: MakeServer) -> None:
    with Raw(make_server(check)) as raw:
        for _ in range(2):
            answer = ask(raw, HTTP_AUTHORIZATION=basic("jo:sesame"))
            assert answer.stdout == (
                b"Status: 200 OK\r\nVariable-WHO: jo\r\nVariable-METHOD_SEEN: GET\r\n"
                b"Set-Cookie: a=b\r\n\r\n"
            )
            assert answer.app_status == 0
        denied = ask(raw)
        assert denied.stdout.startswith(b"Status: 401 Unauthorized\r\nWWW-Authenticate: Basic")
        assert denied.body == b"who?\n"


def test_the_end_of_stdin_may_come_late(make_server: MakeServer) -> None:
    address = make_server(check)
    with Raw(address) as raw:
        ask(raw)
        raw.send(record(STDIN, 1))
        assert ask(raw, HTTP_AUTHORIZATION=basic("jo:sesame")).stdout.startswith(b"Status: 200 OK")
    with Raw(address) as raw:
        ask(raw, keep=False)
        raw.send(record(STDIN, 1))
        assert raw.closed()


@pytest.mark.statement("20")
def test_roles_that_are_not_served_are_refused(make_server: MakeServer) -> None:
    with Raw(make_server(check)) as raw:
        for role in (1, 3):
            assert ask(raw, role=role).protocol_status == UNKNOWN_ROLE


def test_both_on_one_connection(make_server: MakeServer) -> None:
    with Raw(make_server(both)) as raw:
        for _ in range(2):
            assert ask(raw).stdout.startswith(b"Status: 401 ")
            raw.expect()
            raw.send(begin(1), stream(PARAMS, 1, pairs(environ("/"))), record(STDIN, 1))
            assert raw.answer().body == b"None None\n"


def _exits(request: AuthorizerRequest) -> Any:
    raise SystemExit(7)


@pytest.mark.parametrize(
    ("wrong", "app_status"),
    [
        (_exits, 7),
        (lambda request: request.params["none"], 1),
        (lambda request: True, 1),
        (lambda request: None, 1),
        (lambda request: Allow({"A B": "x"}), 1),
        (lambda request: Allow({"A": 1}), 1),  # type: ignore[dict-item]
        (lambda request: Allow({"A": "x\r\nVariable-B: y"}), 1),
        (lambda request: Deny("200 OK"), 1),
        (lambda request: Deny("403"), 1),
        (lambda request: Deny(body="text"), 1),  # type: ignore[arg-type]
    ],
)
@pytest.mark.statement("25")
def test_what_goes_wrong_denies(
    make_server: MakeServer, caplog: pytest.LogCaptureFixture, wrong: Any, app_status: int
) -> None:
    caplog.set_level(logging.ERROR, "fulgate")
    with Raw(make_server(authorizer(wrong))) as raw:
        answer = ask(raw)
        assert answer.stdout.startswith(b"Status: 500 ")
        assert b"Variable" not in answer.stdout
        assert answer.app_status == app_status
        assert b"Traceback" in answer.stderr
    assert "the authorizer raised" in caplog.text


def test_variables_are_sent_in_utf_8(make_server: MakeServer) -> None:
    """As the name came, of which `credentials` has made text."""

    @authorizer
    def named(request: AuthorizerRequest) -> Allow:
        return Allow({"REMOTE_USER": (request.credentials or ("", ""))[0]})

    with Raw(make_server(named)) as raw:
        answer = ask(raw, HTTP_AUTHORIZATION=basic("Jürgen Ж:x"))
        assert "Variable-REMOTE_USER: Jürgen Ж\r\n".encode() in answer.stdout


def test_what_an_authorizer_raises_is_in_the_status(folder: Path) -> None:
    bind = (f"unix:{folder}/sock",)
    with Server(authorizer(_raises), bind=bind, status_path="/own/status") as server:
        with Raw(f"{folder}/sock") as raw:
            assert ask(raw).stdout.startswith(b"Status: 500 ")
        assert server.slot is not None
        board = server.slot.board
        until(lambda: board.recent(ERROR), "it is not noted")
        assert [note.what for note in board.recent(ERROR)] == ["LookupError"]


def _raises(request: AuthorizerRequest) -> Allow:
    raise LookupError("on purpose")


def test_a_request_tells_what_came() -> None:
    exchange = Exchange(1, Role.AUTHORIZER, True)
    exchange.params = {"HTTP_X_Y": "z", "CONTENT_TYPE": "text/css"}
    seen = AuthorizerRequest(exchange)
    assert (seen.method, seen.uri, seen.credentials) == ("", "", None)
    assert (seen.header("x-y"), seen.header("Content-Type"), seen.header("no")) == (
        "z",
        "text/css",
        None,
    )
    for text in (
        "Basic !",
        "Basic " + base64.b64encode(b"\xff:x").decode(),
        "Bearer x",
        "Basic eA==",
    ):
        exchange.params["HTTP_AUTHORIZATION"] = text
        assert seen.credentials is None
    exchange.params["HTTP_AUTHORIZATION"] = basic("jé:a:b").replace("Basic", "basic")
    assert seen.credentials == ("jé", "a:b")


def test_misuse() -> None:
    with pytest.raises(TypeError):
        authorizer(None)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        filter(None)  # type: ignore[arg-type]

    async def awaited(request: Any) -> Any: ...

    with pytest.raises(TypeError, match="coroutine"):
        authorizer(awaited)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="coroutine"):
        filter(awaited)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        Roles()
    with pytest.raises(TypeError):
        Roles(authorizer=check)({}, lambda *_: None)

    async def asgi(scope: Any, receive: Any, send: Any) -> None: ...

    with pytest.raises(ConfigError, match="ASGI"):
        Server(Roles(asgi)).inline()  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="ASGI"):
        Server(Roles(filter=asgi)).inline()  # type: ignore[arg-type]


def test_a_filters_request_tells_what_came() -> None:
    environ: dict[str, Any] = {"wsgi.input": io.BytesIO(), "fulgate.data": io.BytesIO(b"page")}
    environ["fulgate.params"] = list
    seen = FilterRequest(environ)
    assert (seen.body_length, seen.data_length, seen.data_modified) == (None, None, None)
    assert (seen.params, seen.pairs(), seen.data.read()) == ({}, [], b"page")
    for text in ("-1", "x", "²", "9" * 19):
        environ["FCGI_DATA_LENGTH"] = environ["FCGI_DATA_LAST_MOD"] = text
        seen = FilterRequest(environ)
        assert (seen.data_length, seen.data_modified) == (None, None)
    environ.update(CONTENT_LENGTH="3", FCGI_DATA_LENGTH="4", FCGI_DATA_LAST_MOD="9" * 18)
    seen = FilterRequest(environ)
    assert (seen.body_length, seen.data_length, seen.data_modified) == (3, 4, None)
    made = filter(lambda request: Filtered(request.data.read()))
    assert made(seen).body == b""


def behave(port: int, who: bytes) -> None:
    denied = request(port, "/")
    assert denied.status == 401
    assert denied.headers["www-authenticate"] == 'Basic realm="test"'
    allowed = request(port, "/", headers={"Authorization": basic("jo:sesame")})
    assert (allowed.status, allowed.body) == (200, who)
    wrong = request(port, "/", headers={"Authorization": basic("jo:other")})
    assert wrong.status == 401


@pytest.mark.requires_server("lighttpd")
def test_behind_lighttpd(running: Running) -> None:
    server = running(Fulgate, "tests.auth_site:both")
    auth = '"mode" => "authorizer"\n), (\n'
    again = f'"socket" => "{server.socket}",\n"check-local" => "disable"'
    options = (auth + again).replace(",\n", "\n").replace("), (\n", "), (\n")
    web = running(Lighttpd, server.backend, options=options)
    behave(web.port, b"jo GET\n")
    jo = {"Authorization": basic("jo:sesame")}
    more = request(web.port, "/more", headers=jo)
    assert (more.body, more.headers["Set-Cookie"]) == (b"jo GET\n", None)
    away = request(web.port, "/away")
    assert (away.status, away.headers["location"]) == (302, "http://elsewhere.example/")
    assert request(web.port, "/raise").status == 500


@pytest.fixture
def behind_mod_fcgid(running: Running, folder: Path) -> Callable[..., RealServer]:
    """Apache, with what the page has for it, and lines added; its script may be another one."""
    account = Account(folder / "home")
    shown = page("roles.md", account.home)
    (script,) = (block for block in shown if block.startswith("#!"))
    locations = [block for block in shown if "<Location" in block]

    def start(number: int, more: str = "", text: str = script) -> RealServer:
        account.script(text, "check.fcgi")
        (account.www / "index.html").write_text("the page\n")
        modules = [
            f"LoadModule {name}_module {MODULES}/mod_{name}.so"
            for name in ("authn_core", "authz_user", "auth_basic", "headers")
        ]
        lines = [*modules, f"<Location />\n{more}\n</Location>", locations[number]]
        return running(lambda f: fcgid(f, account, *lines))

    return start


@pytest.mark.requires_server("apache2", "mod_fcgid")
@pytest.mark.slow
def test_behind_mod_fcgid(behind_mod_fcgid: Callable[..., RealServer]) -> None:
    web = behind_mod_fcgid(0, 'Header set X-Environment "%{WHO}e"')
    assert request(web.port, "/index.html").status == 401
    for text, status in (("jo:sesame", 200), ("jo:other", 401), ("al:sesame", 401)):
        answer = request(web.port, "/index.html", headers={"Authorization": basic(text)})
        assert answer.status == status, text
        assert (answer.body == b"the page\n") is (status == 200)
        assert (answer.headers["X-Environment"] == "jo") is (status == 200)
        assert answer.headers["Variable-WHO"] is None
    assert "Authorization of user al" in web.log()  # Apache says 401 whatever the authorizer said


CHECKER = """\
from fulgate import Allow, Deny, authorizer, serve

@authorizer
def check(request):
    assert request.params["FCGI_APACHE_ROLE"] == "ACCESS_CHECKER"
    if request.header("Cookie") == "key=1":
        return Allow(variables={"WHO": "jo"}, headers=[("Set-Cookie", "key=2")])
    return Deny("302 Found", [("Location", "http://elsewhere.example/")])

serve(check)
"""


@pytest.mark.requires_server("apache2", "mod_fcgid")
@pytest.mark.slow
def test_behind_mod_fcgid_without_a_password(behind_mod_fcgid: Callable[..., RealServer]) -> None:
    web = behind_mod_fcgid(1, text=CHECKER)
    answer = request(web.port, "/index.html", headers={"Cookie": "key=1"})
    assert (answer.status, answer.body) == (200, b"the page\n")
    assert answer.headers["Set-Cookie"] == "key=2"
    assert answer.headers["Variable-WHO"] == "jo"
    answer = request(web.port, "/index.html")
    assert (answer.status, answer.headers["Location"]) == (401, None)
