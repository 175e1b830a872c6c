"""All settings, in ONE frozen dataclass: CLI options, TOML keys, environment variables and the
reference in docs/ derive from its fields.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["Config"]


def setting(default: Any, help: str, **meta: Any) -> Any:
    """Declare a setting: its default, its help text, and what the CLI needs to know."""
    return field(default=default, metadata={"help": help, **meta})


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    app: str = setting("", "the application, MODULE:ATTR")
    bind: tuple[str, ...] = setting((), "endpoints to listen on", short="-b")
    http: str = setting("", "HOST:PORT of the embedded HTTP front for development")
    static: tuple[str, ...] = setting((), "URL-PREFIX=FOLDER served by the HTTP front")
    threads: int = setting(8, "threads that run the application")
    backlog: int = setting(2048, "length of the accept queue")
    queue: int = setting(1024, "complete requests that may wait for a thread; beyond it: 503")
    worker_connections: int = setting(16384, "connections held at once")
    allowed_clients: tuple[str, ...] = setting((), "IP addresses that may connect over TCP")
    # limits
    limit_params_size: int = setting(262144, "bytes of PARAMS; beyond it: 431")
    limit_params: int = setting(1000, "count of parameters; beyond it: 431")
    limit_request_body: int = setting(1 << 30, "bytes of body; beyond it: 413; 0: no limit")
    # time, in seconds; 0 means never
    graceful_timeout: float = setting(30.0, "for running requests to end at a stop")
    arrival_timeout: float = setting(30.0, "for a request's PARAMS to arrive")
    body_timeout: float = setting(60.0, "between two pieces of a body")
    send_timeout: float = setting(60.0, "for a write to make progress")
    keep_alive: float = setting(300.0, "for which an idle connection is kept")
    body_wait: float = setting(0.5, "for which a small body is waited for before the start")
    # memory
    body_buffer: int = setting(65536, "bytes of body that are waited for before the start")
    write_behind: int = setting(1 << 20, "bytes of answer kept for a client that reads slowly")
    # CGI
    path: str = setting("auto", "how SCRIPT_NAME and PATH_INFO are made out")
    script_name: str = setting("", "force this SCRIPT_NAME")
    repeated_params: str = setting("refuse", "a singleton parameter that came twice")
    stderr: bool = setting(False, "send the application's tracebacks to the web server's log too")
    # log
    access_logfile: str = setting("", "where the access log goes; - is stdout")
    access_log_format: str = setting("combined", "combined or json")
    error_logfile: str = setting("-", "where the log goes; - is stderr")
    log_level: str = setting("info", "debug, info, warning, error or critical")
    debug: bool = setting(False, "show tracebacks of our own errors")
    # process
    chdir: str = setting("", "change to this folder first")
    pythonpath: tuple[str, ...] = setting((), "folders to put before sys.path")
    env_file: str = setting("", "a file of NAME=VALUE lines for the environment")
    user: str = setting("", "run as this user", short="-u")
    group: str = setting("", "run as this group", short="-g")
    umask: str = setting("", "octal umask", short="-m")
    pid: str = setting("", "file for the process id", short="-p")
    rlimit_files: int = setting(0, "RLIMIT_NOFILE; 0 leaves it")
    poller: str = setting("auto", "auto, epoll, kqueue or poll")
