"""What the tests of `fulgate doctor` share: they have it look, read what it says, and do that.

The lines that it prints are put where it says that they go: into a real configuration. A test that
does so says what it proves, by `mends`; one of what the doctor only tells, by `finds`.
"""

from __future__ import annotations

import http.client
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fulgate.doctor.mistakes import Mistake
from tests.command import environment, here

__all__ = [
    "SITE",
    "WELL",
    "Listening",
    "applied",
    "bind_of",
    "examined",
    "finds",
    "found",
    "listening",
    "mends",
    "said",
    "status_of",
]

SITE = """\
def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"there"]
"""
WELL = "Findings\n  nothing that is known to be wrong\n"


def mends(*mistakes: Mistake, by: str, web: str) -> pytest.MarkDecorator:
    """Mark what makes these in a web server, has them found, and puts them right as is said.

    `by` is how the doctor is asked, such as "--nginx", `web` a key of SNIPPETS.
    """
    return pytest.mark.mends(*mistakes, by=by, web=web)


def finds(*mistakes: Mistake, by: str) -> pytest.MarkDecorator:
    """Mark what makes these, which have no lines that put them right, and has them found."""
    return pytest.mark.finds(*mistakes, by=by)


def found(report: str) -> set[Mistake]:
    """Give the mistakes of a report's findings, by their names."""
    assert "Findings\n" in report
    names = re.findall(r" \[([a-z-]+)\]$", report, re.MULTILINE)
    return {Mistake(name) for name in names}


def examined(*arguments: str, cwd: Path) -> str:
    """Have the doctor look; a finding and the exit status belong together."""
    done = here("doctor", *arguments, cwd=cwd)
    assert done.stderr == ""
    assert done.returncode == (1 if found(done.stdout) else 0), done.stdout
    assert done.stdout.endswith(WELL) or done.returncode == 1, done.stdout
    return done.stdout


class Listening:
    """`fulgate doctor --listen`, while it runs; `began` is what it says then."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        self._process = process
        self.began = process.stderr.readline()

    def report(self) -> str:
        """Wait for its end, and give what it found."""
        out, _ = self._process.communicate(timeout=30)
        assert self._process.returncode == (1 if found(out) else 0), out
        return out

    def interrupted(self) -> str:
        """End it, and give what it says then."""
        self._process.send_signal(signal.SIGINT)
        _, errors = self._process.communicate(timeout=30)
        return errors


@contextmanager
def listening(folder: Path, tap: str, *arguments: str, connections: int = 1) -> Iterator[Listening]:
    """Have the doctor listen until so many connections have ended."""
    command = ["doctor", "--listen", tap, "--connections", str(connections), *arguments]
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "fulgate", *command],
        cwd=folder, env=environment(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        try:
            yield Listening(process)
        finally:
            process.kill()


def status_of(port: int, path: str = "/a", **headers: str) -> int:
    """Ask a web server, and give its status."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status


def said(report: str) -> list[tuple[str, str]]:
    """Give what a report says is to be added: the place, and the line."""
    _, _, found = report.partition("Findings\n")
    lines = [line[6:] for line in found.splitlines() if line.startswith("      ")]
    pairs = [line.partition(": ") for line in lines]
    return [(place, line) for place, _, line in pairs]


def bind_of(report: str) -> str:
    """Give the endpoint that a report says Fulgate is to be started with."""
    found = re.search(r"--bind (?:'([^']*)'|(\S+))", report)
    assert found is not None, report
    return found[1] or found[2]


def behind(pattern: str) -> Callable[[str, str], str]:
    """Put a line behind each one that matches, with the same indentation."""

    def put(text: str, line: str) -> str:
        made, count = re.subn(
            rf"^([ \t]*){pattern}.*$", lambda m: f"{m[0]}\n{m[1]}{line}", text, flags=re.MULTILINE
        )
        assert count == 1, f"{pattern} is there {count} times"
        return made

    return put


def at_the_end(text: str, line: str) -> str:
    return re.sub(r"^(ProxyPass .*)$", rf"\1 {line}", text, flags=re.MULTILINE)


def in_a_location(text: str, line: str) -> str:
    return f'{text}<Location "/">\n{line}\n</Location>\n'


def in_fastcgi_server(text: str, line: str) -> str:
    return text.replace('"check-local" => "disable"', f'"check-local" => "disable",\n    {line}')


def beside_connect(text: str, line: str) -> str:
    return re.sub(r"^( *)fastcgi\.connect:", rf"\1{line}\n\g<0>", text, flags=re.MULTILINE)


PLACES: dict[str, Callable[[str, str], str]] = {
    "in the upstream": behind(r"upstream \w+ \{"),
    "beside fastcgi_pass": behind("fastcgi_pass "),
    "at the end of ProxyPass": at_the_end,
    'in a <Location "/">': in_a_location,
    "beside fastcgi.connect": beside_connect,
    "in the fcgi-app": behind("docroot "),
    "in fastcgi.server": in_fastcgi_server,
    "in the site": behind(r"http://.* \{"),
}


def applied(text: str, report: str) -> str:
    """Do to a configuration what a report says."""
    lines = said(report)
    assert lines, report
    for place, line in lines:
        text = PLACES[place](text, line)
    return text
