"""`fulgate doctor --recording`: what a web server really sends, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import click

from fulgate.cgi import repair
from fulgate.client.recording import Exchanged, Recording
from fulgate.client.records import printable
from fulgate.exchange import Exchange, Role

__all__ = ["Front", "command", "findings", "fronts", "report"]

SHOWN: Final = 6  # paths of one web server
NEEDED: Final = ("REQUEST_METHOD", "QUERY_STRING", "SERVER_PROTOCOL", "SERVER_NAME", "SERVER_PORT")

# A line to add, behind the place where it goes. What keeps connections; lighttpd and Caddy cannot.
KEEP: Final = {
    "nginx": ("in the upstream: keepalive 16;", "beside fastcgi_pass: fastcgi_keep_conn on;"),
    "Apache": ("at the end of ProxyPass: enablereuse=on",),
    "HAProxy": ("in the fcgi-app: option keep-conn",),
    "h2o": ("beside fastcgi.connect: fastcgi.timeout.keepalive: 5000",),
}
# What passes Authorization on, where a web server keeps it to itself.
AUTHORIZATION: Final = {
    "Apache": 'in a <Location "/">: CGIPassAuth On',
    "HAProxy": "in the fcgi-app: pass-header authorization",
}
# What drops a client's header Proxy. Apache, HAProxy and lighttpd do so by themselves.
PROXY: Final = {
    "nginx": 'beside fastcgi_pass: fastcgi_param HTTP_PROXY "";',
    "Caddy": "in the site: request_header -Proxy",
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
    found: list[str] = []
    for front in fronts(Recording.read(file)):
        lines += _about(front)
        found += findings(front)
    shown = found or ["nothing that is known to be wrong"]
    return [*lines, "Findings", *("  " + line for line in shown)], bool(found)


def fronts(recording: Recording) -> list[Front]:
    """Give the web servers that a recording has requests of."""
    made: dict[str, Front] = {}
    for conversation in recording.conversations():
        for exchanged in conversation.asked():
            software = exchanged.variables.get("SERVER_SOFTWARE", "")
            made.setdefault(software, Front(software)).requests.append(exchanged)
    return list(made.values())


def findings(front: Front) -> list[str]:
    """Give what is wrong; what to add to the web server's configuration, and where, is indented."""
    found: list[str] = []
    sent = [one.variables for one in front.requests]
    name = front.kind or "the web server"
    missing = [needed for needed in NEEDED if any(needed not in one for one in sent)]
    if any(not {"REQUEST_URI", "SCRIPT_NAME", "PATH_INFO"} & one.keys() for one in sent):
        missing.append("SCRIPT_NAME")
    if missing:
        found.append(f"{name} does not send {', '.join(missing)}")
        # Of all web servers only nginx sends nothing of its own accord, not even its name.
        found += (
            ["    beside fastcgi_pass: include fastcgi_params;"]
            if front.kind in ("nginx", "")
            else []
        )
    if any(_lost(one) for one in sent):
        found.append(f"{name} does not send PATH_INFO, and SCRIPT_NAME is not the whole path")
        line = "    beside fastcgi_pass: fastcgi_param PATH_INFO $fastcgi_path_info;"
        found += [line] if name == "nginx" else []
    if name == "lighttpd" and len({one.get("SCRIPT_NAME", "") for one in sent} - {""}) > 1:
        found.append("lighttpd takes a part of each path for SCRIPT_NAME")
        found.append('    in fastcgi.server: "fix-root-scriptname" => "enable"')
    if not any(one.keep for one in front.requests) and name in KEEP:
        found.append(f"{name} makes a new connection for each request")
        found += ["    " + line for line in KEEP[name]]
    if name in AUTHORIZATION and not any("HTTP_AUTHORIZATION" in one for one in sent):
        found.append(
            f"no request has Authorization, which {name} keeps to itself unless it is told"
        )
        found.append("    " + AUTHORIZATION[name])
    if any(one.get("HTTP_PROXY") for one in sent):
        found.append("a client's header Proxy came as HTTP_PROXY (httpoxy); Fulgate drops it")
        found += ["    " + PROXY[name]] if name in PROXY else []
    return found


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
