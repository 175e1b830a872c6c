"""Holds scopes and events to the types that asgiref.typing has for them."""

from __future__ import annotations

import collections.abc
import types
from collections.abc import Callable, Iterator
from typing import (
    Any,
    Literal,
    NotRequired,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from asgiref import typing as asgi

# "One or both keys may be present", and frameworks ask which one is; the types want both.
ONE_OF = {"websocket.receive": {"bytes", "text"}}


def problems(value: Any, hint: Any, where: str = "") -> Iterator[str]:
    """Say what of `value` is not as the hint has it: types to the letter, so no bool for an int."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any or hint is object:
        return
    if is_typeddict(hint):
        yield from _of_keys(value, hint, where)
    elif origin is Literal:
        if value not in inner:
            yield f"{where}: {value!r} is none of {inner}"
    elif origin in (Union, types.UnionType):
        if all(list(problems(value, one, where)) for one in inner):
            yield f"{where}: {value!r} is no {hint}"
    elif origin is tuple:
        if not isinstance(value, tuple) or len(value) != len(inner):
            yield f"{where}: {value!r} is no {hint}"
            return
        for number, (item, one) in enumerate(zip(value, inner, strict=True)):
            yield from problems(item, one, f"{where}[{number}]")
    elif origin is collections.abc.Iterable:
        if isinstance(value, (str, bytes)) or not isinstance(value, collections.abc.Iterable):
            yield f"{where}: {value!r} is no {hint}"
            return
        for number, item in enumerate(value):
            yield from problems(item, inner[0], f"{where}[{number}]")
    elif origin is dict:
        if type(value) is not dict:
            yield f"{where}: {value!r} is no dict"
            return
        for key, item in value.items():
            yield from problems(key, inner[0], f"{where} key")
            yield from problems(item, inner[1], f"{where}[{key!r}]")
    elif type(value) is not (type(None) if hint is None else hint):
        yield f"{where}: {value!r} is no {hint}"


def _of_keys(value: Any, hint: Any, where: str) -> Iterator[str]:
    if type(value) is not dict:
        yield f"{where}: {value!r} is no dict"
        return
    hints = get_type_hints(hint, include_extras=True)
    either = ONE_OF.get(value.get("type", ""), set())
    if either and len(either & set(value)) != 1:
        yield f"{where}: not one of {either}: {value!r}"
    for key in set(value) - set(hints):
        yield f"{where}: nobody knows {key!r}"
    for key, one in hints.items():
        optional = get_origin(one) is NotRequired
        if key in value:
            yield from problems(value[key], get_args(one)[0] if optional else one, f"{where}.{key}")
        elif not optional and key not in either:
            yield f"{where}: there is no {key!r}"


def _named(union: Any) -> dict[str, Any]:
    """Give the type of each event, by its name."""
    named = {}
    for hint in get_args(union):
        (name,) = get_args(get_type_hints(hint)["type"])
        named[name] = hint
    return named


SCOPES = _named(asgi.Scope)
RECEIVED = _named(asgi.ASGIReceiveEvent)


class Checked:
    """An application whose scopes and received events are checked, and kept."""

    def __init__(self, app: Callable[..., Any]) -> None:
        self.app = app
        self.wrong: list[str] = []
        self.scopes: list[dict[str, Any]] = []
        self.events: list[dict[str, Any]] = []
        self.sent: list[dict[str, Any]] = []

    def look(self, value: Any, known: dict[str, Any]) -> None:
        kind = value["type"]
        if kind not in known:
            self.wrong.append(f"nobody knows {kind}")
            return
        self.wrong += problems(value, known[kind], kind)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.look(scope, SCOPES)
        self.scopes.append(scope)

        async def receiving() -> Any:
            event = await receive()
            self.look(event, RECEIVED)
            self.events.append(event)
            return event

        async def sending(message: Any) -> None:
            self.sent.append(message)
            await send(message)

        await self.app(scope, receiving, sending)

    def kinds(self) -> set[str]:
        return {value["type"] for value in (*self.scopes, *self.events)}
