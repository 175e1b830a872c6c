"""Where the settings come from: defaults, a TOML file, the environment, the command line.

Each overrides the ones before it, and it is remembered where a value came from.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fulgate.config import Config, Setting, settings
from fulgate.errors import ConfigError

__all__ = ["CONFIG_VARIABLE", "Settings", "load", "read_env_file"]

FILE = "fulgate.toml"
PROJECT = "pyproject.toml"
PREFIX = "FULGATE_"
CONFIG_VARIABLE = PREFIX + "CONFIG"
# What a pool cannot have for itself.
ONE_FOR_ALL = frozenset(
    (
        *("access_logfile", "access_log_format", "chdir", "env_file", "error_logfile", "hooks"),
        *("http", "log_level", "pid", "rlimit_core", "rlimit_files", "rlimit_memory", "static"),
        "umask",
    )
)


@dataclass(frozen=True, slots=True)
class Settings:
    """A configuration, and the source of each of its values, such as "fulgate.toml"."""

    config: Config
    sources: Mapping[str, str]
    pools: Mapping[str, Config] = field(default_factory=dict)  # by name; none without a master
    again: Callable[[], Settings] = field(default=lambda: load())  # loads them anew

    def toml(self) -> str:
        """Give it as TOML, with each value's source beside it."""
        lines: list[str] = []
        section = ""
        for setting in settings():
            if setting.section != section:
                section = setting.section
                lines += ([""] if lines else []) + [f"# {section}"]
            value = _toml(getattr(self.config, setting.name))
            if setting.hidden and value != '""':
                value = '"..."'
            lines.append(f"{setting.name} = {value}  # {self.sources[setting.name]}")
        return "\n".join(lines) + "\n"


def load(
    options: Mapping[str, str | tuple[str, ...] | bool] | None = None,
    *,
    file: str = "",
    environ: Mapping[str, str] = os.environ,
) -> Settings:
    """Load the settings; `options` are those that the command line gives, in their text form.

    `file` is the one of --config; FULGATE_CONFIG names one too. Without, fulgate.toml in the
    current folder is read, else the table [tool.fulgate] of pyproject.toml there. Raises
    ConfigError.
    """
    values: dict[str, Any] = {}
    sources = {setting.name: "default" for setting in settings()}
    named = file or environ.get(CONFIG_VARIABLE, "")
    pools: dict[str, dict[str, Any]] = {}
    for source, table in _tables(named):
        table = dict(table)
        _read_pools(table, source, pools)
        _read_table(table, source, values, sources)
    _read_environment(environ, values, sources)
    for setting in settings():
        if options and setting.name in options:
            given = options[setting.name]
            source = setting.option if setting.name != "app" else "command line"
            values[setting.name] = _read(setting, given, source)
            sources[setting.name] = source if given is not False else f"--no-{source[2:]}"
    config = Config(**values)
    made = {name: config.replace(**given) for name, given in pools.items()}
    if not made and config.workers:
        made = {"app": config}
    return Settings(config, sources, made, lambda: load(options, file=file, environ=environ))


def _read_pools(table: dict[str, Any], path: str, pools: dict[str, dict[str, Any]]) -> None:
    """Take the tables [pool.NAME] out of a file's table, and of the files that it includes."""
    included = table.pop("include", [])
    named = table.pop("pool", {})
    if not isinstance(named, dict) or not all(isinstance(one, dict) for one in named.values()):
        raise ConfigError(f"{path}: write a table [pool.NAME] for each pool")
    for name, given in named.items():
        if name in pools:
            raise ConfigError(f"{path}: the pool {name!r} is there already")
        values: dict[str, Any] = {"workers": 1}
        _read_table(given, f"{path}: pool.{name}", values, {})
        for setting in settings():
            if setting.name in ONE_FOR_ALL & given.keys():
                raise ConfigError(f"{path}: pool.{name}: {setting.name} is the master's")
        pools[name] = values
    if not isinstance(included, list | str):
        raise ConfigError(f"{path}: include: a list of files is wanted")
    for pattern in [included] if isinstance(included, str) else included:
        for file in sorted(glob.glob(os.path.join(os.path.dirname(path), str(pattern)))):
            document = _parse(file)
            inner = dict(document or {})
            _read_pools(inner, file, pools)
            if inner:
                raise ConfigError(f"{file}: {next(iter(inner))!r}: it may have [pool.NAME] only")


