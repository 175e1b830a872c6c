"""Programs that import flup by name, unmodified; and PasteDeploy's entry points."""

from __future__ import annotations

import importlib
import signal
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

from fulgate.build import COMPILED
from fulgate.flup.server import NoDefault, paste_factory
from tests import flup, scgi
from tests.alone import free_port
from tests.flup import Program, environment, until
from tests.scgi import Peer
from tests.servers.fulgate import ROOT

RUN = ["-m", "fulgate.flup"]


def python(code: str, **options: Any) -> str:
    """Run code in a process of its own; what it prints."""
    process = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=30,
        env=environment(),
        check=False,
        **options,
    )
    assert process.returncode == 0, process.stderr
    said: str = process.stdout
    return said.strip()


@pytest.mark.parametrize("over", ["unix", "tcp"])
def test_webpy(folder: Path, over: str) -> None:
    port = free_port()
    path = str(folder / "s")
    address = ("127.0.0.1", port) if over == "tcp" else path
    argument = f"127.0.0.1:{port}" if over == "tcp" else path
    with Program(folder, [*RUN, flup.HERE / "webpy_site.py", argument], address) as program:
        program.says_hello()
        with program.raw() as raw:
            assert raw.request(body=b"a body").body == b"a body"
            assert raw.request("/fails").status == "500 Internal Server Error"
            assert raw.request("/none").status == "404 Not Found"
        assert program.ends(signal.SIGTERM) == 0


def test_bottle(folder: Path) -> None:
    path = str(folder / "s")
    with Program(folder, [*RUN, flup.HERE / "bottle_site.py", path], path) as program:
        program.says_hello()
        with program.raw() as raw:
            assert raw.request(body=b"a body").body == b"a body"
        until(lambda: program.threads() == 4, "two of them serve")
        assert program.ends(signal.SIGINT) == 0


def test_a_script_sees_itself_as_python_would_show_it(folder: Path) -> None:
    """Its arguments, its name, its folder first in sys.path."""
    (folder / "beside.py").write_text("HERE = 1\n")
    script = folder / "script.py"
    script.write_text(
        "import sys, beside\n"
        "from flup.server.fcgi import WSGIServer\n"
        "print(__name__, __file__ == sys.argv[0], sys.argv[1:], WSGIServer.__module__)\n"
    )
    expected = "__main__ True ['-x', 'y'] fulgate.flup.server.fcgi"
    for arguments in ([str(script)], ["-m", "script"]):
        process = subprocess.run(
            [sys.executable, *RUN, *arguments, "-x", "y"],
            capture_output=True,
            text=True,
            timeout=30,
            cwd=folder,
            env=environment(),
            check=False,
        )
        assert (process.stdout.strip(), process.stderr) == (expected, "")


