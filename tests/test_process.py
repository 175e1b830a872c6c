"""What the process is when it serves: its folder, user, limits, files, and how it ends."""

from __future__ import annotations

import json
import os
import pwd
import re
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from fulgate.client.connection import Connection, call
from fulgate.config import Config
from fulgate.errors import ConfigError
from fulgate.process import PidFile, identity
from fulgate.snippet import nginx
from tests.command import APP, Served, environment, refused
from tests.processes import output, python
from tests.servers import Nginx, Running


@pytest.fixture
def project(folder: Path) -> Path:
    """A folder with an application in it."""
    (folder / "hello.py").write_text(APP)
    return folder


@pytest.mark.statement("29")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_status_0_and_nothing_is_left(project: Path, number: int) -> None:
    with Served(
        "hello:app", "-b", "unix:s", "-b", "tcp:127.0.0.1:0", "--pid", "pid", cwd=project
    ) as served:
        unix, tcp = served.endpoints
        assert unix == f"unix:{project}/s"
        pid = served.facts()["pid"]
        assert pid == served.process.pid
        assert json.loads(served.ask(endpoint=tcp))["pid"] == pid
        assert (project / "pid").read_text() == f"{pid}\n"
        with Connection(unix):  # an idle connection is in nobody's way
            assert served.end(number) == 0
    assert not (project / "s").exists()
    assert not (project / "pid").exists()


@pytest.mark.statement("29")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_the_application_loads(project: Path, number: int) -> None:
    (project / "slow.py").write_text(
        "import time\nprint('loading', flush=True)\n"
        "try:\n    time.sleep(60)\nexcept Exception:\n    pass\n"
    )
    with Served("slow:app", "-b", "unix:s", "--pid", "pid", cwd=project, wait=False) as served:
        served.wait_for("loading\n")
        assert served.end(number) == 0
        assert served.text == "loading\n"
    assert not (project / "s").exists()
    assert not (project / "pid").exists()


def test_a_second_signal_ends_it_at_once(project: Path) -> None:
    served = Served("hello:app", "-b", "unix:s", cwd=project)
    with Connection(served.endpoints[0]) as connection:
        request = connection.begin({"REQUEST_METHOD": "GET", "PATH_INFO": "/slow"})
        connection.send(request.end())
        while not (project / "started").exists():
            assert served.process.poll() is None
        served.process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            served.process.wait(0.5)  # it waits for the request
        assert served.end(signal.SIGTERM) == 128 + signal.SIGTERM
    assert not (project / "s").exists()


