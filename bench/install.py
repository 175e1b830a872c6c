"""Install and compile what the benchmark measures, into folders of its own."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from peers import BENCH, BUILD, COMPILED_VENV, PYTHON, ROOT, SEARCH, VENV, Peer, php_fpm

# What stands between pip's last lines and a reason that says something.
NOISE = ("[notice]", "note:", "hint:", "╰", "│", "×", "error: subprocess-exited-with-error")


def _run(*command: object) -> str:
    """Run a command; give why it failed, empty when it did not."""
    try:
        done = subprocess.run(
            [str(part) for part in command], text=True, errors="replace",
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
    except OSError as error:
        return str(error)
    if not done.returncode:
        return ""
    lines = [line.strip() for line in done.stdout.splitlines()]
    said = [line for line in lines if line and not line.startswith(NOISE)]
    raised = [line for line in said if re.match(r"fulgate: |[\w.]+(Error|Exception): ", line)]
    wrong = [line for line in said if "error:" in line.lower()]
    found = raised[-1:] + wrong[:1] + said[-1:]
    return next(iter(found), f"exit status {done.returncode}")[:200]


def compiled(source: Path, target: Path, libraries: Iterable[str] = ()) -> str:
    """Compile a program when it is older than its sources; give why that failed, or nothing."""
    sources = [source, *source.parent.glob(f"{source.stem}_*.h")]
    if target.exists() and target.stat().st_mtime >= max(f.stat().st_mtime for f in sources):
        return ""
    target.parent.mkdir(exist_ok=True)
    if source.suffix == ".go":
        return _run("go", "build", "-o", target, source)
    flags = ["-O2", "-Wall", "-Wextra"]
    return _run("cc", *flags, "-o", target, source, *(f"-l{name}" for name in libraries))


def pip(python: Path, *arguments: object) -> str:
    """Install; a build of Fulgate that cannot compile is to fail, and to say why."""
    install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    return _run("env", "FULGATE_COMPILE=1", python, *install, *arguments)


def base_python() -> Path:
    """Give the interpreter that all that is Python is measured with, outside of any environment."""
    return Path(getattr(sys, "_base_executable", sys.executable)).resolve()


def venv(folder: Path) -> str:
    """Make an environment of the Python that runs this, unless there is one; give why it failed."""
    marker = folder / "python"
    if marker.exists() and marker.read_text() == str(base_python()):
        return ""
    shutil.rmtree(folder, ignore_errors=True)
    if not (reason := _run(base_python(), "-m", "venv", folder)):
        marker.write_text(str(base_python()))
    return reason


def install(requirements: Iterable[str]) -> dict[str, str]:
    """Install what is not there yet; give what could not be installed, and why."""
    failed: dict[str, str] = {}
    for requirement in dict.fromkeys(requirements):
        marker = VENV / ("installed-" + requirement.replace("=", "-").replace(">", "-"))
        if marker.exists():
            continue
        print(f"pip install {requirement}", file=sys.stderr)
        if reason := pip(PYTHON, requirement):
            failed[requirement] = f"pip install {requirement}: {reason}"
        else:
            marker.touch()
    return failed


SUFFIXES = (".py", ".pyi", ".typed", ".html", ".c", ".h")


def sources() -> list[Path]:
    """Give the files that an installed Fulgate is made of."""
    found = sorted(ROOT.iterdir())
    found += [
        path
        for folder in ("src", "scripts")
        for path in sorted((ROOT / folder).rglob("*"))
        if path.suffix in (".py", ".pyi", ".typed", ".html", ".c", ".h")
        and ".egg-info" not in str(path)
    ]
    return [path for path in found if path.is_file()]


def install_compiled() -> str:
    """Install a copy of the sources, as a user would; give why that failed, or nothing."""
    digest = hashlib.sha256(bytes(base_python()))
    for path in sources():
        digest.update(bytes(path.relative_to(ROOT)) + b"\0" + path.read_bytes() + b"\0")
    marker = COMPILED_VENV / "installed"
    if marker.exists() and marker.read_text() == digest.hexdigest():
        return ""
    print("pip install . (compiled)", file=sys.stderr)
    copy = BUILD / "source"
    shutil.rmtree(copy, ignore_errors=True)
    for path in sources():
        target = copy / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)
    python = COMPILED_VENV / "bin" / "python"
    arguments = ["--force-reinstall", "--no-cache-dir", f"{copy}[uvloop]"]
    if reason := venv(COMPILED_VENV) or pip(python, *arguments):
        return f"pip install .: {reason}"
    marker.write_text(digest.hexdigest())
    return ""


def _program(peer: Peer) -> str:
    if not peer.program:
        return ""
    there = php_fpm() if peer.program == "php-fpm" else shutil.which(peer.program, path=SEARCH)
    return "" if there else f"{peer.program} is not installed"


def _build(peer: Peer) -> str:
    if not peer.build:
        return ""
    return compiled(BENCH / peer.build, BUILD / peer.name, peer.libraries)


def _check(peer: Peer) -> str:
    if not peer.checked:
        return ""
    where = f"PYTHONPATH={':'.join(peer.modules)}"
    if reason := _run("env", where, *peer.checked):
        return f"it is not what its name says: {reason}"
    return ""


def prepare(peers: list[Peer]) -> dict[str, str]:
    """Install and compile what is needed; give the peers that cannot be had, with the reason.

    Raises RuntimeError when not even the load generator can be compiled.
    """
    if reason := compiled(BENCH / "load.c", BUILD / "load") or venv(VENV):
        raise RuntimeError(reason)
    missing = install(name for peer in peers for name in peer.requirements)
    from_pip = {
        peer.name: reason
        for peer in peers
        for requirement, reason in missing.items()
        if requirement in peer.requirements
    }
    steps: tuple[Callable[[Peer], str], ...] = (_program, _build, _check)
    built = install_compiled() if any("compiled" in peer.groups for peer in peers) else ""
    failed = {}
    for peer in peers:
        reason = from_pip.get(peer.name, built if "compiled" in peer.groups else "")
        for step in steps:
            reason = reason or step(peer)
        if reason:
            failed[peer.name] = reason
    return failed
