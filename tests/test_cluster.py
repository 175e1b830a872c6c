"""Three machines behind a balancer, as docs/cluster.md has it: deploys, and cut cables."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.command import environment, fulgate
from tests.network import Connection, Host, Network
from tests.raw import values
from tests.sequence import APP, Sequence
from tests.servers import RealServer, Running
from tests.servers.snippets import SNIPPETS
from tests.test_master import alive

PAGE = (Path(__file__).parent.parent / "docs" / "cluster.md").read_text()
FENCES = dict(re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
BALANCER, *ADDRESSES = [f"192.0.2.{number}" for number in (10, 11, 12, 13)]
PATIENCE = 90.0  # seconds; HAProxy's `timeout server` is a third of it

pytestmark = [
    pytest.mark.requires_program("ip", "unshare", "nsenter"),
    pytest.mark.requires_namespaces,
    pytest.mark.slow,
    pytest.mark.timeout(240),
]
behind_both = pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=pytest.mark.requires_server(kind), id=kind)
        for kind in ("haproxy", "nginx")
    ],
)

# Each request takes a while, so that some are on every machine at any time.
SLOW = APP.replace("import os\n", "import os, time\n").replace(
    "    start_response", "    time.sleep(0.03)\n    start_response"
)


class Machine:
    """A host of the network, with a master that serves the application there."""

    def __init__(self, host: Host, folder: Path) -> None:
        self.host = host
        self.folder = folder
        self.process: subprocess.Popen[bytes] | None = None
        self.folder.mkdir()
        settings = FENCES["toml"].replace(ADDRESSES[0], host.address)
        (folder / "fulgate.toml").write_text(settings)
        self.write(1)

    def write(self, version: int) -> None:
        """Put a version of the application there."""
        source = SLOW.replace("VERSION = 1", f"VERSION = {version}")
        (self.folder / "counted.py").write_text(source)

    @property
    def log(self) -> str:
        return (self.folder / "out").read_text()

    @property
    def ready(self) -> int:
        """How many workers have got ready by now?"""
        return len(re.findall(r"is ready$", self.log, re.MULTILINE))

    def wait_for_ready(self, count: int) -> None:
        end = time.monotonic() + PATIENCE
        while self.ready < count:
            assert time.monotonic() < end, self.log
            time.sleep(0.02)

    def start(self) -> None:
        serve = ("-W", "error", "-m", "fulgate", "serve", "--log-level", "debug")
        with (self.folder / "out").open("wb") as out:
            self.process = subprocess.Popen(
                self.host.command(sys.executable, *serve),
                cwd=self.folder,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        self.wait_for_ready(2)

    def stop(self) -> None:
        if self.process is None:
            return
        process, self.process = self.process, None
        process.terminate()
        try:
            status = process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
        assert status == 0, self.log

    def kill(self) -> None:
        """End all processes of the machine but the one that holds its namespace; see them gone."""
        assert self.process is not None
        end = time.monotonic() + PATIENCE
        killed: set[int] = set()
        while pids := self.pids():
            assert time.monotonic() < end, pids
            killed.update(pids)
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        while any(alive(pid) for pid in killed):  # the kernel closes what is theirs last
            assert time.monotonic() < end, killed
            time.sleep(0.001)
        self.process.wait(PATIENCE)
        self.process = None

    def pids(self) -> list[int]:
        """Give the processes that run there; one that has ended has no namespace any more."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if os.readlink(entry / "ns/net") == os.readlink(self.host.namespace):
                    found.append(int(entry.name))
        return [pid for pid in found if pid != self.host.process.pid]

    def reload(self) -> None:
        count = self.ready
        done = fulgate("reload", "--pidfile", "fulgate.pid", cwd=self.folder)
        assert done.returncode == 0, done.stderr
        self.wait_for_ready(count + 2)

    def notes(self) -> list[str]:
        path = self.folder / "notes"
        return path.read_text().split() if path.exists() else []


class Load(Sequence):
    """Clients on the balancer's machine, who note when each request that failed was begun."""

    def __init__(self, network: Network, clients: int = 8) -> None:
        super().__init__(80, clients)
        self.network = network
        self.lost: dict[str, float] = {}  # begun when
        self.allow_loss = False

    def connect(self) -> http.client.HTTPConnection:
        return Connection(self.network.balancer, self.port, PATIENCE)

    def ask(self, connection: http.client.HTTPConnection, number: str, size: int) -> str:
        begun = time.monotonic()
        try:
            wrong = super().ask(connection, number, size)
        except (OSError, http.client.HTTPException) as error:
            wrong = repr(error)
            connection.close()
        if wrong and self.allow_loss:
            self.lost[number] = begun
            return ""
        return wrong


