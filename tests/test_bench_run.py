"""The benchmark's parts: peers, measurements, targets, the page and the chart."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from fulgate.testing import call

BENCH = Path(__file__).parents[1] / "bench"
sys.path[:0] = [str(BENCH), str(BENCH / "apps")]

import asgi  # noqa: E402
import chart  # noqa: E402
import install  # noqa: E402
import loads  # noqa: E402
import report  # noqa: E402
import run as bench_run  # noqa: E402
import targets  # noqa: E402
import work  # noqa: E402
from found import Run, shortened  # noqa: E402
from loads import Figures  # noqa: E402
from machine import Machine  # noqa: E402
from nginx import nginx, what_failed, wrk_figures  # noqa: E402
from peers import PEERS, Peer  # noqa: E402
from running import REQUESTS, NotServing, Running, ask  # noqa: E402
from startup import Startup  # noqa: E402
from workloads import WORKLOADS  # noqa: E402


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    for name in ("load", "floor"):
        assert not install.compiled(BENCH / f"{name}.c", folder / name)
    return folder


def figures(**values: Any) -> Figures:
    usual = Figures(1000, 10, 100, 200, 300, 20, 0, 0, 0.5, 0)
    return replace(usual, **values)


def run_of(**values: dict[str, Any]) -> Run:
    """Give a run in which each peer did hello both ways, with these figures."""
    run = Run(Machine("a CPU", 2, "Linux 6"), {"fulgate": "1"}, 1.0, 1)
    for way in ("direct", "nginx"):
        for peer, given in values.items():
            run.add((way, "hello", peer.replace("_", "-")), figures(**given))
    return run


# ---------------------------------------------------------------- applications


@pytest.mark.parametrize(
    ("path", "size"),
    [("/", 12), ("/64k", 65536), ("/stream", 1 << 20), ("/wait/1", 12), ("/compute/1/1", 12),
     ("/python/1", 12), ("/released/1", 12)],
)  # fmt: skip
def test_both_applications_do_the_same(path: str, size: int) -> None:
    response = call(work.app, path=path)
    assert (response.status, len(response.body)) == ("200 OK", size)
    status, body = asyncio.run(asgi_call(path))
    assert (status, len(body)) == (200, size)


def test_both_applications_read_what_is_uploaded() -> None:
    response = call(work.app, method="POST", path="/upload", body=bytes(70000))
    assert response.body == b"      70000\n"
    assert asyncio.run(asgi_call("/upload", bytes(70000))) == (200, b"      70000\n")


async def asgi_call(path: str, body: bytes = b"") -> tuple[int, bytes]:
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await asgi.app({"type": "http", "path": path}, receive, send)
    return sent[0]["status"], b"".join(message["body"] for message in sent[1:])


# ---------------------------------------------------------------- peers


def test_who_takes_part_in_what() -> None:
    def parts(peer: str) -> set[tuple[str, str]]:
        return {
            (way, name)
            for name, workload in WORKLOADS.items()
            for way in ("direct", "nginx")
            if bench_run.takes_part(PEERS[peer], way, workload, grouped=True)
        }

    assert ("direct", "mix") in parts("fulgate")
    assert ("direct", "mix") not in parts("uwsgi-fastcgi")
    assert parts("floor") >= {("direct", "hello"), ("nginx", "upload"), ("direct", "idle")}
    assert not {name for _, name in parts("floor")} & {"64k", "stream", "wait"}
    assert {way for way, _ in parts("granian")} == {"nginx"}
    assert ("nginx", "idle") not in parts("fulgate")


def test_the_order_is_turned_each_round_and_the_last_is_short() -> None:
    chosen = bench_run.options(["--peers", "fulgate,flup", "--workloads", "hello,64k"])
    peers = [PEERS[name] for name in chosen.peers]
    rounds = [bench_run.plan(chosen, turn, peers) for turn in range(chosen.rounds)]
    assert [cell[2] for cell in rounds[0][:2]] == ["fulgate", "flup"]
    assert [cell[2] for cell in rounds[1][:2]] == ["flup", "fulgate"]
    assert [len(cells) for cells in rounds] == [8, 8, 4]


def test_every_peer_of_a_target_exists() -> None:
    assert set(targets.PYTHON_PEERS) <= set(PEERS)
    assert {targets.C, f"{targets.C}-1", f"{targets.C}-64"} <= set(PEERS)
    assert set(bench_run.QUICK_PEERS) <= set(PEERS)
    assert set(bench_run.QUICK_WORKLOADS) <= set(WORKLOADS)


def peer_of(*command: str, **fields: Any) -> Peer:
    """Give a peer; {} in its command stands for the socket's path."""
    return Peer("one", "", lambda path: [part.format(path) for part in command], **fields)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["false"], "ended with status 1: it said nothing"),
        (["sh", "-c", "echo no such thing; exit 3"], "status 3: no such thing"),
        (["sh", "-c", "kill -9 $$"], "signal 9"),
        (["/nowhere/server"], "/nowhere/server: No such file"),
    ],
    ids=["silent", "telling", "killed", "not there"],
)
def test_a_server_that_does_not_start_says_why(command: list[str], said: str, folder: Path) -> None:
    with pytest.raises(NotServing, match=said):
        with Running(peer_of(*command), folder / "sock"):
            pass


