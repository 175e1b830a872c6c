"""The command `fulgate`: what it checks, what it refuses in one line, and with which status."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest

from fulgate.build import BUILD
from fulgate.cli import cli
from fulgate.config import Config, settings
from tests.command import APP, Served, environment, fulgate, refused

NAMES = cli.list_commands(click.Context(cli))


@pytest.fixture
def project(folder: Path) -> Path:
    """A folder with an application in it."""
    (folder / "hello.py").write_text(APP)
    return folder


def test_version_and_help(folder: Path) -> None:
    from fulgate import __version__

    done = fulgate("--version", cwd=folder)
    assert (done.returncode, done.stdout) == (0, f"fulgate {__version__} ({BUILD})\n")
    done = fulgate("--help", cwd=folder)
    assert done.returncode == 0
    for command in NAMES:
        assert re.search(rf"^  {command} +\w", done.stdout, re.MULTILINE)
    done = fulgate("serve", "-h", cwd=folder)
    assert done.returncode == 0
    for setting in settings():
        if setting.name != "app":
            assert f"{setting.option}" in done.stdout
            assert f"{setting.section}:\n" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], f"name a command: {', '.join(NAMES[:-1])} or {NAMES[-1]}; see fulgate --help"),
        (["serve"], "name the application: fulgate serve MODULE:ATTR, or app in fulgate.toml or in"
         " [tool.fulgate] of pyproject.toml"),
        (["serve", "hello:app", "--threads", "x"], "--threads: 'x' is not a whole number"),
        (["serve", "hello:app", "--threads", "0"], "--threads: 0 is out of range, at least 1 is"
         " wanted"),
        (["serve", "hello:app", "--bind", "/s"], "--bind: endpoint '/s': write unix:PATH,"
         " tcp:HOST:PORT, fd:N or systemd[:NAME]; did you mean 'unix:/s'?"),
        (["serve", "hello:app", "--config", "x.toml"], "there is no configuration file x.toml"),
        (["serve", "hello:app(x)"], "application 'hello:app(x)': write MODULE:ATTR, or a call with"
         ' literal arguments, such as pkg.app:create_app("prod")'),
        (["serve", "hello:app", "-b", "unix:s?owner=no-such-user"], "endpoint"
         " unix:s?owner=no-such-user: the socket's owner: there is no user 'no-such-user'"),
        (["serve", "hello:app", "--user", "no-such-user"], "user: there is no user"
         " 'no-such-user'"),
        (["serve", "hello:app", "--group", "no-such-group"], "group: there is no group"
         " 'no-such-group'"),
        (["serve", "hello:app", "--user", "4000000000"], "user: 4000000000 has no entry, so name a"
         " group"),
        (["serve", "hello:app", "--chdir", "no"], "chdir: no: No such file or directory"),
        (["serve", "hello:app", "--env-file", "no"], "cannot read the env_file no: No such file or"
         " directory"),
        (["serve", "hello:app", "--error-logfile", "no/log"], "cannot open the log file no/log: No"
         " such file or directory"),
        (["serve", "hello:app", "--pid", "no/pid"], "pid: cannot use the file no/pid: No such file"
         " or directory"),
    ],
)  # fmt: skip
def test_usage_and_configuration_end_with_status_2(
    project: Path, arguments: list[str], line: str
) -> None:
    assert refused(2, *arguments, cwd=project) == line
    assert sorted(path.name for path in project.iterdir() if path.name != "__pycache__") == [
        "hello.py"
    ]


def test_a_wrong_option_or_command_is_one_line(project: Path) -> None:
    assert "bogus" in refused(2, "bogus", cwd=project)
    line = refused(2, "serve", "hello:app", "--thread", "3", cwd=project)
    assert re.match("No such option.*--thread.*Did you mean .*--threads", line)


def test_a_wrong_choice_names_the_right_ones(project: Path) -> None:
    line = refused(2, "serve", "hello:app", "--log-level", "loud", cwd=project)
    assert "--log-level" in line
    assert "'debug', 'info', 'warning'" in line


@pytest.mark.parametrize(
    ("app", "line"),
    [
        ("nosuch:app", "application 'nosuch:app': there is no module 'nosuch'"),
        ("hello:nosuch", "application 'hello:nosuch': module 'hello' has no 'nosuch'"),
        ("broken:app", "application 'broken:app' does not load: ZeroDivisionError: division by zero"
         " ({folder}/broken.py:2)"),
    ],
)  # fmt: skip
def test_an_application_that_does_not_load_is_status_3(project: Path, app: str, line: str) -> None:
    (project / "broken.py").write_text("def f():\n    1 / 0\nf()\n")
    for command in ("serve", "check"):
        said = refused(3, command, app, cwd=project)
        assert said == line.format(folder=project)


def test_debug_shows_the_applications_own_traceback(project: Path) -> None:
    (project / "broken.py").write_text("def f():\n    1 / 0\nf()\n")
    for arguments, env in ((["--debug"], {}), ([], {"FULGATE_DEBUG": "1"})):
        done = fulgate("check", "broken:app", *arguments, cwd=project, env=env)
        assert done.returncode == 3
        assert f'File "{project}/broken.py", line 2, in f' in done.stderr
        assert done.stderr.splitlines()[-1].startswith("fulgate: error: application 'broken:app'")


def test_a_socket_that_cannot_be_had_is_status_3(project: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = f"tcp:127.0.0.1:{taken.getsockname()[1]}"
        assert refused(3, "serve", "hello:app", "-b", where, cwd=project) == (
            f"cannot listen on {where}: the address is in use already"
        )
        done = fulgate("serve", "hello:app", "-b", where, "--debug", cwd=project)
        assert "Traceback" in done.stderr
    (project / "file").write_text("precious")
    assert refused(3, "serve", "hello:app", "-b", "unix:file", cwd=project) == (
        "cannot listen on unix:file: there is a file that is not a socket; it was left alone"
    )
    assert (project / "file").read_text() == "precious"
    line = refused(3, "serve", "hello:app", "-b", "unix:a", "-b", "unix:no/b", cwd=project)
    assert line == "cannot listen on unix:no/b: No such file or directory"
    assert not (project / "a").exists()


def test_the_network_is_not_listened_on_by_accident(project: Path) -> None:
    for command in ("serve", "check"):
        line = refused(2, command, "hello:app", "-b", "tcp:0.0.0.0:0", cwd=project)
        assert line.startswith(
            "tcp:0.0.0.0:0 would let every machine that can connect run requests"
        )
    done = fulgate(
        "check", "hello:app", "-b", "tcp:0.0.0.0:0", "--allowed-clients", "10.0.0.0/8", cwd=project
    )
    assert done.returncode == 0


def test_check_imports_and_does_not_serve(project: Path) -> None:
    done = fulgate("check", "hello:app", "-b", "unix:s", "--pid", "pid", cwd=project)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == "fulgate: the configuration is good, and hello:app loads\n"
    assert not (project / "s").exists()
    assert not (project / "pid").exists()


def test_print_config(project: Path) -> None:
    (project / "fulgate.toml").write_text('app = "hello:app"\nthreads = 3\nqueue = 5\n')
    done = fulgate(
        "check", "--print-config", "--queue", "6", cwd=project, env={"FULGATE_STDERR": "1"}
    )
    assert done.returncode == 0
    assert 'app = "hello:app"  # fulgate.toml\n' in done.stdout
    assert "threads = 3  # fulgate.toml\n" in done.stdout
    assert "queue = 6  # --queue\n" in done.stdout
    assert "stderr = true  # environment FULGATE_STDERR\n" in done.stdout
    assert "backlog = 2048  # default\n" in done.stdout
    values = tomllib.loads(done.stdout)
    assert Config(**values) == Config(app="hello:app", threads=3, queue=6, stderr=True)


def test_debug_in_a_file_counts_too(project: Path) -> None:
    (project / "fulgate.toml").write_text('app = "nosuch"\ndebug = true\n')
    assert "Traceback" in fulgate("check", cwd=project).stderr
    assert "Traceback" not in fulgate("check", "--no-debug", cwd=project).stderr


def test_check_looks_owners_up(project: Path) -> None:
    line = refused(2, "check", "hello:app", "-b", "unix:s?group=no-such-group", cwd=project)
    assert line.endswith("the socket's group: there is no group 'no-such-group'")


def test_an_unknown_key_is_one_line(project: Path) -> None:
    (project / "pyproject.toml").write_text("[tool.fulgate]\nthread = 3\n")
    assert refused(2, "serve", cwd=project) == (
        "pyproject.toml: there is no setting 'thread'; did you mean 'threads'?"
    )


def test_serve_alone_works_where_the_project_says_how(project: Path) -> None:
    (project / "pyproject.toml").write_text(
        "[tool.fulgate]\napp = \"hello:create_app('hi', suffix='!')\"\nbind = \"unix:s\"\n"
    )
    with Served(cwd=project) as served:
        assert served.endpoints == [f"unix:{project}/s"]
        assert served.ask() == b"hi!"


# Shell completion


def test_completion_scripts(folder: Path) -> None:
    for shell in ("bash", "zsh", "fish"):
        done = fulgate("completion", shell, cwd=folder)
        assert done.returncode == 0
        assert f"_FULGATE_COMPLETE={shell}_complete" in done.stdout
        if shutil.which(shell):
            subprocess.run([shell, "-n"], input=done.stdout, text=True, check=True, timeout=20)
    assert "'tcsh' is not one of" in refused(2, "completion", "tcsh", cwd=folder)


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("fulgate ser", {"serve"}),
        ("fulgate serve --thr", {"--threads"}),
        ("fulgate serve --log-level e", {"error"}),
    ],
)
def test_completion_offers(folder: Path, words: str, offered: set[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fulgate"],
        env=environment(
            _FULGATE_COMPLETE="bash_complete",
            COMP_WORDS=words,
            COMP_CWORD=str(len(words.split()) - 1),
        ),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert {line.partition(",")[2] for line in done.stdout.split()} == offered


# The HTTP front


def test_http_without_uvicorn_names_the_extra(project: Path) -> None:
    (project / "uvicorn.py").write_text("raise ImportError('No module named uvicorn')\n")
    env = {"PYTHONPATH": f"{project}{os.pathsep}{environment()['PYTHONPATH']}"}
    for command in ("serve", "check"):
        line = refused(2, command, "hello:app", "--http", "127.0.0.1:0", cwd=project, env=env)
        assert "fulgate[http]" in line


def test_http_with_a_port_that_is_taken(project: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        env = {"TMPDIR": str(project)}
        line = refused(3, "serve", "hello:app", "--http", where, cwd=project, env=env)
    assert where in line
    assert list(project.glob("fulgate-*")) == []
