"""The server as a process of its own: statements 1, 2 and 29."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from fulgate.conform.asking import Asking, says_hello
from fulgate.conform.statements import Failed, NotApplicable, case, statement
from fulgate.conform.target import Target

__all__ = ["Spawned", "spawned"]

PLACE = "{}"  # stands for the address to listen on, in a command that opens its own socket
START = 20.0  # seconds for a server to start
LOG = 2.0  # seconds for a line of the log to be written
QUIET = 0.3  # seconds without one, after which none is on its way
Address = tuple[str, int] | str


class Spawned:
    """A running server that was started by the target's command."""

    def __init__(self, process: subprocess.Popen[bytes], address: Address, output: Path) -> None:
        self.process = process
        self.address = address
        self._output = output

    def log(self) -> int:
        """Give how many bytes it has written to its standard streams, once it writes no more."""
        size = -1
        until = time.monotonic() + LOG
        while size != (found := self._output.stat().st_size) and time.monotonic() < until:
            size = found
            time.sleep(QUIET)
        return found

    def logs_more_than(self, before: int) -> bool:
        """Wait a moment for more than that."""
        until = time.monotonic() + LOG
        while self._output.stat().st_size <= before:
            if time.monotonic() > until:
                return False
            time.sleep(0.02)
        return True

    def last_words(self) -> str:
        lines = self._output.read_text(errors="replace").strip().splitlines()
        return lines[-1][:200] if lines else "it said nothing"


@contextlib.contextmanager
def spawned(
    target: Target,
    family: int = socket.AF_INET,
    environ: Mapping[str, str] | None = None,
    source: str = "",
    answers: bool = True,
) -> Iterator[Spawned]:
    """Start the target's command, which has answered once when this gives it; kill what is left.

    Its descriptor 0 is a listening socket, unless the command names the address by `{}`. `source`
    is the address that may ask; without `answers` it is not waited for. Raises NotApplicable
    without a command, and Failed.
    """
    if not target.spawn:
        raise NotApplicable("there is no --spawn COMMAND to start it with")
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fulgate-conform-")))
        listener = stack.enter_context(socket.socket(family))
        listener.bind(_address(family, folder))
        address = _plain(listener.getsockname())
        own = any(PLACE in word for word in target.spawn)
        if own:
            listener.close()
        else:
            listener.listen(128)
        output = folder / "output"
        process = _start(target, address, listener, output, environ or {})
        stack.callback(_kill, process)
        server = Spawned(process, address, output)
        if answers:
            _wait_for_answer(target, server, source)
        yield server


def _address(family: int, folder: Path) -> tuple[str, int] | str:
    if family == socket.AF_UNIX:
        return str(folder / "app.sock")
    return ("::1" if family == socket.AF_INET6 else "127.0.0.1", 0)


def _plain(name: object) -> Address:
    return (str(name[0]), int(name[1])) if isinstance(name, tuple) else str(name)


def _start(
    target: Target,
    address: Address,
    listener: socket.socket,
    output: Path,
    environ: Mapping[str, str],
) -> subprocess.Popen[bytes]:
    place = address if isinstance(address, str) else _host_and_port(*address)
    closed = listener.fileno() < 0
    with output.open("wb") as out:
        try:
            return subprocess.Popen(
                [word.replace(PLACE, place) for word in target.spawn],
                stdin=subprocess.DEVNULL if closed else listener.fileno(),
                stdout=out,
                stderr=out,
                env={**os.environ, **environ},
                start_new_session=True,
            )
        except OSError as error:
            raise Failed(f"{target.spawn[0]}: {error.strerror}") from None


