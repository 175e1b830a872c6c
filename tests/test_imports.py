"""What importing Fulgate brings with it; who may import whom is import-linter's to check."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

OPTIONAL = {"asyncio", "click", "django", "flask", "twisted", "uvicorn"}


def modules_after(statement: str) -> set[str]:
    code = f"import json, sys\n{statement}\nprint(json.dumps(sorted(sys.modules)))"
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        check=True,
        text=True,
        timeout=60,
    )
    return set(json.loads(run.stdout))


@pytest.mark.parametrize("name", ["fulgate", "fulgate.server", "fulgate.testing", "fulgate.client"])
def test_importing_needs_nothing_optional(name: str) -> None:
    modules = modules_after(f"import {name}")
    assert name in modules
    assert modules & OPTIONAL == set()


def test_command_needs_only_click() -> None:
    modules = modules_after("import fulgate.cli")
    assert modules & OPTIONAL == {"click"}


def test_a_server_loads_no_openssl() -> None:
    modules = modules_after("import fulgate.cli, fulgate.serve")
    assert "_hashlib" not in modules  # 4 MB in each process


def test_the_command_loads_nothing_large_that_serving_does_not_need() -> None:
    """They are a fifth of its start."""
    modules = modules_after("import fulgate.cli, fulgate.serve")
    assert modules & {"difflib", "random", "shutil", "tempfile", "tomllib"} == set()
