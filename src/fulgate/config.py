"""All settings, in ONE frozen dataclass: CLI options, TOML keys, environment variables and the
reference in docs/ derive from its fields.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from fulgate.cgi import PATH_POLICIES, REPEATED_POLICIES
from fulgate.endpoint import AllowedClients, Endpoint
from fulgate.errors import ConfigError

__all__ = ["Config", "Setting", "settings"]

APPLICATION = "Application and sockets"
HTTP = "HTTP front for development"
LIMITS = "Limits"
TIME = "Time, in seconds"
CGI = "CGI"
LOG = "Logs"
PROCESS = "Process"

LEVELS = ("debug", "info", "warning", "error", "critical")


def setting(default: Any, help: str, section: str, **meta: Any) -> Any:
    """Declare a setting.

    `default`, `help` and `section` are for people. The rest: `short`, a short form for the CLI;
    `choices`, the values that are allowed; `low` and `high`, the range of a number; `size=True`,
    for bytes that may be written as 64k, 1M or 1G; `metavar`, what stands for the value.
    """
    return field(default=default, metadata={"help": help, "section": section, **meta})


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What a server is told. Raises ConfigError for what cannot be right.

    Names are gunicorn's where the meaning is, and PHP-FPM's where only that has it.
    """

    app: str = setting(
        "",
        "The application: MODULE:ATTR, or MODULE:FACTORY(...) with literal arguments.",
        APPLICATION,
        metavar="MODULE:ATTR",
    )
    bind: tuple[str, ...] = setting(
        (),
        "Endpoint to listen on: unix:PATH?mode=660&owner=..&group=.., tcp:HOST:PORT, fd:N or"
        " systemd[:NAME]. May be given several times. By default the socket inherited on"
        " descriptor 0, else systemd's, else tcp:127.0.0.1:9000.",
        APPLICATION,
        short="-b",
        metavar="ENDPOINT",
    )
    threads: int = setting(8, "Threads that run the application.", APPLICATION, low=1, high=4096)
    backlog: int = setting(
        2048,
        "Connections that the kernel keeps until they are accepted.",
        APPLICATION,
        low=1,
        high=65535,
    )
    queue: int = setting(
        1024,
        "Complete requests that may wait for a thread; one more is answered with 503.",
        APPLICATION,
        low=0,
    )
    worker_connections: int = setting(
        16384,
        "Connections held at once; beyond it new ones wait in the backlog.",
        APPLICATION,
        low=1,
    )
    allowed_clients: tuple[str, ...] = setting(
        (),
        "IP address or network that may connect over TCP, such as 10.0.0.0/8. May be given"
        " several times. By default what FCGI_WEB_SERVER_ADDRS says. Without any, only addresses"
        " of this machine are listened on.",
        APPLICATION,
        metavar="ADDRESS",
    )
    poller: str = setting(
        "auto",
        "How readiness is waited for; auto takes the best that the system has.",
        APPLICATION,
        choices=("auto", "epoll", "kqueue", "poll"),
    )

    http: str = setting(
        "",
        "Also answer HTTP here, for development: needs fulgate[http].",
        HTTP,
        metavar="HOST:PORT",
    )
    static: tuple[str, ...] = setting(
        (),
        "Files that the HTTP front serves by itself, such as /static=./static. May be given"
        " several times.",
        HTTP,
        metavar="/PREFIX=FOLDER",
    )

    limit_params_size: int = setting(
        262144,
        "Bytes of parameters (PARAMS) in one request; beyond it 431.",
        LIMITS,
        size=True,
        low=1,
    )
    limit_params: int = setting(
        1000, "Count of parameters in one request; beyond it 431.", LIMITS, low=1
    )
    limit_request_body: int = setting(
        1 << 30,
        "Bytes of a request's body; beyond it 413; 0 for no limit.",
        LIMITS,
        size=True,
        low=0,
    )
    body_buffer: int = setting(
        65536,
        "Bytes of body that are waited for before the application starts.",
        LIMITS,
        size=True,
        low=0,
    )
    write_behind: int = setting(
        1 << 20,
        "Bytes of answer kept for a client that reads slowly, before the application has to wait.",
        LIMITS,
        size=True,
        low=0,
    )

    graceful_timeout: float = setting(
        30.0, "For running requests to end, when the server is told to stop.", TIME, low=0
    )
    arrival_timeout: float = setting(
        30.0, "For a request's parameters to arrive; 0 for ever.", TIME, low=0
    )
    body_timeout: float = setting(
        60.0, "Between two pieces of a request's body; 0 for ever.", TIME, low=0
    )
    send_timeout: float = setting(60.0, "For a write to make progress; 0 for ever.", TIME, low=0)
    keep_alive: float = setting(
        300.0, "For which an idle connection is kept open; 0 for ever.", TIME, low=0
    )
    body_wait: float = setting(
        0.5, "For which a small body is waited for, before the application starts.", TIME, low=0
    )

    path: str = setting(
        "auto",
        "How SCRIPT_NAME and PATH_INFO are made out of what the web server sends.",
        CGI,
        choices=PATH_POLICIES,
    )
    script_name: str = setting(
        "",
        "The application's own path, such as /app, for SCRIPT_NAME, whatever the web server sends.",
        CGI,
        metavar="PATH",
    )
    repeated_params: str = setting(
        "refuse",
        "What becomes of a header that came several times with different values and is no list.",
        CGI,
        choices=REPEATED_POLICIES,
    )
    stderr: bool = setting(
        False, "Send the application's tracebacks to the web server's log too (FCGI_STDERR).", CGI
    )

    access_logfile: str = setting(
        "",
        "A line for each request goes here; - is standard output; nothing for no such log.",
        LOG,
        metavar="FILE",
    )
    access_log_format: str = setting(
        "combined",
        "How the lines are written: as Apache's combined log, or as JSON.",
        LOG,
        choices=("combined", "json"),
    )
    error_logfile: str = setting("-", "The log; - is standard error.", LOG, metavar="FILE")
    log_level: str = setting("info", "The least important that is logged.", LOG, choices=LEVELS)
    debug: bool = setting(False, "Show tracebacks of errors at the start.", LOG)

    chdir: str = setting(
        "",
        "Change to this folder first; other paths are relative to it.",
        PROCESS,
        metavar="FOLDER",
    )
    pythonpath: tuple[str, ...] = setting(
        (),
        "Folder to look for modules in first, before the current folder. May be given several"
        " times.",
        PROCESS,
        metavar="FOLDER",
    )
    env_file: str = setting(
        "",
        "File of NAME=VALUE lines for the application's environment; what is set already stays.",
        PROCESS,
        metavar="FILE",
    )
    user: str = setting(
        "",
        "Become this user, a name or number, once the sockets are bound.",
        PROCESS,
        short="-u",
    )
    group: str = setting(
        "",
        "Become this group, a name or number; by default the user's.",
        PROCESS,
        short="-g",
    )
    umask: str = setting(
        "",
        "Permissions to withhold from new files, octal, such as 022.",
        PROCESS,
        short="-m",
        metavar="OCTAL",
    )
    pid: str = setting(
        "",
        "File to write the process id to; only one process at a time can have it.",
        PROCESS,
        short="-p",
        metavar="FILE",
    )
    rlimit_files: int = setting(
        0,
        "Files and connections that the process may have open (RLIMIT_NOFILE); 0 leaves it.",
        PROCESS,
        low=0,
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

    def replace(self, **changes: Any) -> Config:
        """Give a copy with some values changed. Raises ConfigError."""
        known = {s.name for s in settings()}
        for name in changes:
            if name not in known:
                raise ConfigError(f"there is no setting {name!r}")
        return dataclasses.replace(self, **changes)


@dataclass(frozen=True, slots=True)
class Setting:
    """One field of Config, as everything that derives from it wants it."""

    name: str
    type: type  # of one value: str, int, float or bool
    many: bool  # a tuple of such
    default: Any
    help: str
    section: str
    short: str = ""
    metavar: str = ""
    choices: tuple[str, ...] = ()
    low: float = -math.inf
    high: float = math.inf
    size: bool = False

    @property
    def option(self) -> str:
        """Its option on the command line."""
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        """Its environment variable."""
        return "FULGATE_" + self.name.upper()

    def read(self, text: str) -> Any:
        """Read one value's text form, as the CLI and the environment have it.

        Raises ConfigError, without the setting's name.
        """
        if self.type is bool:
            if text.lower() in ("1", "true", "yes", "on"):
                return True
            if text.lower() in ("0", "false", "no", "off", ""):
                return False
            raise ConfigError(f"{text!r} is neither yes nor no")
        if self.type is int:
            match = re.fullmatch(r"(-?[0-9]+)([kmg]?)", text.lower(), re.ASCII)
            if match is None or len(text) > 20 or (match[2] and not self.size):
                hint = ", such as 65536, 64k, 1M or 1G" if self.size else ""
                raise ConfigError(f"{text!r} is not a whole number{hint}")
            return int(match[1]) << {"": 0, "k": 10, "m": 20, "g": 30}[match[2]]
        if self.type is float:
            if not re.fullmatch(r"-?([0-9]+\.?[0-9]*|\.[0-9]+)", text, re.ASCII):
                raise ConfigError(f"{text!r} is not a number")
            return float(text)
        return text

    def check(self, value: Any) -> None:
        """Raise ConfigError unless `value` is of the right type and in the range."""
        if self.many:
            if not isinstance(value, tuple):
                raise ConfigError(f"{self.name}: a list of strings is wanted, not {value!r}")
            for one in value:
                self._check_one(one)
        else:
            self._check_one(value)

    def _check_one(self, value: Any) -> None:
        its_type = value.__class__  # not isinstance: True is no number
        if its_type is not self.type:
            raise ConfigError(f"{self.name}: {_article[self.type]} is wanted, not {value!r}")
        if self.choices and value not in self.choices:
            raise ConfigError(f"{self.name}: {value!r} is none of {', '.join(self.choices)}")
        if self.type in (int, float) and not self.low <= value <= self.high:
            bound = f"at least {self.low}" if not value >= self.low else f"at most {self.high}"
            raise ConfigError(f"{self.name}: {value} is out of range, {bound} is wanted")
        if self.type is float and not math.isfinite(value):
            raise ConfigError(f"{self.name}: {value} is out of range")
        if self.type is str:
            if "\0" in value:
                raise ConfigError(f"{self.name}: {value!r} has a NUL in it")
            special = _special.get(self.name)
            if special is not None and value:
                special(value)


_article = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


def _check_bind(value: str) -> None:
    try:
        Endpoint.parse(value)
    except ConfigError as error:
        raise ConfigError(f"bind: {error}") from None


def _check_http(value: str) -> None:
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.%\w]+\]|[^:\[\]/\s]*):([0-9]{1,5})", value, re.ASCII)
    if match is None or int(match[2]) > 65535:
        raise ConfigError(f"http: {value!r}: write HOST:PORT, such as 127.0.0.1:8000")