@pytest.mark.statement("1")
def test_it_serves_the_socket_that_it_inherits_on_descriptor_0(project: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        where = f"tcp:127.0.0.1:{server.getsockname()[1]}"
        with Served("hello:app", cwd=project, stdin=server.fileno()) as served:
            assert served.endpoints == [where]
            assert served.facts()["pid"] == served.process.pid


@pytest.mark.statement("1")
def test_the_other_standard_streams_may_be_closed(project: Path) -> None:
    # FastCGI 1.0, section 2.2. What is logged must not go to a socket that got their number.
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(20)
        where = f"tcp:127.0.0.1:{server.getsockname()[1]}"
        process = subprocess.Popen(
            ["sh", "-c", 'exec "$@" 1>&- 2>&-', "sh", sys.executable, "-m", "fulgate", "serve",
             "hello:app", "--access-logfile", "-", "--log-level", "debug"],
            cwd=project, env=environment(), stdin=server.fileno(),
        )  # fmt: skip
        for _ in range(2):
            answer = call(where, {"REQUEST_METHOD": "GET", "PATH_INFO": "/"})
            assert json.loads(answer.body)["pid"] == process.pid
        process.terminate()
        assert process.wait(20) == 0


def test_a_standard_output_that_nobody_reads_is_no_error(project: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "fulgate", "serve", "hello:app", "-b", "unix:s"],
        cwd=project, env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.close()
    while True:
        assert process.poll() is None
        try:
            answer = call(f"unix:{project}/s", {"REQUEST_METHOD": "GET", "PATH_INFO": "/"})
            break
        except (FileNotFoundError, ConnectionRefusedError):
            time.sleep(0.01)
    assert json.loads(answer.body)["pid"] == process.pid
    process.terminate()
    assert process.wait(20) == 0


def test_what_goes_wrong_is_in_the_log_file_too(project: Path) -> None:
    (project / "broken.py").write_text("1 / 0\n")
    line = refused(3, "serve", "broken", "--error-logfile", "log", cwd=project)
    assert (project / "log").read_text().endswith(f"[ERROR] [MainThread] {line}\n")


def test_folder_environment_umask_and_limits(project: Path) -> None:
    (project / "sub").mkdir()
    (project / "sub" / "lib").mkdir()
    (project / "sub" / "lib" / "there.py").write_text(APP)
    (project / "sub" / "env").write_text("FROM_FILE='a b'\nSET=file\n")
    with Served(
        "there:app", "-b", "unix:s", "--chdir", "sub", "--pythonpath", "lib", "--env-file", "env",
        "--umask", "027", "--rlimit-files", "200", "--rlimit-core", "64k", "--rlimit-memory", "1g",
        "--access-logfile", "access",
        cwd=project, env={"SET": "environment"},
    ) as served:  # fmt: skip
        facts = served.facts()
        sub = str(project / "sub")
        assert facts["cwd"] == sub
        assert facts["path"] == [f"{sub}/lib", sub]
        assert facts["umask"] == 0o027
        assert facts["files"] == 200
        limits = Path(f"/proc/{served.process.pid}/limits").read_text()
        assert re.search(r"^Max core file size +65536 ", limits, re.MULTILINE)
        assert re.search(rf"^Max address space +{1 << 30} ", limits, re.MULTILINE)
        assert (facts["env"]["FROM_FILE"], facts["env"]["SET"]) == ("a b", "environment")
        assert served.endpoints == [f"unix:{sub}/s"]
        assert stat.S_IMODE((project / "sub" / "s").stat().st_mode) == 0o660  # not the umask's
    line = (project / "sub" / "access").read_text()
    assert re.search(r'"GET / HTTP/1.1" 200 \d+ "-" "-" \d\.\d{6} id=the-id thread=\S+ ok\n', line)


def test_what_wants_more_memory_than_there_may_be_gets_an_error(folder: Path) -> None:
    (folder / "eats.py").write_text(
        "def app(environ, start_response):\n"
        "    size = int(environ['PATH_INFO'][1:])\n"
        "    start_response('200 OK', [('Content-Type', 'text/plain')])\n"
        "    return [str(len(bytes(size))).encode()]\n"
    )
    with Served("eats:app", "-b", "unix:s", "--rlimit-memory", "1g", cwd=folder) as served:
        with pytest.raises(AssertionError):  # it is answered with 500
            served.ask(f"/{2 << 30}")
        assert served.ask("/5") == b"5"
        assert "MemoryError" in served.text


def test_json_access_log_on_standard_output(project: Path) -> None:
    with Served(
        "hello:app", "-b", "unix:s", "--access-logfile", "-", "--access-log-format", "json",
        cwd=project,
    ) as served:  # fmt: skip
        body = served.ask()
        line = json.loads(served.wait_for(r"(?m)^\{.*\}$"))
        assert (line["id"], line["status"], line["bytes"]) == ("the-id", 200, len(body))


def test_script_name_and_settings_reach_the_server(project: Path) -> None:
    with Served("hello:app", "-b", "unix:s", "--script-name", "/app", cwd=project) as served:
        facts = served.facts("/app/x")
        assert (facts["script_name"], facts["path_info"]) == ("/app", "/x")


# User and group


def test_it_becomes_another_user_before_the_application_is_loaded(project: Path) -> None:
    if os.geteuid() != 0:
        line = refused(2, "serve", "hello:app", "-b", "unix:s", "--user", "root", cwd=project)
        assert line == "user, group: only root can become somebody else"
        return
    nobody = pwd.getpwnam("nobody")
    with Served(
        "hello:app", "-b", "unix:s?owner=nobody", "--user", "nobody", "--access-logfile", "access",
        cwd=project,
    ) as served:  # fmt: skip
        facts = served.facts()
        assert facts["ids"] == [nobody.pw_uid, nobody.pw_uid, nobody.pw_gid, nobody.pw_gid]
        assert facts["groups"] == sorted(os.getgrouplist("nobody", nobody.pw_gid))
        assert facts["loaded"] == nobody.pw_uid
        assert facts["env"]["HOME"] == nobody.pw_dir
        assert facts["env"]["USER"] == "nobody"
        status = (project / "access").stat()
        assert (status.st_uid, status.st_gid) == (nobody.pw_uid, nobody.pw_gid)
    with Served("hello:app", "-b", "unix:s", "-u", "12345", "-g", "23456", cwd=project) as served:
        facts = served.facts()
        assert facts["ids"] == [12345, 12345, 23456, 23456]
        assert facts["groups"] == [23456]


def test_who_one_is_already_is_nothing_to_become() -> None:
    me = identity(Config(user=str(os.getuid()), group=str(os.getgid())))
    assert me is not None
    assert me.current
    assert identity(Config()) is None


# The pid file


def test_a_pid_file_belongs_to_one_process(project: Path) -> None:
    with Served("hello:app", "-b", "unix:s", "--pid", "pid", cwd=project) as served:
        line = refused(2, "serve", "hello:app", "-b", "unix:t", "--pid", "pid", cwd=project)
        assert line == "pid: a process that runs has the file pid"
        assert (project / "pid").read_text() == f"{served.process.pid}\n"
        served.process.kill()
        served.process.wait(10)
        assert (project / "pid").exists()
        # What is left of a process that was killed is in nobody's way.
        with Served("hello:app", "-b", "unix:s", "--pid", "pid", cwd=project) as again:
            assert (project / "pid").read_text() == f"{again.process.pid}\n"
        served.process = again.process


def test_what_is_no_pid_file_is_left_alone(folder: Path) -> None:
    (folder / "file").write_text("precious")
    (folder / "link").symlink_to("target")
    (folder / "folder").mkdir()
    for name, reason in (
        ("file", "not a pid file; it was left alone"),
        ("link", "it is a symbolic link"),
        ("folder", "Is a directory"),
    ):
        with pytest.raises(ConfigError, match=reason):
            PidFile(str(folder / name))
    assert (folder / "file").read_text() == "precious"
    assert not (folder / "target").exists()


def test_a_pid_file_that_another_has_made_since_is_left_alone(folder: Path) -> None:
    ours = PidFile(str(folder / "pid"))
    (folder / "pid").unlink()
    (folder / "pid").write_text("1\n")
    ours.remove()
    assert (folder / "pid").read_text() == "1\n"
    ours = PidFile(str(folder / "pid"))
    with pytest.raises(ConfigError, match="a process that runs has"):
        PidFile(str(folder / "pid"))
    ours.remove()
    ours.remove()
    assert not (folder / "pid").exists()


def test_a_forked_child_leaves_the_pid_file(folder: Path) -> None:
    code = f"""
        import os
        from fulgate.process import PidFile
        file = PidFile("{folder}/pid")
        pid = os.fork()
        if pid == 0:
            file.remove()
            os._exit(0)
        os.waitpid(pid, 0)
        print(os.path.exists("{folder}/pid"))
        """
    assert output(python(code)) == "True"


# The HTTP front and the snippet


def test_http_front_on_a_private_socket(project: Path) -> None:
    (project / "files").mkdir()
    (project / "files" / "a.txt").write_text("static")
    with Served(
        "hello:app", "--http", "127.0.0.1:0", "--static", "/static=files",
        cwd=project, env={"TMPDIR": str(project)},
    ) as served:  # fmt: skip
        url = served.wait_for(r"(?<=Open )http://127.0.0.1:\d+/")
        (endpoint,) = served.endpoints
        private = Path(endpoint.removeprefix("unix:")).parent
        assert private.parent == project
        assert stat.S_IMODE(private.stat().st_mode) == 0o700
        with urllib.request.urlopen(url + "x%20y", timeout=20) as answer:
            assert json.load(answer)["path_info"] == "/x y"
        with urllib.request.urlopen(url + "static/a.txt", timeout=20) as answer:
            assert answer.read() == b"static"
        assert "nginx" not in served.text
        assert served.end(signal.SIGINT) == 0
    assert not private.exists()


@pytest.mark.requires_server("nginx")
@pytest.mark.parametrize("protocol", ["", "scgi+"])
@pytest.mark.parametrize("script_name", ["", "/app"])
def test_nginx_takes_the_snippet_as_it_is(
    project: Path, running: Running, script_name: str, protocol: str
) -> None:
    class Snippet(Nginx):
        def configure(self) -> None:
            super().configure()
            text = nginx(self.backend, script_name).replace(
                "listen 80;", f"listen 127.0.0.1:{self.port};"
            )
            for name in ("fastcgi_params", "scgi_params"):
                text = text.replace(f"include {name}", f"include /etc/nginx/{name}")
            path = self.folder / "nginx.conf"
            main, _, _ = path.read_text().partition("    upstream app {")
            path.write_text(main + text + "}\n")

    options = ["--script-name", script_name] if script_name else []
    with Served("hello:app", "-b", f"{protocol}unix:s?mode=666", *options, cwd=project) as served:
        server = running(Snippet, served.endpoints[0])
        for _ in range(2):  # the second on the connection that was kept
            with urllib.request.urlopen(f"{server.url}{script_name}/a%20b?c", timeout=20) as answer:
                facts = json.load(answer)
            assert (facts["script_name"], facts["path_info"]) == (script_name, "/a b")


def test_the_snippet_names_the_socket() -> None:
    assert "server 127.0.0.1:9000;" in nginx("tcp:127.0.0.1:9000")
    assert "server [::1]:9000;" in nginx("tcp:[::1]:9000")
    assert "server unix:/run/s;" in nginx("unix:/run/s?mode=666")
    assert 'server "unix:/run/a b";' in nginx("unix:/run/a b")
    assert "server [::1]:9000;" in nginx("scgi+tcp:[::1]:9000")
    assert nginx("ajp+tcp:[::1]:9000") == ""  # it does not speak that


def test_environment_and_niceness(tmp_path: Path) -> None:
    (tmp_path / "hello.py").write_text(APP)
    with Served(
        "hello:app", "--bind=unix:a.sock", "--env=SHOP=a=b", "--env=HOME=/nowhere", "--nice=19",
        cwd=tmp_path,
    ) as server:  # fmt: skip
        found = server.facts()["env"]
        assert (found["SHOP"], found["HOME"]) == ("a=b", "/nowhere")
        assert os.getpriority(os.PRIO_PROCESS, server.process.pid) == 19
    for wrong in ("1=2", "NAME", "FULGATE_THREADS=2"):
        assert "env: " in refused(2, "serve", "hello:app", f"--env={wrong}", cwd=tmp_path)
