"""The manual's pages: their fences, with this machine in the place of the reader's."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from tests.servers.fulgate import ROOT

__all__ = ["FENCE", "Block", "blocks", "configuration", "here", "upstream_of", "whole_nginx"]

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


def configuration(page: str, language: str, holds: str, sockets: str, port: int) -> str:
    """Give the first configuration of a page that is of a web server, and holds some text."""
    text = here((ROOT / "docs" / page).read_text(), sockets, port)
    found = [one.text for one in blocks(text) if one.language == language and holds in one.text]
    assert found, f"docs/{page} shows no configuration of {language} with {holds}"
    return whole_nginx(found[0], upstream_of(text), port) if language == "nginx" else found[0]
