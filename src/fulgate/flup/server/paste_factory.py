"""flup.server.paste_factory: what PasteDeploy calls for `use = egg:fulgate#fcgi_thread`."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fulgate.flup.server import NoDefault

__all__ = [
    "asbool",
    "aslist",
    "run_ajp_fork",
    "run_ajp_thread",
    "run_fcgi_fork",
    "run_fcgi_thread",
    "run_scgi_fork",
    "run_scgi_thread",
]

_words = dict.fromkeys(("true", "yes", "on", "y", "t", "1"), True) | dict.fromkeys(
    ("false", "no", "off", "n", "f", "0"), False
)


def asbool(obj: Any) -> bool:
    """Read yes or no. Raises ValueError for text that is neither."""
    if not isinstance(obj, str):
        return bool(obj)
    value = _words.get(obj.strip().lower())
    if value is None:
        raise ValueError(f"{obj!r} is neither true nor false")
    return value


def aslist(obj: Any, sep: str | None = None, strip: bool = True) -> Sequence[Any]:
    """Read a list: text is split at `sep` or at white space."""
    if isinstance(obj, str):
        parts = obj.split(sep)
        return [part.strip() for part in parts] if strip else parts
    if isinstance(obj, (list, tuple)):
        return obj
    return [] if obj is None else [obj]


def run_fcgi_thread(
    wsgi_app: Any,
    global_conf: Mapping[str, Any],
    host: str | None = None,
    port: str | int | None = None,
    socket: str | None = None,
    umask: str | int | None = None,
    multiplexed: Any = False,
    debug: Any = NoDefault,
    minSpare: Any = None,
    maxSpare: Any = None,
    maxThreads: Any = None,
) -> None:
    """Serve with threads: `fcgi` and `fcgi_thread`. Raises ValueError for what cannot be read."""
    from fulgate.flup.server.fcgi import WSGIServer

    numbers = {"minSpare": minSpare, "maxSpare": maxSpare, "maxThreads": maxThreads}
    WSGIServer(
        wsgi_app,
        **_common(global_conf, host, port, socket, umask, multiplexed, debug),
        **_given(numbers),
    ).run()


def run_fcgi_fork(
    wsgi_app: Any,
    global_conf: Mapping[str, Any],
    host: str | None = None,
    port: str | int | None = None,
    socket: str | None = None,
    umask: str | int | None = None,
    multiplexed: Any = False,
    debug: Any = NoDefault,
    minSpare: Any = None,
    maxSpare: Any = None,
    maxChildren: Any = None,
    maxRequests: Any = None,
) -> None:
    """Serve with processes: `fcgi_fork`. Raises ValueError for what cannot be read."""
    from fulgate.flup.server.fcgi_fork import WSGIServer

    numbers = {
        "minSpare": minSpare,
        "maxSpare": maxSpare,
        "maxChildren": maxChildren,
        "maxRequests": maxRequests,
    }
    WSGIServer(
        wsgi_app,
        **_common(global_conf, host, port, socket, umask, multiplexed, debug),
        **_given(numbers),
    ).run()


def _over_tcp(kind: str, usual_port: int, usual_name: Any) -> Callable[..., None]:
    """Give what serves another protocol, by the module that it is in."""

    def run(
        wsgi_app: Any,
        global_conf: Mapping[str, Any],
        scriptName: Any = usual_name,
        host: str = "localhost",
        port: str | int = usual_port,
        allowedServers: Any = "127.0.0.1",
        debug: Any = NoDefault,
        **numbers: Any,
    ) -> None:
        """Serve. `numbers` are those of the threads, or of the processes.

        Raises ValueError for what cannot be read, ConfigError, and TypeError for what is unknown.
        """
        server = importlib.import_module(f"fulgate.flup.server.{kind}").WSGIServer(
            wsgi_app,
            scriptName=scriptName,
            bindAddress=(host, int(port)),
            allowedServers=aslist(allowedServers),
            debug=_debug(global_conf, debug),
            **_given(numbers),
        )
        server.run()

    return run


run_scgi_thread = _over_tcp("scgi", 4000, NoDefault)
run_scgi_fork = _over_tcp("scgi_fork", 4000, NoDefault)
run_ajp_thread = _over_tcp("ajp", 8009, "")
run_ajp_fork = _over_tcp("ajp_fork", 8009, "")


def _common(
    global_conf: Mapping[str, Any],
    host: str | None,
    port: str | int | None,
    socket: str | None,
    umask: str | int | None,
    multiplexed: Any,
    debug: Any,
) -> dict[str, Any]:
    address: str | tuple[str, int] | None = None
    if socket:
        if host is not None or port is not None:
            raise ValueError("socket goes with neither host nor port")
        address = socket
    elif host:
        if port is None:
            raise ValueError("host wants a port")
        address = (host, int(port))
    return {
        "bindAddress": address,
        # As everywhere else octal: flup reads 022 as twenty-two.
        "umask": int(umask, 8) if isinstance(umask, str) else umask,
        "multiplexed": asbool(multiplexed),
        "debug": _debug(global_conf, debug),
    }


def _debug(global_conf: Mapping[str, Any], debug: Any) -> bool:
    return asbool(global_conf.get("debug", False) if debug is NoDefault else debug)


def _given(numbers: Mapping[str, Any]) -> dict[str, Any]:
    return {name: int(value) for name, value in numbers.items() if value is not None}
