"""Commands find the status of a server that runs, by whatever names the server."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from functools import partial
from pathlib import Path

import pytest

from tests.command import Served, here, refused_here
from tests.processes import output, python
from tests.test_master import APP, Pool, until

WORKERS = [("--workers", "2"), ()]

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")


def site(folder: Path, *options: str) -> Served:
    (folder / "counted.py").write_text(APP)
    bind = () if any("bind=tcp" in one for one in options) else ("--bind=unix:sock",)
    return Served("counted:app", *bind, *options, "--pidfile", "pid", cwd=folder)


def pools(folder: Path, *options: str) -> list[str]:
    """Give the names of the pools whose status is shown."""
    done = here("status", "--json", *options, cwd=folder)
    assert done.returncode == 0, done.stderr
    return [pool["name"] for pool in json.loads(done.stdout)["pools"]]


def names(folder: Path, served: Served) -> list[tuple[str, ...]]:
    """Give each way to name a server, which hold in any folder."""
    return [
        ("--pidfile", str(folder / "pid")),
        ("--bind", f"unix:{folder}/sock"),
        ("--pid", str(served.process.pid)),
    ]


def counted(requests: int, *named: str, cwd: Path) -> bool:
    """Does the status of the server that is so named count so many requests?"""
    text = here("status", *named, cwd=cwd).stdout
    return re.search(rf"^requests: +{requests}$", text, re.MULTILINE) is not None


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("status", ["--status-bind=unix:status.sock", "--status-path=/own/status"])
def test_the_status_of_whatever_names_the_server(
    folder: Path, tmp_path: Path, workers: tuple[str, ...], status: str
) -> None:
    with site(folder, *workers, status) as served:
        served.ask()  # it counts once the thread is through with it
        for named in names(folder, served):
            until(partial(counted, 1, *named, cwd=tmp_path), named)
            top = here("top", *named, "--count=1", cwd=tmp_path)
            assert "threads busy" in top.stdout, top
            assert here("status", *named, "--health", cwd=tmp_path).stdout == "ok\n"


@pytest.mark.parametrize("workers", WORKERS)
def test_a_server_without_a_status(folder: Path, workers: tuple[str, ...]) -> None:
    with site(folder, *workers) as served:
        served.ask()
        for command in ("status", "top"):
            for named in names(folder, served):
                line = refused_here(2, command, *named, cwd=folder)
                assert f"process {served.process.pid} has no status: start it with" in line
                assert "--status-bind" in line
                assert "--status-path" in line
    assert "cannot read pid" in refused_here(2, "status", "--pidfile", "pid", cwd=folder)
    assert "nobody listens" in refused_here(2, "top", "--bind", "unix:sock", cwd=folder)
    assert "does not tell" in refused_here(2, "top", "--pid", str(os.getpid()), cwd=folder)
    assert "say which server" in refused_here(2, "status", cwd=folder)


def test_a_server_on_tcp_is_found_too(folder: Path) -> None:
    with site(
        folder, "--bind=tcp:127.0.0.1:0", "--workers=1", "--status-path=/own/status"
    ) as served:
        served.ask()
        assert pools(folder, "--bind", served.endpoints[0]) == ["app"]
        before = served.ask().split()[1]
        assert here("reload", "--bind", served.endpoints[0], cwd=folder).returncode == 0
        until(lambda: served.ask().split()[1] != before)
        assert here("stop", "--bind", served.endpoints[0], cwd=folder).returncode == 0
        assert served.process.wait(20) == 0
        line = refused_here(2, "stop", "--bind", served.endpoints[0], cwd=folder)
        assert "no process that you may look into serves at" in line


def test_each_pool_has_its_own_and_a_reload_moves_it(folder: Path) -> None:
    (folder / "counted.py").write_text(APP)

    def write(second: str) -> None:
        (folder / "fulgate.toml").write_text(
            '[pool.one]\napp = "counted:app"\nbind = ["unix:1"]\nstatus_bind = ["unix:status1"]\n'
            f'[pool.two]\napp = "counted:app"\nbind = ["unix:2"]\nstatus_bind = ["unix:{second}"]\n'
        )

    write("status2")
    with Served("--pidfile", "pid", cwd=folder) as served:
        assert pools(folder, "--bind", "unix:1") == ["one"]
        assert pools(folder, "--bind", "unix:2") == ["two"]
        assert pools(folder, "--pidfile", "pid") == pools(folder) == ["one"]
        write("moved")
        assert here("reload", "--bind", "unix:2", cwd=folder).returncode == 0
        until(lambda: (folder / "moved").exists())
        until(lambda: pools(folder, "--bind", "unix:2") == ["two"])
        until(lambda: not (folder / "status2").exists())
        announced = served.text.count(" serves ")
        served.process.send_signal(signal.SIGUSR2)
        until(lambda: served.text.count(" serves ") == 2 * announced, lambda: served.text)
        assert pools(folder, "--bind", "unix:2") == ["two"]


@pytest.mark.requires_root
def test_who_may_not_look_into_the_process(folder: Path) -> None:
    with Pool(folder, "--status-path", "/own/status") as pool:
        said = output(
            python(f"""
            import os
            from fulgate import whereabouts
            from fulgate.errors import ConfigError
            os.setuid(65534)
            try:
                whereabouts.of({pool.process.pid})
            except ConfigError as error:
                print(error, whereabouts.at("unix:{folder}/sock"))
            """)
        )
    assert said == f"process {pool.process.pid}: only its own user and root may look into it []"
