"""`fulgate doctor --nginx`: the mistakes that are usual where nginx passes requests on by FastCGI.

Each finding names the lines to change, as they are to be; the tests apply them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

import click

from fulgate.doctor.mistakes import Mistake
from fulgate.doctor.nginx_conf import Directive, read
from fulgate.doctor.reach import barred, exposed
from fulgate.endpoint import Endpoint

__all__ = ["Change", "Finding", "command", "findings"]

STOCK: Final = "/etc/nginx/fastcgi_params"
NEEDED: Final = ("REQUEST_METHOD", "QUERY_STRING", "CONTENT_TYPE", "CONTENT_LENGTH",
                 "SERVER_PROTOCOL", "SERVER_NAME", "SERVER_PORT")  # fmt: skip
DEFAULT_BODY: Final = "1m"  # client_max_body_size, unless something else is said


@dataclass(frozen=True)
class Change:
    """Lines to add behind a line of a file, or to put in its place."""

    file: str
    line: int
    lines: tuple[str, ...]
    replace: bool = False

    def text(self) -> list[str]:
        how = "replace line" if self.replace else "behind line"
        return [f"{how} {self.line} of {self.file}:", *("    " + line for line in self.lines)]


@dataclass(frozen=True)
class Finding:
    """One mistake: what it does, and what to change. `advice` is for outside of nginx's files."""

    mistake: Mistake
    where: Directive
    text: str
    changes: tuple[Change, ...] = ()
    advice: tuple[str, ...] = ()


@dataclass
class _Passing:
    """A block with a fastcgi_pass, and what is in effect there."""

    block: Directive
    to: Directive  # the fastcgi_pass itself
    upstream: Directive | None
    user: str
    prefix: str
    params: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return " ".join([self.block.name, *self.block.arguments])

    @property
    def servers(self) -> list[str]:
        if self.upstream is None:
            return self.to.arguments[:1]
        return [one.arguments[0] for one in self.upstream.inside("server") if one.arguments]

    def says(self, name: str, default: str) -> str:
        """Give the value of a directive with one argument."""
        found = self.block.effective(name)
        return found[-1].arguments[0] if found and found[-1].arguments else default


def command(file: str) -> int:
    """Print how nginx passes requests on, and what is wrong; give 1 when something is.

    Raises ConfigError for a file that cannot be read.
    """
    passings = _passings(read(file), file)
    for one in passings:
        for line in _about(one):
            click.echo(line)
    found = [finding for one in passings for finding in _look(one)]
    if not passings:
        click.echo("nginx passes nothing on by FastCGI: there is no fastcgi_pass")
    click.echo("Findings")
    for finding in found:
        click.echo(f"  {finding.where.file}:{finding.where.line}: {finding.text}"
                   f" [{finding.mistake}]")  # fmt: skip
        for change in finding.changes:
            for line in change.text():
                click.echo("    " + line)
        for line in finding.advice:
            click.echo("    " + line)
    if not found:
        click.echo("  nothing that is known to be wrong")
    return 1 if found or not passings else 0


def findings(file: str) -> list[Finding]:
    """Give what is wrong in a configuration. Raises ConfigError."""
    return [finding for one in _passings(read(file), file) for finding in _look(one)]


def _passings(root: Directive, file: str) -> list[_Passing]:
    directives = list(root.everything())
    upstreams = {one.arguments[0]: one for one in directives
                 if one.name == "upstream" and one.arguments}  # fmt: skip
    users = [one for one in directives if one.name == "user" and one.arguments]
    user = users[-1].arguments[0] if users else "nobody"
    found: list[_Passing] = []
    for one in directives:
        if one.name != "fastcgi_pass" or not one.arguments or one.parent is None:
            continue
        made = _Passing(one.parent, one, upstreams.get(one.arguments[0]), user,
                        os.path.dirname(os.path.abspath(file)))  # fmt: skip
        for param in one.parent.effective("fastcgi_param"):
            if len(param.arguments) >= 2:
                made.params[param.arguments[0]] = param.arguments[1]
        found.append(made)
    return found


def _about(one: _Passing) -> list[str]:
    script, info = one.params.get("SCRIPT_NAME"), one.params.get("PATH_INFO")
    if script is None and info is None:
        path = "neither SCRIPT_NAME nor PATH_INFO is sent"
    elif info is None:
        path = (f"SCRIPT_NAME is {script}, the whole path, and PATH_INFO is not sent: Fulgate makes"
                " it PATH_INFO")  # fmt: skip
    else:
        path = f"SCRIPT_NAME is {script or 'not sent'}, PATH_INFO is {info}"
    kept = "yes" if _kept(one) else "no"
    where = " ".join(one.servers) or one.to.arguments[0]
    return [
        f"nginx, {one.name} ({one.block.file}:{one.block.line})",
        f"  passes to {where}; connections kept alive: {kept}",
        f"  {path}",
    ]


def _kept(one: _Passing) -> bool:
    pooled = one.upstream is not None and bool(one.upstream.inside("keepalive"))
    return pooled and one.says("fastcgi_keep_conn", "off") == "on"


def _look(one: _Passing) -> Iterable[Finding]:
    for check in (
        _no_params,
        _no_path_info,
        _no_headers,
        _proxy,
        _small_body,
        _keep,
        _socket,
        _tcp,
    ):
        yield from check(one)


def _behind(directive: Directive, *lines: str) -> Change:
    place = directive.place
    return Change(place.file, place.end, lines)


