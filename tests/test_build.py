"""What `pip` builds: with the hot modules compiled, or as they are, and which it says it is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from fulgate import build, exchange
from tests.servers.fulgate import ROOT

# pip may have to fetch what builds, and the compiler its time.
pytestmark = pytest.mark.timeout(1200)

# The whole of a build is there only where the sources are.
sources = pytest.mark.skipif(not (ROOT / "src").exists(), reason="src/ is out of the way")


def wheel(folder: Path, **environment: str) -> tuple[subprocess.CompletedProcess[str], list[Path]]:
    """Build a wheel of a copy of the sources; give what pip said, and the wheel if there is one."""
    tree = folder / "tree"
    if not tree.exists():
        tree.mkdir()
        for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, tree)
        ignored = shutil.ignore_patterns("__pycache__", "*.so", "*.egg-info")
        shutil.copytree(ROOT / "src", tree / "src", ignore=ignored)
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-v", "--no-deps", "-w", folder / "dist", tree],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=500,
    )
    return done, list((folder / "dist").glob("*.whl"))


def compiled_files(path: Path) -> list[str]:
    with zipfile.ZipFile(path) as archive:
        return [name for name in archive.namelist() if name.endswith(".so")]


def test_it_says_which_build_it_is() -> None:
    assert (build.BUILD == "compiled") == build.COMPILED
    assert exchange.__file__.endswith(".so") == build.COMPILED


@sources
@pytest.mark.slow
def test_a_pure_build_where_it_is_wanted(folder: Path) -> None:
    done, built = wheel(folder, FULGATE_PURE="1")
    assert done.returncode == 0, done.stdout
    assert [path.name.endswith("-py3-none-any.whl") for path in built] == [True]
    assert compiled_files(built[0]) == []


@sources
@pytest.mark.slow
def test_without_a_compiler_the_build_is_pure_and_says_why(folder: Path) -> None:
    done, built = wheel(folder, CC="/nonexistent/cc")
    assert done.returncode == 0, done.stdout
    assert (
        "installed as pure Python, which is slower: no C compiler: /nonexistent/cc" in done.stdout
    )
    assert [path.name.endswith("-py3-none-any.whl") for path in built] == [True]
    done, _ = wheel(folder, CC="/nonexistent/cc", FULGATE_COMPILE="1")
    assert done.returncode != 0
    assert "cannot compile: no C compiler: /nonexistent/cc" in done.stdout


@sources
@pytest.mark.slow
@pytest.mark.requires_program("cc")
def test_a_compiler_that_fails_at_the_modules_leaves_them_pure(folder: Path) -> None:
    cc = folder / "cc"  # good for a program as short as the one that is tried first
    cc.write_text('#!/bin/sh\ncase "$*" in *try.c*) exec cc "$@";; esac\necho no >&2\nexit 1\n')
    cc.chmod(0o755)
    done, built = wheel(folder, CC=str(cc))
    assert done.returncode == 0, done.stdout
    assert "installed as pure Python, which is slower: " in done.stdout
    assert [compiled_files(path) for path in built] == [[]]


@pytest.mark.skipif(not build.COMPILED, reason="of the compiled build")
def test_every_hot_module_is_compiled() -> None:
    package = Path(exchange.__file__).parent
    names = {str(path.relative_to(package)).split(".")[0] for path in package.rglob("*.so")}
    assert {"exchange", "cgi", "gateways/wsgi", "protocols/fastcgi", "drivers/threads"} <= names
