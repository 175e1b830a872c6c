"""Who can reach a socket: the web server's user a Unix socket, other machines a port."""

from __future__ import annotations

import grp
import os
import pwd
import shlex
import stat
from dataclasses import replace
from pathlib import Path
from typing import Final

from fulgate.doctor.mistakes import Mistake
from fulgate.endpoint import Endpoint

__all__ = ["barred", "exposed"]

LISTEN: Final = "0A"  # the state of a listening socket in /proc/net/tcp


def barred(endpoint: Endpoint, user: str) -> tuple[Mistake, str, str] | None:
    """Give what keeps a user from connecting to a Unix socket, and what helps; None if nothing.

    Raises KeyError for a user that does not exist, OSError for a path that cannot be looked at.
    """
    path = endpoint.path
    account = pwd.getpwnam(user)
    blocked = _blocked(path, account.pw_uid, set(os.getgrouplist(user, account.pw_gid)))
    if blocked == path:
        group = grp.getgrgid(account.pw_gid).gr_name
        bind = replace(endpoint, mode=0o660, owner="", group=group)
        advice = f"start Fulgate with: --bind '{bind}'"
        return Mistake.SOCKET, f"the socket {path}", advice
    if blocked:
        advice = f"let them pass: chmod o+x {shlex.quote(blocked)}"
        return Mistake.FOLDER, f"{path}, for its folder {blocked}", advice
    return None


def _blocked(path: str, uid: int, groups: set[int]) -> str:
    """Give the file or folder that keeps a user from connecting; "" if none does."""
    if uid == 0:
        return ""
    parents = [str(parent) for parent in reversed(Path(path).absolute().parents)]
    for name in [*parents, path]:
        status = os.stat(name)
        wanted = stat.S_IWOTH if name == path else stat.S_IXOTH
        if status.st_uid == uid:
            wanted <<= 6
        elif status.st_gid in groups:
            wanted <<= 3
        if not status.st_mode & wanted:
            return name
    return ""


def exposed(port: int) -> bool:
    """Does somebody on this machine listen on that port on more than the loopback interface?"""
    for file in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(file).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            address, _, hexed = fields[1].partition(":")
            if fields[3] == LISTEN and int(hexed, 16) == port and not _loopback(address):
                return True
    return False


def _loopback(address: str) -> bool:
    # As the kernel prints it: words of four bytes, in the machine's order.
    return address.endswith("7F") if len(address) == 8 else address in (
        "00000000000000000000000001000000", "00000000000000000000000000000001"
    )  # fmt: skip
