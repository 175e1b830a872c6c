"""`fulgate record`, `replay` and `dump`: what passed is in the file, and can be done again."""

from __future__ import annotations

import json
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fulgate.client import Client, Connection
from fulgate.client.recording import TO_APP, TO_WEB, Recording, Writer
from fulgate.protocols.fastcgi_records import END_REQUEST, STDOUT, record
from tests.command import Served, environment, here, refused_here
from tests.echo import PEERS, peer
from tests.model import STDIN
from tests.raw import Raw, head, stream
from tests.recording import recording
from tests.responder import Peer, responder, serve_params
from tests.servers import Running

END = record(END_REQUEST, 1, bytes(8))


@pytest.mark.parametrize("name", PEERS)
def test_what_a_server_answers_is_replayed_and_compared(
    name: str, folder: Path, running: Running
) -> None:
    body = bytes(range(256)) * 1000
    with peer(name, folder, running) as server:
        script = server.script_filename
        with recording(folder, server.endpoint) as tap:
            with Client(tap, max_idle=1) as client:
                headers = {"X-Given": "yes"}
                answer = client.get("/one", headers=headers, script_filename=script)
                assert answer.header("X-Given") == "yes"
                assert client.request("POST", "/two", body, script_filename=script).body == body
            with Client(tap, max_idle=0) as client:
                assert client.get("/missing", script_filename=script).status == 404
        done = here("replay", "file", cwd=folder)
        assert (done.returncode, done.stderr) == (0, "")
        lines = done.stdout.splitlines()
        assert lines[0] == "1 GET /one: same"
        assert any("POST /two: same" in line for line in lines)
        assert any("GET /missing: same" in line for line in lines)
        assert lines[-1] == "3 compared, 0 different"
    assert stat.S_IMODE((folder / "file").stat().st_mode) == 0o600


def test_what_another_application_answers_differs(folder: Path, running: Running) -> None:
    def other(peer: Peer) -> None:
        numbers = iter(range(10))
        while exchange := peer.request():
            if next(numbers) == 2:
                return
            peer.answer(exchange, b"something", "500 Oh", X_Method="PUT", X_Given="", X_More="1")

    with peer("fulgate", folder, running) as server:
        with recording(folder, server.endpoint, signal.SIGINT) as tap:
            with Client(tap) as client:
                client.get("/one")
                client.request("POST", "/two", b"somebody")
                client.get("/three")
    with responder(folder / "other", other) as one:
        options = ["--ignore-header", "content-TYPE", "--timeout", "5"]
        done = here("replay", "file", one.endpoint, *options, cwd=folder)
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        "1 GET /one: differs",
        "    status was 200, is 500",
        "    header content-length was '0', is not there",
        "    header x-method was 'GET', is 'PUT'",
        "    header x-more was not there, is '1'",
        "    body was 0 bytes, is 9; at 0: '', 'something'",
        "1 POST /two: differs",
        "    status was 200, is 500",
        "    header x-method was 'POST', is 'PUT'",
        "    header x-more was not there, is '1'",
        "    body was 8 bytes, is 9; at 4: 'body', 'thing'",
        "1 GET /three: differs",
        "    no answer",
        "3 compared, 3 different",
    ]
    text = refused_here(1, "replay", "file", f"unix:{folder}/none", cwd=folder)
    assert text == f"cannot connect to unix:{folder}/none: No such file or directory"


