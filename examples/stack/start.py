"""Start MariaDB, Fulgate with Django, and nginx; stop them on Ctrl+C.

python start.py [--folder FOLDER] [--port PORT] [OPTION OF fulgate serve ...]

All that they write lies in FOLDER (.run beside this file), the database too, which the next run
finds again. They listen on Unix sockets there, and nginx on PORT of 127.0.0.1, by default a free
one. Any user may run this. Nothing of the system's own MariaDB or nginx is touched.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import pwd
import secrets
import shutil
import signal
import socket
import string
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
PATIENCE = 60.0  # seconds for a program to start, and to stop
# Debian keeps servers in sbin, which an ordinary user's PATH leaves out.
PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin"])


class Stopped(Exception):
    """Ctrl+C, or SIGTERM."""


class Stack:
    """The programs, in the order in which they were started."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.port = port
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.user = pwd.getpwuid(os.geteuid()).pw_name
        self.environment = {
            **os.environ,
            "PATH": PATH,
            "GUESTBOOK_DATABASE": str(folder / "mariadb.sock"),
            "GUESTBOOK_USER": self.user,
            "GUESTBOOK_SECRET": self.secret(),
        }

    def secret(self) -> str:
        """Give Django's secret key, which is made once."""
        path = self.folder / "secret"
        if not path.exists():
            with open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
                file.write(secrets.token_urlsafe(50))
        return path.read_text()

    def start(self, name: str, *command: str, ready: Callable[[], bool]) -> None:
        """Start a program, and wait until it is ready. Its output is in NAME.out.

        In a session of its own, so that Ctrl+C reaches this process alone, which stops them in
        turn.
        """
        with (self.folder / f"{name}.out").open("ab") as out:
            process = subprocess.Popen(
                command,
                cwd=HERE,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.running[name] = process
        end = time.monotonic() + PATIENCE
        while not ready():
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"{name} did not start: see {self.folder}/{name}.out")
            time.sleep(0.05)
        print(f"{name} runs (pid {process.pid})", flush=True)

    def stop(self) -> bool:
        """Stop what was started, last first, so that each still has what it needs."""
        well = True
        for name, process in reversed(self.running.items()):
            if process.poll() is None:
                process.send_signal(signal.SIGQUIT if name == "nginx" else signal.SIGTERM)
            try:
                status = process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                status = process.wait()
            if status:  # it may have left processes of its own behind
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            print(f"{name} has ended" + (f", with status {status}" if status else ""), flush=True)
            well = well and status == 0
        return well

    def start_mariadb(self) -> None:
        data = self.folder / "data"
        ready = self.folder / "data.made"
        if not ready.exists():
            shutil.rmtree(data, ignore_errors=True)
            subprocess.run(
                [
                    "mariadb-install-db",
                    "--no-defaults",
                    f"--datadir={data}",
                    f"--user={self.user}",
                    "--skip-test-db",
                    "--auth-root-authentication-method=socket",
                    f"--auth-root-socket-user={self.user}",
                ],
                check=True,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
            ready.touch()
        (self.folder / "init.sql").write_text(
            "CREATE DATABASE IF NOT EXISTS guestbook CHARACTER SET utf8mb4;\n"
        )
        self.start(
            "mariadbd",
            "mariadbd",
            "--no-defaults",
            f"--datadir={data}",
            f"--user={self.user}",
            f"--socket={self.folder}/mariadb.sock",
            f"--pid-file={self.folder}/mariadb.pid",
            f"--init-file={self.folder}/init.sql",
            "--skip-networking",
            "--log-warnings=2",
            ready=lambda: greets(self.folder / "mariadb.sock"),
        )

    def start_fulgate(self, options: list[str]) -> None:
        subprocess.run(
            [sys.executable, "manage.py", "migrate", "--no-input", "--verbosity=0"],
            check=True,
            cwd=HERE,
            env=self.environment,
        )
        socket_path = self.folder / "fulgate.sock"
        self.start(
            "fulgate",
            sys.executable,
            *("-m", "fulgate", "serve", "--config", str(HERE / "fulgate.toml")),
            *("--bind", f"unix:{socket_path}", "--pid", str(self.folder / "fulgate.pid")),
            *options,
            ready=lambda: accepts(socket_path),
        )

    def start_nginx(self) -> None:
        (self.folder / "temporary").mkdir(exist_ok=True)
        text = string.Template((HERE / "nginx.conf").read_text()).safe_substitute(
            folder=self.folder,
            port=self.port,
            # nginx that root has started would change to a user who may not use our socket.
            user="user root root;" if os.geteuid() == 0 else "",
        )
        path = self.folder / "nginx.conf"
        path.write_text(text)
        self.start(
            *("nginx", "nginx", "-p", f"{self.folder}/", "-c", str(path)),
            *("-e", str(self.folder / "nginx.log")),
            ready=lambda: accepts(("127.0.0.1", self.port)),
        )

    def watch(self) -> None:
        """Return when one of them ends."""
        while True:
            for name, process in self.running.items():
                if process.poll() is not None:
                    print(f"{name} has ended by itself: see {self.folder}/{name}.out")
                    return
            time.sleep(0.5)


def accepts(address: Path | tuple[str, int]) -> bool:
    family = socket.AF_UNIX if isinstance(address, Path) else socket.AF_INET
    with socket.socket(family) as probe:
        return probe.connect_ex(str(address) if isinstance(address, Path) else address) == 0


def greets(path: Path) -> bool:
    """Does MariaDB take connections? It speaks first."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
            return probe.recv(1) != b""
        except OSError:
            return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def interrupt(number: int, frame: object) -> None:
    raise Stopped


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=HERE / ".run")
    parser.add_argument("--port", type=int, default=0)
    arguments, options = parser.parse_known_args()
    folder = arguments.folder.resolve()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    lock = os.open(folder / "lock", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise SystemExit(f"another run has {folder}") from None
    stack = Stack(folder, arguments.port or free_port())
    asked = False
    try:
        stack.start_mariadb()
        stack.start_fulgate(options)
        stack.start_nginx()
        print(f"http://127.0.0.1:{stack.port}/ (Ctrl+C stops it)", flush=True)
        stack.watch()
    except Stopped:
        asked = True
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # they are being stopped
        well = stack.stop()
    return 0 if asked and well else 1


if __name__ == "__main__":
    sys.exit(main())