@pytest.fixture
def floor_peer(built: Path, monkeypatch: pytest.MonkeyPatch) -> Peer:
    monkeypatch.setattr(loads, "BUILD", built)
    return peer_of(str(built / "floor"), "{}")


REQUEST_OF = {
    "fastcgi": lambda block: (
        b"\1\1\0\1\0\10\0\0\0\1\0\0\0\0\0\0" + b"\1\4\0\1\0\13\0\0" + block
        + b"\1\4\0\1\0\0\0\0" + b"\1\5\0\1\0\0\0\0"
    ),
    "uwsgi": lambda block: b"\0\7\0\0" + block,
    "scgi": lambda block: b"%d:" % len(block) + block + b",",
}  # fmt: skip


@pytest.mark.parametrize(
    ("speaks", "block"),
    [
        ("fastcgi", b"\x80\0\0\1\x80\0\0\2" + b"Nvw"),
        ("uwsgi", b"\1\0N\2\0vw"),
        ("scgi", b"CONTENT_LENGTH\x000\0N\0vw\0SCGI\x001\0"),
    ],
)
def test_a_server_is_asked_in_its_protocol(speaks: str, block: bytes) -> None:
    assert REQUESTS[speaks]({"N": "vw"}) == REQUEST_OF[speaks](block)


@pytest.mark.requires_program("cc")
@pytest.mark.parametrize("name", ["hello", "close", "upload", "silent"])
def test_a_server_is_measured(name: str, floor_peer: Peer) -> None:
    seen = loads.direct(floor_peer, replace(WORKLOADS[name], connections=4), 0.5)
    assert seen.rps > 0
    assert 0 < seen.p50_us <= seen.p99_us <= seen.max_us * 1.02
    assert seen.errors == seen.never_served == 0
    assert seen.rss_mb > 0.1


@pytest.mark.requires_program("cc")
def test_another_answer_is_no_answer(floor_peer: Peer) -> None:
    with pytest.raises(NotServing, match="answers of 76 bytes instead of 65,536"):
        loads.direct(floor_peer, WORKLOADS["64k"], 0.1)


@pytest.mark.requires_program("cc")
def test_fulgate_is_measured(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loads, "BUILD", built)
    command = [sys.executable, "-m", "fulgate", "serve", "work:app", "--bind", "unix:{}"]
    peer = peer_of(*command, modules=PEERS["fulgate"].modules)
    workload = replace(WORKLOADS["mix"], connections=4, mix={"/wait/1": 0.5}, idle=20)
    seen = loads.direct(peer, workload, 0.2)
    assert seen.errors == seen.never_served == 0
    assert seen.idle_open == 20
    assert seen.paths["/"]["p50_us"] > 0
    assert seen.paths["/wait/1"]["p50_us"] >= 1000
    assert seen.cpu_us > 0


@pytest.mark.requires_program("cc")
@pytest.mark.requires_server("nginx")
def test_nginx_passes_on(floor_peer: Peer, folder: Path) -> None:
    with Running(floor_peer, folder / "sock") as server:
        assert server.started < 20
        with nginx(folder, server.path, floor_peer, WORKLOADS["hello"]) as (_, port):
            with socket.create_connection(("127.0.0.1", port), 10) as connection:
                connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
                answer = b"".join(iter(lambda: connection.recv(4096), b""))
        server.check()
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.endswith(b"\r\nhello world\n")
    with contextlib.suppress(OSError):
        assert not ask(floor_peer, server.path)