def test_statuses_cuts_and_closes_are_compared(folder: Path) -> None:
    def behave(peer: Peer) -> None:
        peer.request()
        peer.send(record(STDOUT, 1, b"X: y\r\n\r\nbody"), END)

    def fails(peer: Peer) -> None:
        peer.request()
        status = bytes((0, 0, 0, 7, 0, 0, 0, 0))
        peer.send(record(STDOUT, 1, b"X: y\r\n\r\nbody"), record(END_REQUEST, 1, status))
        peer.receive()

    def cuts(peer: Peer) -> None:
        peer.request()
        peer.send(record(STDOUT, 1, b"X: y\r\n\r\nbody"))

    def says_nothing(peer: Peer) -> None:
        peer.request()
        peer.receive()

    with responder(folder / "s", behave) as one:
        with recording(folder, one.endpoint) as tap:
            with Raw(Path(tap.removeprefix("unix:"))) as raw:
                raw.expect()
                raw.send(head("/"), stream(STDIN, 1, b""))
                assert raw.answer().body == b"body"
                assert raw.closed()
        assert here("replay", "file", "--pace", cwd=folder).returncode == 0
    for name, function, words in (
        ("t", fails, ["appStatus was 0, is 7", "closed the connection, and now does not"]),
        ("u", cuts, ["the answer was cut"]),
        ("v", says_nothing, ["no answer", "nothing came or was taken for 1.5 s"]),
    ):
        with responder(folder / name, function) as one:
            done = here("replay", "file", one.endpoint, "--timeout", "1.5", cwd=folder)
        assert done.returncode == 1
        for word in words:
            assert word in done.stdout


def test_an_application_that_is_not_there(folder: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "fulgate", "record", f"unix:{folder}/tap",
         f"unix:{folder}/none", "file", "--connections", "1"],
        cwd=folder, env=environment(), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with process:
        assert process.stderr is not None
        process.stderr.readline()
        with socket.socket(socket.AF_UNIX) as web:
            web.connect(str(folder / "tap"))
            assert web.recv(10) == b""
        assert f"cannot connect to unix:{folder}/none: No such file" in process.stderr.read()
        assert process.wait(20) == 0
    read = Recording.read(str(folder / "file"))
    assert [event.what for event in read.events] == ["opened", "closed-by-application"]


def test_a_file_can_be_read_while_it_is_written(folder: Path) -> None:
    with responder(folder / "s", serve_params) as one, recording(folder, one.endpoint) as tap:
        with Connection(tap) as connection:
            connection.call({"REQUEST_METHOD": "GET", "REQUEST_URI": "/now"})
            done = here("dump", "file", cwd=folder)
            assert "REQUEST_URI=/now" in done.stdout
            assert "closed" not in done.stdout


def test_a_dump_shows_all_of_it(folder: Path) -> None:
    writer = Writer(str(folder / "file"), "unix:/run/app.sock")
    begin = record(1, 1, b"\0\1\1" + bytes(5)) + record(4, 1, b"\1\1ab") + record(4, 1)
    writer.add(1, "opened")
    writer.add(1, TO_APP, begin[:20])
    writer.add(1, TO_APP, begin[20:] + record(5, 1))
    writer.add(2, "opened")
    writer.add(1, TO_WEB, record(STDOUT, 1, b"X: y\r\n\r\n\x1bbody") + END)
    writer.add(2, TO_APP, b"GET / HTTP/1.1\r\n")
    writer.add(2, TO_APP, b"more")
    writer.add(1, TO_APP, b"\1\1")
    writer.add(1, "closed-by-web-server")
    writer.close()
    done = here("dump", "file", cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    text = re.sub(r"^ +\d+\.\d{3}", "", done.stdout, flags=re.MULTILINE)
    assert re.match(r"unix:/run/app.sock, \d{4}-\d\d-\d\dT", text)
    assert [line.strip() for line in text.splitlines()[1:]] == [
        "1 * opened",
        "1 > BEGIN_REQUEST 1: RESPONDER, KEEP_CONN",
        "1 > PARAMS 1: 4 bytes",
        "> PARAMS 1: end",
        ">   a=b",
        "> STDIN 1: end",
        "2 * opened",
        "1 < STDOUT 1: 13 bytes",
        "<   X: y",
        "< END_REQUEST 1: REQUEST_COMPLETE, appStatus 0",
        "2 > no record of FastCGI: b'GET / HTTP/1.1\\r\\n'",
        "2 > 000000  6d 6f 72 65                                      more",
        "1 > (2 bytes of a record)",
        "1 > closed by the web server",
        "connection 1 ends with 2 bytes of a record that is not whole (>)",
    ]
    done = here("dump", "file", "--connection", "1", "--bytes", cwd=folder)
    assert (
        "  | 000000  58 3a 20 79 0d 0a 0d 0a 1b 62 6f 64 79           X: y.....body" in done.stdout
    )
    assert "GET" not in done.stdout


def test_a_last_line_that_was_cut_is_passed_over(folder: Path) -> None:
    path = folder / "file"
    writer = Writer(str(path), "unix:s")
    writer.add(1, "opened")
    writer.close()
    whole = path.read_text()
    path.write_text(whole + '{"at": 0.1, "connec')
    assert len(Recording.read(str(path)).events) == 1


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no json\n",
        "[]\n",
        '{"fulgate": "recording", "version": 2, "endpoint": "", "began": ""}\n',
        '{"fulgate": "recording", "version": 1, "endpoint": "", "began": ""}\n{"at": 1}\n',
        '{"fulgate": "recording", "version": 1, "endpoint": "", "began": ""}\n'
        '{"at": 1, "connection": 1, "what": "to-application", "data": "?"}\n',
        '{"fulgate": "recording", "version": 1, "endpoint": "", "began": ""}\n'
        '{"at": 1, "connection": 1, "what": "nonsense"}\n',
    ],
)
def test_what_is_no_recording_is_told(text: str, folder: Path) -> None:
    (folder / "file").write_text(text)
    assert "file: it is no recording" in refused_here(2, "dump", "file", cwd=folder)
    refused_here(2, "replay", "file", cwd=folder)


