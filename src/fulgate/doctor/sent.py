"""`fulgate doctor --recording`: what a web server really sends, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import click

from fulgate.cgi import repair
from fulgate.client.recording import Exchanged, Recording
from fulgate.client.records import printable
from fulgate.doctor.mistakes import Found, Mistake
from fulgate.exchange import Exchange, Role

__all__ = ["LINES", "Front", "command", "findings", "fronts", "report"]

SHOWN: Final = 6  # paths of one web server
NEEDED: Final = ("REQUEST_METHOD", "SERVER_PROTOCOL", "SERVER_NAME", "SERVER_PORT")

# Lines to add, each behind the place where it goes, for the web servers that have any.
LINES: Final[Mapping[Mistake, Mapping[str, tuple[str, ...]]]] = {
    Mistake.NO_VARIABLES: {"nginx": ("beside fastcgi_pass: include fastcgi_params;",)},
    Mistake.NO_PATH_INFO: {
        "nginx": ("beside fastcgi_pass: fastcgi_param PATH_INFO $fastcgi_path_info;",)
    },
    Mistake.SPLIT_PATH: {"lighttpd": ('in fastcgi.server: "fix-root-scriptname" => "enable"',)},
    # lighttpd and Caddy cannot keep connections.
    Mistake.NO_KEEP_ALIVE: {
        "nginx": ("in the upstream: keepalive 16;", "beside fastcgi_pass: fastcgi_keep_conn on;"),
        "Apache": ("at the end of ProxyPass: enablereuse=on",),
        "HAProxy": ("in the fcgi-app: option keep-conn",),
        "h2o": ("beside fastcgi.connect: fastcgi.timeout.keepalive: 5000",),
    },
    # The others pass Authorization on.
    Mistake.NO_AUTHORIZATION: {
        "Apache": ('in a <Location "/">: CGIPassAuth On',),
        "HAProxy": ("in the fcgi-app: pass-header authorization",),
    },
    # Apache, HAProxy and lighttpd drop a client's header Proxy by themselves.
    Mistake.HTTPOXY: {
        "nginx": ('beside fastcgi_pass: fastcgi_param HTTP_PROXY "";',),
        "Caddy": ("in the site: request_header -Proxy",),
    },
}


@dataclass
class Front:
    """One web server, by its SERVER_SOFTWARE, and what it asked."""

    software: str
    requests: list[Exchanged] = field(default_factory=list)

    @property
    def kind(self) -> str:
        """The program's name."""
        return self.software.partition("/")[0].partition(" ")[0]


def command(file: str) -> int:
    """Print what a recording shows of its web servers; give 1 when something is wrong.

    Raises ConfigError for what is no recording.
    """
    lines, wrong = report(file)
    for line in lines:
        click.echo(line)
    return 1 if wrong else 0


def report(file: str) -> tuple[list[str], bool]:
    """Give what a recording shows, and whether something is wrong. Raises ConfigError."""
    lines: list[str] = []
    found: list[Found] = []
    for front in fronts(Recording.read(file)):
        lines += _about(front)
        found += findings(front)
    shown = [line for one in found for line in one.shown()] or ["nothing that is known to be wrong"]
    return [*lines, "Findings", *("  " + line for line in shown)], bool(found)


def fronts(recording: Recording) -> list[Front]:
    """Give the web servers that a recording has requests of."""
    made: dict[str, Front] = {}
    for conversation in recording.conversations():
        for exchanged in conversation.asked():
            software = exchanged.variables.get("SERVER_SOFTWARE", "")
            made.setdefault(software, Front(software)).requests.append(exchanged)
    return list(made.values())


def findings(front: Front) -> list[Found]:
    """Give what is wrong, with what to add to the web server's configuration, and where."""
    name = front.kind or "the web server"
    # Of all web servers only nginx sends nothing of its own accord, not even its name.
    kind = front.kind or "nginx"
    return [
        Found(mistake, text, LINES[mistake].get(kind, ()))
        for mistake, check in CHECKS.items()
        if (text := check(name, front.requests))
    ]


