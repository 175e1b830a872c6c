"""The master and its workers, with real forks and signals."""

from __future__ import annotations

import collections
import contextlib
import errno
import os
import re
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fulgate.client.connection import call
from fulgate.errors import FulgateError
from tests.command import Served, fulgate, refused
from tests.model import STDIN
from tests.raw import Raw, head, stream

APP = """\
import os, time

HELD = []

def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/sleep":
        time.sleep(60)
    if path == "/stuck":
        import ctypes
        ctypes.PyDLL(None).sleep(60)  # with the GIL held
    if path == "/eat":
        HELD.append(b"x" * (1 << 26))
    if path == "/begun":
        start_response("200 OK", [("Content-Type", "text/plain")])(b"begun")
        time.sleep(60)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{VERSION} {os.getpid()} {os.getppid()} {os.getuid()}".encode()]

VERSION = 1
"""


def get(folder: Path, path: str) -> int:
    """Make a request, and give the status of its answer."""
    params = {"REQUEST_METHOD": "GET", "REQUEST_URI": path, "PATH_INFO": path, "SCRIPT_NAME": ""}
    return call(f"unix:{folder}/sock", params).status


def until(condition: Callable[[], object], what: object = "", seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what() if callable(what) else what
        time.sleep(0.02)


def children(pid: int) -> set[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return {int(child) for child in found}


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


def cpu_of(pids: Iterable[int]) -> float:
    """Give the seconds of CPU time that processes have used."""
    stats = [Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split() for pid in pids]
    return sum(int(f[11]) + int(f[12]) for f in stats) / os.sysconf("SC_CLK_TCK")


class Pool(Served):
    """A master with workers of `APP`."""

    def __init__(
        self,
        folder: Path,
        *options: str,
        workers: int = 2,
        app: str = APP,
        env: dict[str, str] | None = None,
    ) -> None:
        (folder / "site.toml").write_text("")
        (folder / "counted.py").write_text(app)
        common = ("counted:app", "--bind", f"unix:{folder}/sock", "--threads", "2")
        super().__init__(*common, "--workers", str(workers), *options, cwd=folder, env=env)
        self.folder = folder

    @property
    def workers(self) -> set[int]:
        return children(self.process.pid)

    def answer(self, path: str = "/") -> list[str]:
        return self.ask(path).decode().split()

    def worker(self) -> int:
        return int(self.answer()[1])

    def version(self) -> str:
        return self.answer()[0]

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def write(self, **changes: str) -> None:
        (self.folder / "counted.py").write_text(APP.replace("VERSION = 1", changes["version"]))


def test_workers_serve_and_all_end_at_once(folder: Path) -> None:
    with Pool(folder) as pool:
        until(lambda: len(pool.workers) == 2)
        assert pool.worker() in pool.workers
        workers = pool.workers
        assert pool.answer()[2] == str(pool.process.pid)
        assert pool.end() == 0
        assert not any(alive(pid) for pid in workers)
        assert not (folder / "sock").exists()


def stands_still(pid: int) -> bool:
    stats = [task / "stat" for task in Path(f"/proc/{pid}/task").iterdir()]
    return all(stat.read_text().rpartition(") ")[2][0] == "T" for stat in stats)


def keep(folder: Path, stack: contextlib.ExitStack, count: int) -> collections.Counter[bytes]:
    """Open connections and keep them; give how many each worker answered on."""
    raws = [stack.enter_context(Raw(folder / "sock")) for _ in range(count)]
    for raw in raws:
        raw.expect()
        raw.send(head("/"), stream(STDIN, 1, b""))
    return collections.Counter(raw.answer().body.split()[1] for raw in raws)


def test_connections_that_are_kept_spread_over_the_workers(folder: Path) -> None:
    with Pool(folder) as pool, contextlib.ExitStack() as stack:
        until(lambda: len(pool.workers) == 2 and len({pool.worker() for _ in range(20)}) == 2)
        pids = keep(folder, stack, 40)
        assert len(pids) == 2
        assert min(pids.values()) >= 10, pids


def test_a_worker_that_stands_still_keeps_nobody_waiting(folder: Path) -> None:
    with Pool(folder) as pool, contextlib.ExitStack() as stack:
        until(lambda: len(pool.workers) == 2 and len({pool.worker() for _ in range(20)}) == 2)
        stopped, other = sorted(pool.workers)
        os.kill(stopped, signal.SIGSTOP)
        until(lambda: stands_still(stopped))
        try:
            pids = keep(folder, stack, 40)
        finally:
            os.kill(stopped, signal.SIGCONT)
        assert pids == {str(other).encode(): 40}


def test_a_reload_takes_new_code_and_a_broken_one_changes_nothing(folder: Path) -> None:
    with Pool(folder) as pool:
        pool.answer()
        before = pool.workers
        pool.write(version="VERSION = 2")
        pool.signal(signal.SIGHUP)
        until(lambda: not (before & pool.workers) and len(pool.workers) == 2, lambda: pool.text)
        assert pool.version() == "2"
        before = pool.workers
        pool.write(version="raise LookupError('broken')")
        pool.signal(signal.SIGHUP)
        pool.wait_for("the reload has failed")
        assert "LookupError: broken" in pool.text
        until(lambda: pool.workers == before, lambda: pool.text)
        assert pool.version() == "2"
        pool.write(version="VERSION = 3")
        pool.signal(signal.SIGHUP)
        until(lambda: not (before & pool.workers) and len(pool.workers) == 2, lambda: pool.text)
        assert pool.version() == "3"


def test_a_worker_that_is_killed_is_replaced(folder: Path) -> None:
    with Pool(folder) as pool:
        victim = pool.worker()
        os.kill(victim, signal.SIGKILL)
        # It may have answered before the master heard that it was ready.
        until(lambda: re.search(rf"worker {victim} (has )?ended by signal 9", pool.text))
        until(lambda: len(pool.workers) == 2 and victim not in pool.workers)
        assert pool.worker() != victim


def test_workers_end_with_their_master_and_another_takes_the_socket(folder: Path) -> None:
    pool = Pool(folder)
    try:
        pool.answer()
        workers = pool.workers
        pool.process.kill()
        pool.process.wait()
        with Pool(folder) as other:
            assert int(other.answer()[2]) == other.process.pid
            until(lambda: not any(alive(pid) for pid in workers))
    finally:
        pool.process.kill()


def test_an_application_that_never_loads_ends_the_master(folder: Path) -> None:
    (folder / "broken.py").write_text("raise LookupError('no such thing')")
    done = fulgate("serve", "broken:app", "-w", "2", "--bind", f"unix:{folder}/s", cwd=folder)
    assert done.returncode == 3
    assert "no such thing" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("fulgate: error: app: the application does not")
    assert not (folder / "s").exists()


def test_workers_that_die_before_they_are_ready_end_the_master(folder: Path) -> None:
    (folder / "broken.py").write_text("import os; os._exit(9)")
    done = fulgate("serve", "broken:app", "-w", "1", "--bind", f"unix:{folder}/s", cwd=folder)
    assert done.returncode == 3
    assert "5 workers one after the other did not get ready" in done.stderr


@pytest.mark.parametrize(
    ("options", "path", "reason"),
    [
        (("--max-requests", "3"), "/", "requests"),
        (("--max-age", "0.5"), "/", "s old"),
        (("--max-rss", "90M"), "/eat", "MiB of memory"),
    ],
)
def test_workers_are_recycled(
    folder: Path, options: tuple[str, ...], path: str, reason: str
) -> None:
    with Pool(folder, *options, workers=1) as pool:
        first = pool.worker()
        end = time.monotonic() + 60
        while pool.worker() == first:
            assert time.monotonic() < end, pool.text
            pool.ask(path)
        pool.wait_for(rf"worker {first} ends: .*{reason}")
        until(lambda: not alive(first))


def test_signals_change_the_count_of_workers_and_reopen_logs(folder: Path) -> None:
    with Pool(folder, "--access-logfile", "access.log") as pool:
        until(lambda: len(pool.workers) == 2)
        pool.signal(signal.SIGTTIN)
        until(lambda: len(pool.workers) == 3)
        pool.signal(signal.SIGTTOU)
        until(lambda: len(pool.workers) == 2)
        pool.answer()
        until(lambda: (folder / "access.log").read_text())
        (folder / "access.log").rename(folder / "access.log.1")
        pool.signal(signal.SIGUSR1)
        until((folder / "access.log").exists)

        def logged() -> str:
            pool.answer()
            return (folder / "access.log").read_text()

        until(logged)


def test_quit_does_not_wait_for_requests(folder: Path) -> None:
    pool = Pool(folder)
    try:
        with Raw(folder / "sock") as raw:
            raw.expect()
            raw.send(head("/begun"), stream(STDIN, 1, b""))
            until(lambda: raw.receive(time.monotonic() + 20) and raw.got)
            workers = pool.workers
            pool.signal(signal.SIGQUIT)
            assert pool.process.wait(20) == 128 + signal.SIGQUIT
            assert not any(alive(pid) for pid in workers)
    finally:
        pool.process.kill()
        pool.process.wait()


def test_the_program_executes_itself_anew(folder: Path) -> None:
    with Pool(folder) as pool:
        pool.answer()
        before = pool.workers
        pool.write(version="raise LookupError('broken')")
        pool.signal(signal.SIGUSR2)
        pool.wait_for("not executed anew")
        assert "broken" in pool.text
        assert pool.version() == "1"
        pool.write(version="VERSION = 2")
        pool.signal(signal.SIGUSR2)
        until(lambda: not (before & pool.workers) and len(pool.workers) == 2, lambda: pool.text)
        assert pool.version() == "2"
        assert pool.answer()[2] == str(pool.process.pid)
    assert not (folder / "sock").exists()


def test_a_request_that_takes_too_long_is_answered_and_its_worker_replaced(folder: Path) -> None:
    with Pool(folder, "--request-timeout", "0.5", "--graceful-timeout", "5") as pool:
        worker = pool.worker()
        assert get(folder, "/sleep") == 504
        said = pool.wait_for(r"(?s)gave up a request.*?GET /sleep.*?counted.py.*?time.sleep")
        assert said
        assert worker
        pool.wait_for("ends: a request did not end in time")
        until(lambda: len(pool.workers) == 2)
        assert pool.version() == "1"


def test_a_worker_that_holds_its_interpreter_is_killed(folder: Path) -> None:
    with Pool(folder, "--request-timeout", "0.5", workers=1) as pool:
        worker = pool.worker()
        with pytest.raises(FulgateError):
            get(folder, "/stuck")
        pool.wait_for(f"worker {worker} is killed")
        pool.wait_for('it runs "GET /stuck"')
        assert "counted.py" in pool.wait_for(r"(?s)its stacks:.*?in app")
        until(lambda: pool.workers and worker not in pool.workers)
        assert pool.version() == "1"


def test_a_worker_that_holds_its_interpreter_before_it_is_ready_is_killed(folder: Path) -> None:
    # It serves from the moment on at which it is about to say that it is ready.
    silent = """\
from fulgate.processes import worker

def tell(self, what, tell=worker._Life.tell):
    if what == worker.READY and self.worker.number == 1: time.sleep(60)
    tell(self, what)

worker._Life.tell = tell
"""
    app = APP.replace("HELD = []", silent + "HELD = []")
    with Pool(folder, "--request-timeout", "0.5", workers=1, app=app) as pool:
        worker = pool.worker()
        with pytest.raises(FulgateError):
            get(folder, "/stuck")
        pool.wait_for(f"worker {worker} is killed")
        pool.wait_for('it runs "GET /stuck"')
        assert "counted.py" in pool.wait_for(r"(?s)its stacks:.*?in app")


@pytest.mark.parametrize("load", ["time.sleep(60)", "__import__('ctypes').PyDLL(None).sleep(60)"])
def test_a_stop_does_not_wait_for_an_application_that_loads(folder: Path, load: str) -> None:
    app = APP.replace("HELD = []", f"open('loading', 'w').close(); {load}")
    with Pool(folder, app=app) as pool:
        until((folder / "loading").exists)
        workers = pool.workers
        assert pool.end() == 0
        assert "before it was ready" not in pool.text
        assert not any(alive(pid) for pid in workers)


@pytest.mark.parametrize("wait", ["time.sleep(60)", "__import__('ctypes').PyDLL(None).sleep(60)"])
def test_a_stop_does_not_wait_for_a_hook_of_a_worker_that_does_not_serve_yet(
    folder: Path, wait: str
) -> None:
    hook = f"def post_worker_init(worker):\n    open('loading', 'w').close(); {wait}\n"
    (folder / "myhooks.py").write_text(f"import time\n\n{hook}")
    with Pool(folder, "--hooks", "myhooks") as pool:
        until((folder / "loading").exists)
        workers = pool.workers
        assert pool.end() == 0
        assert "is killed" not in pool.text
        assert not any(alive(pid) for pid in workers)


@pytest.mark.parametrize("wait", ["await asyncio.sleep(60)", "time.sleep(60)"])
def test_a_stop_does_not_wait_for_the_startup_of_an_asgi_application(
    folder: Path, wait: str
) -> None:
    app = f"""\
import asyncio, time

async def app(scope, receive, send):
    open("loading", "w").close()
    {wait}
"""
    with Pool(folder, app=app) as pool:
        until((folder / "loading").exists)
        workers = pool.workers
        assert pool.end() == 0
        assert "is killed" not in pool.text
        assert not any(alive(pid) for pid in workers)


def test_a_stop_does_not_wait_for_a_program_to_be_executed_anew(folder: Path) -> None:
    with Pool(folder) as pool:
        pool.answer()
        pool.write(version="open('loading', 'w').close(); time.sleep(60)")
        pool.signal(signal.SIGUSR2)
        until((folder / "loading").exists)
        assert pool.end() == 0


def test_an_application_that_goes_on_after_its_time_learns_that_its_request_is_over(
    folder: Path,
) -> None:
    late = """time.sleep(1.5)
        try:
            start_response("200 OK", [])
        except __import__("fulgate").Aborted:
            open("aborted", "w").close()
            raise"""
    app = APP.replace("time.sleep(60)", late, 1)
    with Pool(folder, "--request-timeout", "0.5", workers=1, app=app) as pool:
        assert get(folder, "/sleep") == 504
        until((folder / "aborted").exists, lambda: pool.text)
    assert "the application raised" not in pool.text


def test_a_slow_request_is_logged_once_with_its_stack(folder: Path) -> None:
    waits = "while not os.path.exists('go'): time.sleep(0.05)"
    app = APP.replace("time.sleep(60)", waits, 1)
    options = ("--request-slowlog-timeout", "0.2")
    with Pool(folder, *options, workers=1, app=app) as pool, ThreadPoolExecutor(1) as executor:
        asked = executor.submit(pool.ask, "/sleep")
        try:
            pool.wait_for(r"slow: \d+\.\d s so far: \"GET /sleep HTTP/1.1\" id=the-id")
            pool.wait_for(re.escape(waits))
            time.sleep(0.5)  # as long as that again, and longer
        finally:
            (folder / "go").touch()
        assert asked.result(60)
        assert pool.text.count("slow: ") == 1
        assert "in _bootstrap" not in pool.text  # what leads to the application is always the same


HOOKS = """\
import os
def note(name):
    def hook(*given):
        with open("hooks.log", "a") as log:
            log.write(f"{name} {len(given)} {os.getpid()}\\n")
    return hook
for name in ("on_starting", "when_ready", "pre_fork", "post_fork", "post_worker_init",
             "worker_exit", "child_exit", "on_reload", "on_exit"):
    globals()[name] = note(name)
"""


def test_hooks_are_called_and_an_application_can_be_loaded_before_the_fork(folder: Path) -> None:
    (folder / "myhooks.py").write_text(HOOKS)
    options = ("--hooks", "myhooks", "--preload-app")
    app = APP.replace("VERSION = 1", "VERSION = os.getpid()")
    with Pool(folder, *options, workers=1, app=app) as pool:
        assert pool.version() == str(pool.process.pid)  # imported in the master
        worker = pool.worker()
        # It serves a moment before the master knows that it does.
        until(lambda: "when_ready" in (folder / "hooks.log").read_text())
    master = pool.process.pid
    log = (folder / "hooks.log").read_text().splitlines()
    assert log == [
        f"on_starting 1 {master}",
        f"pre_fork 2 {master}",
        f"post_fork 2 {worker}",
        f"post_worker_init 1 {worker}",
        f"when_ready 1 {master}",
        f"worker_exit 2 {worker}",
        f"child_exit 2 {master}",
        f"on_exit 1 {master}",
    ]


def test_a_signal_is_obeyed_once_it_says_that_it_serves(folder: Path) -> None:
    (folder / "myhooks.py").write_text(
        "import time\n\ndef on_starting(master):\n    time.sleep(1)\n"
    )
    with Pool(folder, "--hooks", "myhooks", "--log-level=debug", workers=1) as pool:
        pool.signal(signal.SIGHUP)
        pool.wait_for("is ready\n")
        assert pool.version() == "1"


def test_several_pools_of_one_file_and_what_it_includes(folder: Path) -> None:
    for name in ("one", "two"):
        (folder / f"{name}.py").write_text(APP.replace("VERSION = 1", f"VERSION = '{name}'"))
    (folder / "fulgate.toml").write_text(
        'include = ["pools/*.toml"]\nthreads = 2\n'
        f'[pool.one]\napp = "one:app"\nbind = ["unix:{folder}/1"]\nworkers = 2\n'
    )
    (folder / "pools").mkdir()
    (folder / "pools" / "two.toml").write_text(
        f'[pool.two]\napp = "two:app"\nbind = ["unix:{folder}/2"]\npool_mode = "ondemand"\n'
        "process_idle_timeout = 0.5\n"
    )
    with Served(cwd=folder) as server:
        assert len(server.endpoints) == 2
        assert server.ask("/", f"unix:{folder}/1").startswith(b"one ")
        until(lambda: len(children(server.process.pid)) == 2)
        before = children(server.process.pid)
        name, pid, *_ = server.ask("/", f"unix:{folder}/2").decode().split()
        assert name == "two"
        assert int(pid) not in before  # a third one, for as long as it has work
        until(lambda: len(children(server.process.pid)) == 2)
        assert server.ask("/", f"unix:{folder}/2").startswith(b"two ")


def test_a_reload_that_does_not_load_leaves_the_sockets_of_before(folder: Path) -> None:
    def write(name: str, sock: str) -> None:
        (folder / "fulgate.toml").write_text(
            f'[pool.{name}]\napp = "counted:app"\nbind = ["unix:{folder}/{sock}"]\n'
        )

    (folder / "counted.py").write_text(APP)
    write("one", "1")
    with Served(cwd=folder) as server:
        before = server.ask("/", f"unix:{folder}/1").split()[1]
        (folder / "counted.py").write_text("raise LookupError('broken')")
        write("one", "2")
        server.process.send_signal(signal.SIGHUP)
        server.wait_for("the reload has failed")
        until(lambda: not (folder / "2").exists())
        assert server.ask("/", f"unix:{folder}/1").split()[1] == before
        # A worker that dies now has another one come, of the code as it is then.
        (folder / "counted.py").write_text(APP)
        os.kill(int(before), signal.SIGKILL)
        assert server.ask("/", f"unix:{folder}/1").split()[1] != before
        server.process.send_signal(signal.SIGHUP)
        until(lambda: (folder / "2").exists() and not (folder / "1").exists())
        assert server.ask("/", f"unix:{folder}/2").startswith(b"1 ")
        write("two", "2")  # the same socket, of a pool of another name
        worker = server.ask("/", f"unix:{folder}/2").split()[1]
        server.process.send_signal(signal.SIGHUP)
        until(lambda: server.ask("/", f"unix:{folder}/2").split()[1] != worker)


def test_mistakes_in_pools_are_told(folder: Path) -> None:
    file = folder / "fulgate.toml"
    file.write_text('[pool.a]\napp = "x:app"\npid = "p"\n')
    assert "pid is the master's" in refused(2, "serve", cwd=folder)
    file.write_text("[pool.a]\nworker = 1\n")
    assert "did you mean 'workers'" in refused(2, "serve", cwd=folder)
    file.write_text("[pool.a]\nworkers = 1\n")
    assert "pool a: name the application" in refused(2, "serve", cwd=folder)
    file.write_text('workers = "auto"\n')
    assert "name the application" in refused(2, "serve", cwd=folder)


@pytest.mark.requires_root
def test_workers_give_up_privileges_and_the_master_keeps_them(folder: Path) -> None:
    options = ("--user", "nobody", "--group", "nogroup")
    with Pool(folder, *options, workers=1) as pool:
        before = pool.worker()
        assert pool.answer()[3] == "65534"
        os.kill(before, signal.SIGKILL)
        until(lambda: pool.workers and before not in pool.workers)
        assert pool.answer()[3] == "65534"


def test_commands_reload_and_stop(folder: Path) -> None:
    with Pool(folder, "--pid", "pid") as pool:
        until(lambda: len(pool.workers) == 2)
        for options in (("--bind", f"unix:{folder}/sock"), ("--pidfile", "pid")):
            pool.answer()
            before = pool.workers
            done = fulgate("reload", *options, cwd=folder)
            assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
            until(lambda: not (before & pool.workers) and len(pool.workers) == 2)  # noqa: B023
        assert fulgate("stop", "--pid", str(pool.process.pid), cwd=folder).returncode == 0
        assert pool.process.wait(20) == 0
    assert "nobody listens" in refused(2, "stop", "--bind", f"unix:{folder}/sock", cwd=folder)
    assert "cannot read pid" in refused(2, "reload", "--pidfile", "pid", cwd=folder)
    (folder / "pid").write_text(f"{os.getpid()}\n")
    assert "no process that runs" in refused(2, "reload", "--pidfile", "pid", cwd=folder)
    assert "say which server" in refused(2, "reload", cwd=folder)


def test_a_process_that_serves_alone_opens_its_logs_anew(folder: Path) -> None:
    (folder / "counted.py").write_text(APP)
    log = folder / "access.log"
    options = ("--bind", f"unix:{folder}/sock", "--access-logfile", "access.log")
    with Served("counted:app", *options, cwd=folder) as served:
        for number in (signal.SIGUSR1, signal.SIGHUP):
            served.ask()
            until(lambda: log.exists() and log.read_text())
            log.rename(folder / "old")
            served.process.send_signal(number)
            until(log.exists)
        served.ask()
        until(log.read_text)


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--max-requests=1000",)], ids=["plain", "max_requests"])
def test_idle_processes_use_next_to_no_cpu(folder: Path, options: tuple[str, ...]) -> None:
    with Pool(folder, *options, "--log-level=debug", workers=8) as pool:
        until(lambda: pool.text.count("is ready\n") == 8, lambda: pool.text)
        pool.answer()
        time.sleep(1)  # all are at rest

        pids = (pool.process.pid, *pool.workers)
        before, began = cpu_of(pids), time.monotonic()
        time.sleep(5)
        share = (cpu_of(pids) - before) / (time.monotonic() - began)
        assert share < 0.02, share  # all nine have 0.001; a loop without end has 1


@pytest.mark.requires_program("cc")
@pytest.mark.parametrize("fault", [errno.EAGAIN, errno.ENOMEM])
def test_a_fork_that_fails_is_tried_again(folder: Path, fault: int) -> None:
    shim = folder / "fork.so"
    source = Path(__file__).parent / "fault" / "fork.c"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", shim, source, "-ldl"], check=True)
    note = folder / "fault"
    env = {"LD_PRELOAD": str(shim), "FULGATE_FORK_FAULT": str(note)}
    with Pool(folder, env=env) as pool:
        until(lambda: len(pool.workers) == 2)
        note.write_text(str(fault))
        victim = pool.worker()
        os.kill(victim, signal.SIGKILL)
        pool.wait_for(f"cannot fork a worker: {os.strerror(fault)}")
        (other,) = pool.workers - {victim}
        assert pool.worker() == other
        note.unlink()
        until(lambda: len(pool.workers) == 2)


def test_a_master_without_descriptors_tries_again(folder: Path) -> None:
    with Pool(folder) as pool:
        until(lambda: len(pool.workers) == 2)
        before = resource.prlimit(pool.process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pool.process.pid, resource.RLIMIT_NOFILE, (3, before[1]))
        victim = pool.worker()
        os.kill(victim, signal.SIGKILL)
        pool.wait_for(f"cannot fork a worker: {os.strerror(errno.EMFILE)}")
        resource.prlimit(pool.process.pid, resource.RLIMIT_NOFILE, before)
        until(lambda: len(pool.workers) == 2 and victim not in pool.workers)
        assert pool.version() == "1"
