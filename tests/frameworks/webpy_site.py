"""A web.py site, of the kind that flup was used for: pages, a form, and an SQLite database."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import web

FOLDER = Path(os.environ["FULGATE_TEST_FOLDER"])

urls = (
    "/", "Index",
    "/notes", "Notes",
    "/upload", "Upload",
    "/numbers", "Numbers",
    "/hello/(.*)", "Hello",
)  # fmt: skip

web.config.debug = False
database = web.database(dbn="sqlite", db=str(FOLDER / "notes.db"))
database.query("CREATE TABLE IF NOT EXISTS note (id INTEGER PRIMARY KEY, text TEXT)")


class Index:
    def GET(self) -> str:
        web.header("Content-Type", "text/plain; charset=utf-8")
        return f"Hello! Notes are at {web.ctx.home}/notes"


class Notes:
    def GET(self) -> str:
        web.header("Content-Type", "text/plain; charset=utf-8")
        return "\n".join(row.text for row in database.select("note", order="id"))

    def POST(self) -> None:
        database.insert("note", text=web.input().text)
        raise web.seeother("/notes")


class Upload:
    def POST(self) -> str:
        return str(len(web.data()))


class Numbers:
    def GET(self) -> Iterator[str]:
        web.header("Content-Type", "text/plain")
        for n in range(1000):
            yield f"{n}\n"


class Hello:
    def GET(self, name: str) -> str:
        web.header("Content-Type", "text/plain; charset=utf-8")
        return f"Hello, {name}! {web.input(q='').q}"


application = web.application(urls, globals()).wsgifunc()
