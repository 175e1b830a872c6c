"""All settings, in ONE frozen dataclass: CLI options, TOML keys, environment variables and the
reference in docs/ derive from its fields.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from fulgate.cgi import PATH_POLICIES, REPEATED_POLICIES
from fulgate.errors import ConfigError
from fulgate.setting import Setting, setting, settings_of
from fulgate.targets import FACILITIES

__all__ = ["Config", "Setting", "settings"]

# A setting of each section of the reference, and of the command's help.
serving_setting = partial(setting, "Application and sockets")
asgi_setting = partial(setting, "ASGI applications")
development_setting = partial(setting, "For development")
limit_setting = partial(setting, "Limits")
time_setting = partial(setting, "Time, in seconds")
cgi_setting = partial(setting, "CGI")
log_setting = partial(setting, "Logs")
status_setting = partial(setting, "Status")
process_setting = partial(setting, "Process")
pool_setting = partial(setting, "Processes")

LEVELS = ("debug", "info", "warning", "error", "critical")


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What a server is told. Raises ConfigError for what cannot be right.

    Names are gunicorn's where the meaning is, and PHP-FPM's where only that has it.
    """

    app: str = serving_setting(
        "",
        "The application: MODULE:ATTR, or MODULE:FACTORY(...) with literal arguments.",
        metavar="MODULE:ATTR",
    )
    bind: tuple[str, ...] = serving_setting(
        (),
        "Endpoint to listen on: unix:PATH?mode=660&owner=..&group=.., tcp:HOST:PORT, fd:N or"
        " systemd[:NAME]; scgi+ or ajp+ before it is for SCGI or AJP. May be given several times."
        " By default the socket inherited on descriptor 0, else systemd's, else"
        " tcp:127.0.0.1:9000.",
        short="-b",
        metavar="ENDPOINT",
    )
    threads: int = serving_setting(8, "Threads that run the application.", low=1, high=4096)
    backlog: int = serving_setting(
        2048, "Connections that the kernel keeps until they are accepted.", low=1, high=65535
    )
    queue: int = serving_setting(
        1024, "Complete requests that may wait for a thread; one more is turned away.", low=0
    )
    overload: str = serving_setting(
        "503",
        "How a request is turned away when the queue is full: 503 with Retry-After goes to the"
        " client; overloaded is FastCGI's own word to the web server, of which nginx makes a 502.",
        choices=("503", "overloaded"),
    )
    multiplex: bool = serving_setting(
        True,
        "Serve several requests at once on a connection (FastCGI's multiplexing), where the web"
        " server wants that; else each beside another one is refused with CANT_MPX_CONN.",
    )
    worker_connections: int = serving_setting(
        16384, "Connections held at once; beyond it new ones wait in the backlog.", low=1
    )
    allowed_clients: tuple[str, ...] = serving_setting(
        (),
        "IP address or network that may connect over TCP, such as 10.0.0.0/8, or uid:USER or"
        " gid:GROUP, who may connect to a Unix socket. May be given several times. By default what"
        " FCGI_WEB_SERVER_ADDRS says. Without any address, only those of this machine are listened"
        " on; without any user or group, every one who may write to the socket's file is served.",
        metavar="ADDRESS",
    )
    ajp_secret: str = serving_setting(
        "",
        "What each request over AJP has to carry, as Apache's ProxyPass with secret= sends it;"
        " one without it is answered with 403. Better in the environment or in a file than on the"
        " command line, which other users can see.",
        metavar="SECRET",
        hidden=True,
    )
    ajp_packet_size: int = serving_setting(
        8192,
        "Bytes of one packet over AJP, as the web server has it: Apache's ProxyIOBufferSize,"
        " mod_jk's max_packet_size. The head of an answer has to fit into one.",
        size=True,
        low=8192,
        high=65536,
    )
    poller: str = serving_setting(
        "auto",
        "How readiness is waited for; auto takes the best that the system has.",
        choices=("auto", "epoll", "kqueue", "poll"),
    )

    interface: str = asgi_setting(
        "auto",
        "What the application speaks; auto takes a coroutine function, or an object whose call is"
        " one, for ASGI.",
        choices=("auto", "wsgi", "asgi"),
    )
    lifespan: str = asgi_setting(
        "auto",
        "Whether an ASGI application is told of start and end; auto lets it have no lifespan.",
        choices=("auto", "on", "off"),
    )
    loop: str = asgi_setting(
        "auto",
        "The event loop of an ASGI application; auto takes uvloop where it is installed.",
        choices=("auto", "asyncio", "uvloop"),
    )

    worker_concurrency: int = asgi_setting(
        64,
        "Requests at once, WebSockets among them, with which a process counts as busy: for health,"
        " and for a dynamic or ondemand pool, which spawns another worker then.",
        low=1,
        high=4096,
    )
    limit_concurrency: int = asgi_setting(
        0,
        "Requests at once that a process gives to the application; one more gets 503; 0 for no"
        " limit.",
        low=0,
    )

    websocket_max_size: int = asgi_setting(
        16 << 20,
        "Bytes of one WebSocket message; beyond it the WebSocket closes with 1009; 0 for no limit.",
        size=True,
        low=0,
    )
    websocket_ping_interval: float = asgi_setting(
        20.0, "Seconds between two pings on a WebSocket; 0 for none.", low=0
    )
    websocket_ping_timeout: float = asgi_setting(
        20.0, "Seconds for the answer to a ping; 0 for ever.", low=0
    )
    websocket_deflate: bool = asgi_setting(
        True, "Compress WebSocket messages where the client offers it."
    )

    http: str = development_setting(
        "", "Also answer HTTP here, for development: needs fulgate[http].", metavar="HOST:PORT"
    )
    static: tuple[str, ...] = development_setting(
        (),
        "Files that the HTTP front serves by itself, such as /static=./static. May be given"
        " several times.",
        metavar="/PREFIX=FOLDER",
    )

    reload: bool = development_setting(
        False,
        "Start the application anew when a file of it changes, for development: needs"
        " fulgate[reload].",
    )
    reload_extra_file: tuple[str, ...] = development_setting(
        (),
        "Further file or folder, such as of templates, whose change counts for --reload. May be"
        " given several times.",
        metavar="PATH",
    )

    limit_params_size: int = limit_setting(
        262144, "Bytes of parameters (PARAMS) in one request; beyond it 431.", size=True, low=1
    )
    limit_params: int = limit_setting(
        1000, "Count of parameters in one request; beyond it 431.", low=1
    )
    limit_request_body: int = limit_setting(
        1 << 30, "Bytes of a request's body; beyond it 413; 0 for no limit.", size=True, low=0
    )
    body_buffer: int = limit_setting(
        65536, "Bytes of body that are waited for before the application starts.", size=True, low=0
    )
    write_behind: int = limit_setting(
        1 << 20,
        "Bytes of answer kept for a client that reads slowly, before the application has to wait.",
        size=True,
        low=0,
    )

    graceful_timeout: float = time_setting(
        30.0, "For running requests to end, when the server is told to stop.", low=0
    )
    arrival_timeout: float = time_setting(
        30.0, "For a request's parameters to arrive; 0 for ever.", low=0
    )
    body_timeout: float = time_setting(
        60.0, "Between two pieces of a request's body; 0 for ever.", low=0
    )
    send_timeout: float = time_setting(60.0, "For a write to make progress; 0 for ever.", low=0)
    keep_alive: float = time_setting(
        300.0, "For which an idle connection is kept open; 0 for ever.", low=0
    )
    body_wait: float = time_setting(
        0.5, "For which a small body is waited for, before the application starts.", low=0
    )

    path: str = cgi_setting(
        "auto",
        "How SCRIPT_NAME and PATH_INFO are made out of what the web server sends.",
        choices=PATH_POLICIES,
    )
    script_name: str = cgi_setting(
        "",
        "The application's own path, such as /app, for SCRIPT_NAME, whatever the web server sends.",
        metavar="PATH",
    )
    repeated_params: str = cgi_setting(
        "refuse",
        "What becomes of a header that came several times with different values and is no list.",
        choices=REPEATED_POLICIES,
    )
    stderr: bool = cgi_setting(
        False, "Send the application's tracebacks to the web server's log too (FCGI_STDERR)."
    )

    x_sendfile: str = cgi_setting(
        "pass",
        "What becomes of an answer's X-Sendfile: pass leaves it to a web server that knows it,"
        " serve sends the file, accel turns it into nginx's X-Accel-Redirect.",
        choices=("pass", "serve", "accel"),
    )
    x_sendfile_root: tuple[str, ...] = cgi_setting(
        (),
        "Folder whose files X-Sendfile may name, such as /srv/files; for accel with nginx's"
        " internal location, such as /srv/files=/protected/. May be given several times.",
        metavar="FOLDER[=/URI/]",
    )

    access_logfile: str = log_setting(
        "",
        "A line for each request goes here: a file, - for standard output, syslog or journald;"
        " nothing for no such log.",
        metavar="FILE",
    )
    access_log_format: str = log_setting(
        "combined",
        "How the lines are written: combined (Apache's), json, or a format with fields as"
        " gunicorn's %(h)s and PHP-FPM's %R.",
        metavar="FORMAT",
    )
    error_logfile: str = log_setting(
        "-", "The log: a file, - for standard error, syslog or journald.", metavar="FILE"
    )
    log_level: str = log_setting("info", "The least important that is logged.", choices=LEVELS)
    log_limit: int = log_setting(
        8192, "Bytes of one line of a log; what is longer is cut; 0 for no limit.", size=True, low=0
    )
    log_rate: int = log_setting(
        0,
        "Records of the log in one second; how many more there were is counted; 0 for no limit.",
        low=0,
    )
    syslog_to: str = log_setting(
        "/dev/log", "Where syslog is: a Unix socket, or udp:HOST:PORT.", metavar="ADDRESS"
    )
    syslog_format: str = log_setting(
        "auto",
        "RFC that syslog gets; auto is 3164 on a Unix socket and 5424 over UDP.",
        choices=("auto", "3164", "5424"),
    )
    syslog_facility: str = log_setting("daemon", "Facility in syslog.", choices=tuple(FACILITIES))
    syslog_ident: str = log_setting("fulgate", "Name in syslog and in the journal.")
    debug: bool = log_setting(False, "Show tracebacks of errors at the start.")

    status_bind: tuple[str, ...] = status_setting(
        (),
        "Endpoint to answer for the status over HTTP, also while all threads are busy:"
        " tcp:127.0.0.1:PORT or unix:PATH. May be given several times.",
        metavar="ENDPOINT",
    )
    status_path: str = status_setting(
        "",
        "Path, such as /status, that is answered with the status to whoever asks the web server.",
        metavar="PATH",
    )
    ping_path: str = status_setting(
        "", "Path, such as /ping, that is answered with pong by the server itself.", metavar="PATH"
    )
    statsd_host: str = status_setting(
        "", "Report to statsd here each second, over UDP.", metavar="HOST:PORT"
    )
    statsd_prefix: str = status_setting("fulgate", "What names in statsd begin with.")

    chdir: str = process_setting(
        "", "Change to this folder first; other paths are relative to it.", metavar="FOLDER"
    )
    chroot: str = process_setting(
        "",
        "Make this folder the root of the file system before the application is loaded; chdir is a"
        " folder within then. Needs root to start, and user.",
        metavar="FOLDER",
    )
    pythonpath: tuple[str, ...] = process_setting(
        (),
        "Folder to look for modules in first, before the current folder. May be given several"
        " times.",
        metavar="FOLDER",
    )
    env_file: str = process_setting(
        "",
        "File of NAME=VALUE lines for the application's environment; what is set already stays.",
        metavar="FILE",
    )
    user: str = process_setting(
        "", "Become this user, a name or number, once the sockets are bound.", short="-u"
    )
    group: str = process_setting(
        "", "Become this group, a name or number; by default the user's.", short="-g"
    )
    env: tuple[str, ...] = process_setting(
        (),
        "NAME=VALUE for the application's environment, over what is set already. May be given"
        " several times.",
        metavar="NAME=VALUE",
    )
    clear_env: bool = process_setting(
        False,
        "Keep the environment of the process from the application, which gets env_file and env"
        " only.",
    )
    nice: int = process_setting(
        0,
        "Niceness of the process; below what it has for root alone; 0 leaves it.",
        low=-20,
        high=19,
    )
    umask: str = process_setting(
        "",
        "Permissions to withhold from new files, octal, such as 022.",
        short="-m",
        metavar="OCTAL",
    )
    pid: str = process_setting(
        "",
        "File to write the process id to; only one process at a time can have it.",
        short="-p",
        alias="--pidfile",
        metavar="FILE",
    )
    rlimit_files: int = process_setting(
        0,
        "Files and connections that the process may have open (RLIMIT_NOFILE); 0 leaves it.",
        low=0,
    )
    rlimit_core: int = process_setting(
        -1,
        "Bytes that a core dump of the process may have (RLIMIT_CORE): 0 for none; -1 leaves it.",
        size=True,
        low=-1,
    )
    rlimit_memory: int = process_setting(
        0,
        "Bytes of address space of each process (RLIMIT_AS), beyond which MemoryError is raised;"
        " 0 leaves it.",
        size=True,
        low=0,
    )

    workers: int = pool_setting(
        0,
        "Worker processes, which a master watches; auto for one a core. Unless the pool is static,"
        " the most there may be. 0 serves in the one process that was started.",
        short="-w",
        auto=True,
        low=0,
        high=1024,
    )
    pool_mode: str = pool_setting(
        "static",
        "How many workers there are: always all of them, as many as keep some idle, or as many as"
        " there are requests for.",
        choices=("static", "dynamic", "ondemand"),
    )
    start_workers: int = pool_setting(1, "Workers at the start of a dynamic pool.", low=1)
    min_spare_workers: int = pool_setting(
        1, "Idle workers that a dynamic pool keeps, at least.", low=1
    )
    max_spare_workers: int = pool_setting(
        3, "Idle workers that a dynamic pool keeps, at most.", low=1
    )
    spawn_rate: int = pool_setting(
        32, "Workers that a dynamic pool spawns in one second, at most.", low=1
    )
    process_idle_timeout: float = pool_setting(
        10.0, "Seconds after which an idle worker of an ondemand pool ends.", low=0
    )
    max_requests: int = pool_setting(
        0, "Requests after which a worker is replaced; 0 for never.", low=0
    )
    max_requests_jitter: int = pool_setting(
        0,
        "Up to so many more for each worker, at random, so that not all are replaced at once.",
        low=0,
    )
    max_age: float = pool_setting(
        0.0, "Seconds after which a worker is replaced; 0 for never.", low=0
    )
    max_rss: int = pool_setting(
        0,
        "Bytes of memory (RSS) beyond which a worker is replaced; 0 for no limit.",
        size=True,
        low=0,
    )
    request_timeout: float = pool_setting(
        0.0,
        "Seconds that a request may take in the application; then it is answered with 504, or its"
        " answer broken off, and the worker is replaced; 0 for ever.",
        low=0,
    )
    request_slowlog_timeout: float = pool_setting(
        0.0,
        "Seconds after which a request that still runs is logged, with its thread's stack; 0 for"
        " never.",
        low=0,
    )
    boot_timeout: float = pool_setting(
        0.0, "Seconds that a worker may take to load the application; 0 for any time.", low=0
    )
    emergency_restart_threshold: int = pool_setting(
        0,
        "So many workers that die within the interval are an emergency; 0 for never.",
        low=0,
    )
    emergency_restart_interval: float = pool_setting(
        60.0, "The interval for that, in seconds.", low=0
    )
    emergency_action: str = pool_setting(
        "restart",
        "What is done then: restart has all workers replaced, stop ends the master, gracefully and"
        " with exit status 3.",
        choices=("restart", "stop"),
    )
    catch_workers_output: bool = pool_setting(
        False,
        "Have the master write to the log what workers write to standard output and error, line by"
        " line.",
    )
    decorate_workers_output: bool = pool_setting(
        True,
        "Say there which worker wrote it, and when; otherwise such lines are left as they are, but"
        " for control characters.",
    )
    preload_app: bool = pool_setting(
        False, "Load the application in the master, before workers are forked."
    )
    hooks: str = pool_setting(
        "",
        "Module with functions that are called as the master and the workers come and go:"
        " on_starting, when_ready, pre_fork, post_fork, and so on, as gunicorn's.",
        metavar="MODULE",
    )

    def __post_init__(self) -> None:
        for known in settings():
            value = getattr(self, known.name)
            if known.many and isinstance(value, list):
                value = tuple(value)
                object.__setattr__(self, known.name, value)
            elif known.type is float and type(value) is int:
                value = float(value)
                object.__setattr__(self, known.name, value)
            known.check(value)
        self._check_x_sendfile()

    def _check_x_sendfile(self) -> None:
        roots = self.x_sendfile_root
        if self.x_sendfile != "pass" and not roots:
            raise ConfigError(f"x_sendfile: {self.x_sendfile} needs an x_sendfile_root")
        for root in roots:
            if self.x_sendfile == "accel" and "=" not in root:
                raise ConfigError(f"x_sendfile_root: {root!r}: accel needs FOLDER=/URI/")

    @property
    def capacity(self) -> int:
        """How many requests at once make a process of an ASGI application busy?"""
        return min(self.worker_concurrency, self.limit_concurrency or self.worker_concurrency)

    @property
    def watched(self) -> bool:
        """Is there anybody who may ask how the server is?"""
        return bool(self.status_bind or self.status_path or self.ping_path or self.statsd_host)

    def replace(self, **changes: Any) -> Config:
        """Give a copy with some values changed. Raises ConfigError."""
        known = {s.name for s in settings()}
        for name in changes:
            if name not in known:
                raise ConfigError(f"there is no setting {name!r}")
        return dataclasses.replace(self, **changes)


def settings() -> Iterable[Setting]:
    """Give all settings, in the order of the fields of Config."""
    return _settings.values()


_settings = settings_of(Config)
