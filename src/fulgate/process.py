"""What the process is before it serves: folder, environment, limits, root, user, pid file."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import grp
import os
import pwd
import resource
import stat
import weakref
from dataclasses import dataclass

from fulgate import systemd
from fulgate.config import Config
from fulgate.errors import ConfigError
from fulgate.listener import systemd_sockets
from fulgate.settings import read_env_file
from fulgate.spawned import open_standard_streams

__all__ = [
    "Identity",
    "PidFile",
    "drop",
    "enter",
    "identity",
    "open_standard_streams",
    "prepare",
    "settle",
]

# What stays of an environment that is cleared: what it tells is not for the application.
KEPT = ("FCGI_WEB_SERVER_ADDRS", "FULGATE_FAULTHANDLER")


def prepare(config: Config) -> None:
    """Set folder, niceness, umask and limits. Raises ConfigError."""
    if config.chdir and not config.chroot:
        _change_folder(config.chdir)
    _renice(config)
    if config.umask:
        os.umask(int(config.umask, 8))
    if config.rlimit_files:
        _limit("rlimit_files", resource.RLIMIT_NOFILE, config.rlimit_files)
    if config.rlimit_core >= 0:
        _limit("rlimit_core", resource.RLIMIT_CORE, config.rlimit_core)
    if config.rlimit_memory:
        _limit("rlimit_memory", resource.RLIMIT_AS, config.rlimit_memory)


def _limit(setting: str, kind: int, wanted: int) -> None:
    _, hard = resource.getrlimit(kind)
    unlimited = hard == resource.RLIM_INFINITY
    try:
        resource.setrlimit(kind, (wanted, hard if unlimited else max(wanted, hard)))
    except (OSError, ValueError, OverflowError) as error:
        raise ConfigError(
            f"{setting}: {wanted} is not allowed; the hard limit is {hard}"
        ) from error


def _change_folder(path: str) -> None:
    try:
        os.chdir(path)
    except OSError as error:
        raise ConfigError(f"chdir: {path}: {error.strerror}") from error


def _renice(config: Config) -> None:
    if config.nice:
        try:
            os.setpriority(os.PRIO_PROCESS, 0, config.nice)
        except OSError as error:
            raise ConfigError(f"nice: {config.nice}: {error.strerror}") from error


def settle(config: Config) -> None:
    """Make the environment the application's, in the process that will run it, and its niceness.

    Raises ConfigError.
    """
    given = read_env_file(config.env_file) if config.env_file else {}
    if config.clear_env:
        systemd_sockets(take=False)  # what the environment says of them is remembered
        systemd.remember()
        kept = {name: os.environ[name] for name in KEPT if name in os.environ}
        os.environ.clear()
        os.environ.update(kept)
    for name, value in given.items():
        os.environ.setdefault(name, value)
    for pair in config.env:
        name, _, value = pair.partition("=")
        os.environ[name] = value
    _renice(config)


@dataclass(frozen=True, slots=True)
class Identity:
    """Who the process is to become."""

    uid: int
    gid: int
    name: str = ""  # in the user database
    home: str = ""
    groups: tuple[int, ...] = ()  # the supplementary ones, as initgroups(3) has them

    @property
    def current(self) -> bool:
        """Is the process that already?"""
        return (os.getuid(), os.geteuid(), os.getgid(), os.getegid()) == (
            self.uid,
            self.uid,
            self.gid,
            self.gid,
        )


def identity(config: Config) -> Identity | None:
    """Look up user and group; None where the process stays who it is. Raises ConfigError."""
    if config.chroot and (os.geteuid() != 0 or config.user in ("", "0", "root")):
        raise ConfigError("chroot: only root can, and root gets out of it: name another user")
    if config.chroot and not os.path.isdir(config.chroot):
        raise ConfigError(f"chroot: {config.chroot}: there is no such folder")
    if not config.user and not config.group:
        return None
    uid, gid, name, home = os.getuid(), os.getgid(), "", ""
    if config.user:
        try:
            numeric = config.user.isascii() and config.user.isdigit()
            entry = pwd.getpwuid(int(config.user)) if numeric else pwd.getpwnam(config.user)
            uid, gid, name, home = entry.pw_uid, entry.pw_gid, entry.pw_name, entry.pw_dir
        except (KeyError, OverflowError):
            if not numeric:
                raise ConfigError(f"user: there is no user {config.user!r}") from None
            if not config.group:
                raise ConfigError(f"user: {config.user} has no entry, so name a group") from None
            uid = int(config.user)
    if config.group:
        try:
            gid = _gid(config.group)
        except KeyError:
            raise ConfigError(f"group: there is no group {config.group!r}") from None
    groups = tuple(os.getgrouplist(name, gid)) if name else (gid,)
    found = Identity(uid, gid, name, home, groups)
    if os.geteuid() != 0 and not found.current:
        raise ConfigError("user, group: only root can become somebody else")
    return found


def _gid(group: str) -> int:
    return int(group) if group.isascii() and group.isdigit() else grp.getgrnam(group).gr_gid


def enter(config: Config, who: Identity | None) -> None:
    """Change the root folder, and become `who`, for good. Raises ConfigError."""
    if config.chroot:
        try:
            os.chroot(config.chroot)
            os.chdir("/")
        except OSError as error:
            raise ConfigError(f"chroot: {config.chroot}: {error.strerror}") from error
        if config.chdir:
            _change_folder(config.chdir)
    drop(who)


def drop(who: Identity | None) -> None:
    """Become `who`, for good. Raises ConfigError."""
    if who is None or (who.current and os.geteuid() != 0):
        return
    try:
        # Known before: in another root folder there may be no list of groups, or a false one.
        os.setgroups(who.groups)
        os.setgid(who.gid)
        os.setuid(who.uid)
    except (OSError, OverflowError) as error:
        raise ConfigError(f"cannot become user {who.uid}, group {who.gid}: {error}") from error
    if who.name and who.uid:
        # As PHP-FPM does: root's would be there otherwise.
        os.environ["USER"] = os.environ["LOGNAME"] = who.name
        os.environ["HOME"] = who.home


_pid_files: weakref.WeakSet[PidFile] = weakref.WeakSet()


def _let_go() -> None:
    for file in list(_pid_files):
        file.let_go()


os.register_at_fork(after_in_child=_let_go)


class PidFile:
    """A file with the process id, locked while the process lives, so only one can have it.

    Raises ConfigError where it cannot be had. `remove` leaves alone what is not ours any more.
    """

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)
        self._pid = os.getpid()
        try:
            self._fd = self._locked()
        except BlockingIOError as error:
            raise ConfigError(f"pid: a process that runs has the file {path}") from error
        except OSError as error:
            reason = "it is a symbolic link" if error.errno == errno.ELOOP else error.strerror
            raise ConfigError(f"pid: cannot use the file {path}: {reason}") from error
        try:
            content = os.pread(self._fd, 64, 0).strip()
            if not stat.S_ISREG(os.fstat(self._fd).st_mode) or not (
                content.isdigit() or not content
            ):
                raise ConfigError(f"pid: {path} is there and not a pid file; it was left alone")
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, f"{self._pid}\n".encode(), 0)
        except OSError as error:
            os.close(self._fd)
            raise ConfigError(f"pid: cannot write the file {path}: {error.strerror}") from error
        except ConfigError:
            os.close(self._fd)
            raise
        _pid_files.add(self)

    def _locked(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        while True:
            fd = os.open(self.path, flags, 0o644)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self._is_there(fd):
                    return fd
            except OSError:
                os.close(fd)
                raise
            os.close(fd)  # its owner has removed it meanwhile

    def _is_there(self, fd: int) -> bool:
        try:
            now = os.lstat(self.path)
        except FileNotFoundError:
            return False
        return os.path.samestat(now, os.fstat(fd))

    def let_go(self) -> None:
        """In a forked child: close it, since the lock lasts as long as anybody has it open."""
        if self._fd != -1:
            os.close(self._fd)
            self._fd = -1

    def remove(self) -> None:
        """Remove the file, if this process made it and it is still the same."""
        if os.getpid() != self._pid or self._fd == -1:
            return
        # Where privileges were dropped this may fail; an unlocked pid file stops nobody.
        with contextlib.suppress(OSError):
            if self._is_there(self._fd):
                os.unlink(self.path)
        os.close(self._fd)
        self._fd = -1