@pytest.mark.parametrize(
    ("arguments", "status"), [([], 2), (["-m"], 2), (["-h"], 0), (["--help"], 0)]
)
def test_usage(arguments: list[str], status: int) -> None:
    process = subprocess.run(
        [sys.executable, *RUN, *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        env=environment(),
        check=False,
    )
    assert process.returncode == status
    assert "usage: python -m fulgate.flup SCRIPT" in (process.stderr if status else process.stdout)


# ---------------------------------------------------------------- install


def test_install_gives_the_very_same_modules() -> None:
    code = """
from fulgate.flup import install
install()
install()
import flup, flup.server.fcgi, flup.server.threadedserver, flup.client.fcgi_app
import fulgate.flup.server.fcgi
from flup.server import fcgi_fork
assert flup is fulgate.flup
assert flup.server.fcgi is fulgate.flup.server.fcgi
assert flup.server.fcgi.__name__ == "fulgate.flup.server.fcgi"
assert flup.server.fcgi.__spec__.name == "fulgate.flup.server.fcgi"
assert fcgi_fork.WSGIServer is fulgate.flup.server.fcgi_fork.WSGIServer
import sys, importlib, pickle
assert sum(type(finder).__name__ == "_Alias" for finder in sys.meta_path) == 1
importlib.reload(flup.server.threadpool)
pickle.loads(pickle.dumps(flup.server.fcgi.WSGIServer))
print("same")
"""
    assert python(code) == "same"


def test_install_replaces_flup_itself() -> None:
    code = """
import flup.server.fcgi
theirs = flup.server.fcgi
from fulgate.flup import install
install()
import flup.server.fcgi
assert flup.server.fcgi is not theirs
assert theirs.WSGIServer.__module__ == "flup.server.fcgi"
print(flup.server.fcgi.WSGIServer.__module__)
"""
    assert python(code) == "fulgate.flup.server.fcgi"


@pytest.mark.skipif(COMPILED, reason="a compiled build stands in site-packages")
def test_install_without_flup() -> None:
    """Nothing of flup's own is needed: without site-packages there is none."""
    code = f"""
import sys
sys.path[:] = [p for p in sys.path if "site-packages" not in p] + [{str(ROOT / "src")!r}]
sys.modules.pop("flup", None)
from fulgate.flup import install
try:
    import flup
except ModuleNotFoundError:
    install()
    import flup.server.fcgi
    print(flup.server.fcgi.WSGIServer.__module__)
"""
    assert python(code) == "fulgate.flup.server.fcgi"


def test_a_module_that_is_not_there() -> None:
    code = """
from fulgate.flup import install
install()
try:
    import flup.server.telnet
except ModuleNotFoundError as error:
    print(error.name, "|", error)
"""
    said = python(code)
    assert said.startswith("flup.server.telnet | fulgate.flup stands in for flup")


def test_without_install_flup_is_flup() -> None:
    code = """
import fulgate.flup, fulgate.flup.server.fcgi
import flup.server.fcgi
print(flup.server.fcgi.WSGIServer.__module__)
"""
    assert python(code) == "flup.server.fcgi"


def test_importing_it_imports_no_twisted() -> None:
    code = """
import sys, fulgate.flup.server.fcgi, fulgate.flup.server.fcgi_fork, fulgate.flup.client.fcgi_app
print(sorted({"twisted", "asyncio", "flup"} & sys.modules.keys()))
"""
    assert python(code) == "[]"


# ---------------------------------------------------------------- PasteDeploy


@pytest.mark.parametrize("kind", ["", "_thread", "_fork"])
@pytest.mark.parametrize("protocol", ["fcgi", "scgi", "ajp"])
def test_the_entry_points(protocol: str, kind: str) -> None:
    name = protocol + kind
    project = (ROOT / "pyproject.toml").read_text()
    line = next(li for li in project.splitlines() if li.startswith(f"{name} = "))
    module, _, attribute = line.partition('"')[2].strip('"').partition(":")
    runner = getattr(importlib.import_module(module), attribute)
    assert runner is getattr(paste_factory, f"run_{protocol}{kind or '_thread'}")
    (installed,) = entry_points(group="paste.server_runner", name=name).select(
        value=f"{module}:{attribute}"
    )
    assert installed.load() is runner


@pytest.mark.parametrize("name", ["fcgi_thread", "fcgi_fork"])
def test_paste_deploy_serves(folder: Path, name: str) -> None:
    path = str(folder / "s")
    (folder / "site.ini").write_text(
        "[DEFAULT]\ndebug = false\n"
        f"[server:main]\nuse = egg:fulgate#{name}\nsocket = {path}\numask = 007\n"
        + ("maxThreads = 3\n" if name == "fcgi_thread" else "maxChildren = 2\nmaxSpare = 2\n")
        + "[app:main]\npaste.app_factory = paste_site:make\n"
    )
    (folder / "paste_site.py").write_text(
        "from tests.apps import app\n\ndef make(global_conf):\n    return app\n"
    )
    script = folder / "run.py"
    script.write_text(
        "import sys\n"
        "from paste.deploy import loadapp, loadserver\n"
        "url = 'config:' + sys.argv[1]\n"
        "loadserver(url)(loadapp(url))\n"
    )
    with Program(folder, [script, folder / "site.ini"], path) as program:
        program.says_hello()
        assert oct(Path(path).stat().st_mode)[-3:] == "770"
        if name == "fcgi_fork":
            until(lambda: len(program.children()) == 2, "it has its children")
        else:
            until(lambda: program.threads() == 5, "three of them serve")
        assert program.ends(signal.SIGTERM) == 0


@pytest.mark.parametrize("protocol", ["scgi", "ajp"])
def test_what_paste_can_say_of_the_other_protocols(
    monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    said: dict[str, Any] = {}

    class Server:
        def __init__(self, app: Any, **arguments: Any) -> None:
            said.clear()
            said.update(arguments)

        def run(self) -> None:
            pass

    for kind in ("thread", "fork"):
        module = protocol if kind == "thread" else f"{protocol}_fork"
        monkeypatch.setattr(f"fulgate.flup.server.{module}.WSGIServer", Server)
        run = getattr(paste_factory, f"run_{protocol}_{kind}")
        run(None, {"debug": "yes"})
        usual: dict[str, Any] = {"scgi": (4000, NoDefault), "ajp": (8009, "")}
        port, name = usual[protocol]
        assert said == {
            "scriptName": name,
            "bindAddress": ("localhost", port),
            "allowedServers": ["127.0.0.1"],
            "debug": True,
        }
        run(None, {}, scriptName="/a", host="::1", port="9", allowedServers="a b", maxSpare="3")
        assert (said["bindAddress"], said["allowedServers"]) == (("::1", 9), ["a", "b"])
        assert (said["scriptName"], said["maxSpare"], said["debug"]) == ("/a", 3, False)


@pytest.mark.parametrize("name", ["scgi_thread", "scgi_fork"])
def test_paste_deploy_serves_scgi(folder: Path, name: str) -> None:
    port = free_port()
    (folder / "site.ini").write_text(
        f"[server:main]\nuse = egg:fulgate#{name}\nhost = 127.0.0.1\nport = {port}\n"
        + ("maxThreads = 3\n" if name == "scgi_thread" else "maxChildren = 2\n")
        + "[app:main]\npaste.app_factory = paste_site:make\n"
    )
    (folder / "paste_site.py").write_text(
        "from tests.apps import app\n\ndef make(global_conf):\n    return app\n"
    )
    script = folder / "run.py"
    script.write_text(
        "import sys\n"
        "from paste.deploy import loadapp, loadserver\n"
        "url = 'config:' + sys.argv[1]\n"
        "loadserver(url)(loadapp(url))\n"
    )
    with Program(folder, [script, folder / "site.ini"], ("127.0.0.1", port)) as program:
        with Peer(program.address) as peer:
            peer.send(scgi.request())
            assert peer.answer().body == b"Hello, world!\n"
        assert program.ends(signal.SIGTERM) == 0


def test_what_paste_can_say(monkeypatch: pytest.MonkeyPatch) -> None:
    said: dict[str, Any] = {}

    class Server:
        def __init__(self, app: Any, **arguments: Any) -> None:
            said.clear()
            said.update(arguments)

        def run(self) -> None:
            pass

    monkeypatch.setattr("fulgate.flup.server.fcgi.WSGIServer", Server)
    run = paste_factory.run_fcgi_thread
    run(None, {"debug": "yes"}, host="127.0.0.1", port="80", maxThreads="7", multiplexed="on")
    assert said == {
        "bindAddress": ("127.0.0.1", 80),
        "umask": None,
        "multiplexed": True,
        "debug": True,
        "maxThreads": 7,
    }
    run(None, {}, debug="0", umask="022")
    assert (said["bindAddress"], said["debug"], said["umask"]) == (None, False, 0o022)
    with pytest.raises(ValueError, match="port"):
        run(None, {}, host="x")
    with pytest.raises(ValueError, match="socket"):
        run(None, {}, socket="x", host="y", port="1")
    with pytest.raises(ValueError, match="'maybe' is neither"):
        run(None, {"debug": "maybe"})


def test_paste_words() -> None:
    assert paste_factory.asbool(" Yes ")
    assert not paste_factory.asbool("f")
    assert paste_factory.asbool(1)
    assert paste_factory.aslist("a, b ,c", ",") == ["a", "b", "c"]
    assert paste_factory.aslist("a b") == ["a", "b"]
    assert paste_factory.aslist("a ,b", ",", strip=False) == ["a ", "b"]
    assert paste_factory.aslist(None) == []
    assert paste_factory.aslist((1,)) == (1,)
    assert paste_factory.aslist(1) == [1]
    assert NoDefault.__name__ == "NoDefault"
