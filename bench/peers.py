"""The servers that are measured side by side: how each is set up, started and reached."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

BENCH = Path(__file__).parent
ROOT = BENCH.parent
APPS = BENCH / "apps"
BUILD = BENCH / ".build"
VENV = BENCH / ".venv"
PYTHON = VENV / "bin" / "python"
COMPILED_VENV = BENCH / ".venv-compiled"
COMPILED_PYTHON = COMPILED_VENV / "bin" / "python"
SEARCH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin"])

LOOPS = ("asyncio", "uvloop")
HELLO = frozenset({"/", "/upload"})  # what a server does that answers all with 12 bytes
C = frozenset({"/", "/64k", "/upload", "/stream", "/wait/5"})


@dataclass(frozen=True)
class Peer:
    """A server. `command` gives its command line, for the path of a Unix socket.

    `speaks` is what it speaks on its socket, and so how nginx reaches it: "fastcgi", which is
    measured directly too, "uwsgi", "scgi" or "http". `paths`: what it can do of the application;
    None for all of it, as what runs Python can. `settings` describes it in the report.
    """

    name: str
    settings: str
    command: Callable[[Path], list[str]]
    speaks: str = "fastcgi"
    requirements: tuple[str, ...] = ()  # what pip installs for it
    program: str = ""  # what it cannot do without, beside those
    build: str = ""  # the C or Go source to compile for it, of the same name without suffix
    libraries: tuple[str, ...] = ()
    modules: tuple[str, ...] = (str(APPS),)  # PYTHONPATH
    params: dict[str, str] = field(default_factory=dict)
    paths: frozenset[str] | None = None
    keeps: bool = True  # can it keep a connection of FastCGI alive?
    groups: frozenset[str] = frozenset()
    checked: tuple[str, ...] = ()  # a command that fails where it would not be what its name says

    @property
    def ways(self) -> tuple[str, ...]:
        return ("direct", "nginx") if self.speaks == "fastcgi" else ("nginx",)

    def does(self, way: str, paths: set[str]) -> bool:
        return way in self.ways and (self.paths is None or paths <= self.paths)


def _script(name: str, *arguments: str) -> Callable[[Path], list[str]]:
    return lambda path: [str(PYTHON), str(APPS / name), *arguments, str(path)]


def _program(name: str, *arguments: str) -> Callable[[Path], list[str]]:
    """`{}` in an argument stands for the path of the socket."""
    return lambda path: [str(VENV / "bin" / name), *(text.format(path) for text in arguments)]


def _built(name: str, *arguments: str) -> Callable[[Path], list[str]]:
    return lambda path: [str(BUILD / name), str(path), *arguments]


IS_COMPILED = (
    "import os, fulgate.exchange as module; name = os.path.basename(module.__file__); "
    "print('fulgate.exchange is', name); raise SystemExit(name.endswith('.py') == {})"
)


def _fulgate(
    name: str,
    settings: str,
    *options: str,
    compiled: bool = False,
    app: str = "work:app",
    groups: Iterable[str] = ("threads", "fulgate"),
    requirements: tuple[str, ...] = (),
) -> Peer:
    python = COMPILED_PYTHON if compiled else PYTHON

    def command(path: Path) -> list[str]:
        serve = ["serve", app, "--bind", f"unix:{path}", *options]
        return [str(python), "-m", "fulgate", *serve]

    return Peer(
        name,
        f"{'compiled' if compiled else 'interpreted'}, {settings}",
        command,
        requirements=() if compiled else ("click>=8.1", *requirements),
        modules=(str(APPS),) if compiled else (str(APPS), str(ROOT / "src")),
        groups=frozenset({*groups, *(["compiled"] if compiled else [])}),
        checked=(str(python), "-c", IS_COMPILED.format(compiled)),
    )


def _fulgate_asgi(compiled: bool, loop: str) -> Peer:
    name = f"fulgate{'-compiled' if compiled else ''}-asgi{'-uvloop' if loop == 'uvloop' else ''}"
    return _fulgate(
        name, f"ASGI, {loop}", "--loop", loop, compiled=compiled, app="asgi:app", groups=_ASGI,
        requirements=("uvloop",) if loop == "uvloop" else (),
    )  # fmt: skip


def _php(path: Path) -> list[str]:
    """32 children: each serves one kept-alive connection for as long as it lives."""
    root = not os.getuid()
    lines = [
        "[global]", f"error_log = {path.with_suffix('.error')}",
        "[work]", f"listen = {path}", "listen.backlog = 2048", "clear_env = no",
        "pm = static", "pm.max_children = 32", *(["user = root", "group = root"] if root else []),
    ]  # fmt: skip
    configuration = path.with_suffix(".conf")
    configuration.write_text("\n".join([*lines, ""]))
    return [php_fpm(), "-F", "-n", "-y", str(configuration), *(["-R"] if root else [])]


def php_fpm() -> str:
    """Give the program, whose name Debian ends with PHP's version; empty when there is none."""
    found = (
        str(program)
        for folder in SEARCH.split(os.pathsep)
        for program in sorted(Path(folder or ".").glob("php-fpm*"), reverse=True)
        if os.access(program, os.X_OK)
    )
    return next(found, "")


