"""Introduces the siblings to one another: makes of the settings what speaks, and what answers."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from fulgate.config import Config
from fulgate.endpoint import FASTCGI
from fulgate.errors import ConfigError
from fulgate.exchange import Limits, Role, ServerProtocol, SyncGateway
from fulgate.gateways.filters import Filter, FilterGateway
from fulgate.gateways.roles import Authorizer, AuthorizerGateway, Roles
from fulgate.gateways.wsgi import WSGI, Application
from fulgate.gateways.xsendfile import XSendfile
from fulgate.interface import interface_of
from fulgate.listener import Listener
from fulgate.protocols.ajp import AJP
from fulgate.protocols.cgi import CGI
from fulgate.protocols.fastcgi import FastCGI
from fulgate.protocols.scgi import SCGI

if TYPE_CHECKING:  # imports asyncio, and so is imported when it is used
    from fulgate.gateways.asgi import ASGI

__all__ = ["SERVED", "Protocols", "async_gateway", "check_served", "gateways"]


class Protocols:
    """Makes what speaks on each connection of a server.

    `default` is spoken on connections that come from no endpoint. Raises ConfigError when it is
    not served.
    """

    def __init__(self, config: Config, default: str) -> None:
        check_served(default)
        self.default = default
        self.roles = frozenset({Role.RESPONDER})  # what there is an application for
        self.config = config
        self.limits = Limits(
            config.limit_params_size, config.limit_params, config.limit_request_body
        )
        self._values = {
            "FCGI_MAX_CONNS": str(config.worker_connections),
            "FCGI_MAX_REQS": str(config.threads + config.queue),
            "FCGI_MPXS_CONNS": "0",
        }

    def serve_several(self, able: bool) -> None:
        """Have a connection carry several requests at once, if the driver is able to and it is
        wanted; GET_VALUES says so.
        """
        self._values["FCGI_MPXS_CONNS"] = "1" if able and self.config.multiplex else "0"

    def make(self, listener: socket.socket | None) -> ServerProtocol:
        """Make what speaks to a peer that came from this socket, as far as one knows it."""
        name = listener.protocol if isinstance(listener, Listener) else self.default
        return self.named(name)

    def named(self, name: str) -> ServerProtocol:
        """Make what speaks the protocol of this name."""
        return SERVED[name](self)

    def cgi(self, params: dict[str, str]) -> CGI:
        """Make the one request of a CGI process, of its environment."""
        return CGI(params, self.limits)

    def _fastcgi(self) -> ServerProtocol:
        config = self.config
        return FastCGI(  # a compiled class takes longer to read the names than to do the rest
            self.limits,
            self._values,
            self.roles,
            self._values["FCGI_MPXS_CONNS"] == "1",
            config.overload == "overloaded",
            config.threads + config.queue,
        )

    def _scgi(self) -> ServerProtocol:
        return SCGI(self.limits)

    def _ajp(self) -> ServerProtocol:
        config = self.config
        return AJP(self.limits, config.ajp_secret, config.ajp_packet_size, config.body_buffer)


# What endpoints may have before their "+".
SERVED: Mapping[str, Callable[[Protocols], ServerProtocol]] = MappingProxyType(
    {FASTCGI: Protocols._fastcgi, "scgi": Protocols._scgi, "ajp": Protocols._ajp}
)


def check_served(protocol: str, where: str = "") -> None:
    """Raise ConfigError for a protocol that no server speaks here; `where` begins its text."""
    if protocol not in SERVED:
        raise ConfigError(f"{where}{', '.join(SERVED)} are served, and not {protocol}")


def gateways(app: Any, config: Config, **environ: bool) -> dict[Role, SyncGateway]:
    """Give what has the application answer, by role.

    `environ` is what WSGI has an application know of threads and processes. Raises ConfigError.
    """
    roles = _by_role(app)
    for one in (roles.responder, roles.filter):
        if one is not None and one is not app and interface_of(one) == "asgi":
            raise ConfigError("Roles takes a WSGI application, and this one is of ASGI")
    found: dict[Role, SyncGateway] = {}
    if roles.responder is not None:
        found[Role.RESPONDER] = _wsgi(roles.responder, config, **environ)
    if roles.authorizer is not None:
        found[Role.AUTHORIZER] = AuthorizerGateway(roles.authorizer, config.stderr)
    if roles.filter is not None:
        made = roles.filter
        one = made.wsgi if isinstance(made, Filter) else made
        found[Role.FILTER] = FilterGateway(_wsgi(one, config, **environ))
    return found


def _by_role(app: Any) -> Roles:
    if isinstance(app, Roles):
        return app
    if isinstance(app, Authorizer):
        return Roles(authorizer=app)
    return Roles(filter=app) if isinstance(app, Filter) else Roles(app)


def _wsgi(app: Application, config: Config, **environ: bool) -> SyncGateway:
    if config.x_sendfile != "pass":
        app = XSendfile(app, config.x_sendfile, config.x_sendfile_root)
    return WSGI(
        app,
        path=config.path,
        script_name=config.script_name,
        repeated_params=config.repeated_params,
        stderr=config.stderr,
        **environ,
    )


def async_gateway(app: Any, config: Config) -> ASGI:
    """Give what has an ASGI application answer."""
    from fulgate.gateways.asgi import ASGI

    return ASGI(
        app,
        path=config.path,
        script_name=config.script_name,
        repeated_params=config.repeated_params,
        stderr=config.stderr,
        lifespan=config.lifespan,
        x_sendfile=config.x_sendfile,
        roots=config.x_sendfile_root,
        websocket=(
            config.websocket_max_size,
            config.websocket_ping_interval,
            config.websocket_ping_timeout,
            config.websocket_deflate,
        ),
        limit=config.limit_concurrency,
    )