def _tables(named: str) -> Iterable[tuple[str, Mapping[str, Any]]]:
    """Give the one table that counts, and what to call it."""
    if named:
        document = _parse(named)
        if document is None:
            raise ConfigError(f"there is no configuration file {named}")
        if os.path.basename(named) == PROJECT:
            table = _tool_table(document, named)
            if table is None:
                raise ConfigError(f"{named} has no table [tool.fulgate]")
            return [(named, table)]
        return [(named, document)]
    document = _parse(FILE)
    if document is not None:
        return [(FILE, document)]
    document = _parse(PROJECT, strict=False)
    table = _tool_table(document, PROJECT) if document is not None else None
    return [(PROJECT, table)] if table is not None else []


def _parse(path: str, *, strict: bool = True) -> dict[str, Any] | None:
    try:
        with open(path, "rb") as stream:
            text = stream.read().decode()
    except FileNotFoundError:
        return None
    except OSError as error:
        if not strict:
            return None
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: {error}") from error
    import tomllib  # here, since most servers have no file

    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: {error}") from error


def _tool_table(document: Mapping[str, Any], path: str) -> Mapping[str, Any] | None:
    tool = document.get("tool")
    table = tool.get("fulgate") if isinstance(tool, dict) else None
    if table is not None and not isinstance(table, dict):
        raise ConfigError(f"{path}: tool.fulgate is not a table")
    return table


def _read_table(
    table: Mapping[str, Any], path: str, values: dict[str, Any], sources: dict[str, str]
) -> None:
    known = {setting.name: setting for setting in settings()}
    for key, value in table.items():
        if key not in known:
            raise ConfigError(f"{path}: there is no setting {key!r}" + _did_you_mean(key, known))
        setting = known[key]
        if setting.many and isinstance(value, str):
            value = (value,)
        elif setting.many and isinstance(value, list):
            value = tuple(value)
        elif (setting.size or setting.auto) and isinstance(value, str):
            value = _read(setting, value, f"{path}: {key}")
        _check(setting, value, path)
        values[key] = value
        sources[key] = path


def _read_environment(
    environ: Mapping[str, str], values: dict[str, Any], sources: dict[str, str]
) -> None:
    known = {setting.variable: setting for setting in settings()}
    for variable, text in environ.items():
        if not variable.startswith(PREFIX) or variable == CONFIG_VARIABLE:
            continue
        if variable not in known:
            # Others may have variables of that prefix too, as Kubernetes does for a service of
            # our name. What looks like a slip of the pen is one.
            hint = _did_you_mean(variable, [*known, CONFIG_VARIABLE], cutoff=0.9)
            if hint:
                raise ConfigError(f"environment: there is no setting {variable}{hint}")
            continue
        setting = known[variable]
        given: str | tuple[str, ...] = text
        if setting.many:
            given = tuple(part.strip() for part in text.split(",") if part.strip())
        value = _read(setting, given, variable)
        values[setting.name] = value
        sources[setting.name] = f"environment {variable}"


def _read(setting: Setting, given: str | tuple[str, ...] | bool, source: str) -> Any:
    try:
        value = setting.read(given) if isinstance(given, str) else given
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None
    _check(setting, value, source)
    return value


def _check(setting: Setting, value: Any, source: str) -> None:
    if setting.type is float and type(value) is int:
        value = float(value)
    try:
        setting.check(value)
    except ConfigError as error:
        text = str(error)
        if source in (setting.option, setting.variable, "command line"):
            text = text.removeprefix(f"{setting.name}: ")
        raise ConfigError(f"{source}: {text}") from None


def _did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    import difflib  # here, since it is rarely wanted

    close = difflib.get_close_matches(name.replace("-", "_"), list(known), 1, cutoff)
    return f"; did you mean {close[0]!r}?" if close else ""


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, str):
        return '"' + "".join(_toml_char(char) for char in value) + '"'
    return repr(value)


def _toml_char(char: str) -> str:
    if char in '"\\':
        return "\\" + char
    code = ord(char)
    return char if code >= 32 and code != 127 else f"\\u{code:04x}"


def read_env_file(path: str) -> dict[str, str]:
    """Read lines of NAME=VALUE; empty lines and those that begin with # are passed over.

    A value may stand in single or double quotes, which are taken away; nothing else is special.
    Raises ConfigError.
    """
    try:
        with open(path, encoding="utf-8") as stream:
            lines = stream.read().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError(f"cannot read the env_file {path}: {reason}") from error
    found: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        name, sign, value = line.removeprefix("export ").partition("=")
        name, value = name.strip(), value.strip()
        if not (sign and name.isidentifier() and name.isascii()) or "\0" in value:
            raise ConfigError(f"{path}, line {number}: write NAME=VALUE")
        if name.startswith(PREFIX):
            raise ConfigError(
                f"{path}, line {number}: {name}: this file is for the application; settings of"
                f" Fulgate belong in {FILE} or in the environment of the command"
            )
        if len(value) >= 2 and value[0] == value[-1] and value[0] in "'\"":
            value = value[1:-1]
        found[name] = value
    return found