def test_misuse_is_told(folder: Path) -> None:
    assert "none: No such file" in refused_here(2, "dump", "none", cwd=folder)
    for arguments in (
        ["unix:a"],
        ["nonsense", "unix:b", "file"],
        ["unix:a", "fd:0", "file"],
        ["tcp:0.0.0.0:9000", "unix:b", "file"],
        [f"unix:{folder}/a", "unix:b", "none/file"],
    ):
        refused_here(2, "record", *arguments, cwd=folder)


def test_a_large_answer_to_a_slow_reader_is_whole(folder: Path) -> None:
    (folder / "large_site.py").write_text(
        "def app(environ, start_response):\n"
        "    start_response('200 OK', [])\n"
        "    return [bytes(100000)] * 50\n"
    )
    options = ["--bind", f"unix:{folder}/sock"]
    with Served("large_site:app", *options, cwd=folder) as server:
        with recording(folder, server.endpoints[0]) as tap, Client(tap) as client:
            with client.stream("GET", "/") as answer:
                time.sleep(0.2)
                assert len(answer.read()) == 5_000_000
        assert (
            here("replay", "file", cwd=folder).stdout == "1 GET /: same\n1 compared, 0 different\n"
        )
    first = json.loads((folder / "file").read_text().splitlines()[0])
    assert (first["fulgate"], first["version"]) == ("recording", 1)


@pytest.mark.parametrize("protocol", ["scgi", "ajp"])
@pytest.mark.parametrize(
    "arguments",
    [
        ["record", "PROTOCOL+unix:s", "unix:t", "file"],
        ["record", "unix:s", "PROTOCOL+unix:t", "file"],
        ["replay", "file", "PROTOCOL+unix:s"],
        ["bench", "PROTOCOL+unix:s"],
        ["conform", "PROTOCOL+unix:s"],
    ],
    ids=lambda arguments: "-".join(arguments[:2]),
)
def test_what_speaks_fastcgi_alone_says_so(
    folder: Path, arguments: list[str], protocol: str
) -> None:
    (folder / "file").touch()
    given = [text.replace("PROTOCOL", protocol) for text in arguments]
    wrong = next(text for text in given if text.startswith(protocol))
    said = refused_here(2, *given, cwd=folder)
    assert said == f"endpoint {wrong}: this speaks FastCGI, and not {protocol}"
    assert not (folder / "s").exists()