def test_wrk_is_read() -> None:
    seen = wrk_figures(
        "Running 1s test\n  Thread Stats   Avg      Stdev     Max   +/- Stdev\n"
        "    Latency     1.04ms  400.00us   6.72ms   90.00%\n    Req/Sec 3k 1k 4k 60%\n"
        "  Latency Distribution\n     50%    0.95ms\n     75%    1.10ms\n     90%    1.30ms\n"
        "     99%    1.87ms\n  37505 requests in 1.00s, 5.50MB read\n"
        "  Socket errors: connect 1, read 2, write 0, timeout 3\n"
        "  Non-2xx or 3xx responses: 7\nRequests/sec:  37505.10\n"
    )
    assert seen == {
        "requests": 37505, "rps": 37505.1, "p50_us": 950, "p99_us": 1870, "max_us": 6720,
        "errors": 13, "bytes": 5.5 * (1 << 20),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("log", "said"),
    [
        ("", "Non-2xx or 3xx responses: 7"),
        (
            "2026/01/01 00:00:00 [error] 12#12: *34 recv() failed (104: Connection reset by peer)"
            " while reading, client: 127.0.0.1, server: , request: x\n",
            "recv() failed (104: Connection reset by peer) while reading",
        ),
    ],
    ids=["wrk", "nginx"],
)
def test_what_failed_through_nginx_is_told(log: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "error.log").write_text(log)
    assert what_failed(tmp_path, "x\n  Non-2xx or 3xx responses: 7\n") == said


@pytest.mark.requires_program("cc")
def test_a_server_is_pinned_and_may_have_many_descriptors(floor_peer: Peer, folder: Path) -> None:
    mine = (os.sched_getaffinity(0), resource.getrlimit(resource.RLIMIT_NOFILE))
    core = max(mine[0])
    with Running(floor_peer, folder / "sock", core) as server:
        assert os.sched_getaffinity(server.process.pid) == {core}
        soft, hard = resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE)
        assert soft == hard
    assert mine == (os.sched_getaffinity(0), resource.getrlimit(resource.RLIMIT_NOFILE))


# ---------------------------------------------------------------- installing


def test_a_compiler_that_fails_is_quoted(tmp_path: Path) -> None:
    (tmp_path / "bad.c").write_text("int main(void) { return nothing; }\n")
    assert "error: " in install.compiled(tmp_path / "bad.c", tmp_path / "bad")


@pytest.mark.parametrize("line", ["ValueError: no compiler", "fulgate: cannot compile: no cc"])
def test_the_telling_line_of_a_failure_is_found(line: str, tmp_path: Path) -> None:
    script = tmp_path / "pip"
    script.write_text(
        f"#!/bin/sh\necho 'error: subprocess-exited-with-error'; echo '  {line}'\n"
        "echo 'ERROR: Failed building wheel'; echo '[notice] A new release of pip'; exit 1\n"
    )
    script.chmod(0o755)
    assert install.pip(script, "anything") == line


def test_who_cannot_be_had_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "compiled", lambda *_: "")
    monkeypatch.setattr(install, "venv", lambda _: "")
    monkeypatch.setattr(install, "install", lambda _: {"flup==1.0.3": "no network"})
    missing = peer_of("one", program="no-such-program")
    wrong = peer_of("two", checked=(sys.executable, "-c", "print('not so'); raise SystemExit(1)"))
    failed = install.prepare([
        PEERS["flup"], replace(missing, name="one"), replace(wrong, name="two"), PEERS["floor"],
    ])  # fmt: skip
    assert failed == {
        "flup": "no network",
        "one": "no-such-program is not installed",
        "two": "it is not what its name says: not so",
    }


@pytest.mark.skipif(not (BENCH.parent / "src").exists(), reason="src/ is out of the way")
def test_what_is_installed_compiled_is_whole() -> None:
    names = {path.relative_to(BENCH.parent).as_posix() for path in install.sources()}
    assert {
        "pyproject.toml",
        "README.md",
        "src/fulgate/exchange.py",
        "src/fulgate/py.typed",
    } <= names
    assert not [name for name in names if name.endswith((".so", ".pyc"))]


# ---------------------------------------------------------------- targets


VERDICTS = [
    ("direct, hello: CPU a request, fulgate-compiled / libfcgi", 10.0, 5.0, "MISSED"),
    ("direct, hello: CPU a request, fulgate-compiled / libfcgi", 8.0, 5.0, "reached, next is 1.25"),
    ("direct, hello: CPU a request, fulgate-compiled / libfcgi", 6.0, 5.0, "reached, and 1.25"),
    ("direct, hello: CPU a request, fulgate-compiled / flup", 10.0, 59.0, "MISSED"),
    ("direct, hello: CPU a request, fulgate-compiled / flup", 10.0, 61.0, "reached"),
]


@pytest.mark.parametrize(("text", "mine", "theirs", "said"), VERDICTS)
def test_a_ratio_is_judged(text: str, mine: float, theirs: float, said: str) -> None:
    other = text.rpartition(" / ")[2]
    run = run_of(fulgate_compiled={"cpu_us": mine}, **{other: {"cpu_us": theirs}})
    target = next(one for one in targets.TARGETS if one.text == text)
    assert targets.verdict(target, run)[1] == said


