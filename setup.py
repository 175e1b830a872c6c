"""Build: the hot modules are compiled with mypyc where there is a C compiler, and pure elsewhere.

All else that a build needs to know is in pyproject.toml. FULGATE_PURE=1 leaves the modules as they
are; FULGATE_COMPILE=1 makes a build fail that cannot compile them. Either way these are the same
sources, and an editable installation always uses them as they are.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from setuptools import setup
from setuptools.command.build_ext import build_ext

# Everything that runs for each request, and what shares its classes.
MODULES = [
    "cgi",
    "drivers/acceptor",
    "drivers/aio_connection",
    "drivers/connection",
    "drivers/lanes",
    "drivers/lead",
    "drivers/outbox",
    "drivers/phases",
    "drivers/shared",
    "drivers/spool",
    "drivers/threads",
    "drivers/wire",
    "drivers/worker",
    "exchange",
    "gateways/asgi_http",
    "gateways/asgi_scope",
    "gateways/head",
    "gateways/streams",
    "gateways/wsgi",
    "processes/cell",
    "protocols/ajp",
    "protocols/ajp_packets",
    "protocols/cgi",
    "protocols/fastcgi",
    "protocols/fastcgi_records",
    "protocols/scgi",
]
PURE = os.environ.get("FULGATE_PURE", "") not in ("", "0")
REQUIRED = os.environ.get("FULGATE_COMPILE", "") not in ("", "0")


def say(reason: str) -> None:
    """Say why the build is a pure one; stop where it must not be."""
    if REQUIRED:
        sys.exit(f"fulgate: cannot compile: {reason}")
    print(f"fulgate: installed as pure Python, which is slower: {reason}", file=sys.stderr)


def lacking() -> str:
    """Give what hinders a program of Python's C API from being compiled, or nothing."""
    command = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "try.c"
        source.write_text("#include <Python.h>\nint main(void) { return 0; }\n")
        command += ["-c", f"-I{sysconfig.get_path('include')}", str(source)]
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        except OSError as error:
            return f"no C compiler: {command[0]}: {error.strerror}"
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line]
        return lines[0] if lines else f"{command[0]} failed"
    return ""


def extensions() -> list[Any]:
    """Translate the modules to C, if this is a command that compiles and all is there for it."""
    if PURE or not {"bdist_wheel", "build", "build_ext", "install"} & set(sys.argv):
        return []
    reason = lacking()
    if reason:
        say(reason)
        return []
    from mypyc.build import mypycify

    sources = [f"src/fulgate/{name}.py" for name in MODULES]
    options = ["--strict", "--ignore-missing-imports", "--config-file="]
    os.environ["MYPYPATH"] = "src"
    modules: list[Any] = mypycify([*options, *sources], opt_level="3", debug_level="0")
    return modules


class Build(build_ext):
    """Compiles all of the modules, or none: a part of them would not work."""

    def build_extensions(self) -> None:
        try:
            super().build_extensions()
        except Exception as error:
            for extension in self.extensions:
                Path(self.get_ext_fullpath(extension.name)).unlink(missing_ok=True)
            self.extensions = []
            say(" ".join(str(error).split()))


setup(ext_modules=extensions(), cmdclass={"build_ext": Build})
