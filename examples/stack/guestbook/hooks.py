"""What the master and its workers call: `hooks` in fulgate.toml.

The master imports this module, and nothing of Django, so that a reload takes all of Django anew.
"""

from __future__ import annotations

import weakref
from typing import Any

# Connections to the database, one for each thread that has used it.
opened: weakref.WeakSet[Any] = weakref.WeakSet()


def post_fork(master: object, worker: object) -> None:
    """Note each connection that this worker opens; after the fork, since none outlives one."""
    from django.db.backends.signals import connection_created

    opened.clear()
    connection_created.connect(note, dispatch_uid=__name__)


def note(connection: Any, **more: object) -> None:
    opened.add(connection)


def worker_exit(master: object, worker: object) -> None:
    """Say good-bye to the database; otherwise it counts each connection as aborted."""
    for connection in list(opened):
        connection.inc_thread_sharing()  # since the thread that opened it has ended
        connection.close()