def _no_variables(name: str, requests: Sequence[Exchanged]) -> str:
    sent = [one.variables for one in requests]
    missing = [needed for needed in NEEDED if any(needed not in one for one in sent)]
    # HAProxy sends no QUERY_STRING where there is none, which is the same as an empty one.
    if any("QUERY_STRING" not in one and "?" in one.get("REQUEST_URI", "?") for one in sent):
        missing.append("QUERY_STRING")
    if any(not {"REQUEST_URI", "SCRIPT_NAME", "PATH_INFO"} & one.keys() for one in sent):
        missing.append("SCRIPT_NAME")
    return f"{name} does not send {', '.join(missing)}" if missing else ""


def _no_path_info(name: str, requests: Sequence[Exchanged]) -> str:
    lost = any(_lost(one.variables) for one in requests)
    return f"{name} does not send PATH_INFO, and SCRIPT_NAME is not the whole path" if lost else ""


def _split_path(name: str, requests: Sequence[Exchanged]) -> str:
    scripts = {one.variables.get("SCRIPT_NAME", "") for one in requests} - {""}
    split = name == "lighttpd" and len(scripts) > 1
    return "lighttpd takes a part of each path for SCRIPT_NAME" if split else ""


def _no_keep_alive(name: str, requests: Sequence[Exchanged]) -> str:
    if any(one.keep for one in requests) or name not in LINES[Mistake.NO_KEEP_ALIVE]:
        return ""
    return f"{name} makes a new connection for each request"


def _no_authorization(name: str, requests: Sequence[Exchanged]) -> str:
    passed = any("HTTP_AUTHORIZATION" in one.variables for one in requests)
    if passed or name not in LINES[Mistake.NO_AUTHORIZATION]:
        return ""
    return f"no request has Authorization, which {name} keeps to itself unless it is told"


def _httpoxy(name: str, requests: Sequence[Exchanged]) -> str:
    came = any(one.variables.get("HTTP_PROXY") for one in requests)
    return "a client's header Proxy came as HTTP_PROXY (httpoxy); Fulgate drops it" if came else ""


CHECKS: Final[Mapping[Mistake, Callable[[str, Sequence[Exchanged]], str]]] = {
    Mistake.NO_VARIABLES: _no_variables,
    Mistake.NO_PATH_INFO: _no_path_info,
    Mistake.SPLIT_PATH: _split_path,
    Mistake.NO_KEEP_ALIVE: _no_keep_alive,
    Mistake.NO_AUTHORIZATION: _no_authorization,
    Mistake.HTTPOXY: _httpoxy,
}


def _lost(sent: Mapping[str, str]) -> bool:
    """Was a part of the path taken off SCRIPT_NAME, and sent nowhere else (nginx)?"""
    script = sent.get("SCRIPT_NAME")
    whole = sent.get("DOCUMENT_URI", "")
    return bool(script) and "PATH_INFO" not in sent and whole.startswith(f"{script}/")


def _about(front: Front) -> list[str]:
    kept = sum(one.keep for one in front.requests)
    lines = [
        printable((front.software or "a web server without a name").encode("latin-1"))
        + f": {len(front.requests)} requests, of which {kept} are to keep the connection"
    ]
    seen: set[str] = set()
    for one in front.requests:
        if one.name not in seen and len(seen) < SHOWN:
            seen.add(one.name)
            lines += _path(one)
    return lines


def _path(one: Exchanged) -> list[str]:
    """Say what becomes of a path, by the rules that Fulgate serves with."""
    sent = one.variables
    exchange = Exchange(1, Role.RESPONDER, one.keep)
    exchange.params = dict(sent)
    repair(exchange)
    shown = [f"  {one.name}"]
    for who, params in (("sent", sent), ("for the application", exchange.params)):
        script, info = params.get("SCRIPT_NAME"), params.get("PATH_INFO")
        shown.append(f"    {who}: SCRIPT_NAME {_value(script)}, PATH_INFO {_value(info)}")
    return [printable(line.encode("latin-1")) for line in shown]


def _value(value: str | None) -> str:
    return "is not there" if value is None else f"is '{value}'"
