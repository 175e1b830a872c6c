"""What whoever started this process left on its standard descriptors, and for which protocol."""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Mapping

from fulgate.listener import inherited_on_stdin

__all__ = ["had_standard", "open_standard_streams", "started_as_cgi", "take_standard_streams"]


def had_standard(fd: int) -> bool:
    """Was the descriptor open when the process began, if it is 0, 1 or 2?

    If not, it may be anything by now: a socket of the application's has the lowest free number.
    """
    streams = (sys.__stdin__, sys.__stdout__, sys.__stderr__)
    return fd > 2 or streams[fd] is not None


def open_standard_streams() -> None:
    """Open /dev/null where descriptor 0, 1 or 2 is closed.

    A web server that starts an application may close 1 and 2 (FastCGI 1.0, section 2.2). The next
    socket would get the number, and what is printed or logged would go there.
    """
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            _null_over(fd)


def started_as_cgi(environ: Mapping[str, str] = os.environ) -> bool:
    """Was this process started to answer one request, which stands in its environment?

    So it is when the variables of CGI (RFC 3875, section 4.1) are there and descriptor 0 is not a
    listening socket (FastCGI 1.0, section 2.2), and always when FCGI_FORCE_CGI is Y.
    """
    if environ.get("FCGI_FORCE_CGI", "")[:1] in ("Y", "y"):
        return True
    if not environ.get("GATEWAY_INTERFACE", "").startswith("CGI/"):
        return False
    return bool(environ.get("REQUEST_METHOD")) and not inherited_on_stdin()


def take_standard_streams() -> tuple[int, int]:
    """Take standard input and output: give new descriptors for them.

    Descriptor 0 becomes /dev/null and 1 what 2 is: what the application prints goes to the web
    server's error log, and not into the answer.
    """
    open_standard_streams()
    stdin, stdout = (_duplicate(fd) if had_standard(fd) else _open_null() for fd in (0, 1))
    if had_standard(0):
        _null_over(0)
    if had_standard(1) and had_standard(2):
        os.dup2(2, 1)
    elif had_standard(1):
        _null_over(1)
    return stdin, stdout


def _duplicate(fd: int) -> int:
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)


def _open_null() -> int:
    return os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)


def _null_over(fd: int) -> None:
    null = _open_null()
    if null != fd:
        os.dup2(null, fd)
        os.close(null)
    else:
        os.set_inheritable(fd, True)
