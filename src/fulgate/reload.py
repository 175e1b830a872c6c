"""For development: serve in a child process, and start it anew when a source file changes.

The parent keeps the listening sockets, so who asks meanwhile waits, and is not refused. A spare
child has imported all of the server in advance, and waits for the parent's word to import the
application. `python -m fulgate.reload` is that child; its orders come as a line of JSON on
descriptor 0, whose end tells it that the parent is gone.
"""

from __future__ import annotations

import contextlib
import html
import importlib.util
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any

from fulgate.config import Config
from fulgate.errors import ConfigError, FulgateError
from fulgate.listener import Listener
from fulgate.loader import load_app
from fulgate.logs import Logs
from fulgate.serve import run
from fulgate.server import Server

__all__ = ["Reloader"]

Application = Callable[..., Any]

log = logging.getLogger("fulgate")

STEP = 50  # milliseconds without a change, after which it is one
LOOK = 200  # milliseconds between two looks at the child
GRACE = 1.0  # seconds for a child to end, beside its graceful_timeout
AGAIN_AFTER = 1.0  # seconds that a page of an error waits before it is asked for again

ERROR_PAGE = """\
<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width"><meta http-equiv="refresh" content="{again:g}">
<style>body{{font:16px/1.5 system-ui,sans-serif;margin:2rem;color:#222;background:#fff}}
h1{{font-size:1.3rem}}
pre{{overflow-x:auto;background:#f4f1ee;padding:1rem;border-left:4px solid #b3261e}}
@media(prefers-color-scheme:dark){{body{{color:#ddd;background:#1b1b1b}}pre{{background:#2a2624}}}}
</style></head><body><h1>{title}</h1><pre>{text}</pre>
<p>This page shows the application as soon as a file was mended.</p></body></html>
"""


class _Stop:
    """Set by a signal; watchfiles asks for it at each step."""

    def __init__(self) -> None:
        self.signals: list[int] = []

    def is_set(self) -> bool:
        return bool(self.signals)

    def note(self, number: int, frame: object) -> None:
        self.signals.append(number)


