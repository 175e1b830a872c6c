"""An account as shared hosting gives it: a home, a virtual environment, an application, a script.

A web server that root starts runs the script as another user: anybody must be able to read it all.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import fulgate
from tests.servers.base import SYSTEM_PATH

ROOT = Path(__file__).resolve().parents[2]


THREE_LINES = """\
from fulgate import serve
from myapp import app
serve(app)
"""

APP = '''\
"""Says what the process is, and what it was asked."""

import atexit, hashlib, json, os, sys, threading
from pathlib import Path

HERE = Path(__file__).parent


def app(environ, start_response):
    print("printed", flush=True)
    print("told", file=sys.stderr, flush=True)
    if environ["PATH_INFO"] == "/raise":
        raise ValueError("a fault of the application")
    body = environ["wsgi.input"].read()
    said = json.dumps({
        "pid": os.getpid(), "uid": os.getuid(), "python": sys.executable, "prefix": sys.prefix,
        "body": hashlib.sha256(body).hexdigest(), "length": len(body),
        "threads": sorted(t.name for t in threading.enumerate()),
        "environ": {k: v for k, v in environ.items() if isinstance(v, (str, bool))},
    }).encode()
    start_response("200 OK", [("Content-Type", "application/json")])
    return [said]


def note_the_end(pid=os.getpid()):
    if os.getpid() == pid:
        (HERE / "ended" / str(pid)).write_text("by itself")


atexit.register(note_the_end)
'''


def _anybody_may_run(program: Path) -> bool:
    folders = program.resolve().parents
    return all(folder.stat().st_mode & 0o001 for folder in folders)


def python_for_anybody() -> str:
    """Give an interpreter that other users may run too: this one, or the system's."""
    if os.geteuid() != 0 or _anybody_may_run(Path(sys.executable)):
        return sys.executable
    found = shutil.which("python3", path="/usr/local/bin:/usr/bin")
    supported = "import sys; sys.exit(sys.version_info < (3, 11))"
    if found is None or subprocess.run([found, "-c", supported], timeout=30).returncode:
        pytest.fail("no Python 3.11 or later that other users may run: put one into /usr/bin")
    return found


class Account:
    """`home` has venv/, with fulgate in it, app/ with myapp.py, and www/."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.www = home / "www"
        self.ended = home / "app" / "ended"
        for folder in (home, self.www, home / "app", self.ended):
            folder.mkdir(mode=0o755, exist_ok=True)
        self.ended.chmod(0o777)
        home.chmod(0o777)  # for the log, whoever the user is
        (home / "app" / "myapp.py").write_text(APP)
        subprocess.run(
            [python_for_anybody(), "-m", "venv", "--without-pip", str(home / "venv")],
            check=True,
            timeout=60,
        )
        (packages,) = (home / "venv" / "lib").glob("python*/site-packages")
        shutil.copytree(
            Path(fulgate.__file__).parent,
            packages / "fulgate",
            # It may be another version of Python; and others may be writing what they compiled.
            ignore=shutil.ignore_patterns("*.so", "*.pyc.*"),
        )
        (packages / "myapp.pth").write_text(f"{home}/app\n")

    @property
    def python(self) -> str:
        return f"{self.home}/venv/bin/python"

    def script(self, text: str = THREE_LINES, name: str = "app.fcgi") -> Path:
        """Put an executable script into www/; it runs with the virtual environment's Python."""
        path = self.www / name
        if not text.startswith("#!"):
            text = f"#!{self.python} -Werror\n{text}"
        path.write_text(text)
        path.chmod(0o755)
        return path


def page(name: str, home: Path) -> list[str]:
    """Give the fenced blocks of a page in docs/, with the account's home in it."""
    text = (ROOT / "docs" / name).read_text()
    found = re.findall(r"^ *```[^\n]*\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL)
    return [textwrap.dedent(block).replace("/home/alice", str(home)) for block in found]


def environment() -> dict[str, str]:
    return {"PATH": SYSTEM_PATH, "LANG": "C.UTF-8"}
