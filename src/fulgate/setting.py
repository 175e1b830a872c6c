"""One setting: how its value is read from text, what it may be, and how a field declares it."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from dataclasses import dataclass, field
from typing import Any

from fulgate.endpoint import AllowedClients, Endpoint
from fulgate.errors import ConfigError
from fulgate.logformat import FORMATS, parse
from fulgate.targets import address_of_syslog

__all__ = ["Setting", "setting", "settings_of"]


def setting(section: str, default: Any, help: str, **meta: Any) -> Any:
    """Declare a setting, as a field of a dataclass.

    `section` and `help` are for people. The rest: `short`, a short form for the CLI;
    `alias`, another name of the option; `choices`, the values that are allowed; `low` and `high`,
    the range of a number; `size=True`, for bytes that may be written as 64k, 1M or 1G; `metavar`,
    what stands for the value; `hidden=True`, for a secret, which is not shown.
    """
    shown = not meta.get("hidden", False)
    return field(default=default, repr=shown, metadata={"help": help, "section": section, **meta})


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
    alias: str = ""
    metavar: str = ""
    choices: tuple[str, ...] = ()
    low: float = -math.inf
    high: float = math.inf
    size: bool = False
    auto: bool = False  # may be written as "auto": the count of cores
    hidden: bool = False

    @property
    def option(self) -> str:
        """Its option on the command line."""
        return "--" + self.name.replace("_", "-")

    @property
    def options(self) -> tuple[str, ...]:
        """All names of that option."""
        return tuple(name for name in (self.short, self.option, self.alias) if name)

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
        if self.auto and text.lower() == "auto":
            return cores()
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


_types: dict[str, type] = {"str": str, "int": int, "float": float, "bool": bool}


def settings_of(config: type) -> dict[str, Setting]:
    """Give the settings that a dataclass declares, by name, in the order of its fields."""
    found = {}
    for one in dataclasses.fields(config):
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


def cores() -> int:
    """Give the count of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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


def _check_x_sendfile_root(value: str) -> None:
    folder, sign, uri = value.partition("=")
    if not folder.startswith("/") or ".." in folder.split("/") or (sign and uri[:1] != "/"):
        raise ConfigError(
            f"x_sendfile_root: {value!r}: write FOLDER or FOLDER=/URI/, such as"
            " /srv/files=/protected/"
        )


def _check_env(value: str) -> None:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*=.*", value, re.ASCII | re.DOTALL):
        raise ConfigError(f"env: {value!r}: write NAME=VALUE")
    if value.startswith("FULGATE_"):
        raise ConfigError(f"env: {value!r}: settings of Fulgate have options of their own")


def _check_chroot(value: str) -> None:
    if not value.startswith("/"):
        raise ConfigError(f"chroot: {value!r}: it begins with /")


def _check_umask(value: str) -> None:
    if not re.fullmatch("(0o)?[0-7]{1,4}", value) or int(value, 8) > 0o777:
        raise ConfigError(f"umask: {value!r}: write it as octal text, such as 022")


def _check_allowed_clients(value: str) -> None:
    AllowedClients([value])


def _check_access_log_format(value: str) -> None:
    if value in FORMATS:
        return
    if "%" not in value:
        raise ConfigError(
            f"access_log_format: {value!r} is none of {', '.join(FORMATS)}, and has no field"
        )
    try:
        parse(value)
    except ConfigError as error:
        raise ConfigError(f"access_log_format: {error}") from None
    if any(ord(char) < 32 or ord(char) == 127 for char in value):
        raise ConfigError(f"access_log_format: {value!r} has a control character in it")


def _check_syslog_to(value: str) -> None:
    try:
        address_of_syslog(value)
    except ConfigError as error:
        raise ConfigError(f"syslog_to: {error}") from None


def _check_syslog_ident(value: str) -> None:
    if not re.fullmatch("[!-~]{1,48}", value) or ":" in value or "[" in value:
        raise ConfigError(f"syslog_ident: {value!r}: up to 48 printable characters, no space")


def _check_status_bind(value: str) -> None:
    try:
        endpoint = Endpoint.parse(value)
    except ConfigError as error:
        raise ConfigError(f"status_bind: {error}") from None
    if endpoint.kind not in ("tcp", "unix", "fd") or "+" in value.partition(":")[0]:
        raise ConfigError(f"status_bind: {value!r}: write tcp:HOST:PORT or unix:PATH")


def _check_own_path(value: str) -> None:
    if not re.fullmatch(r"/[!-~]+", value) or "?" in value:
        raise ConfigError(f"status_path, ping_path: {value!r}: write a path, such as /status")


def _check_statsd_host(value: str) -> None:
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[\w.-]+):([0-9]{1,5})", value, re.ASCII)
    if match is None or int(match[2]) > 65535:
        raise ConfigError(f"statsd_host: {value!r}: write HOST:PORT, such as 127.0.0.1:8125")


_special = {
    "status_bind": _check_status_bind,
    "status_path": _check_own_path,
    "ping_path": _check_own_path,
    "statsd_host": _check_statsd_host,
    "access_log_format": _check_access_log_format,
    "syslog_to": _check_syslog_to,
    "syslog_ident": _check_syslog_ident,
    "bind": _check_bind,
    "http": _check_http,
    "static": _check_static,
    "script_name": _check_script_name,
    "env": _check_env,
    "umask": _check_umask,
    "chroot": _check_chroot,
    "x_sendfile_root": _check_x_sendfile_root,
    "allowed_clients": _check_allowed_clients,
}