_UWSGI = (
    "--wsgi-file", str(APPS / "work.py"), "--callable", "app", "--need-app", "--disable-logging",
    "--die-on-term", "--listen", "2048", "--max-fd", "16384",
)  # fmt: skip
_UVICORN = ("asgi:app", "--uds", "{}", "--no-access-log", "--log-level", "warning")
_THREADS = frozenset({"threads"})
_ASGI = frozenset({"threads", "asgi"})

_PEERS = (
    _fulgate("fulgate", "its defaults (8 threads)"),
    _fulgate("fulgate-1", "--threads 1", "--threads", "1"),
    _fulgate("fulgate-64", "--threads 64", "--threads", "64"),
    _fulgate("fulgate-compiled", "its defaults (8 threads)", compiled=True),
    _fulgate("fulgate-compiled-1", "--threads 1", "--threads", "1", compiled=True),
    _fulgate(
        "fulgate-compiled-status", "its defaults, and a scoreboard", "--status-path", "/-/status",
        compiled=True,
    ),
    _fulgate("fulgate-compiled-64", "--threads 64", "--threads", "64", compiled=True),
    *(_fulgate_asgi(compiled, loop) for compiled in (False, True) for loop in LOOPS),
    Peer(
        "flup", "its defaults (threads: up to 5 spare, no limit)", _script("flup_server.py"),
        requirements=("flup==1.0.3",), groups=_THREADS,
    ),
    Peer(
        "uwsgi-fastcgi", "FastCGI socket, one thread; cannot keep a connection alive",
        _program("uwsgi", "--fastcgi-socket", "{}", *_UWSGI), requirements=("uwsgi",),
        keeps=False,
    ),
    Peer(
        "uwsgi-fastcgi-64", "FastCGI socket, 64 threads; cannot keep a connection alive",
        _program("uwsgi", "--fastcgi-socket", "{}", "--threads", "64", *_UWSGI),
        requirements=("uwsgi",), groups=_THREADS, keeps=False,
    ),
    Peer(
        "uwsgi", "its own protocol, one thread", _program("uwsgi", "--uwsgi-socket", "{}", *_UWSGI),
        "uwsgi", requirements=("uwsgi",),
    ),
    Peer(
        "gunicorn", "HTTP, gthread, 8 threads",
        _program(
            "gunicorn", "--bind", "unix:{}", "--worker-class", "gthread", "--threads", "8",
            "--keep-alive", "3600", "--no-control-socket", "work:app",
        ),
        "http", requirements=("gunicorn",),
    ),
    Peer(
        "waitress", "HTTP, 8 threads",
        _program(
            "waitress-serve", "--unix-socket={}", "--threads=8", "--connection-limit=8192",
            "work:app",
        ),
        "http", requirements=("waitress",),
    ),
    Peer(
        "uvicorn", "HTTP, ASGI, asyncio and h11",
        _program("uvicorn", *_UVICORN, "--loop", "asyncio", "--http", "h11"),
        "http", requirements=("uvicorn",),
    ),
    Peer(
        "uvicorn-uvloop", "HTTP, ASGI, uvloop and httptools",
        _program("uvicorn", *_UVICORN, "--loop", "uvloop", "--http", "httptools"),
        "http", requirements=("uvicorn", "uvloop", "httptools"),
    ),
    Peer(
        "granian", "HTTP, WSGI, its defaults",
        _program("granian", "--interface", "wsgi", "--uds", "{}", "--no-log", "work:app"),
        "http", requirements=("granian",),
    ),
    Peer(
        "granian-asgi", "HTTP, ASGI, its defaults",
        _program("granian", "--interface", "asgi", "--uds", "{}", "--no-log", "asgi:app"),
        "http", requirements=("granian",),
    ),
    Peer(
        "bjoern", "HTTP, one thread, in C", _script("bjoern_server.py"), "http",
        requirements=("bjoern",),
    ),
    Peer(
        "fcgisgi", "WSGI, its defaults", _script("fcgisgi_server.py", "wsgi"),
        requirements=("fcgisgi",), groups=_THREADS,
    ),
    Peer(
        "fcgisgi-asgi", "ASGI, its defaults", _script("fcgisgi_server.py", "asgi"),
        requirements=("fcgisgi",), groups=_ASGI,
    ),
    Peer(
        "gevent-fastcgi", "greenlets", _script("gevent_fastcgi_server.py"),
        requirements=("gevent-fastcgi",), groups=_THREADS,
    ),
    Peer(
        "php-fpm", "PHP, 32 processes", _php, program="php-fpm", paths=C,
        params={"SCRIPT_FILENAME": str(APPS / "work.php")}, groups=frozenset({"others"}),
    ),
    Peer(
        "go", "net/http/fcgi", _built("go"), program="go", build="apps/work.go", paths=C,
        groups=frozenset({"others"}),
    ),
    Peer(
        "libfcgi", "bench/libfcgi.c on the C library, 300 threads", _built("libfcgi", "300"),
        build="libfcgi.c", libraries=("fcgi", "pthread"), paths=C | {"/compute/3/2"},
        groups=frozenset({"others"}),
    ),
    Peer(
        "floor", "bench/floor.c, the least in C: all is answered with 12 bytes", _built("floor"),
        build="floor.c", paths=HELLO, groups=frozenset({"others"}),
    ),
)  # fmt: skip
PEERS = {peer.name: peer for peer in _PEERS}
