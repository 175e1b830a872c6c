"""The manual's pages: their fences, with this machine in the place of the reader's."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from tests.servers.fulgate import ROOT

__all__ = [
    "FENCE",
    "Block",
    "Shown",
    "at_port",
    "blocks",
    "configuration",
    "here",
    "upstream_of",
    "whole_nginx",
]

FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
UPSTREAM = re.compile(r"^upstream fulgate \{.*?^\}$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    language: str
    text: str


def blocks(text: str) -> list[Block]:
    return [Block(match[1], match[2]) for match in FENCE.finditer(text)]


def here(text: str, sockets: str, port: int) -> str:
    """Put a folder in the place of /run/fulgate, and a port on loopback in that of port 80."""
    group = "www-data" if os.geteuid() == 0 else str(os.getegid())
    web = f"127.0.0.1:{port}"
    for old, new in {
        "/run/fulgate/": f"{sockets}/",
        "/etc/apache2/": f"{sockets}/",
        "/run/apache2/": f"{sockets}/",
        "/var/log/apache2/": f"{sockets}/",
        "http://localhost/": f"http://{web}/",
        "listen 80;": f"listen {web};",
        "bind :80": f"bind {web}",
        "group=www-data": f"group={group}",
    }.items():
        text = text.replace(old, new)
    return re.sub(r"^:80 \{", f"http://{web} {{", text, flags=re.MULTILINE)


def whole_nginx(text: str, upstream: str, port: int) -> str:
    """Give locations that stand by themselves their page's upstream, and a server."""
    if "listen " in text:
        return text
    return f"{upstream}\nserver {{\nlisten 127.0.0.1:{port};\n{text}\n}}"


def upstream_of(text: str) -> str:
    """Give the upstream that a page shows, or ""."""
    found = UPSTREAM.search(text)
    return found[0] if found else ""


def configuration(
    page: str,
    language: str,
    holds: str,
    sockets: str,
    port: int,
    more: Mapping[str, str] = MappingProxyType({}),
    backend: int = 0,
) -> str:
    """Give the first configuration of a page that is of a web server, and holds some text.

    `more` is what is added, each a text of it and what stands there then. `backend` is the port
    where the application is, in the place of the one that the page shows.
    """
    whole = (ROOT / "docs" / page).read_text()
    found = [one.text for one in blocks(whole) if one.language == language and holds in one.text]
    assert found, f"docs/{page} shows no configuration of {language} with {holds}"
    text = found[0]
    for old, new in more.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    if language == "nginx":
        text = whole_nginx(text, upstream_of(whole), port)
    return at_port(here(text, sockets, port), backend)


def at_port(text: str, backend: int) -> str:
    """Put a port, unless it is 0, in the place of those where pages have the application."""
    return re.sub(r"\b(9000|8009)\b", str(backend), text) if backend else text


@dataclass(frozen=True)
class Shown:
    """A configuration of a page: the first one of the web server's that holds `holds`.

    `more` is what is added to it: lines that the page names. `needs` are the programs and modules
    that it runs, `facts` the fields in which a Site differs.
    """

    page: str
    web: str
    holds: str
    needs: tuple[str, ...]
    more: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def text(self, sockets: str, port: int, backend: int = 0) -> str:
        """Give it with this machine in the place of the reader's."""
        return configuration(self.page, self.web, self.holds, sockets, port, self.more, backend)

    def unsaid(self) -> list[str]:
        """Give what is added, and does not stand on the page."""
        page = (ROOT / "docs" / self.page).read_text()
        added = [
            line.replace(old, "").strip().rstrip("; {")
            for old, new in self.more.items()
            for line in new.splitlines()
        ]
        return [words for words in added if words not in page]
