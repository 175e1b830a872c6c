"""Find the application: MODULE, MODULE:ATTR, or MODULE:FACTORY("literal", arguments=1)."""

from __future__ import annotations

import ast
import importlib
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import ModuleType, TracebackType
from typing import Any

from fulgate.errors import AppNotFound, ConfigError

__all__ = ["AppName", "load_app", "parse_app"]

USUAL = ("app", "application")  # what is looked for where no attribute is named


@dataclass(frozen=True, slots=True)
class AppName:
    """The parts of an application's name."""

    module: str
    attributes: tuple[str, ...] = ()
    call: tuple[tuple[Any, ...], dict[str, Any]] | None = None  # arguments, if it is called


def parse_app(text: str) -> AppName:
    """Read an application's name. Nothing is imported, and nothing evaluated but literals.

    Raises ConfigError.
    """
    module, colon, expression = text.strip().partition(":")
    if not module or not all(part.isidentifier() for part in module.split(".")):
        hint = ""
        if re.search(r"[/\\]|\.py$", module):
            dotted = re.sub(r"[/\\]+", ".", module.removeprefix("./").removesuffix(".py"))
            hint = f"; did you mean '{dotted.strip('.')}{colon}{expression}'?"
        raise ConfigError(f"application {text!r}: write MODULE:ATTR{hint}")
    if not colon:
        return AppName(module)
    problem = ConfigError(
        f"application {text!r}: write MODULE:ATTR, or a call with literal arguments, such as"
        ' pkg.app:create_app("prod")'
    )
    try:
        node = ast.parse(expression.strip(), mode="eval").body
    except (SyntaxError, ValueError):
        raise problem from None
    call = None
    if isinstance(node, ast.Call):
        try:
            if any(keyword.arg is None for keyword in node.keywords):
                raise problem
            call = (
                tuple(ast.literal_eval(argument) for argument in node.args),
                {str(k.arg): ast.literal_eval(k.value) for k in node.keywords},
            )
        except (ValueError, TypeError, SyntaxError):
            raise problem from None
        node = node.func
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.insert(0, node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        raise problem
    return AppName(module, (node.id, *names), call)


def load_app(text: str, pythonpath: Iterable[str] = ()) -> Callable[..., Any]:
    """Import the application and return it.

    Modules are looked for in `pythonpath`, then in the current folder, then where Python does.
    Raises ConfigError for a name that makes no sense, AppNotFound, in one line, for all else; what
    the application's own code raised is its cause, with the traceback of that code alone.
    """
    name = parse_app(text)
    for folder in reversed([*pythonpath, "."]):
        folder = os.path.abspath(folder)
        if folder in sys.path:
            sys.path.remove(folder)
        sys.path.insert(0, folder)
    module = _import(text, name.module)
    value = _attribute(text, name, module)
    if name.call is not None:
        arguments, keywords = name.call
        if not callable(value):
            raise AppNotFound(f"application {text!r}: {'.'.join(name.attributes)} is not callable")
        try:
            value = value(*arguments, **keywords)
        except (Exception, SystemExit) as error:
            raise _failed(text, error) from error
    if not callable(value):
        raise AppNotFound(
            f"application {text!r}: what stands there is not callable, but of type"
            f" {type(value).__name__}"
        )
    return value  # type: ignore[no-any-return]


def _import(text: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if (name == missing or name.startswith(missing + ".")) and not _own(error.__traceback__):
            hint = ""
            if name.endswith(".py"):
                hint = f"; did you mean {text.replace('.py', '', 1)!r}?"
            raise AppNotFound(
                f"application {text!r}: there is no module {missing!r}{hint}"
            ) from error
        raise _failed(text, error) from error
    except (Exception, SystemExit) as error:
        raise _failed(text, error) from error


def _attribute(text: str, name: AppName, module: ModuleType) -> Any:
    if not name.attributes:
        for usual in USUAL:
            if hasattr(module, usual):
                return getattr(module, usual)
        raise AppNotFound(
            f"application {text!r}: module {name.module!r} has neither app nor application;"
            " write MODULE:ATTR"
        )
    value: Any = module
    where = f"module {name.module!r}"
    for attribute in name.attributes:
        try:
            value = getattr(value, attribute)
        except AttributeError as error:
            raise AppNotFound(f"application {text!r}: {where} has no {attribute!r}") from error
        except Exception as error:  # a module's __getattr__, a lazy object
            raise _failed(text, error) from error
        where = repr(attribute)
    return value


def _own(trace: TracebackType | None) -> TracebackType | None:
    """Leave out the frames of this module and of the import machinery that it called."""
    while trace is not None:
        filename = trace.tb_frame.f_code.co_filename
        if not filename.startswith("<frozen importlib") and filename not in _machinery:
            return trace
        trace = trace.tb_next
    return None


_machinery = (__file__, importlib.__file__)


def _failed(text: str, error: BaseException) -> AppNotFound:
    error.__traceback__ = _own(error.__traceback__)
    what = traceback.format_exception_only(error)[-1].strip()
    where = ""
    if isinstance(error, SyntaxError) and error.filename:
        where = f"{error.filename}:{error.lineno}"
    else:
        frames = [
            frame
            for frame in traceback.extract_tb(error.__traceback__)
            if not frame.filename.startswith("<frozen importlib")
            and frame.filename not in _machinery
        ]
        if frames:
            where = f"{frames[-1].filename}:{frames[-1].lineno}"
    what = " ".join(what.split())
    return AppNotFound(
        f"application {text!r} does not load: {what}" + (f" ({where})" if where else "")
    )
