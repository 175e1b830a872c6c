"""Listening sockets that come from whoever started the process."""

from __future__ import annotations

import socket
import subprocess
import textwrap
from pathlib import Path

import pytest

from fulgate.endpoint import bind_all
from fulgate.errors import BindError
from fulgate.listener import adopt
from tests.processes import output, python

SAY_WHERE = """
    from fulgate.endpoint import bind_all
    import os
    listeners = bind_all({endpoints})
    print([listener.label for listener in listeners])
    print([listener.fileno() > 2 and not listener.get_inheritable() for listener in listeners])
    print(sorted(name for name in os.environ if name.startswith("LISTEN_")))
    """


@pytest.mark.statement("1")
def test_the_listening_socket_may_be_descriptor_0() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        where = f"tcp:127.0.0.1:{server.getsockname()[1]}"
        for endpoints in ("", "['fd:0']"):
            said = output(python(SAY_WHERE.format(endpoints=endpoints), stdin=server.fileno()))
            assert said.splitlines()[:2] == [f"['{where}']", "[True]"]


@pytest.mark.statement("1")
def test_descriptor_0_is_not_left_to_whatever_is_opened_next() -> None:
    code = """
        from fulgate.endpoint import bind_all
        import os, stat
        (listener,) = bind_all()
        listener.close()
        assert stat.S_ISCHR(os.fstat(0).st_mode)
        assert os.open("/dev/null", os.O_RDONLY) > 2
        assert os.read(0, 1) == b""
        """
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert output(python(code, stdin=server.fileno())) == ""


@pytest.mark.statement("1")
def test_a_connected_socket_on_descriptor_0_is_cgi_and_not_listened_on() -> None:
    code = """
        from fulgate.listener import inherited_on_stdin
        print(inherited_on_stdin())
        """
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert output(python(code, stdin=theirs.fileno())) == "False"
    with socket.socket() as unbound:
        assert output(python(code, stdin=unbound.fileno())) == "False"
    with socket.socket(type=socket.SOCK_DGRAM) as datagram:
        datagram.bind(("127.0.0.1", 0))
        assert output(python(code, stdin=datagram.fileno())) == "False"
    assert output(python(code, stdin=subprocess.DEVNULL)) == "False"
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert output(python(code, stdin=server.fileno())) == "True"


def test_an_exposed_inherited_socket_is_refused_too() -> None:
    with socket.create_server(("0.0.0.0", 0)) as server:
        process = python(SAY_WHERE.format(endpoints=""), stdin=server.fileno())
        _, err = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "ConfigError: fd:0 is tcp:0.0.0.0:" in err


def test_fd_must_be_a_listening_socket(folder: Path) -> None:
    with pytest.raises(BindError, match="descriptor 999 is not a listening stream socket"):
        bind_all(["fd:999"])
    with open(folder / "file", "w") as file:
        with pytest.raises(BindError, match="not a listening"):
            bind_all([f"fd:{file.fileno()}"])
        file.write("still open")
    with socket.socket() as plain:
        with pytest.raises(BindError, match="not a listening"):
            adopt(plain.fileno())
        plain.getsockname()  # still open


def systemd(listeners: list[socket.socket], names: str, code: str, pid: str = "") -> str:
    """Run code as systemd runs a service: sockets from descriptor 3, three variables."""
    start = f"""
        import os
        os.environ["LISTEN_PID"] = {pid!r} or str(os.getpid())
        os.environ["LISTEN_FDS"] = "{len(listeners)}"
        os.environ["LISTEN_FDNAMES"] = {names!r}
        for n, fd in enumerate({[listener.fileno() for listener in listeners]}):
            os.dup2(fd, 30 + n)
        for n in range({len(listeners)}):
            os.dup2(30 + n, 3 + n)
            os.close(30 + n)
        """
    return output(
        python(
            textwrap.dedent(start) + textwrap.dedent(code),
            pass_fds=[listener.fileno() for listener in listeners],
            stdin=subprocess.DEVNULL,
        )
    )


def test_systemds_sockets(folder: Path) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as web,
        socket.create_server(str(folder / "s"), family=socket.AF_UNIX) as other,
    ):
        label = f"tcp:127.0.0.1:{web.getsockname()[1]}"
        both = f"['{label}', 'unix:{folder}/s']"
        for endpoints, where in [
            ("", both),
            ("['systemd']", both),
            ("['systemd:web', 'systemd:other']", both),
            ("['systemd:web']", f"['{label}']"),
        ]:
            said = systemd([web, other], "web:other", SAY_WHERE.format(endpoints=endpoints))
            assert said.splitlines()[0] == where
            assert said.splitlines()[1] in ("[True, True]", "[True]")
            assert said.splitlines()[2] == "[]"
        assert (folder / "s").is_socket()  # systemd's file is not ours to remove


def test_systemds_sockets_that_are_not_there() -> None:
    code = """
        from fulgate.endpoint import bind_all
        from fulgate.errors import BindError
        try:
            bind_all([{0!r}])
        except BindError as error:
            print(error)
        """
    with socket.create_server(("127.0.0.1", 0)) as web:
        said = systemd([web], "web", code.format("systemd:other"))
        assert said.startswith("cannot listen on systemd:other: systemd passed no such socket")
        # They are meant for another process.
        said = systemd([web], "web", code.format("systemd"), pid="1")
        assert said.startswith("cannot listen on systemd: systemd passed no such socket")


def test_the_default_is_port_9000_of_loopback() -> None:
    code = """
        import socket
        from fulgate import endpoint
        assert endpoint.DEFAULT == "tcp:127.0.0.1:9000"
        with socket.create_server(("127.0.0.1", 0)) as probe:
            endpoint.DEFAULT = "tcp:127.0.0.1:%d" % probe.getsockname()[1]
        (listener,) = endpoint.bind_all()
        print(listener.label == endpoint.DEFAULT)
        """
    assert output(python(code, stdin=subprocess.DEVNULL)) == "True"
