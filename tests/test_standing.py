"""How a server stands in the system: environment, root folder, title, pid file, logs of others."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fulgate.process import PidFile
from tests.command import APP, Served, environment, fulgate, refused
from tests.model import STDIN
from tests.processes import SOURCE
from tests.raw import Raw, head, stream
from tests.test_master import Pool, alive, children, until

WORKERS = [pytest.param((), id="alone"), pytest.param(("--workers", "1"), id="workers")]


@pytest.fixture
def project(folder: Path) -> Path:
    (folder / "hello.py").write_text(APP)
    return folder


def open_files(pid: int) -> list[str]:
    found = []
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # it was closed in the meantime
            found.append(os.readlink(path))
    return found


def title(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").decode()


# The environment


@pytest.mark.parametrize("workers", WORKERS)
def test_a_cleared_environment_holds_what_it_is_given(
    project: Path, workers: tuple[str, ...]
) -> None:
    (project / "env").write_text("FROM_FILE=1\nSECRET=file\n")
    given = ("--clear-env", "--env", "NAMED=2", "--env-file", "env")
    outside = {"SECRET": "outside", "FCGI_WEB_SERVER_ADDRS": "127.0.0.0/8"}
    with Served(
        "hello:app", "-b", "tcp:127.0.0.1:0", *workers, *given, cwd=project, env=outside
    ) as served:  # fmt: skip
        env = served.facts()["env"]
        env.pop("LC_CTYPE", None)  # Python's own doing (PEP 538), in a locale of C
        assert env == {
            "FROM_FILE": "1",
            "SECRET": "file",
            "NAMED": "2",
            "FCGI_WEB_SERVER_ADDRS": "127.0.0.0/8",
        }


@pytest.mark.parametrize("workers", WORKERS)
def test_who_may_connect_is_known_when_the_environment_is_cleared(
    project: Path, workers: tuple[str, ...]
) -> None:
    with Served(
        "hello:app", "-b", "tcp:127.0.0.1:0", *workers, "--clear-env",
        cwd=project, env={"FCGI_WEB_SERVER_ADDRS": "10.0.0.1"},
    ) as served:  # fmt: skip
        with pytest.raises(Exception, match=r"closed|reset|ended"):
            served.ask()
        served.wait_for("refused a connection from")


def test_pools_have_environments_and_niceness_of_their_own(project: Path) -> None:
    (project / "fulgate.toml").write_text(
        'app = "hello:app"\nenv = ["COMMON=1", "WHO=all"]\n'
        f'[pool.a]\nbind = ["unix:{project}/a"]\nenv = ["WHO=a"]\nnice = 7\n'
        f'[pool.b]\nbind = ["unix:{project}/b"]\nclear_env = true\nenv = ["WHO=b"]\n'
    )
    with Served(cwd=project, env={"OUTSIDE": "1"}) as served:
        a = json.loads(served.ask(endpoint=f"unix:{project}/a"))
        assert (a["env"]["COMMON"], a["env"]["WHO"], a["env"]["OUTSIDE"]) == ("1", "a", "1")
        assert os.getpriority(os.PRIO_PROCESS, a["pid"]) == 7
        b = json.loads(served.ask(endpoint=f"unix:{project}/b"))
        assert b["env"].get("WHO") == "b"
        assert not b["env"].keys() & {"COMMON", "OUTSIDE", "PATH"}
        assert os.getpriority(os.PRIO_PROCESS, b["pid"]) == 0


def test_an_application_loaded_in_the_master_has_its_environment(project: Path) -> None:
    options = ("hello:app", "-w", "1", "-b", "unix:s", "--preload-app", "--clear-env")
    assert "environment cannot be cleared" in refused(2, "serve", *options, cwd=project)


# Another root folder


JAIL = """\
set -e
root=$1 needed=$2; shift 2
for folder in /*; do
    case $folder in /dev | /proc | /run | /srv | /sys | /tmp) continue ;; esac
    if [ -L "$folder" ]; then
        ln -s "$(readlink "$folder")" "$root$folder"
    elif [ -d "$folder" ]; then
        mkdir "$root$folder" && mount --bind "$folder" "$root$folder"
    fi
done
for folder in $needed; do
    if [ -d "$folder" ] && [ ! -d "$root$folder" ]; then
        mkdir -p "$root$folder" && mount --bind "$folder" "$root$folder"
    fi
done
exec "$@"
"""


@pytest.fixture
def jail(folder: Path) -> tuple[Path, list[str]]:
    """A folder for a root, with an application in /srv of it; and the command to serve within.

    Python is there at the same paths: in a mount name space that ends with the server.
    """
    unshare = ["unshare", "--mount", "--propagation", "private"]
    done = subprocess.run([*unshare, "true"], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no mount name space: {done.stderr}")
    root = folder / "jail"
    (root / "srv").mkdir(parents=True)
    (root / "srv" / "hello.py").write_text(APP)
    needed = " ".join(str(path) for path in (SOURCE, sys.prefix, sys.base_prefix))
    return root, [*unshare, "sh", "-c", JAIL, "sh", str(root), needed]


@pytest.mark.requires_root
@pytest.mark.requires_program("unshare")
@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("chdir", ["/srv", ""])
def test_it_serves_in_another_root_folder(
    jail: tuple[Path, list[str]], folder: Path, workers: tuple[str, ...], chdir: str
) -> None:
    root, within = jail
    where = ("--chdir", chdir) if chdir else ("--pythonpath", "/srv")
    with Served(
        "hello:app", "-b", "unix:s?mode=666", "--chroot", str(root), *where, "-u", "nobody",
        "--allowed-clients", "uid:root", "--status-path", "/status",
        *workers, cwd=folder, within=within,
    ) as served:  # fmt: skip
        assert served.endpoints == [f"unix:{folder}/s"]  # outside
        facts = served.facts()
        assert facts["cwd"] == (chdir or "/")
        assert facts["ids"][:2] == [65534, 65534]
        assert facts["groups"] == os.getgrouplist("nobody", 65534)
        assert os.readlink(f"/proc/{facts['pid']}/root") == str(root)
        assert served.ask("/status")
        if workers:
            assert os.readlink(f"/proc/{served.process.pid}/root") == "/"
            served.process.send_signal(signal.SIGHUP)
            until(lambda: served.facts()["pid"] != facts["pid"], lambda: served.text)


@pytest.mark.requires_root
@pytest.mark.requires_program("unshare")
def test_an_application_is_checked_where_it_will_run(
    jail: tuple[Path, list[str]], folder: Path
) -> None:
    root, within = jail
    command = [sys.executable, "-m", "fulgate", "check", "hello:app", "--chroot", str(root)]
    for options, status in ((["-u", "nobody", "--chdir", "/srv"], 0), (["-u", "nobody"], 3)):
        done = subprocess.run(
            [*within, *command, *options],
            cwd=folder, env=environment(), capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == status, done.stderr
        for entry in root.iterdir():  # for the next time
            if entry.name != "srv":
                if entry.is_symlink():
                    entry.unlink()
                else:
                    for below in sorted(entry.rglob("*"), reverse=True):
                        below.rmdir()
                    entry.rmdir()


def test_what_cannot_be_a_root_folder(project: Path) -> None:
    options = ("serve", "hello:app", "-b", "unix:s")
    assert "begins with /" in refused(2, *options, "--chroot", "here", cwd=project)
    assert "name another user" in refused(2, *options, "--chroot", "/", cwd=project)
    if os.geteuid() == 0:
        for more in ((), ("--workers", "1")):
            chroot = ("--chroot", "/nowhere", "--user", "nobody")
            line = refused(2, *options, *chroot, *more, cwd=project)
            assert line == "chroot: /nowhere: there is no such folder"


# Privileges


@pytest.mark.requires_root
def test_check_loads_the_application_as_who_will_run_it(project: Path) -> None:
    (project / "hello.py").write_text(f"{APP}\nassert os.getuid() == 65534, os.getuid()\n")
    assert fulgate("check", "hello:app", "-u", "nobody", cwd=project).returncode == 0
    done = fulgate("check", "hello:app", cwd=project)
    assert (done.returncode, "AssertionError: 0" in done.stderr) == (3, True)
    (project / "hello.py").write_text("import os; os.kill(os.getpid(), 9)")
    line = refused(3, "check", "hello:app", "-u", "nobody", cwd=project)
    assert line == "hello:app: signal 9 ended the process that loaded it"


def test_check_looks_at_each_pool(project: Path) -> None:
    (project / "fulgate.toml").write_text(
        f'[pool.a]\napp = "hello:app"\nbind = ["unix:{project}/a"]\n'
        f'[pool.b]\napp = "other:app"\nbind = ["unix:{project}/b"]\n'
    )
    assert "there is no module" in refused(3, "check", cwd=project)
    (project / "other.py").write_text(APP)
    done = fulgate("check", cwd=project)
    assert done.stderr == "fulgate: the configuration is good, and hello:app, other:app load\n"


@pytest.mark.requires_root
def test_logs_are_opened_anew_for_workers_of_another_user(folder: Path) -> None:
    options = ("--user", "nobody", "--access-logfile", "access.log", "--pid", "pid")
    with Pool(folder, *options) as pool:
        pool.answer()
        before = pool.workers
        (folder / "access.log").rename(folder / "old")
        pool.signal(signal.SIGUSR1)
        until(lambda: not (before & pool.workers) and len(pool.workers) == 2, lambda: pool.text)

        def logged() -> str:
            pool.answer()
            return (folder / "access.log").read_text()

        until(logged)
        size = (folder / "old").stat().st_size
        pool.answer()
        assert (folder / "old").stat().st_size == size
        assert "cannot reopen" not in pool.text


# Titles


@pytest.mark.skipif(importlib.util.find_spec("setproctitle") is None, reason="no setproctitle")
def test_processes_have_titles(folder: Path) -> None:
    with Pool(folder) as pool:
        until(lambda: len(pool.workers) == 2)
        assert title(pool.process.pid) == "fulgate: master (counted:app)"
        wanted = {"fulgate: pool app worker 1", "fulgate: pool app worker 2"}
        until(lambda: {title(pid) for pid in pool.workers} == wanted)
    with Served("counted:app", "-b", "unix:s", cwd=folder) as served:
        assert title(served.process.pid) == "fulgate: counted:app"


# Process 1 of a container

FIRST = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
CONTAINED = """\
import json, os, subprocess, time

def app(environ, start_response):
    path = environ["PATH_INFO"]
    status = None
    if path == "/orphan":
        subprocess.run(["sh", "-c", "sleep 100 & exit 0"])
    if path == "/child":
        status = subprocess.run(["sh", "-c", "sleep 0.2; exit 7"]).returncode
    if path == "/slow":
        open("started", "w").close()
        time.sleep(60)
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps([os.getpid(), os.getppid(), status]).encode()]
"""


def comm(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


class Container(Served):
    """A server that is process 1 of a name space; `first` is its number outside."""

    def __init__(self, folder: Path, *options: str) -> None:
        if subprocess.run([*FIRST, "true"], capture_output=True).returncode:
            pytest.skip("no PID name space")
        (folder / "contained.py").write_text(CONTAINED)
        super().__init__("contained:app", "-b", "unix:s", *options, cwd=folder, within=FIRST)
        (self.first,) = children(self.process.pid)

    def end(self, number: int = signal.SIGTERM) -> int:
        os.kill(self.first, number)
        return self.process.wait(30)


@pytest.mark.requires_root
@pytest.mark.requires_program("unshare")
@pytest.mark.parametrize("workers", WORKERS)
def test_the_first_process_of_a_container_reaps_orphans_and_passes_signals_on(
    folder: Path, workers: tuple[str, ...]
) -> None:
    with Container(folder, *workers, "--access-logfile", "log") as served:
        pid, parent, _ = json.loads(served.ask())
        assert (pid != 1, parent) == (True, 1)
        assert json.loads(served.ask("/child"))[2] == 7  # nobody else takes its status
        before = children(served.first)
        served.ask("/orphan")
        (orphan,) = children(served.first) - before
        until(lambda: comm(orphan) == "sleep")
        os.kill(orphan, signal.SIGKILL)
        until(lambda: orphan not in children(served.first))  # a zombie would stay there
        (folder / "log").rename(folder / "old")
        os.kill(served.first, signal.SIGUSR1)
        until((folder / "log").exists)
        assert served.end() == 0
    assert not (folder / "s").exists()


@pytest.mark.requires_root
@pytest.mark.requires_program("unshare", "nsenter")
@pytest.mark.parametrize("workers", WORKERS)
def test_commands_find_a_server_in_a_container(folder: Path, workers: tuple[str, ...]) -> None:
    with Container(folder, *workers, "--access-logfile", "log") as served:
        before = json.loads(served.ask())[0]
        (folder / "log").rename(folder / "old")
        inside = ["nsenter", "--target", str(served.first), "--pid", "--mount"]
        command = [sys.executable, "-m", "fulgate", "reload", "--bind", f"unix:{folder}/s"]
        done = subprocess.run(
            [*inside, *command], env=environment(), capture_output=True, text=True, timeout=60
        )
        assert (done.returncode, done.stderr) == (0, "")
        if workers:
            until(lambda: json.loads(served.ask())[0] != before, lambda: served.text)
        else:
            until((folder / "log").exists)
        assert served.end() == 0


@pytest.mark.requires_root
@pytest.mark.requires_program("unshare")
@pytest.mark.parametrize("workers", WORKERS)
def test_a_second_signal_to_the_first_process_cuts_requests_off(
    folder: Path, workers: tuple[str, ...]
) -> None:
    served = Container(folder, *workers)
    try:
        with Raw(folder / "s") as raw:
            raw.send(head("/slow"), stream(STDIN, 1, b""))
            until((folder / "started").exists)
            os.kill(served.first, signal.SIGTERM)
            with pytest.raises(subprocess.TimeoutExpired):
                served.process.wait(0.5)
            assert served.end() == 128 + signal.SIGTERM
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(served.first, signal.SIGKILL)
        served.process.wait()


@pytest.mark.requires_root
@pytest.mark.requires_program("unshare")
def test_the_first_process_ends_as_the_one_that_serves(folder: Path) -> None:
    if subprocess.run([*FIRST, "true"], capture_output=True).returncode:
        pytest.skip("no PID name space")
    command = [*FIRST, sys.executable, "-m", "fulgate", "serve", "broken:app", "-b", "unix:s"]
    for text, status in (("1 / 0", 3), ("import os; os.kill(os.getpid(), 9)", 128 + 9)):
        (folder / "broken.py").write_text(text)
        done = subprocess.run(
            command, cwd=folder, env=environment(), capture_output=True, timeout=60
        )
        assert done.returncode == status, done.stderr


# The pid file


def test_a_pid_file_is_taken_over_while_workers_of_a_killed_master_live(folder: Path) -> None:
    with Pool(folder, "--pid", "pid") as pool:
        until(lambda: len(pool.workers) == 2)
        (worker, _) = workers = pool.workers
        until(lambda: not any(str(folder / "pid") in open_files(pid) for pid in workers))
        os.kill(worker, signal.SIGSTOP)
        try:
            pool.process.kill()
            pool.process.wait()
            file = PidFile(str(folder / "pid"))  # as a new master does
            assert (folder / "pid").read_text() == f"{os.getpid()}\n"
            assert alive(worker)
            file.remove()
        finally:
            os.kill(worker, signal.SIGCONT)
        until(lambda: not any(alive(pid) for pid in workers))
        pool.process = Served("counted:app", "-b", "unix:t", cwd=folder).process


def test_a_program_that_is_executed_anew_keeps_its_pid_file(folder: Path) -> None:
    with Pool(folder, "--pid", "pid") as pool:
        pool.answer()
        before = pool.workers
        pool.signal(signal.SIGUSR2)
        until(lambda: not (before & pool.workers) and len(pool.workers) == 2, lambda: pool.text)
        assert (folder / "pid").read_text() == f"{pool.process.pid}\n"
        assert "a process that runs has the file pid" in refused(
            2, "serve", "counted:app", "-b", "unix:t", "--pid", "pid", cwd=folder
        )
    assert not (folder / "pid").exists()


def test_pools_of_a_file_are_executed_anew(project: Path) -> None:
    (project / "fulgate.toml").write_text(
        f'pid = "pid"\n[pool.a]\napp = "hello:app"\nbind = ["unix:{project}/a"]\n'
    )
    with Served(cwd=project) as served:
        before = served.facts()["pid"]
        served.process.send_signal(signal.SIGUSR2)
        until(lambda: served.facts()["pid"] != before, lambda: served.text)
