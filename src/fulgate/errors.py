"""The errors of Fulgate. Each says what happens next to the connection or to the process.

Misuse by our own code is `RuntimeError` or `ValueError`, never one of these.
"""

from __future__ import annotations

__all__ = [
    "Aborted",
    "AnswerCut",
    "AppNotFound",
    "BindError",
    "ConfigError",
    "ConnectFailed",
    "FulgateError",
    "LimitExceeded",
    "NoThreads",
    "ProtocolError",
    "Refused",
    "StartupFailed",
    "TimedOut",
]


class FulgateError(Exception):
    """Base of the errors that Fulgate raises on purpose."""


class ProtocolError(FulgateError):
    """The peer broke the rules of the protocol: its connection is closed, nothing is answered."""


class LimitExceeded(FulgateError):
    """The peer asked for more than a limit allows: it is answered, and its input dropped.

    `status` is the answer's status line, such as "413 Content Too Large" (RFC 9110, 15.5.14) or
    "431 Request Header Fields Too Large" (RFC 6585, 5).
    """

    def __init__(self, status: str, message: str) -> None:
        super().__init__(message)
        self.status = status


class Aborted(FulgateError, ConnectionError):
    """The web server gave the request up: the only error of ours that an application can meet.

    Raised by reading the body and by writing the answer, after FCGI_ABORT_REQUEST (FastCGI 1.0,
    section 5.4), after the connection was closed, and after a deadline passed.
    """


class ConfigError(FulgateError):
    """The configuration cannot be used. The process ends with exit status 2."""

    exit_status = 2


class AppNotFound(FulgateError):
    """The application does not load. The process ends with exit status 3."""

    exit_status = 3


class BindError(FulgateError):
    """A listening socket cannot be had. The process ends with exit status 3."""

    exit_status = 3


class NoThreads(FulgateError, RuntimeError):
    """The system gives no thread to serve in. The process ends with exit status 3.

    The listening sockets are as they were; `fulgate.serve` then serves in the main thread.
    """

    exit_status = 3


class StartupFailed(FulgateError):
    """An ASGI application's lifespan did not start. The process ends with exit status 3."""

    exit_status = 3


# What a client meets.


class ConnectFailed(FulgateError, ConnectionError):
    """There is no connection to the application: nobody listens, or it may not be reached."""


class AnswerCut(ProtocolError):
    """The connection ended before the answer did; what had come of it is not to be trusted."""


class Refused(ProtocolError):
    """END_REQUEST says that the application did not take the request (FastCGI 1.0, section 5.5).

    `protocol_status` is 1 for CANT_MPX_CONN, 2 for OVERLOADED, 3 for UNKNOWN_ROLE.
    """

    NAMES = ("REQUEST_COMPLETE", "CANT_MPX_CONN", "OVERLOADED", "UNKNOWN_ROLE")

    def __init__(self, protocol_status: int) -> None:
        super().__init__(
            f"the request was refused: status {protocol_status}, {self.NAMES[protocol_status]}"
        )
        self.protocol_status = protocol_status


class TimedOut(FulgateError, TimeoutError):
    """Nothing moved for too long, or there was no whole answer within the deadline."""