class Reloader:
    """Serves `listeners` in a child, and in a new one after each change. Raises ConfigError.

    The child answers for the status at the sockets of `status`.

    Files that end with .py are watched in the current folder and those of `pythonpath`, and the
    files and folders of `reload_extra_file` whatever their names.
    """

    def __init__(
        self, config: Config, listeners: Sequence[Listener], status: Sequence[Listener] = ()
    ) -> None:
        try:
            import watchfiles
        except ImportError as error:
            raise ConfigError("--reload needs watchfiles: install fulgate[reload]") from error
        self._config = config
        self._fds = [listener.fileno() for listener in (*listeners, *status)]
        self._bind = tuple(f"{one.protocol}+fd:{one.fileno()}" for one in listeners)
        self._status = tuple(f"fd:{one.fileno()}" for one in status)
        self._child: subprocess.Popen[bytes] | None = None
        self._spare: subprocess.Popen[bytes] | None = None
        self._stop = _Stop()
        self._extra = [os.path.realpath(path) for path in config.reload_extra_file]
        for path in config.reload_extra_file:
            if not os.path.exists(path):
                raise ConfigError(f"reload_extra_file: there is no {path}")
        folders = [os.path.realpath(path) for path in (".", *config.pythonpath)]
        self._paths = [path for path in (*folders, *self._extra) if os.path.exists(path)]
        usual = watchfiles.DefaultFilter()

        def wanted(change: watchfiles.Change, path: str) -> bool:
            if any(path == extra or path.startswith(extra + os.sep) for extra in self._extra):
                return True
            return path.endswith(".py") and usual(change, path)

        event: Any = self._stop  # watchfiles only asks is_set
        self._changes = watchfiles.watch(
            *self._paths,
            watch_filter=wanted,
            step=STEP,
            rust_timeout=LOOK,
            yield_on_timeout=True,
            stop_event=event,
            raise_interrupt=False,
        )

    def run(self) -> int:
        """Serve until SIGTERM or SIGINT; give the exit status. In the main thread."""
        numbers = (signal.SIGTERM, signal.SIGINT)
        before = {number: signal.signal(number, self._stop.note) for number in numbers}
        try:
            # What changes is seen from here on: before an application is loaded, so that none can
            # be older than its file. Meanwhile the spare child imports the server.
            self._spare = self._spawn()
            next(self._changes, None)
            if not self._stop.is_set():
                self._start()
            for changes in self._changes:
                if changes:
                    self._changed(sorted({path for _, path in changes}))
                else:
                    self._look()
                if self._stop.is_set():
                    break
            return 0
        finally:
            self._end(self._child)
            self._end(self._spare)
            for number, handler in before.items():
                signal.signal(number, handler)

    def _changed(self, paths: list[str]) -> None:
        began = time.monotonic()
        for path in paths:
            # It is known by the second and the size of its source, which may be the same again.
            with contextlib.suppress(OSError, NotImplementedError):
                os.unlink(importlib.util.cache_from_source(path))
        self._end(self._child)
        self._start()
        shown = ", ".join(os.path.relpath(path) for path in paths[:3])
        more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
        log.info("changed: %s%s; restarted in %.2f s", shown, more, time.monotonic() - began)

    def _look(self) -> None:
        child = self._child
        if child is not None and child.poll() is not None:
            text = f"the application's process ended with status {child.returncode}"
            log.error("%s; a change of a file starts it again", text)
            self._end(child)
            self._start(text)

    def _start(self, problem: str = "") -> None:
        child = self._spare or self._spawn()
        config = asdict(self._config.replace(bind=self._bind, status_bind=self._status))
        orders = json.dumps({"config": config, "problem": problem}) + "\n"
        assert child.stdin is not None
        with contextlib.suppress(OSError):  # it ended: `_look` sees that
            child.stdin.write(orders.encode())
            child.stdin.flush()
        self._child = child
        self._spare = self._spawn()

    def _spawn(self) -> subprocess.Popen[bytes]:
        # A Ctrl+C in the terminal is for the parent, which tells the children.
        return subprocess.Popen(
            [sys.executable, "-m", "fulgate.reload"],
            stdin=subprocess.PIPE,
            pass_fds=self._fds,
            process_group=0,
        )

    def _end(self, child: subprocess.Popen[bytes] | None) -> None:
        if child is None:
            return
        assert child.stdin is not None
        if child.poll() is None:
            child.send_signal(signal.SIGTERM)
            try:
                child.wait(self._config.graceful_timeout + GRACE)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        with contextlib.suppress(OSError):
            child.stdin.close()


# ---------------------------------------------------------------- the child


def _serve_child() -> int:
    # Not by sys.stdin: a thread that waits in it makes the interpreter's end a fatal error.
    line = b""
    while not line.endswith(b"\n") and (more := os.read(0, 65536)):
        line += more
    if not line:
        return 0  # the parent needs no other child
    orders = json.loads(line)
    config = Config(**orders["config"])
    _end_with_parent()
    with contextlib.closing(Logs(config)) as logs:
        problem = orders["problem"]
        app = _stub("The application ended", problem) if problem else _load(config)
        return run(Server(app, config, ended=logs.access))


def _end_with_parent() -> None:
    def wait() -> None:
        os.read(0, 1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="fulgate-parent", daemon=True).start()


def _load(config: Config) -> Application:
    try:
        return load_app(config.app, config.pythonpath)
    except FulgateError as error:
        log.error("%s", error)
        cause = error.__cause__
        text = "".join(traceback.format_exception(cause)) if cause is not None else str(error)
        return _stub("The application does not load", text)


def _stub(title: str, text: str) -> Application:
    page = ERROR_PAGE.format(title=title, text=html.escape(text), again=AGAIN_AFTER).encode(
        "utf-8", "backslashreplace"
    )

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        headers = [("Content-Type", "text/html; charset=utf-8"), ("Cache-Control", "no-store")]
        start_response("500 Internal Server Error", headers)
        return [page]

    return app


if __name__ == "__main__":
    sys.exit(_serve_child())