class Cluster:
    def __init__(self, network: Network, machines: list[Machine], running: Running) -> None:
        self.network = network
        self.machines = machines
        self.folder = running.folder
        self._running = running

    def balance(self, kind: str) -> RealServer:
        """Start the balancer on its machine, with the configuration of the page."""
        network = self.network
        balancer = network.balancer

        class Balancer(SNIPPETS[kind]):  # type: ignore[misc, valid-type]
            def command(self) -> list[str]:
                return balancer.command(*super().command())

            def accepts(self) -> bool:
                with balancer.inside(), socket.socket() as probe:
                    return probe.connect_ex((BALANCER, 80)) == 0

        text = FENCES[kind].replace("/run/haproxy/", f"{self.folder}/")
        server: RealServer = self._running(Balancer, text, 80)
        return server

    def notes(self) -> list[str]:
        """Give the numbers of the requests that were carried out, sorted."""
        return sorted(note for machine in self.machines for note in machine.notes())

    def admin(self, command: str) -> str:
        """Say something to HAProxy, as the page does it with socat."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(PATIENCE)
            connection.connect(str(self.folder / "admin.sock"))
            connection.sendall(command.encode() + b"\n")
            return b"".join(iter(lambda: connection.recv(65536), b"")).decode()


@pytest.fixture
def cluster(folder: Path, running: Running) -> Iterator[Cluster]:
    with Network(BALANCER, *ADDRESSES) as network, contextlib.ExitStack() as stack:
        machines = [Machine(host, folder / host.name) for host in network.hosts]
        for machine in machines:
            stack.callback(machine.stop)
            machine.start()
        yield Cluster(network, machines, running)


def check(cluster: Cluster, load: Load) -> None:
    """Was each request carried out exactly once, on one of the machines?"""
    assert load.failures == []
    assert cluster.notes() == load.numbers()


@behind_both
def test_a_rolling_deploy_loses_nothing(cluster: Cluster, kind: str) -> None:
    cluster.balance(kind)
    with Load(cluster.network) as load:
        load.some_more()
        for version in (2, 3):
            for machine in cluster.machines:
                machine.write(version)
                machine.reload()
                load.some_more(40)
        load.some_more()
    check(cluster, load)
    assert load.versions == {"1", "2", "3"}
    assert len(load.pids) > 2 * 2 * 3  # of three generations, two workers on three machines


@pytest.mark.requires_server("haproxy")
def test_a_machine_is_drained_and_started_anew(cluster: Cluster) -> None:
    drain, ready = re.findall(r'echo "(set server \S+ state \w+)"', PAGE)
    cluster.balance("haproxy")
    with Load(cluster.network) as load:
        load.some_more()
        for name, machine in zip(("one", "two", "three"), cluster.machines, strict=True):
            cluster.admin(drain.replace("/one ", f"/{name} "))
            end = time.monotonic() + PATIENCE
            while requests_on(cluster, name):
                assert time.monotonic() < end, cluster.admin("show stat")
                time.sleep(0.05)
            machine.stop()
            load.some_more(40)
            machine.write(2)
            machine.start()
            cluster.admin(ready.replace("/one ", f"/{name} "))
            before = len(machine.notes())
            while len(machine.notes()) < before + 20:
                load.some_more(20)
    check(cluster, load)
    assert load.versions == {"1", "2"}


def requests_on(cluster: Cluster, name: str) -> int:
    """How many requests are on a machine, as the page's command tells it?"""
    command, fields = re.findall(r'echo "(show stat [^"]+)" .* \| cut -d, -f(\S+)', PAGE)[0]
    key, value = (int(field) - 1 for field in fields.split(","))
    rows = [line.split(",") for line in cluster.admin(command).splitlines() if line]
    found = {row[key]: row[value] for row in rows}
    assert found["svname"] == "scur"
    return int(found[name])


def test_the_balancer_alone_may_connect(cluster: Cluster) -> None:
    first, second, _ = cluster.machines
    for host, allowed in ((cluster.network.balancer, True), (second.host, False)):
        with host.inside():
            connection = socket.create_connection((first.host.address, 9000), PATIENCE)
        with connection:
            connection.sendall(values(b"FCGI_MAX_CONNS"))
            try:
                answer = connection.recv(100)
            except ConnectionResetError:
                answer = b""
        assert (answer[:2] == b"\x01\x0a") is allowed


Trouble = Callable[[Cluster, Machine], None]


def pull(cluster: Cluster, machine: Machine) -> None:
    cluster.network.pull(machine.host)


def cut(cluster: Cluster, machine: Machine) -> None:
    cluster.network.cut(machine.host)


def mend(cluster: Cluster, machine: Machine) -> None:
    cluster.network.mend(machine.host)


def plug(cluster: Cluster, machine: Machine) -> None:
    cluster.network.plug(machine.host)


def crash(cluster: Cluster, machine: Machine) -> None:
    """Kill the master and its workers at once."""
    machine.kill()


def start(cluster: Cluster, machine: Machine) -> None:
    machine.start()


@behind_both
@pytest.mark.parametrize(
    ("break_off", "take_up"),
    [
        pytest.param(pull, plug, id="link-down"),
        pytest.param(cut, mend, id="silent"),
        pytest.param(crash, start, id="crash"),
    ],
)
def test_a_machine_that_is_cut_off_costs_what_is_on_it(
    cluster: Cluster, kind: str, break_off: Trouble, take_up: Trouble
) -> None:
    cluster.balance(kind)
    victim = cluster.machines[1]
    with Load(cluster.network) as load:
        load.some_more()
        assert load.failures == []
        load.allow_loss = True
        break_off(cluster, victim)
        cut_at = time.monotonic()
        # Those that were on it wait, until they are told.
        then = list(load.asked)
        end = time.monotonic() + PATIENCE
        while any(now <= before + 20 for now, before in zip(load.asked, then, strict=True)):
            assert time.monotonic() < end, (load.asked, then)
            time.sleep(0.05)
        done = len(victim.notes())
        load.some_more(200)
        assert len(victim.notes()) == done
        take_up(cluster, victim)
        while len(victim.notes()) < done + 20:
            assert time.monotonic() < end + PATIENCE
            load.some_more(20)
    assert load.failures == []
    assert all(begun <= cut_at for begun in load.lost.values()), (load.lost, cut_at)
    noted, posts = cluster.notes(), set(load.numbers(posts_only=True))
    assert set(load.lost) <= posts
    assert set(load.numbers()) - set(load.lost) <= set(noted)
    posted = [number for number in noted if number in posts]
    assert len(posted) == len(set(posted))
