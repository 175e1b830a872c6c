"""Finding the application, and saying in one line why it cannot be found."""

from __future__ import annotations

import importlib
import itertools
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fulgate.errors import AppNotFound, ConfigError
from fulgate.loader import AppName, load_app, parse_app

Write = Callable[[str], str]
numbers = itertools.count()


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Write a module into the current folder and give its name, which no other test has."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)

    def write(code: str) -> str:
        name = f"loaded{next(numbers)}"
        (tmp_path / f"{name}.py").write_text(code)
        importlib.invalidate_caches()  # the clock of a file system may be too coarse
        return name

    yield write
    for name in set(sys.modules) - before:
        if name.startswith("loaded"):
            del sys.modules[name]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("app", AppName("app")),
        ("pkg.app:app", AppName("pkg.app", ("app",))),
        ("pkg.app:site.wsgi.app", AppName("pkg.app", ("site", "wsgi", "app"))),
        ("a:f()", AppName("a", ("f",), ((), {}))),
        ('a:b.f("prod", 1, x=[1, {"y": None}])',
         AppName("a", ("b", "f"), (("prod", 1), {"x": [1, {"y": None}]}))),
        (" a:f( -1 ) ", AppName("a", ("f",), ((-1,), {}))),
    ],
)  # fmt: skip
def test_parse(text: str, name: AppName) -> None:
    assert parse_app(text) == name


@pytest.mark.parametrize(
    "text",
    [
        "", ":", ":app", "a:", "a b:c", "a..b:c", "a:b c", "a:b:c", "a:1", "a:b[0]", "a:b()()",
        "a:f(x)", "a:f(g())", "a:f(**{})", "a:f(*[1])", "a:f(__import__('os'))", "a:f(",
        "a:f()\n;x", "a:f().g", "a:lambda: 1", "a:\0", "a:f({[]: 1})",
    ],
)  # fmt: skip
def test_parse_refuses(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_app(text)
    assert "MODULE:ATTR" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("./app.py", "'app'"),
        ("site/app.py:application", "'site.app:application'"),
        ("site/app:x", "'site.app:x'"),
    ],
)
def test_a_path_is_answered_with_a_module(text: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=f"did you mean {meant}"):
        parse_app(text)


APP = "def app(environ, start_response): return [b'app']\n"


def test_load(write: Write) -> None:
    assert load_app(write(APP) + ":app")({}, None) == [b"app"]
    assert load_app(write(APP))({}, None) == [b"app"]
    assert load_app(write(APP.replace("app", "application")))({}, None) == [b"application"]
    assert load_app(write("class A:\n  class B:\n    app = print\n") + ":A.B.app") is print


def test_a_factory_is_called(write: Write) -> None:
    name = write("def make(kind, *, n=0): return lambda *a: [kind, n]\n")
    assert load_app(f"{name}:make('prod', n=3)")({}, None) == ["prod", 3]


def test_the_current_folder_and_pythonpath_come_first(write: Write, tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    name = write("app = 1")
    (tmp_path / "lib" / f"{name}.py").write_text("from loaded_beside import app")
    (tmp_path / "loaded_beside.py").write_text(APP)
    importlib.invalidate_caches()
    assert load_app(name, ["lib"])({}, None) == [b"app"]
    assert sys.path[:2] == [str(tmp_path / "lib"), str(tmp_path)]
    load_app(name, ["lib"])
    assert sys.path.count(str(tmp_path)) == 1


def failure(text: str) -> AppNotFound:
    with pytest.raises(AppNotFound) as caught:
        load_app(text)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_status == 3
    return caught.value


def test_what_is_not_there(write: Write) -> None:
    assert "there is no module 'loaded_nosuch'" in str(failure("loaded_nosuch:app"))
    assert "there is no module 'loaded_nosuch'" in str(failure("loaded_nosuch.wsgi:app"))
    name = write("x = 1")
    assert f"'{name}.py'; did you mean '{name}:x'?" in str(failure(f"{name}.py:x"))
    assert f"there is no module '{name}.wsgi'" in str(failure(f"{name}.wsgi:app"))
    assert f"module '{name}' has no 'app'" in str(failure(f"{name}:app"))
    assert "has neither app nor application" in str(failure(name))
    assert "'x' has no 'y'" in str(failure(f"{name}:x.y"))
    assert "not callable, but of type int" in str(failure(f"{name}:x"))
    assert "x is not callable" in str(failure(f"{name}:x()"))
    assert "not callable, but of type NoneType" in str(failure(write("def f(): pass") + ":f()"))


def test_what_the_application_raises(write: Write, tmp_path: Path) -> None:
    name = write("import os\n\ndef f():\n    raise KeyError('se\\ncret')\nf()\n")
    error = failure(f"{name}:app")
    place = f"({tmp_path / name}.py:4)"
    assert str(error).endswith(f"does not load: KeyError: 'se\\ncret' {place}")
    shown = "".join(traceback.format_exception(error.__cause__))
    assert f"{name}.py" in shown
    assert "importlib" not in shown
    assert "loader.py" not in shown

    name = write("def make(n):\n    return 1 / n\n")
    assert f"ZeroDivisionError: division by zero ({tmp_path / name}.py:2)" in str(
        failure(f"{name}:make(0)")
    )
    assert "missing 1 required positional argument" in str(failure(f"{name}:make()"))

    name = write("\nimport loaded_nosuch\n")
    message = str(failure(f"{name}:app"))
    assert "ModuleNotFoundError: No module named 'loaded_nosuch'" in message
    assert f"({tmp_path / name}.py:2)" in message

    name = write("x = 1\ndef f(:\n")
    assert f"SyntaxError: invalid syntax ({tmp_path / name}.py:2)" in str(failure(f"{name}:app"))

    name = write("import sys; sys.exit(7)")
    assert "SystemExit: 7" in str(failure(f"{name}:app"))

    name = write("raise ValueError('one\\ntwo')")
    assert "ValueError: one two" in str(failure(f"{name}:app"))

    name = write("def __getattr__(name):\n    raise RuntimeError(name)\n")
    assert "RuntimeError: app" in str(failure(f"{name}:app"))


def test_a_stop_while_loading_is_not_swallowed(write: Write) -> None:
    name = write("raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        load_app(f"{name}:app")


def test_nothing_is_evaluated_but_literals(write: Write, tmp_path: Path) -> None:
    name = write(APP + f"open({str(tmp_path / 'imported')!r}, 'w')")
    with pytest.raises(ConfigError):
        load_app(f"{name}:app(print('x'))")
    assert not (tmp_path / "imported").exists()  # not even imported