def _host_and_port(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the process and what it has started; it is the leader of its own group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _wait_for_answer(target: Target, server: Spawned, source: str) -> None:
    until = time.monotonic() + START
    while True:
        if server.process.poll() is not None:
            status = server.process.returncode
            raise Failed(f"it ended with status {status}: {server.last_words()}")
        try:
            with Asking(target, server.address, source) as asking:
                says_hello(asking, target.request("/hello"))
                return
        except Failed as error:
            if time.monotonic() > until:
                raise Failed(f"it did not answer: {error}; {server.last_words()}") from None
        time.sleep(0.02)


@statement(
    "1",
    "2.2",
    "The listening socket may be descriptor 0; getpeername with ENOTCONN tells FastCGI from CGI",
)
def descriptor_0(target: Target) -> None:
    if any(PLACE in word for word in target.spawn):
        raise NotApplicable("the command of --spawn opens its own socket")
    longest = 0.0  # seconds to start
    for name, family in (("a Unix socket", socket.AF_UNIX), ("a TCP socket", socket.AF_INET)):
        began = time.monotonic()
        with case(name), spawned(target, family):
            longest = max(longest, time.monotonic() - began)
    with case("a connection in the place of a listening socket"):
        _is_not_spoken_to(target, max(target.timeout, 3 * longest))


def _is_not_spoken_to(target: Target, seconds: float) -> None:
    """So CGI is started: it may answer as CGI does, end, or listen elsewhere, but speak no FastCGI.

    What should never happen is waited for these seconds.
    """
    ours, its = socket.socketpair()
    with ours, its, tempfile.TemporaryFile() as out:
        try:
            process = subprocess.Popen(
                target.spawn, stdin=its.fileno(), stdout=out, stderr=out, start_new_session=True
            )
        except OSError as error:
            raise Failed(f"{target.spawn[0]}: {error.strerror}") from None
        its.close()
        try:
            ours.settimeout(seconds)
            ours.sendall(target.request("/hello"))
            said = ours.recv(8)
        except OSError:  # it is silent, or has ended
            said = b""
        finally:
            _kill(process)
        if said:
            raise Failed(f"it speaks there: {said!r}")


@statement(
    "2",
    "3.2",
    "FCGI_WEB_SERVER_ADDRS: the peer is checked, a mismatch is closed; IPv6 too",
)
def web_server_addrs(target: Target) -> str:
    addresses = {"FCGI_WEB_SERVER_ADDRS": "127.0.0.3,127.0.0.2"}
    with spawned(target, environ=addresses, source="127.0.0.2") as server:
        with case("127.0.0.1, which is not listed"):
            _is_closed(target, server)
    if not _has_ipv6():
        return "this machine has no IPv6"
    with case("IPv6"):
        addresses = {"FCGI_WEB_SERVER_ADDRS": "::1,127.0.0.2"}
        with spawned(target, socket.AF_INET6, addresses):
            pass
    with case("IPv6, ::1, which is not listed"):
        addresses = {"FCGI_WEB_SERVER_ADDRS": "127.0.0.2"}
        with spawned(target, socket.AF_INET6, addresses, answers=False) as server:
            _is_closed_at_last(target, server)
    return ""


def _is_closed_at_last(target: Target, server: Spawned) -> None:
    """The same as `_is_closed`, of a server whose start nobody has seen."""
    until = time.monotonic() + START
    while True:
        try:
            _is_closed(target, server)
            break
        except Failed as error:
            if "END_REQUEST" in str(error) or time.monotonic() > until:
                raise
        time.sleep(0.02)
    if server.process.poll() is not None:
        raise Failed(f"it ended: {server.last_words()}")


def _is_closed(target: Target, server: Spawned) -> None:
    with Asking(target, server.address) as asking:
        asking.send(target.request("/hello"))
        asking.expect_end()
        if asking.order:
            raise Failed(asking.shown())


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@statement("29", "7", "SIGTERM ends the process, with status 0")
def sigterm(target: Target) -> None:
    with spawned(target) as server, Asking(target, server.address) as idle:
        says_hello(idle, target.request("/hello"))
        server.process.send_signal(signal.SIGTERM)
        try:
            status = server.process.wait(max(target.timeout, 5.0))
        except subprocess.TimeoutExpired:
            raise Failed("it goes on, while an idle connection is open") from None
    if status:
        raise Failed(f"its status is {status}")
