"""What stands in deploy/: units of systemd, a container, manifests of Kubernetes."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import tomllib
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fulgate.client.connection import call
from tests.alone import free_port
from tests.command import Served, environment
from tests.servers import PATH
from tests.servers.fulgate import ROOT
from tests.test_master import until

DEPLOY = ROOT / "deploy"
UNITS = DEPLOY / "systemd"
FULGATE = [sys.executable, "-W", "error", "-m", "fulgate"]
HADOLINT = Path(sys.executable).parent / "hadolint"
PATIENCE = 30.0  # seconds

needs_kubernetes = pytest.mark.skipif(
    importlib.util.find_spec("kubernetes_validate") is None, reason="no kubernetes-validate"
)


def ask(endpoint: str) -> bytes:
    params = {"REQUEST_METHOD": "GET", "REQUEST_URI": "/", "PATH_INFO": "/", "SCRIPT_NAME": ""}
    return call(endpoint, params).body


def listens(path: Path) -> bool:
    """Would a Unix socket take a connection? Without making one: proc_net_unix(5), ACCEPTCON."""
    lines = Path("/proc/net/unix").read_text().splitlines()
    return any(line.split()[3] == "00010000" and line.endswith(f" {path}") for line in lines[1:])


# systemd


@pytest.fixture
def units(folder: Path) -> Path:
    """The units, of the instance `shop`, for a program that is there."""
    program = folder / "fulgate"
    program.write_text(f'#!/bin/sh\nexec {shlex.join(FULGATE)} "$@"\n')
    program.chmod(0o755)
    target = folder / "units"
    target.mkdir()
    for path in UNITS.glob("*@.*"):
        text = path.read_text().replace("/opt/%i/venv/bin/fulgate", str(program))
        (target / path.name.replace("@.", "@shop.")).write_text(text)
    return target


@pytest.mark.requires_program("systemd-analyze")
def test_systemd_takes_the_units_as_they_are(units: Path) -> None:
    assert sorted(path.name for path in units.iterdir()) == [
        "fulgate-activated@shop.service",
        "fulgate-activated@shop.socket",
        "fulgate@shop.service",
    ]
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *units.iterdir()],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    # It does say what is wrong.
    unit = units / "fulgate@shop.service"
    unit.write_text(unit.read_text().replace("WatchdogSec=30", "WatchdogSecs=30"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True, timeout=60
    )
    assert "WatchdogSecs" in done.stderr


@pytest.mark.requires_program("systemd-analyze")
def test_the_services_may_do_little(units: Path) -> None:
    for unit in units.glob("*.service"):
        done = subprocess.run(
            ["systemd-analyze", "security", "--offline=true", "--threshold=20", unit],
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        if "unrecognized option" in done.stderr:  # before systemd 250
            pytest.skip("this systemd-analyze cannot look at files")
        assert done.returncode == 0, done.stdout[-400:]  # an exposure of less than 2 of 10


def settings(folder: Path) -> Path:
    """The example of /etc/fulgate/shop.toml, for this machine; the application is there too."""
    text = (UNITS / "shop.toml").read_text()
    assert set(tomllib.loads(text)) >= {"app", "workers"}
    for before, after in (
        ("9200", str(free_port())), ('"journald"', '"-"'), ('"auto"', "2"),
        ("shop.wsgi:application", "shop:application"),
    ):  # fmt: skip
        assert before in text
        text = text.replace(before, after)
    (folder / "shop.toml").write_text(text)
    (folder / "shop.py").write_text((DEPLOY / "container" / "shop.py").read_text())
    return folder / "shop.toml"


def exec_start(units: Path, name: str, folder: Path) -> list[str]:
    (line,) = re.findall(r"^ExecStart=(.*)$", (units / name).read_text(), re.MULTILINE)
    line = line.replace("/etc/fulgate/%i.toml", str(settings(folder)))
    return shlex.split(line.replace("/run/fulgate/%i", str(folder)))


@pytest.mark.requires_root
def test_the_service_that_binds_by_itself(units: Path, folder: Path) -> None:
    command = exec_start(units, "fulgate@shop.service", folder)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"{folder}/notify")
        manager.settimeout(PATIENCE)
        process = subprocess.Popen(
            command, cwd=folder,
            env=environment(NOTIFY_SOCKET=f"{folder}/notify", WATCHDOG_USEC="30000000"),
        )  # fmt: skip
        try:
            while manager.recv(100) != b"READY=1":
                pass
            assert ask(f"unix:{folder}/app.sock") == b"A shop\n"
            assert (folder / "app.sock").stat().st_gid != os.getgid()  # www-data's
            process.send_signal(signal.SIGHUP)  # ExecReload
            while not manager.recv(100).startswith(b"RELOADING=1"):
                pass
            while manager.recv(100) != b"READY=1":
                pass
            process.terminate()
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()
            process.wait()


@pytest.mark.requires_program("systemd-socket-activate")
def test_the_service_that_systemd_gives_its_socket(units: Path, folder: Path) -> None:
    command = exec_start(units, "fulgate-activated@shop.service", folder)
    given = [f"--setenv={name}={value}" for name, value in environment().items()]
    process = subprocess.Popen(
        ["systemd-socket-activate", f"--listen={folder}/sock", *given, *command], cwd=folder
    )
    try:
        until(lambda: listens(folder / "sock"))
        assert ask(f"unix:{folder}/sock") == b"A shop\n"  # who connects has it started
        process.terminate()
        assert process.wait(PATIENCE) == 0
        assert (folder / "sock").exists()  # it is systemd's
    finally:
        process.kill()
        process.wait()


# The container

INSTRUCTION = re.compile(r"^([A-Z]+) (.*)$", re.MULTILINE)


def instructions() -> list[tuple[str, str]]:
    text = (DEPLOY / "container" / "Containerfile").read_text()
    text = re.sub(r"^ *#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", "")
    return [(name, " ".join(rest.split())) for name, rest in INSTRUCTION.findall(text)]


def test_the_containerfile_names_what_is_there() -> None:
    found = instructions()
    known = "FROM RUN COPY WORKDIR USER ENV STOPSIGNAL HEALTHCHECK ENTRYPOINT CMD"
    assert {name for name, _ in found} == set(known.split())
    for name, rest in found:
        if name == "COPY" and "--from" not in rest:
            assert all((DEPLOY / "container" / source).is_file() for source in rest.split()[:-1])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = re.fullmatch(r"fulgate\[(.*)\]\n", (DEPLOY / "container/requirements.txt").read_text())
    assert wanted is not None
    assert set(wanted[1].split(",")) <= project["optional-dependencies"].keys()


@pytest.mark.slow
@pytest.mark.skipif(not HADOLINT.exists(), reason="no hadolint")
def test_a_linter_has_nothing_to_say_of_the_containerfile() -> None:
    for text, status in (("", 0), ("RUN cd /tmp\n", 1)):
        given = (DEPLOY / "container" / "Containerfile").read_text() + text
        done = subprocess.run(
            [HADOLINT, "--no-color", "-"], input=given, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == status, done.stdout


@pytest.mark.requires_root
@pytest.mark.requires_program("unshare")
def test_what_the_container_runs(folder: Path) -> None:
    """Not its building, which takes images from a registry; what it runs, as process 1."""
    found = dict(instructions())
    assert found["STOPSIGNAL"].strip() == "SIGTERM"
    for name in ("fulgate.toml", "shop.py"):
        text = (DEPLOY / "container" / name).read_text()
        (folder / name).write_text(text.replace("/run/fulgate", str(folder)))
    first = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if subprocess.run([*first, "true"], capture_output=True).returncode:
        pytest.skip("no PID name space")
    assert json.loads(found["ENTRYPOINT"]) == ["/opt/app/bin/fulgate"]
    assert json.loads(found["CMD"]) == ["serve"]
    check = json.loads(found["HEALTHCHECK"].partition("CMD ")[2])
    check = [*FULGATE, *check[1:-1], check[-1].replace("/run/fulgate", str(folder))]

    def healthy() -> int:
        return subprocess.run(check, cwd=folder, env=environment(), timeout=PATIENCE).returncode

    with Served(cwd=folder, within=first) as served:
        until(lambda: healthy() == 0)
        assert ask(f"unix:{folder}/app.sock") == b"A shop\n"
        served.wait_for(r'(?m)^\{.*"status":\s*200.*\}$')
        children = Path(f"/proc/{served.process.pid}/task/{served.process.pid}/children")
        os.kill(int(children.read_text()), signal.SIGTERM)
        assert served.process.wait(PATIENCE) == 0
    assert healthy() == 1


# Kubernetes


def documents() -> list[dict[str, Any]]:
    import yaml

    return list(yaml.safe_load_all((DEPLOY / "kubernetes" / "shop.yaml").read_text()))


@pytest.mark.slow
@needs_kubernetes
@pytest.mark.parametrize("version", ["1.30", "1.34", "1.37"])
def test_the_manifests_are_valid(version: str) -> None:
    import kubernetes_validate

    found = documents()
    for document in found:
        kubernetes_validate.validate(document, version, strict=True)
    kinds = ["ConfigMap", "Deployment", "Service", "PodDisruptionBudget"]
    assert [document["kind"] for document in found] == [
        *kinds, "HorizontalPodAutoscaler", "Ingress"
    ]  # fmt: skip
    # It does say what is wrong.
    found[1]["spec"]["template"]["spec"]["containers"][0]["readinessProbes"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(found[1], version, strict=True)


@contextlib.contextmanager
def nginx(folder: Path, text: str) -> Iterator[None]:
    (folder / "nginx.conf").write_text(text)
    process = subprocess.Popen(
        ["nginx", "-g", "daemon off;", "-e", f"{folder}/error.log", "-c", f"{folder}/nginx.conf"],
        env={**os.environ, "PATH": PATH}, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield
    finally:
        process.send_signal(signal.SIGQUIT)  # as its image has it
        assert process.wait(PATIENCE) == 0


def fetch(url: str) -> str:
    end = time.monotonic() + PATIENCE
    while True:
        try:
            with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
                text: str = answer.read().decode()
                return text
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)


@pytest.mark.slow
@needs_kubernetes
@pytest.mark.requires_server("nginx")
def test_the_pod_serves_and_is_probed(folder: Path) -> None:
    config, deployment, *_ = documents()
    pod = deployment["spec"]["template"]["spec"]
    server = next(c for c in pod["containers"] if c["name"] == "fulgate")
    port, status = free_port(), free_port()
    toml = config["data"]["fulgate.toml"].replace("/run/fulgate", str(folder))
    assert "tcp:0.0.0.0:9200" in toml
    toml = toml.replace("0.0.0.0:9200", f"127.0.0.1:{status}").replace("10.0.0.0/8", "127.0.0.0/8")
    (folder / "fulgate.toml").write_text(toml)
    (folder / "shop.py").write_text((DEPLOY / "container" / "shop.py").read_text())
    assert server["args"] == ["serve", "--config", "/etc/fulgate/fulgate.toml"]
    conf = config["data"]["nginx.conf"].replace("/tmp/", f"{folder}/")
    conf = conf.replace("/run/fulgate", str(folder))
    conf = conf.replace("listen 8080", f"listen 127.0.0.1:{port}")
    conf = conf.replace("/dev/stderr", f"{folder}/error.log")
    if os.geteuid() == 0:
        conf = "user root root;\n" + conf  # as nobody it would not get at the socket
    with Served("--config", "fulgate.toml", cwd=folder), nginx(folder, conf):
        assert fetch(f"http://127.0.0.1:{port}/") == "A shop\n"
        for probe in ("startupProbe", "livenessProbe"):
            path = server[probe]["httpGet"]["path"]
            assert fetch(f"http://127.0.0.1:{status}{path}").strip() == "ok"
        _, *ping = server["readinessProbe"]["exec"]["command"]
        ping[-1] = ping[-1].replace("/run/fulgate", str(folder))
        done = subprocess.run([*FULGATE, *ping], cwd=folder, env=environment(), timeout=PATIENCE)
        assert done.returncode == 0
        told = deployment["spec"]["template"]["metadata"]["annotations"]
        text = fetch(f"http://127.0.0.1:{status}{told['prometheus.io/path']}")
        assert re.search(r'^fulgate_threads\{pool="app",state="busy"\} ', text, re.MULTILINE)
        assert told["prometheus.io/port"] == str(server["ports"][0]["containerPort"])
