"""`fulgate migrate`: programs for flup, what they become, and that it runs.

tests/migrate has the programs as NAME.fcgi and what is to become of them as NAME.expected; an empty
line and what is noted come after its end.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fulgate.client.connection import call
from fulgate.migrate import migrate
from tests.alone import free_port
from tests.command import environment, fulgate

FIXTURES = Path(__file__).parent / "migrate"
NAMES = sorted(path.stem for path in FIXTURES.glob("*.fcgi"))
PATIENCE = 30.0

# What is not to be had for this Python, with the interface that the programs use.
STANDINS = {
    "trac/web/main.py": """\
def dispatch_request(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"trac"]
""",
    "paste/deploy.py": """\
def loadapp(uri, relative_to=None):
    assert uri.startswith("config:") and uri.endswith("production.ini")

    def app(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"paste"]

    return app
""",
    "site_settings.py": """\
from django.http import HttpResponse
from django.urls import path

SECRET_KEY = "for a test"
ROOT_URLCONF = "site_settings"
ALLOWED_HOSTS = ["*"]
USE_TZ = True
urlpatterns = [path("hello/<name>", lambda request, name: HttpResponse("django " + name))]
""",
}
BODIES = {
    "ajp": "ajp",
    "ajp_fork": "ajp",
    "bottle_class": "bottle you",
    "bottle_flup": "bottle you",
    "django_ajp": "django you",
    "django_argset": "django you",
    "django_fcgi": "django you",
    "django_scgi": "django you",
    "fork": "fork",
    "inherited": "Hello world!",
    "left": "left",
    "paste_ajp": "paste",
    "paste_ajp_fork": "paste",
    "paste_fcgi": "paste",
    "paste_scgi": "paste",
    "paste_scgi_fork": "paste",
    "plain": "plain",
    "pylons_dispatch": "paste",
    "scgi": "scgi",
    "scgi_fork": "scgi",
    "scgi_unix": "scgi",
    "tcp": "Hello world!",
    "trac_fcgi": "trac",
    "trac_frontend": "trac",
    "webpy": "web.py hello/you",
    "webpy_runfcgi": "web.py hello/you",
}


class Place:
    """Where a program listens: what stands for it in the fixtures, and the endpoint."""

    def __init__(self, folder: Path, text: str, protocol: str = "") -> None:
        self.folder = folder
        self.port = free_port()
        self.inherits = re.search("@[A-Z]+@", text) is None
        if "@PORT@" in text or self.inherits:
            self.endpoint = f"tcp:127.0.0.1:{self.port}"
        else:
            self.endpoint = f"unix:{folder}/app.sock"
        self.endpoint = protocol + self.endpoint

    def put(self, text: str) -> str:
        text = text.replace("@PORT@", str(self.port)).replace("@FOLDER@", str(self.folder))
        return text.replace("@SOCKET@", f"{self.folder}/app.sock")


def ask(endpoint: str, process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + PATIENCE
    path = "/hello/you"
    params = {
        "REQUEST_METHOD": "GET", "SCRIPT_NAME": "", "PATH_INFO": path, "REQUEST_URI": path,
        "SERVER_PROTOCOL": "HTTP/1.1", "SERVER_NAME": "localhost", "SERVER_PORT": "80",
        "QUERY_STRING": "",
    }  # fmt: skip
    while True:
        try:
            return call(endpoint, params).body.decode()
        except OSError:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)


@pytest.mark.parametrize("name", NAMES)
def test_recipes(name: str, folder: Path) -> None:
    before = (FIXTURES / f"{name}.fcgi").read_text()
    expected, _, notes = (FIXTURES / f"{name}.expected").read_text().partition("\f\n")
    place = Place(folder, before, "".join(f"{one}+" for one in ("scgi", "ajp") if one in name))
    program = folder / "app.py"
    program.write_text(place.put(before))
    program.chmod(0o750)
    status = 4 if name == "left" else 1

    shown = fulgate("migrate", "app.py", cwd=folder)
    assert shown.returncode == status, shown.stderr
    assert program.read_text() == place.put(before)
    assert shown.stdout.startswith("--- app.py\n+++ app.py\n@@ ")

    written = fulgate("migrate", "--write", "app.py", cwd=folder)
    assert written.returncode == status
    assert program.read_text() == place.put(expected)
    said = written.stderr.splitlines()
    assert said[0].startswith("fulgate: app.py is rewritten; what it was is ")
    assert said[1:] == place.put(notes).splitlines()
    for options in re.findall(r"fulgate serve MODULE:APP (.* --bind .*)", written.stderr):
        done = fulgate("check", "wsgiref.simple_server:demo_app", *options.split(), cwd=folder)
        assert done.returncode == 0, done.stderr
    assert (folder / "app.py.bak").read_text() == place.put(before)
    assert program.stat().st_mode & 0o777 == 0o750

    again = fulgate("migrate", "app.py", cwd=folder)
    assert (again.returncode, again.stdout) == (0, ""), again.stdout
    serves(name, program, place)


def serves(name: str, program: Path, place: Place) -> None:
    """Run what was written, and stop it."""
    folder = program.parent
    for path, text in STANDINS.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    log = folder / "log"
    with socket.socket() as listener, log.open("wb") as out:
        if place.inherits:
            listener.bind(("127.0.0.1", place.port))
            listener.listen()
        process = subprocess.Popen(
            [sys.executable, str(program)],
            stdin=listener.fileno() if place.inherits else subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env=environment(),
        )
        try:
            assert BODIES[name] in ask(place.endpoint, process, log)
            process.terminate()
            assert process.wait(PATIENCE) == 0, log.read_text()
        finally:
            process.kill()
            process.wait(PATIENCE)


def test_every_recipe_is_run() -> None:
    assert sorted(BODIES) == NAMES
    assert sorted(path.stem for path in FIXTURES.glob("*.expected")) == NAMES


SERVER = "from flup.server.fcgi import WSGIServer\n"
SCGI = "from flup.server.scgi import WSGIServer\n"


@pytest.mark.parametrize(
    ("call", "becomes"),
    [
        ("WSGIServer(app)", "serve(app)"),
        ("WSGIServer(application=app)", "serve(app)"),
        ("WSGIServer(debug=False, application=app)", "serve(app)"),
        ("WSGIServer(app, None, False)", "serve(app, threads=1)"),
        ("WSGIServer(app, bindAddress=None)", "serve(app)"),
        ("WSGIServer(app, bindAddress='/s', umask=0)", 'serve(app, bind="unix:/s?mode=777")'),
        ("WSGIServer(app, bindAddress='/s', umask=None)", 'serve(app, bind="unix:/s")'),
        ("WSGIServer(app, bindAddress=(h, p))", 'serve(app, bind="tcp:{}:{}".format(h, p))'),
        ("WSGIServer(app, bindAddress=a + '/s')", "serve(app, bind=\"unix:\" + (a + '/s'))"),
        ("WSGIServer(app, bindAddress=('::1', 9, 0, 0))", 'serve(app, bind="tcp:[::1]:9")'),
        ("WSGIServer(app, bindAddress=('localhost', 9))", 'serve(app, bind="tcp:localhost:9")'),
        (
            "WSGIServer(app, bindAddress=('', 9))",
            'serve(app, bind="tcp:0.0.0.0:9", allowed_clients=("0.0.0.0/0", "::/0"))',
        ),
        ("WSGIServer(app, maxThreads=n)", "serve(app, threads=n)"),
    ],
)
def test_arguments(call: str, becomes: str) -> None:
    done = migrate(f"{SERVER}{call}.run()\n")
    assert done.text == f"from fulgate import serve\n{becomes}\n"
    assert all(note.translated for note in done.notes)


@pytest.mark.parametrize(
    ("call", "becomes"),
    [
        ("WSGIServer(app)", 'serve(app, bind="scgi+tcp:localhost:4000")'),
        ("WSGIServer(app, bindAddress='/s')", 'serve(app, bind="scgi+unix:/s")'),
        ("WSGIServer(app, bindAddress=(h, p))", 'serve(app, bind="scgi+tcp:{}:{}".format(h, p))'),
        (
            "WSGIServer(app, '/app', allowedServers=['10.0.0.1'], bindAddress=('', 9))",
            'serve(app, bind="scgi+tcp:0.0.0.0:9", allowed_clients=("10.0.0.1",),'
            ' script_name="/app")',
        ),
        ("WSGIServer(app, None)", 'serve(app, bind="scgi+tcp:localhost:4000", path="cgi")'),
    ],
)
def test_arguments_of_scgi(call: str, becomes: str) -> None:
    done = migrate(f"{SCGI}{call}.run()\n")
    assert done.text == f"from fulgate import serve\n{becomes}\n"
    assert all(note.translated for note in done.notes)


@pytest.mark.parametrize(
    ("call", "becomes"),
    [
        ("WSGIServer(app)", 'serve(app, bind="ajp+tcp:localhost:8009")'),
        ("WSGIServer(app, '/a', None, True, False, ('', 9), ['10.0.0.1'])",
         'serve(app, bind="ajp+tcp:0.0.0.0:9", allowed_clients=("10.0.0.1",), script_name="/a")'),
    ],
)  # fmt: skip
def test_arguments_of_ajp(call: str, becomes: str) -> None:
    done = migrate(f"from flup.server.ajp import WSGIServer\n{call}.run()\n")
    assert done.text == f"from fulgate import serve\n{becomes}\n"
    assert all(note.translated for note in done.notes)
    done = migrate("from flup.server.ajp_fork import WSGIServer\nWSGIServer(app).run()\n")
    assert 'serve(app, bind="ajp+tcp:localhost:8009", threads=1)' in done.text


@pytest.mark.parametrize(
    ("call", "becomes"),
    [
        ("scgi_thread(app, {})", 'serve(app, bind="scgi+tcp:localhost:4000")'),
        ("ajp_thread(app, {}, '/a')",
         'serve(app, bind="ajp+tcp:localhost:8009", script_name="/a")'),
        # Whom Paste lets in, where nobody is named, is this machine.
        ("ajp_thread(app, {}, host='', port='9')",
         'serve(app, bind="ajp+tcp:0.0.0.0:9", allowed_clients=("127.0.0.1",))'),
        ("scgi_thread(app, {}, host='', port=9, allowedServers=['10.0.0.1', '10.0.0.2'])",
         'serve(app, bind="scgi+tcp:0.0.0.0:9", allowed_clients=("10.0.0.1", "10.0.0.2"))'),
        ("scgi_thread(app, {}, host=h, port=p)",
         'serve(app, bind="scgi+tcp:{}:{}".format(h, p), allowed_clients=("127.0.0.1",))'),
    ],
)  # fmt: skip
def test_arguments_of_paste_over_tcp(call: str, becomes: str) -> None:
    name = call.partition("(")[0]
    done = migrate(f"from flup.server.paste_factory import run_{name}\nrun_{call}\n")
    assert done.text == f"from fulgate import serve\n{becomes}\n"
    assert done.notes == []


@pytest.mark.parametrize(
    ("program", "line", "why"),
    [
        (SERVER + "\nWSGIServer(app, **options).run()", 3, "computed when the program runs"),
        (SERVER + "WSGIServer(app, bindAddress=a).run()", 2, "write bind="),
        (SERVER + "WSGIServer(app, environ={'A': 'b'}).run()", 2, "environ adds variables"),
        (
            SERVER + "WSGIServer(app, roles=(2,)).run()",
            2,
            "see fulgate.authorizer and fulgate.filter",
        ),
        (SERVER + "WSGIServer(app, forceCGI=True).run()", 2, "FCGI_FORCE_CGI=Y"),
        (SERVER + "WSGIServer(app, jobClass=J).run()", 2, "the argument jobClass is unknown"),
        (SERVER + "s = WSGIServer(app)\nf(s)", 2, "used for more than s.run()"),
        (SERVER + "f(WSGIServer)", 2, "used for more than serving"),
        (SERVER + "class S(WSGIServer): pass", 2, "used for more than serving"),
        (SCGI + "WSGIServer(app, scriptName=name).run()", 2, "computed when the program runs"),
        (SCGI + "WSGIServer(app, allowedServers=[]).run()", 2, "no list of addresses"),
        (SERVER + "WSGIServer(app, scriptName='/a').run()", 2, "of another server's"),
        ("from flup.middleware.gzip import G\nG(app)", 2, "has no counterpart"),
        ("import bottle\nbottle.run('m:app', server='flup')", 2, "by a string"),
        ("import bottle\nbottle.run(server='flup', plugins=[p])", 2, "for Bottle itself"),
        (
            "from django.core.servers.fastcgi import runfastcgi\nrunfastcgi(protocol='scgi')",
            2,
            "scgi wants host and port",
        ),
        (
            "from django.core.servers.fastcgi import runfastcgi\nrunfastcgi(protocol='uwsgi')",
            2,
            "the protocol uwsgi is unknown",
        ),
        (
            "from django.core.servers.fastcgi import runfastcgi\nrunfastcgi(sys.argv[1:])",
            2,
            "computed when the program runs",
        ),
    ],
)
def test_what_has_no_translation_is_named(program: str, line: int, why: str) -> None:
    done = migrate(program)
    (note,) = [note for note in done.notes if not note.translated]
    assert note.line == line
    assert why in note.text
    text = program.replace("from flup.server.fcgi", "from fulgate.flup.server.fcgi")
    text = text.replace("from flup.server.scgi", "from fulgate.flup.server.scgi")
    assert done.text == text  # it stays, on the drop-in where that has it


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("", "--threads 1 --pool-mode dynamic --workers 50 --max-spare-workers 5 --bind ..."),
        (", minSpare=2, maxSpare=4, maxChildren=8, maxRequests=0, timeout=None",
         "--workers 8 --min-spare-workers 2 --max-spare-workers 4 --bind ..."),
        (", maxChildren=many, bindAddress='/a b'",
         "--workers N --max-spare-workers 5 --bind 'unix:/a b'"),
    ],
)  # fmt: skip
def test_how_to_start_what_had_processes_is_told(given: str, words: str) -> None:
    done = migrate(f"from flup.server.fcgi_fork import WSGIServer\nWSGIServer(app{given}).run()\n")
    (note,) = done.notes
    assert note.text.endswith(words)
    assert note.translated
    assert "threads=1)" in done.text


def test_the_value_of_run_and_an_unneeded_fallback_are_noted() -> None:
    program = (
        "try:\n    from flup.server.fcgi import WSGIServer\nexcept ImportError:\n"
        "    from mine import WSGIServer\nwhile WSGIServer(app).run():\n    pass\n"
    )
    done = migrate(program)
    assert done.text == (
        "try:\n    from fulgate import serve\nexcept ImportError:\n"
        "    from mine import WSGIServer\nwhile serve(app):\n    pass\n"
    )
    assert [(note.line, note.text.split(":")[0]) for note in done.notes] == [
        (4, "WSGIServer is not needed any more"),
        (5, "serve gives the exit status, a number"),
    ]


def test_one_server_within_another_is_left() -> None:
    program = f"{SERVER}\nWSGIServer(middle(WSGIServer(app).run())).run()\n"
    done = migrate(program)
    assert done.text == program
    assert [(note.line, note.translated) for note in done.notes] == [(3, False)]


@pytest.mark.parametrize("program", ["", "x = 1\n", "def run(): pass\nrun()\n", "import web\n"])
def test_other_programs_stay(program: str) -> None:
    done = migrate(program)
    assert (done.text, done.notes) == (program, [])


def test_line_ends_and_encoding_stay(folder: Path) -> None:
    path = folder / "app.fcgi"
    before = f"# -*- coding: latin-1 -*-\r\n{SERVER}# caf\xe9\r\nWSGIServer(app).run()"
    path.write_bytes(before.replace("WSGIServer\n", "WSGIServer\r\n").encode("latin-1"))
    assert fulgate("migrate", "--write", "app.fcgi", cwd=folder).returncode == 1
    assert path.read_bytes() == (
        b"# -*- coding: latin-1 -*-\r\nfrom fulgate import serve\r\n# caf\xe9\r\nserve(app)"
    )


def test_no_backup_is_overwritten(folder: Path) -> None:
    path = folder / "app.fcgi"
    (folder / "app.fcgi.bak").write_text("precious")
    path.write_text(f"{SERVER}WSGIServer(app).run()\n")
    assert fulgate("migrate", "--write", "app.fcgi", cwd=folder).returncode == 1
    assert (folder / "app.fcgi.bak").read_text() == "precious"
    assert (folder / "app.fcgi.bak.2").read_text() == f"{SERVER}WSGIServer(app).run()\n"


def test_the_difference_is_coloured_on_a_terminal(folder: Path) -> None:
    (folder / "app.fcgi").write_text(f"{SERVER}WSGIServer(app).run()\n")
    reader, terminal = os.openpty()
    try:
        for env, coloured in (({}, True), ({"NO_COLOR": "1"}, False)):
            done = subprocess.run(
                [sys.executable, "-m", "fulgate", "migrate", "app.fcgi"],
                cwd=folder,
                env=environment(TERM="xterm", **env),
                stdout=terminal,
                stderr=subprocess.PIPE,
                timeout=PATIENCE,
            )
            assert done.returncode == 1, done.stderr
            text = os.read(reader, 65536)
            assert (b"\x1b[32m+from fulgate import serve\x1b[0m" in text) is coloured
    finally:
        os.close(terminal)
        os.close(reader)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"print 'x'\n", "app.fcgi:1: this is no Python 3"),
        (b"x = 1\nexcept Exception, e:\n", "app.fcgi:2: this is no Python 3"),
        (b"\xff\xfe", "this is no Python 3"),
        (None, "No such file"),
    ],
)
def test_a_file_that_cannot_be_used(folder: Path, content: bytes | None, says: str) -> None:
    if content is not None:
        (folder / "app.fcgi").write_bytes(content)
    done = fulgate("migrate", "app.fcgi", cwd=folder)
    assert done.returncode == 2
    assert done.stderr.startswith("fulgate: error: ")
    assert says in done.stderr
