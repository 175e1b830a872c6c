"""Functions of a user's module that are called as the master and the workers come and go."""

from __future__ import annotations

import importlib
import logging
import sys
from types import ModuleType

from fulgate.errors import ConfigError

__all__ = ["NAMES", "Hooks"]

log = logging.getLogger("fulgate")

# gunicorn's names, and when they are called.
NAMES = {
    "on_starting": "in the master, before its first worker",
    "when_ready": "in the master, when as many workers are ready as are to be at first",
    "on_reload": "in the master, at a reload",
    "pre_exec": "in the master, before it executes itself anew",
    "pre_fork": "in the master, with the worker that is about to be forked",
    "post_fork": "in the worker, before it gives up privileges and loads the application",
    "post_worker_init": "in the worker, when the application is loaded, before it serves",
    "worker_int": "in the worker, at SIGTERM",
    "worker_abort": "in the worker, at SIGABRT",
    "worker_exit": "in the worker, at its end",
    "child_exit": "in the master, when a worker has ended",
    "nworkers_changed": "in the master, when the count of workers was changed by a signal",
    "on_exit": "in the master, at its end",
}


class Hooks:
    """The hooks of a module; each has as many arguments of those that are offered as it takes.

    gunicorn's take the server first: it is `master`, the one who calls, and None in a worker that
    has none. Raises ConfigError where the module cannot be imported.
    """

    def __init__(self, module: str = "", master: object = None) -> None:
        self.master = master
        self._module: ModuleType | None = None
        if module:
            if "" not in sys.path and "." not in sys.path:
                sys.path.insert(0, "")
            try:
                self._module = importlib.import_module(module)
            except Exception as error:
                raise ConfigError(
                    f"hooks: cannot import {module!r}: {type(error).__name__}: {error}"
                ) from error

    def call(self, name: str, *arguments: object) -> None:
        """Call a hook, if it is there. What it raises is logged, and nothing else."""
        function = getattr(self._module, name, None) if self._module is not None else None
        if function is None:
            return
        if name not in ("post_worker_init", "worker_int", "worker_abort"):
            arguments = (self.master, *arguments)  # as gunicorn does
        try:
            function(*arguments)
        except Exception:
            log.exception("the hook %s failed", name)