def test_the_best_of_the_peers_is_found() -> None:
    run = run_of(fulgate_compiled={"rps": 900}, flup={"rps": 100}, granian={"rps": 1000})
    target = next(
        one for one in targets.TARGETS
        if one.text == "nginx, hello: requests/s, fulgate-compiled / the best Python peer"
    )  # fmt: skip
    assert targets.verdict(target, run) == ("0.9 (best: granian)", "MISSED")
    run.add(("nginx", "hello", "fulgate-compiled"), figures(rps=1300))  # the median is 1100
    assert targets.verdict(target, run) == ("1.1 (best: granian)", "reached")


def test_what_is_no_ratio_is_judged() -> None:
    run = run_of(fulgate={"rss_mb": 20.0})
    run.startups["fulgate"] = Startup(151.0, 24.0, 3.5)
    run.add(("direct", "idle", "fulgate"), figures(rss_mb=30.0, idle_open=4000))
    run.add(("direct", "hello-256", "fulgate"), figures(never_served=0))
    run.add(("direct", "hello-256", "fulgate"), figures(never_served=1))  # the worst counts
    said = {one.text: targets.verdict(one, run) for one in targets.TARGETS}
    assert said["start, fulgate"] == ("151 ms", "MISSED")
    assert said["RSS after start, fulgate"] == ("24 MB", "reached")
    assert said["system calls a request, fulgate"] == ("3.5", "reached")
    assert said["RSS of an idle connection, fulgate"] == ("2.5 KB (4,000 kept)", "reached")
    assert said["direct, hello-256: connections never served, fulgate"][1] == "MISSED"
    assert said["start, fulgate-compiled"] == ("", "not measured")


# ---------------------------------------------------------------- the page and the chart


def test_the_page_names_who_failed() -> None:
    run = run_of(fulgate={"rps": 100}, flup={"rps": 50, "errors": 2, "first_error": "closed"})
    run.add_failed("go", "go is not installed")
    run.add_broken(("nginx", "hello", "uwsgi"), "it ended with signal 11:\n/tmp/one/two/log: said")
    page = report.markdown(run)
    assert "- go: NOT MEASURED: go is not installed" in page
    assert "| uwsgi | failed in 1 of 1 rounds: it ended with signal 11: log: said |" in page
    assert "2 (closed) |" in page
    assert page.index("| fulgate | 100 |") < page.index("| flup | 50 |")


def test_reasons_have_no_folders() -> None:
    assert shortened("in /home/me/x/y.py: no\n  such /dev/null") == "in y.py: no such null"
    assert shortened("a/b and 1/2") == "a/b and 1/2"


def test_disturbed_and_limiting_measurements_are_told() -> None:
    run = run_of(floor={"load_share": 0.97}, flup={"foreign_share": 0.2})
    page = report.markdown(run)
    assert "it is the limit and not the server: floor (97%)" in page
    assert "other processes had the machine too: flup (20%)" in page


def test_the_chart_has_a_bar_for_each(tmp_path: Path) -> None:
    run = run_of(fulgate={"cpu_us": 5, "rps": 10}, flup={"cpu_us": 9, "rps": 20, "never_served": 3})
    root = ElementTree.fromstring(chart.draw(run))
    named = [text.text for text in root.iter() if text.get("class") == "name"]
    assert named == ["fulgate", "flup", "flup", "fulgate"]  # the best first
    widths = [float(bar.get("width", "")) for bar in root.iter() if bar.get("class") == "bar"]
    assert widths[0] / widths[1] == pytest.approx(5 / 9, 0.01)
    assert "3 of them never served" in "".join(root.itertext())
    report.write(run, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"latest.md", "latest.json", "latest.svg"}


def test_figures_are_put_into_a_page(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    report.put_into(run_of(fulgate={}), page, tmp_path / "results")
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert "| fulgate | 1,000 · 10.0 |" in text
    assert "![The chart of this run](results/latest.svg)" in text
    page.write_text("no marks")
    with pytest.raises(ValueError, match="no marks"):
        report.put_into(run_of(fulgate={}), page, tmp_path / "results")


def test_help_is_there() -> None:
    done = subprocess.run([sys.executable, BENCH / "run.py", "--help"], stdout=subprocess.PIPE)
    assert b"--workloads" in done.stdout


def test_another_python_has_all_installed_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[object, ...]] = []

    def run(*command: object) -> str:
        made.append(command)
        if "venv" in command:
            (tmp_path / "venv").mkdir()
        return ""

    monkeypatch.setattr(install, "_run", run)
    monkeypatch.setattr(install, "COMPILED_VENV", tmp_path / "venv")
    monkeypatch.setattr(install, "BUILD", tmp_path / "build")
    for python, commands in (("/a", 2), ("/a", 0), ("/b", 2)):
        monkeypatch.setattr(install, "base_python", lambda python=python: Path(python))
        made.clear()
        assert install.install_compiled() == ""
        assert len(made) == commands, made
