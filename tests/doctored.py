"""Puts the lines that the doctor prints where it says that they go: into a real configuration."""

from __future__ import annotations

import re
from collections.abc import Callable

__all__ = ["applied", "bind_of", "said"]


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