def _check_static(value: str) -> None:
    prefix, sign, folder = value.partition("=")
    if not (sign and folder and prefix.startswith("/")):
        raise ConfigError(f"static: {value!r}: write /PREFIX=FOLDER, such as /static=./static")


def _check_script_name(value: str) -> None:
    if not value.startswith("/") or value.endswith("/"):
        raise ConfigError(f"script_name: {value!r}: it begins with / and does not end with it")


def _check_umask(value: str) -> None:
    if not re.fullmatch("(0o)?[0-7]{1,4}", value) or int(value, 8) > 0o777:
        raise ConfigError(f"umask: {value!r}: write it as octal text, such as 022")


def _check_allowed_clients(value: str) -> None:
    AllowedClients([value])


_special = {
    "bind": _check_bind,
    "http": _check_http,
    "static": _check_static,
    "script_name": _check_script_name,
    "umask": _check_umask,
    "allowed_clients": _check_allowed_clients,
}

_types: dict[str, type] = {"str": str, "int": int, "float": float, "bool": bool}


def settings() -> Iterable[Setting]:
    """Give all settings, in the order of the fields of Config."""
    return _settings.values()


def _settings_of_fields() -> dict[str, Setting]:
    found = {}
    for one in dataclasses.fields(Config):
        name = str(one.type)
        many = name.startswith("tuple")
        found[one.name] = Setting(
            name=one.name,
            type=str if many else _types[name],
            many=many,
            default=one.default,
            **one.metadata,
        )
    return found


_settings: dict[str, Setting] = _settings_of_fields()