def _no_params(one: _Passing) -> Iterable[Finding]:
    missing = [name for name in NEEDED if name not in one.params]
    if not {"REQUEST_URI", "SCRIPT_NAME", "PATH_INFO"} & one.params.keys():
        missing.append("SCRIPT_NAME")
    if not missing:
        return
    relative = os.path.exists(os.path.join(one.prefix, "fastcgi_params"))
    file = "fastcgi_params" if relative else STOCK
    outer = one.block.parent.effective("fastcgi_param") if one.block.parent else []
    why = ""
    if outer and one.block.inside("fastcgi_param"):
        why = "; a fastcgi_param here keeps those around it from being inherited"
    yield Finding(
        Mistake.NO_VARIABLES,
        one.to,
        f"the application is not told {', '.join(missing)}{why}",
        # What the location itself says comes later, and so has the last word.
        (_behind_opening(one.block, f"include {file};"),),
    )


def _behind_opening(block: Directive, line: str) -> Change:
    return Change(block.file, block.end, (line,))


def _last_param(one: _Passing) -> Directive:
    params = one.block.effective("fastcgi_param")
    return params[-1] if params else one.to


def _no_path_info(one: _Passing) -> Iterable[Finding]:
    if one.block.effective("fastcgi_split_path_info") and "PATH_INFO" not in one.params:
        yield Finding(
            Mistake.NO_PATH_INFO,
            one.to,
            "fastcgi_split_path_info takes a part off SCRIPT_NAME, and nobody is told that part",
            (_behind(_last_param(one), "fastcgi_param PATH_INFO $fastcgi_path_info;"),),
        )


def _no_headers(one: _Passing) -> Iterable[Finding]:
    for directive in one.block.effective("fastcgi_pass_request_headers")[-1:]:
        if directive.arguments[:1] == ["off"]:
            yield Finding(
                Mistake.NO_HEADERS,
                directive,
                "no header of the client's reaches the application, not even Authorization and"
                " Cookie",
                (Change(directive.file, directive.line, ("fastcgi_pass_request_headers on;",),
                        replace=True),),
            )  # fmt: skip


def _proxy(one: _Passing) -> Iterable[Finding]:
    if "HTTP_PROXY" not in one.params and one.says("fastcgi_pass_request_headers", "on") == "on":
        yield Finding(
            Mistake.HTTPOXY,
            one.to,
            "a client's header Proxy reaches the application as HTTP_PROXY, which programs take for"
            " the proxy that they shall use (httpoxy); Fulgate drops it, others do not",
            (_behind(_last_param(one), 'fastcgi_param HTTP_PROXY "";'),),
        )


def _small_body(one: _Passing) -> Iterable[Finding]:
    limit = one.says("client_max_body_size", DEFAULT_BODY)
    size = re.fullmatch(r"(\d+)([kmg]?)", limit.lower())
    if size is None or one.says("fastcgi_request_buffering", "on") == "on":
        return
    number = int(size[1]) * {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}[size[2]]
    if 0 < number <= 1 << 20:
        own = one.block.inside("client_max_body_size")
        line = "client_max_body_size 0;"
        if own:
            change = Change(own[-1].place.file, own[-1].place.line, (line,), replace=True)
        else:
            change = _behind(one.to, line)
        yield Finding(
            Mistake.SMALL_BODY,
            one.to,
            "fastcgi_request_buffering is off, as for large uploads, but nginx refuses bodies"
            f" of more than {limit} (client_max_body_size); limit_request_body is Fulgate's own",
            (change,),
        )


def _keep(one: _Passing) -> Iterable[Finding]:
    if _kept(one) or "$" in one.to.arguments[0]:
        return
    changes: list[Change] = []
    if one.upstream is None:
        http = one.block.parent
        while http is not None and http.name not in ("http", "main"):
            http = http.parent
        server = one.to.arguments[0]
        name = "fulgate_" + re.sub(r"\W+", "_", server).strip("_")
        lines = (f"upstream {name} {{ server {server}; keepalive 16; }}",)
        if http is None or http.name == "main":
            return
        changes.append(Change(http.file, http.end, lines))
        changes.append(Change(one.to.file, one.to.line, (f"fastcgi_pass {name};",), replace=True))
    elif not one.upstream.inside("keepalive"):
        servers = one.upstream.inside("server")
        if servers:
            changes.append(_behind(servers[-1], "keepalive 16;"))
    if one.says("fastcgi_keep_conn", "off") != "on":
        changes.append(_behind(one.to, "fastcgi_keep_conn on;"))
    yield Finding(
        Mistake.NO_KEEP_ALIVE,
        one.to,
        "each request has a new connection to the application",
        tuple(changes),
    )


def _socket(one: _Passing) -> Iterable[Finding]:
    for server in one.servers:
        path = server.removeprefix("unix:").rstrip(":")
        if path == server or not os.path.exists(path):
            continue
        try:
            found = barred(Endpoint("unix", path=path), one.user)
        except KeyError:
            return
        if found is not None:
            mistake, where, advice = found
            yield Finding(
                mistake,
                one.to,
                f"nginx's workers run as {one.user}, who may not connect to {where}",
                advice=(advice,),
            )


def _tcp(one: _Passing) -> Iterable[Finding]:
    for server in one.servers:
        match = re.fullmatch(r"(?:localhost|127\.\d+\.\d+\.\d+|\[::1\]):(\d+)", server)
        if match and exposed(int(match[1])):
            yield Finding(
                Mistake.OPEN_PORT,
                one.to,
                f"whoever listens on port {match[1]} does so for other machines, too: everybody who"
                " reaches it can run requests, with any variables",
                advice=(f"start Fulgate with: --bind tcp:{server}",),
            )
