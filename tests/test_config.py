"""Settings: their types and ranges, where they come from, and the reference made of them."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from fulgate.config import Config, settings
from fulgate.errors import ConfigError
from fulgate.reference import reference
from fulgate.settings import Settings, load, read_env_file
from tests.processes import output, python


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def loaded(
    options: dict[str, Any] | None = None, environ: dict[str, str] | None = None, file: str = ""
) -> Settings:
    return load(options, environ=environ or {}, file=file)


def refusal(*args: Any, **kwargs: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        loaded(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_config_needs_no_click() -> None:
    code = """
        import sys
        from fulgate.config import Config
        Config()
        print([m for m in ("click", "asyncio", "uvicorn", "twisted") if m in sys.modules])
        """
    assert output(python(code)) == "[]"


def test_every_setting_is_described() -> None:
    known = list(settings())
    assert [s.name for s in known] == [f.name for f in dataclasses.fields(Config)]
    for setting in known:
        assert setting.help.endswith(".")
        assert setting.section
        assert setting.choices == () or setting.default in setting.choices
    shorts = [s.short for s in known if s.short]
    assert len(shorts) == len(set(shorts))
    # gunicorn's short forms mean here what they mean there
    assert {s.short: s.name for s in known if s.short} == {
        "-b": "bind",
        "-u": "user",
        "-g": "group",
        "-m": "umask",
        "-p": "pid",
        "-w": "workers",
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("threads", 0), ("threads", 4097), ("threads", True), ("threads", 1.0), ("threads", "1"),
        ("threads", None), ("keep_alive", -1.0), ("keep_alive", float("inf")),
        ("keep_alive", float("nan")), ("keep_alive", True), ("keep_alive", "1"),
        ("bind", "tcp:127.0.0.1:9000"), ("bind", (1,)), ("bind", ("nowhere",)),
        ("stderr", 1), ("stderr", "yes"), ("poller", "select"), ("path", "nosuch"),
        ("repeated_params", "all"), ("log_level", "INFO"), ("access_log_format", "%z"),
        ("umask", "8"), ("umask", "1777"), ("umask", 18), ("http", "8000"), ("http", "h:70000"),
        ("static", ("static=x",)), ("static", ("/static",)), ("static", ("/static=",)),
        ("script_name", "app"), ("script_name", "/app/"), ("allowed_clients", ("host",)),
        ("chdir", "a\0b"), ("limit_request_body", -1), ("rlimit_files", -1),
    ],
)  # fmt: skip
def test_a_wrong_value_is_refused_where_the_config_is_made(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=name) as caught:
        Config(**{name: value})
    assert "\n" not in str(caught.value)


def test_right_values_are_taken() -> None:
    config = Config(
        bind=["tcp:127.0.0.1:0"],  # type: ignore[arg-type]  # what TOML gives
        keep_alive=3,
        umask="0o027",
        http=":8000",
        script_name="/app",
        limit_request_body=0,
    )
    assert config.bind == ("tcp:127.0.0.1:0",)
    assert isinstance(config.keep_alive, float)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.threads = 3  # type: ignore[misc]
    assert config.replace(threads=3).threads == 3
    with pytest.raises(ConfigError, match="no setting 'thread'"):
        config.replace(thread=3)
    with pytest.raises(ConfigError, match="threads"):
        config.replace(threads=-3)


def test_defaults(project: Path) -> None:
    found = loaded()
    assert found.config == Config()
    assert set(found.sources.values()) == {"default"}


def test_each_source_overrides_the_ones_before(project: Path) -> None:
    (project / "fulgate.toml").write_text(
        'app = "a:b"\nthreads = 2\nkeep_alive = 5\nqueue = 7\nstderr = true\n'
        'bind = ["unix:/a", "unix:/b"]\nlimit_request_body = "2M"\n'
    )
    environ = {"FULGATE_THREADS": "3", "FULGATE_KEEP_ALIVE": "6.5", "FULGATE_STDERR": "off"}
    found = loaded({"threads": "4", "bind": ("unix:/c",), "debug": True}, environ)
    config = found.config
    assert (config.app, config.queue, config.limit_request_body) == ("a:b", 7, 2 << 20)
    assert (config.keep_alive, config.stderr) == (6.5, False)
    assert (config.threads, config.bind, config.debug) == (4, ("unix:/c",), True)
    assert config.backlog == 2048
    assert {name: found.sources[name] for name in ("queue", "keep_alive", "threads")} == {
        "queue": "fulgate.toml",
        "keep_alive": "environment FULGATE_KEEP_ALIVE",
        "threads": "--threads",
    }
    assert found.sources["backlog"] == "default"
    assert loaded({"app": "c:d"}).sources["app"] == "command line"
    assert loaded({"debug": False}).sources["debug"] == "--no-debug"


def test_pyproject(project: Path) -> None:
    (project / "pyproject.toml").write_text("[tool.fulgate]\nthreads = 2\n[tool.other]\nx = 1\n")
    found = loaded()
    assert (found.config.threads, found.sources["threads"]) == (2, "pyproject.toml")
    (project / "fulgate.toml").write_text("threads = 3\n")
    assert loaded().config.threads == 3
    assert loaded(file="pyproject.toml").config.threads == 2
    assert loaded(environ={"FULGATE_CONFIG": "pyproject.toml"}).config.threads == 2
    (project / "fulgate.toml").unlink()
    (project / "pyproject.toml").write_text("[project]\n")
    assert loaded().config == Config()
    assert "no table [tool.fulgate]" in refusal(file="pyproject.toml")
    (project / "pyproject.toml").write_text("[tool]\nfulgate = 3\n")
    assert refusal() == "pyproject.toml: tool.fulgate is not a table"


def test_a_file_that_is_named_must_be_there(project: Path) -> None:
    assert refusal(file="my.toml") == "there is no configuration file my.toml"
    assert refusal(file=".").startswith("cannot read .: ")
    (project / "my.toml").write_text("threads = 2\n")
    assert loaded(file="my.toml").config.threads == 2
    (project / "my.toml").write_text("threads = \n")
    assert refusal(file="my.toml").startswith("my.toml: Invalid value (at line 1")
    (project / "my.toml").write_bytes(b"# \xff\n")
    assert refusal(file="my.toml").startswith("my.toml: ")


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("thread = 2", "fulgate.toml: there is no setting 'thread'; did you mean 'threads'?"),
        ("keep-alive = 2", "fulgate.toml: there is no setting 'keep-alive'; did you mean"
         " 'keep_alive'?"),
        ("zzz = 2", "fulgate.toml: there is no setting 'zzz'"),
        ('threads = "2"', "fulgate.toml: threads: a whole number is wanted, not '2'"),
        ("threads = 2.5", "fulgate.toml: threads: a whole number is wanted, not 2.5"),
        ("threads = 0", "fulgate.toml: threads: 0 is out of range, at least 1 is wanted"),
        ("stderr = 1", "fulgate.toml: stderr: true or false is wanted, not 1"),
        ("bind = 1", "fulgate.toml: bind: a list of strings is wanted, not 1"),
        ("bind = [1]", "fulgate.toml: bind: text is wanted, not 1"),
        ('limit_request_body = "2X"', "fulgate.toml: limit_request_body: '2X' is not a whole"
         " number, such as 65536, 64k, 1M or 1G"),
        ("keep_alive = inf", "fulgate.toml: keep_alive: inf is out of range"),
        ('umask = "99"', "fulgate.toml: umask: '99': write it as octal text, such as 022"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_one_clear_line(project: Path, toml: str, message: str) -> None:
    (project / "fulgate.toml").write_text(toml + "\n")
    assert refusal() == message


def test_one_string_is_a_list_of_one(project: Path) -> None:
    (project / "fulgate.toml").write_text('bind = "unix:/a"\n')
    assert loaded().config.bind == ("unix:/a",)


def test_environment() -> None:
    environ = {
        "FULGATE_BIND": "unix:/a, unix:/b",
        "FULGATE_LIMIT_REQUEST_BODY": "64k",
        "FULGATE_DEBUG": "yes",
        "FULGATE_APP": "a:b",
        "FULGATE_PORT_9000_TCP": "tcp://10.0.0.1:9000",  # as Kubernetes sets them
        "FULGATE_SERVICE_HOST": "10.0.0.1",
        "OTHER": "1",
    }
    config = loaded(environ=environ).config
    assert config.bind == ("unix:/a", "unix:/b")
    assert config.limit_request_body == 65536
    assert config.debug
    assert config.app == "a:b"
    assert refusal(environ={"FULGATE_THREADS": "x"}) == (
        "FULGATE_THREADS: 'x' is not a whole number"
    )
    assert refusal(environ={"FULGATE_THREADS": "0"}) == (
        "FULGATE_THREADS: 0 is out of range, at least 1 is wanted"
    )
    assert refusal(environ={"FULGATE_DEBUG": "maybe"}).startswith("FULGATE_DEBUG: 'maybe' is")
    assert refusal(environ={"FULGATE_THREDS": "3"}) == (
        "environment: there is no setting FULGATE_THREDS; did you mean 'FULGATE_THREADS'?"
    )


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("threads", "x", "--threads: 'x' is not a whole number"),
        ("threads", "1k", "--threads: '1k' is not a whole number"),
        ("threads", "٣", "--threads: '٣' is not a whole number"),
        ("threads", "9" * 30, "--threads: '" + "9" * 30 + "' is not a whole number"),
        ("keep_alive", "1e3", "--keep-alive: '1e3' is not a number"),
        ("keep_alive", "-1", "--keep-alive: -1.0 is out of range, at least 0 is wanted"),
        ("bind", ("x",), "--bind: endpoint 'x': write unix:PATH, tcp:HOST:PORT, fd:N or"
         " systemd[:NAME]"),
    ],
)  # fmt: skip
def test_a_wrong_option_is_one_clear_line(name: str, text: Any, message: str) -> None:
    assert refusal({name: text}) == message


def test_toml_of_settings_reads_back(project: Path) -> None:
    found = loaded(
        {"app": 'a:b("x\\y\u00e9\x01")', "bind": ("unix:/a b",), "keep_alive": "1.5", "debug": True}
    )
    text = found.toml()
    assert 'bind = ["unix:/a b"]  # --bind\n' in text
    assert "threads = 8  # default\n" in text
    assert Config(**tomllib.loads(text)) == found.config
    (project / "fulgate.toml").write_text(text)
    assert loaded().config == found.config


def test_env_file(project: Path) -> None:
    path = project / "env"
    path.write_text("# comment\n\nA=1\nexport B = two words \nC='x # y'\nD=\"\"\nE=a=b\n")
    assert read_env_file(str(path)) == {
        "A": "1",
        "B": "two words",
        "C": "x # y",
        "D": "",
        "E": "a=b",
    }
    for wrong in ("A", "=1", "1A=2", "A B=1", "A=\0"):
        path.write_text(f"X=1\n{wrong}\n")
        with pytest.raises(ConfigError, match=r"env, line 2: write NAME=VALUE"):
            read_env_file(str(path))
    path.write_text("FULGATE_THREADS=3\n")
    with pytest.raises(ConfigError, match="for the application"):
        read_env_file(str(path))
    path.write_bytes(b"A=\xff\n")
    with pytest.raises(ConfigError, match="not UTF-8"):
        read_env_file(str(path))
    with pytest.raises(ConfigError, match="cannot read the env_file"):
        read_env_file(str(project / "nosuch"))


def test_the_reference_is_up_to_date() -> None:
    written = Path(__file__).parent.parent / "docs" / "reference.md"
    assert written.read_text() == reference(), "python -m fulgate.reference > docs/reference.md"
    for setting in settings():
        assert re.search(rf"^### {setting.name}$", reference(), re.MULTILINE)
        assert f"`{setting.variable}`" in reference()
    code = "import runpy, sys; runpy.run_module('fulgate.reference', run_name='__main__')"
    assert output(python(code)) == reference().strip()


def test_secret_is_not_shown() -> None:
    found = load({"ajp_secret": "correct-horse"}, environ={})
    assert found.config.ajp_secret == "correct-horse"
    assert 'ajp_secret = "..."  # --ajp-secret' in found.toml()
    assert "correct-horse" not in found.toml() + repr(found.config)
    assert 'ajp_secret = ""  # default' in load({}, environ={}).toml()
