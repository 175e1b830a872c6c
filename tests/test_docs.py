"""The examples of README.md and docs/ are run as they stand: one test for each page.

What a page's fences mean, from top to bottom, in a folder of the page's own:

- `python`: a file, when the first line is a comment that names it; else a program that is run. What
  it prints is what stands as a comment behind its calls of print.
- `toml`: a file, named in the same way, whose settings must be good.
- `properties`: a file, named in the same way, for a web server.
- `console`: commands behind "$ ", and what they print; "..." stands for anything. A server goes on
  in the background, until the next one is started; then it must end with status 0.
- `nginx`, `apache`, `lighttpd`, `caddy`, `haproxy`, `h2o`: what the real server is run with from
  there on.
- `ini`: a unit of systemd, whose ExecStart `fulgate check` must accept.
- `sh`: commands that set things up; make's targets and the extras that pip installs must exist.
- `text`: only to be read; and `php`, `go` and `c`, which tests/test_conform_peers.py runs.

What belongs to the reader's machine, such as port 80 and /run/fulgate, is replaced in the whole
page by a free port, and by the page's folder.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from _pytest.mark import ParameterSet

import fulgate
from fulgate.cli import cli
from fulgate.config import settings
from fulgate.errors import ConfigError
from fulgate.settings import load
from tests.alone import free_port
from tests.pages import FENCE, blocks, here, upstream_of, whole_nginx
from tests.servers import PATH, RealServer, Running
from tests.servers.fulgate import ROOT
from tests.servers.snippets import SNIPPETS

PACKAGE = Path(fulgate.__file__).parent

PATIENCE = 60.0  # seconds
WEB_SERVERS = {name: kind.program for name, kind in SNIPPETS.items()}
READ = {"text", "php", "go", "c"}
LANGUAGES = {"python", "toml", "console", "ini", "properties", "sh", *READ, *WEB_SERVERS}
FILE_NAME = re.compile(r"# ([\w./-]+\.\w+)\n")
CODE = re.compile(r"`[^`\n]*`")
LINK = re.compile(r"\]\(([^)\s]+)\)")

PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*/*.md")]
    if path.name != "CHANGELOG.md"
)


class Reader:
    """Does what a page says."""

    def __init__(self, folder: Path, running: Running) -> None:
        self.folder = folder / "page"
        self.folder.mkdir(mode=0o755)
        self.running = running
        self.web_port = free_port()
        self.front_port = free_port()
        self.fastcgi_port = free_port()
        self.ajp_port = free_port()
        self.web: RealServer | None = None
        self.upstream = ""
        self.server: subprocess.Popen[bytes] | None = None
        self.server_is_told = False  # by the page, to end
        self.status = 0
        self.programs = folder / "bin"
        self.programs.mkdir()
        twistd = " -c 'from twisted.scripts.twistd import run; run()'"
        for name, module in {"fulgate": " -m fulgate", "python": "", "twistd": twistd}.items():
            script = self.programs / name
            script.write_text(f'#!/bin/sh\nexec "{sys.executable}"{module} "$@"\n')
            script.chmod(0o755)

    def replaced(self, text: str) -> str:
        """Put this machine in the place of the reader's."""
        for old, new in {
            "127.0.0.1:8000": f"127.0.0.1:{self.front_port}",
            "127.0.0.1:9000": f"127.0.0.1:{self.fastcgi_port}",
            "127.0.0.1:8009": f"127.0.0.1:{self.ajp_port}",
            "port=8009": f"port={self.ajp_port}",
        }.items():
            text = text.replace(old, new)
        return here(text, str(self.folder), self.web_port)

    def environment(self) -> dict[str, str]:
        found = {k: v for k, v in os.environ.items() if not k.startswith("FULGATE_")}
        found.pop("PYTHONPATH", None)
        return {
            **found,
            "PATH": f"{self.programs}:{PATH}",
            "PYTHONPATH": str(ROOT / "src"),
            "PYTHONWARNINGS": "error",
            "PYTHONUNBUFFERED": "1",
            "LC_ALL": "C.UTF-8",
        }

    def follow(self, text: str) -> None:
        for block in blocks(self.replaced(text)):
            if block.language in WEB_SERVERS:
                self.run_web_server(block.language, block.text)
            elif block.language not in READ:
                getattr(self, "read_" + block.language)(block.text)

    # what the fences mean

    def read_python(self, text: str) -> None:
        if name := FILE_NAME.match(text):
            self.write(name[1], text)
            return
        expected = re.findall(r"^ *print\(.*\)  # (.*)$", text, re.MULTILINE)
        got = subprocess.run(
            [sys.executable, "-c", text],
            cwd=self.folder,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert got.returncode == 0, f"{text}\n{got.stderr}"
        check("\n".join(expected), got.stdout, text)

    def read_toml(self, text: str) -> None:
        name = FILE_NAME.match(text)
        assert name, f"a file without a name:\n{text}"
        load(file=str(self.write(name[1], text)), environ={})

    def read_properties(self, text: str) -> None:
        name = FILE_NAME.match(text)
        assert name, f"a file without a name:\n{text}"
        self.write(name[1], text)

    def read_ini(self, text: str) -> None:
        commands = re.findall(r"^ExecStart=(\S+) serve (.*)$", text, re.MULTILINE)
        assert len(commands) == 1, text
        program, options = commands[0]
        assert program.endswith("/fulgate")
        self.shell(f"fulgate check {options}")
        assert self.status == 0, text

    def read_sh(self, text: str) -> None:
        makefile = (ROOT / "Makefile").read_text()
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        for line in text.splitlines():
            words = shlex.split(line, comments=True)
            if not words:
                continue
            if words[:1] == ["make"]:
                targets = [word for word in words[1:] if "=" not in word]
                assert targets
                for target in targets:
                    assert re.search(rf"^{target}:", makefile, re.MULTILINE), line
                for variable in (word.partition("=")[0] for word in words if "=" in word):
                    assert re.search(rf"^{variable} =", makefile, re.MULTILINE), line
            elif "install" in words:
                for extra in re.findall(r"\[(\w+)\]", line):
                    assert extra in project["optional-dependencies"], line
            else:
                assert words[0] in ("git", "cd", "towncrier", "python", ".venv/bin/towncrier"), line

    def read_console(self, text: str) -> None:
        for command, expected in commands_of(text):
            words = command.split()
            if words[:2] == ["fulgate", "serve"] or self.is_server(words):
                self.serve(command, expected)
            else:
                self.server_is_told |= self.tells_the_server(command)
                check(expected, self.shell(command), command)

    # how it is done

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def shell(self, command: str) -> str:
        got = subprocess.run(
            ["bash", "-c", f"(exit {self.status})\n{command}"],
            cwd=self.folder,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE,
        )
        self.status = got.returncode
        return got.stdout

    def is_server(self, words: list[str]) -> bool:
        """Is it a file of the page's that serves?"""
        if words[:1] != ["python"] or words[1:-1] not in ([], ["-m", "fulgate.flup"]):
            return False
        path = self.folder / words[-1]
        text = path.read_text() if path.is_file() else ""
        return "serve(" in text or ".run(" in text

    def tells_the_server(self, command: str) -> bool:
        """Does a command send a signal to the server that was started last?"""
        named = re.match(r'kill .*"\$\(cat (\S+)\)"', command)
        if named is None or self.server is None:
            return False
        return (self.folder / named[1]).read_text().strip() == str(self.server.pid)

    def serve(self, command: str, expected: str) -> None:
        """Start a server, and wait until it has printed what the page says, or has ended."""
        self.stop()
        self.server_is_told = False
        log = self.folder / "server.out"
        with log.open("wb") as out:
            self.server = subprocess.Popen(
                ["bash", "-c", f"exec {command}"],
                cwd=self.folder,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        deadline = time.monotonic() + PATIENCE
        while self.server.poll() is None and time.monotonic() < deadline:
            if expected and matches(expected, log.read_text()):
                return
            if not expected and accepts(self.folder / "app.sock"):
                return
            time.sleep(0.02)
        if self.server.poll() is not None:
            self.status = self.server.returncode
            self.server = None
        check(expected or "a server that listens on app.sock", log.read_text(), command)

    def stop(self) -> None:
        if self.server is None:
            return
        server, self.server = self.server, None
        if not self.server_is_told:  # a second signal would end it at once
            server.terminate()
        try:
            status = server.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait(PATIENCE)
            raise
        assert status == 0, (self.folder / "server.out").read_text()

    def end_daemons(self) -> None:
        """End what a page that failed has left in its folder; one that was followed leaves none."""
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if Path(os.readlink(entry / "cwd")) == self.folder:
                    os.kill(int(entry.name), signal.SIGKILL)

    def run_web_server(self, language: str, text: str) -> None:
        if self.web is not None:
            self.web.stop()
        if language == "nginx":
            self.upstream = upstream_of(text) or self.upstream
            text = whole_nginx(text, self.upstream, self.web_port)
        self.web = self.running(SNIPPETS[language], text, self.web_port)


def accepts(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def commands_of(text: str) -> Iterator[tuple[str, str]]:
    """Give the commands of a console, and what follows each; "\\" continues a line."""
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        match = re.match(r"((?:[^\n]*\\\n)*[^\n]*)\n(.*)", part, re.DOTALL)
        assert match, part
        yield match[1], match[2]


def matches(expected: str, output: str) -> bool:
    lines = [line.rstrip() for line in output.strip().splitlines()]
    pattern = re.escape(expected.strip()).replace(r"\.\.\.", ".*?")
    return re.fullmatch(pattern, "\n".join(lines), re.DOTALL) is not None


def check(expected: str, output: str, what: str) -> None:
    assert matches(expected, output), (
        f"{what}\n--- the page says\n{expected}\n--- it printed\n{output}"
    )


def page_params() -> list[ParameterSet]:
    params: list[ParameterSet] = []
    for name in PAGES:
        if name in ELSEWHERE:
            continue
        found = blocks((ROOT / name).read_text())
        servers = {WEB_SERVERS[b.language] for b in found if b.language in WEB_SERVERS}
        servers |= {"mod_jk"} if any("JkMount" in b.text for b in found) else set()
        programs = {"curl"} if any("curl" in b.text for b in found) else set()
        marks = [pytest.mark.requires_server(*sorted(servers))] if servers else []
        marks += [pytest.mark.requires_program(*programs)] if programs else []
        params.append(pytest.param(name, marks=marks, id=name))
    return params


# These take several machines.
ELSEWHERE = {"docs/cluster.md": "tests/test_cluster.py"}


@pytest.mark.parametrize("name", page_params())
def test_examples(name: str, folder: Path, running: Running) -> None:
    text = (ROOT / name).read_text()
    reader = Reader(folder, running)
    try:
        reader.follow(text)
    finally:
        try:
            reader.stop()
        finally:
            reader.end_daemons()


@pytest.mark.parametrize("name", PAGES)
def test_fences_are_of_known_languages(name: str) -> None:
    text = (ROOT / name).read_text()
    assert {block.language for block in blocks(text)} <= LANGUAGES
    assert text.count("\n```") + text.startswith("```") == 2 * len(blocks(text))


def anchors(text: str) -> set[str]:
    """Give the anchors that GitHub makes of a page's headings."""
    prose = FENCE.sub("", text)
    headings = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    page = ROOT / name
    prose = CODE.sub("", FENCE.sub("", page.read_text()))
    for target in LINK.findall(prose):
        if target.startswith(("https://", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        other = (page.parent / path).resolve() if path else page
        assert other.is_file(), target
        if anchor:
            assert anchor in anchors(other.read_text()), target


def options_of_commands() -> Iterator[str]:
    context = click.Context(cli)
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        for param in command.params:
            yield from (*param.opts, *param.secondary_opts)


OPTIONS = set(options_of_commands())


@pytest.mark.parametrize(
    "name", [name for name in PAGES if "performance" not in name and "examples" not in name]
)
def test_options_and_variables_exist(name: str) -> None:
    """An option in running text is one of fulgate's; some pages have other programs' too."""
    text = (ROOT / name).read_text()
    known = {s.option for s in settings()} | {"--config", "--print-config", "--version", "--help"}
    known |= {f"--no-{s.option[2:]}" for s in settings() if s.type is bool}
    known |= OPTIONS
    for option in re.findall(r"`(--[a-z-]+)", text):
        assert option in known, option
    variables = {s.variable for s in settings()} | {"FULGATE_CONFIG", "FULGATE_FAULTHANDLER"}
    variables |= {"FULGATE_PURE", "FULGATE_COMPILE"}  # of the build
    for variable in re.findall(r"FULGATE_[A-Z_]+", text):
        assert variable in variables, variable


@pytest.mark.parametrize("name", PAGES)
def test_files_that_are_named_exist(name: str) -> None:
    prose = FENCE.sub("", (ROOT / name).read_text())
    folders = [
        ROOT,
        (ROOT / name).parent,
        PACKAGE.parent,
        PACKAGE,
        PACKAGE / "gateways",
        PACKAGE / "drivers",
    ]
    ours = (
        r"(?:(?:tests|bench|docs|scripts|src|protocols|gateways|drivers|client)/[\w./*-]*|\w+\.py)"
    )
    shown = FILE_NAME.findall((ROOT / name).read_text())
    for path in re.findall(rf"`({ours})`", prose):
        found = [one for folder in folders for one in folder.glob(path.rstrip("/"))]
        assert found or path in shown, path


def test_statements_that_hold_are_proven() -> None:
    """What the conformance list says holds has a test that names its number."""
    page = (ROOT / "docs/conformance.md").read_text()
    rows = re.findall(r"^\| (R?\d+) \|.*\| ([^|]*) \| [^|]*\|$", page, re.MULTILINE)
    assert len(rows) == 36
    tests = "".join(path.read_text() for path in ROOT.glob("tests/**/*.py"))
    named = set(re.findall(r"statement\(\"(R?\d+)\"\)", tests))
    assert {number for number, state in rows if state.startswith("holds")} <= named


WRONG = {
    "output": "```console\n$ echo one\ntwo\n```\n",
    "printed": '```python\nprint("one")  # two\n```\n',
    "failing": "```python\nraise SystemExit(1)\n```\n",
    "setting": "```toml\n# fulgate.toml\ntreads = 1\n```\n",
    "target": "```sh\nmake nonsense\n```\n",
    "unit": "```ini\nExecStart=/bin/fulgate serve nothing:app\n```\n",
    "server": "```console\n$ fulgate serve nothing:app\nfulgate ... serves ...\n```\n",
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_example_is_noticed(name: str, folder: Path, running: Running) -> None:
    with pytest.raises((AssertionError, ConfigError)):
        Reader(folder, running).follow(WRONG[name])
