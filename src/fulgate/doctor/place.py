"""`fulgate doctor ENDPOINT`: where an application listens, as a web server finds it."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import click

from fulgate.doctor.mistakes import Found, Mistake
from fulgate.doctor.reach import barred, exposed
from fulgate.doctor.sockets import listening_at
from fulgate.endpoint import Endpoint
from fulgate.errors import ConfigError, ConnectFailed, FulgateError
from fulgate.listener import is_loopback

__all__ = ["USER", "Probe", "command"]

USER: Final = "www-data"  # whom Debian's web servers run as
ELSEWHERE: Final = ("192.0.2.1", 9)  # RFC 5737: nobody; the way there is asked for, and not taken

WELL: Final = "nothing that is known to be wrong"
STATES: Final = {1: Mistake.DEAD, 3: Mistake.BUSY, 4: Mistake.WRONG}  # by fulgate ping's status

Probe = Callable[[Endpoint], str]
"""Gives what a server at an endpoint says; raises FulgateError, which says what is wrong.

Its `exit_status` is that of `fulgate ping`.
"""


def command(endpoint: Endpoint, user: str, probe: Probe) -> int:
    """Print what can be seen of an endpoint; give 1 when something is wrong.

    `user` is whom the web server runs as, "" for `USER`, if there is one. Raises ConfigError for
    one that does not exist.
    """
    found: list[Found] = []
    click.echo(str(endpoint))
    # First, since a question of our own might wait there, too.
    _queue(endpoint, found)
    if endpoint.kind == "unix":
        _permissions(endpoint, user, found)
    try:
        click.echo(f"  answers: {probe(endpoint)}")
    except FulgateError as error:
        found.append(_silent(endpoint, error))
    if endpoint.kind == "tcp":
        _port(endpoint, probe, found)
    click.echo("Findings")
    for line in [line for one in found for line in one.shown()] or [WELL]:
        click.echo("  " + line)
    return 1 if found else 0


def _silent(endpoint: Endpoint, error: FulgateError) -> Found:
    """Say what it means that the question was not answered."""
    if endpoint.kind == "unix" and isinstance(_root(error), ConnectionRefusedError):
        advice = "the socket was left behind: start the application, which replaces it"
        return Found(Mistake.LEFT_BEHIND, str(error), (advice,))
    state = STATES.get(getattr(error, "exit_status", 0), Mistake.WRONG)
    return Found(state, str(error))


def _root(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _queue(endpoint: Endpoint, found: list[Found]) -> None:
    try:
        listening = listening_at(endpoint)
    except (OSError, AttributeError):  # not Linux's
        return
    for one in listening:
        click.echo(f"  {one.where}: {one.queue}")
        found += [Found(Mistake.WAITING, one.crowd)] if one.crowd else []


def _permissions(endpoint: Endpoint, user: str, found: list[Found]) -> None:
    name = user or USER
    try:
        kept = barred(endpoint, name)
    except KeyError:
        if user:
            raise ConfigError(f"there is no user {user}") from None
        return
    except OSError:
        return  # the question that comes next says why
    click.echo(f"  {name} may connect: {'no' if kept else 'yes'}")
    if kept is not None:
        mistake, where, advice = kept
        found.append(Found(mistake, f"{name} may not connect to {where}", (advice,)))


def _port(endpoint: Endpoint, probe: Probe, found: list[Found]) -> None:
    """Ask as another machine would, if the port is open to them."""
    here = all(is_loopback(str(address[0])) for _, address in endpoint.addresses())
    if here and not exposed(endpoint.port):
        return
    own = _own_address() if here else endpoint.host
    closed = endpoint if here else replace(endpoint, host="127.0.0.1")
    if own:
        try:
            probe(replace(endpoint, host=own))
        except FulgateError as error:
            # Who lets nobody connect there may still listen at another address, as of IPv6.
            if not isinstance(error.__cause__, ConnectFailed):
                click.echo(f"  open to other machines, but not to {own}")
                return
    found.append(
        Found(
            Mistake.OPEN_PORT,
            f"port {endpoint.port} is open to other machines: everybody who reaches it can run"
            " requests, with any variables",
            (
                f"start Fulgate with: --bind {closed}",
                "or, for a web server on another machine: --allowed-clients ITS-ADDRESS",
            ),
        )
    )


def _own_address() -> str:
    """Give an address of this machine that others know; "" if there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(ELSEWHERE)
        except OSError:
            return ""
        address = str(sock.getsockname()[0])
    return "" if is_loopback(address) else address
