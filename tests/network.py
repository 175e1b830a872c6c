"""Machines of a network of their own: network namespaces, joined by a bridge.

The namespaces have no names, and belong to processes: when those end, nothing is left. What has an
address there is reached from there only.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import http.client
import os
import subprocess
import time
from collections.abc import Iterator
from typing import Self

from tests.servers.base import PATH

PATIENCE = 20.0  # seconds
LIFE = "600"  # seconds after which a namespace goes, whatever has become of the tests


def run(*command: str) -> None:
    done = subprocess.run(
        command, env={"PATH": PATH}, capture_output=True, text=True, timeout=PATIENCE
    )
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")


@functools.cache
def why_not() -> str:
    """Give the reason why there can be no namespaces, or an empty text."""
    try:
        make = "ip link add bridge type bridge && ip link add one type veth"
        run("unshare", "--net", "sh", "-c", make)
    except OSError as error:
        return str(error)
    return ""


class Host:
    """A machine with one interface, eth0."""

    def __init__(self, name: str, address: str) -> None:
        self.name = name
        self.address = address
        self.process = subprocess.Popen(
            ["unshare", "--net", "sleep", LIFE], env={"PATH": PATH}, stdin=subprocess.DEVNULL
        )
        self.namespace = f"/proc/{self.process.pid}/ns/net"
        end = time.monotonic() + PATIENCE
        while os.readlink(self.namespace) == os.readlink("/proc/self/ns/net"):
            assert time.monotonic() < end, f"{name} has no namespace"
            time.sleep(0.005)

    def command(self, *command: str) -> list[str]:
        """Give the command line that runs a program on this machine."""
        return ["nsenter", f"--net={self.namespace}", "--", *command]

    def run(self, *command: str) -> None:
        run(*self.command(*command))

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """Have this thread open its sockets on this machine."""
        with open("/proc/thread-self/ns/net") as own, open(self.namespace) as there:
            set_namespace(there.fileno())
            try:
                yield
            finally:
                set_namespace(own.fileno())


def set_namespace(fd: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(fd, 0) != 0:
        raise OSError(ctypes.get_errno(), "setns")


class Connection(http.client.HTTPConnection):
    """An HTTP connection from a machine to itself."""

    def __init__(self, host: Host, port: int, timeout: float) -> None:
        super().__init__(host.address, port, timeout=timeout)
        self.inside = host.inside

    def connect(self) -> None:
        with self.inside():
            super().connect()


class Network:
    """A balancer with the bridge, and machines at its ports."""

    def __init__(self, balancer: str, *addresses: str) -> None:
        self.balancer = Host("balancer", balancer)
        self.hosts: list[Host] = []
        try:
            self.balancer.run("ip", "link", "add", "bridge", "type", "bridge")
            self.configure(self.balancer, "bridge")
            for number, address in enumerate(addresses):
                self.add(number, address)
        except BaseException:
            self.close()
            raise

    def add(self, number: int, address: str) -> None:
        host = Host(f"host{number}", address)
        self.hosts.append(host)
        there = str(host.process.pid)
        self.balancer.run(
            *("ip", "link", "add", host.name, "type", "veth", "peer", "name", "eth0"),
            *("netns", there),
        )
        self.balancer.run("ip", "link", "set", host.name, "master", "bridge", "up")
        self.configure(host, "eth0")

    @staticmethod
    def configure(host: Host, interface: str) -> None:
        host.run("ip", "link", "set", "lo", "up")
        host.run("ip", "address", "add", f"{host.address}/24", "dev", interface)
        host.run("ip", "link", "set", interface, "up")

    def cut(self, host: Host) -> None:
        """Have what is sent to and from a machine vanish, while its link stays up."""
        self.balancer.run("bridge", "link", "set", "dev", host.name, "state", "0")

    def mend(self, host: Host) -> None:
        self.balancer.run("bridge", "link", "set", "dev", host.name, "state", "3")

    def pull(self, host: Host) -> None:
        """Take a machine's link down."""
        self.balancer.run("ip", "link", "set", host.name, "down")

    def plug(self, host: Host) -> None:
        self.balancer.run("ip", "link", "set", host.name, "up")

    def close(self) -> None:
        for host in [*self.hosts, self.balancer]:
            host.process.kill()
            host.process.wait(PATIENCE)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
