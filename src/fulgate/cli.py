"""The command `fulgate`. Its options are the fields of Config."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource
from click.shell_completion import get_completion_class

from fulgate import __version__, init, process, whereabouts
from fulgate.build import BUILD
from fulgate.config import Config, Setting, settings
from fulgate.endpoint import DEFAULT, FASTCGI, AllowedClients, Endpoint, check_exposed
from fulgate.errors import AppNotFound, ConfigError, FulgateError
from fulgate.loader import load_app
from fulgate.logs import Logs
from fulgate.settings import Settings, load
from fulgate.snippet import nginx
from fulgate.title import entitle

if TYPE_CHECKING:
    from fulgate.front import Front
    from fulgate.reload import Reloader
    from fulgate.server import Server

__all__ = ["cli", "main"]

COMPLETE = "_FULGATE_COMPLETE"
COMMANDS = (
    "bench",
    "conform",
    "doctor",
    "dump",
    "get",
    "migrate",
    "ping",
    "record",
    "reload",
    "replay",
    "status",
    "stop",
    "top",
)  # a module in fulgate.commands each, with a click.Command `command`
FRONT_TIMEOUT = 0.5  # seconds for the HTTP front to end, after the server did
DEVELOPMENT_GRACE = 0.3  # seconds for running requests with --http: Ctrl+C is to be quick

log = logging.getLogger("fulgate")


class _Stopped(BaseException):
    """A signal told the process to stop before it served. Nothing of an application catches it."""


@dataclass
class _Run:
    """One run of the command."""

    debug: bool  # what is known before the settings are loaded, then what they say

    def show(self, error: BaseException) -> None:
        if self.debug:
            traceback.print_exception(error)


class _Command(click.Command):
    """A command whose help lists the options by section."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {"General": []}
        section_of = {setting.name: setting.section for setting in settings()}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if isinstance(param, click.Option) and record is not None:
                sections.setdefault(section_of.get(param.name or "", "General"), []).append(record)
        for section, records in sections.items():
            with formatter.section(section):
                formatter.write_dl(records)


def _option(setting: Setting) -> click.Option:
    kind: Any = str
    metavar = setting.metavar
    if setting.choices:
        kind, metavar = click.Choice(setting.choices), ""
    elif metavar == "FILE":
        kind = click.Path()
    elif metavar == "FOLDER":
        kind = click.Path(file_okay=False)
    if not metavar and not setting.choices:
        number = "BYTES" if setting.size else "N"
        metavar = {int: number, float: "SECONDS"}.get(setting.type, setting.name.upper())
    default = f"  [default: {setting.default}]" if setting.default not in ("", (), False, 0) else ""
    if setting.type is bool:
        name = setting.option
        return click.Option(
            [f"{name}/--no-{name[2:]}", setting.name], default=None, help=setting.help
        )
    return click.Option(
        [*setting.options, setting.name],
        type=kind,
        multiple=setting.many,
        metavar=metavar or None,
        help=setting.help + default,
    )


def _configured(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that all settings have, and the Settings that come of them."""

    @click.pass_context
    def with_settings(ctx: click.Context, /, **given: Any) -> Any:
        own = {name: given.pop(name) for name in list(given) if name in ("print_config",)}
        file = given.pop("config") or ""
        options = {
            name: value
            for name, value in given.items()
            if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE
        }
        found = load(options, file=file)
        run: _Run = ctx.obj
        run.debug = found.config.debug
        return command(found, **own)

    with_settings.__doc__ = command.__doc__
    return with_settings


def _params() -> list[click.Parameter]:
    return [
        click.Argument(["app"], required=False, metavar="[MODULE:ATTR]"),
        click.Option(
            ["-c", "--config"],
            type=click.Path(),
            metavar="FILE",
            help="TOML file with settings.  [default: fulgate.toml, else [tool.fulgate] in"
            " pyproject.toml]",
        ),
        *(_option(setting) for setting in settings() if setting.name != "app"),
    ]


class _Commands(click.Group):
    """The commands of this file, and those of fulgate.commands, imported when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *COMMANDS])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return super().get_command(ctx, cmd_name)
        module = importlib.import_module(f"fulgate.commands.{cmd_name}")
        command: click.Command = module.command
        return command


@click.group(
    cls=_Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="fulgate", message=f"%(prog)s %(version)s ({BUILD})")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Serve a Python web application to a web server over FastCGI."""
    if ctx.invoked_subcommand is None:
        *names, last = cli.list_commands(ctx)
        listed = ", ".join(names) + " or " + last
        raise click.UsageError(f"name a command: {listed}; see fulgate --help")


@cli.command("serve", cls=_Command, params=_params())
@_configured
def serve(found: Settings) -> int:
    """Serve an application until SIGTERM or SIGINT."""
    alone = not found.pools or found.config.reload
    if alone and init.is_first():  # a master reaps orphans itself
        status = init.divide()
        if status is not None:
            return status
    before = {number: signal.signal(number, _stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with contextlib.ExitStack() as stack:
            try:
                if not alone:
                    return _serve_pools(found, stack)
                return _serve(_for_development(found), stack)
            except FulgateError as error:
                if log.handlers and found.config.error_logfile != "-":
                    log.error("%s", error)
                raise
    except _Stopped:
        return 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@cli.command(
    "check",
    cls=_Command,
    params=[
        *_params(),
        click.Option(
            ["--print-config"], is_flag=True, help="Print each setting, and where it came from."
        ),
    ],
)
@_configured
def check(found: Settings, print_config: bool) -> int:
    """Check the configuration and import the application, without serving."""
    from fulgate.composition import check_served

    if print_config:
        click.echo(found.toml(), nl=False)
    config = found.config
    pools = list(found.pools.values()) or [config]
    for pool in pools:
        _need_app(pool)
        process.identity(pool)
    process.prepare(config)
    for pool in pools:
        allowed = AllowedClients.of(pool.allowed_clients)
        for text in pool.bind:
            endpoint = Endpoint.parse(text)
            endpoint.check()
            check_served(endpoint.protocol, f"endpoint {endpoint}: ")
            check_exposed(endpoint, allowed)
    if config.http:
        _front()(config.http, DEFAULT, config.static)
    for pool in pools:
        status = _try(pool, alone=len(pools) == 1)
        if status:
            return status
    apps = [*dict.fromkeys(pool.app for pool in pools)]
    verb = "loads" if len(apps) == 1 else "load"
    click.echo(f"fulgate: the configuration is good, and {', '.join(apps)} {verb}", err=True)
    return 0


def _try(config: Config, *, alone: bool) -> int:
    """Load the application as who will run it, where it will run; give the exit status.

    That is in a process of its own, where others are to be loaded as well, or nobody may come back.
    """
    who = process.identity(config)
    if who is None and alone:
        process.settle(config)
        load_app(config.app, config.pythonpath)
        return 0
    pid = os.fork()
    if pid:
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if status < 0:
            raise AppNotFound(f"{config.app}: signal {-status} ended the process that loaded it")
        return status
    status = 1
    try:
        process.settle(config)
        process.enter(config, who)
        load_app(config.app, config.pythonpath)
        status = 0
    except FulgateError as error:
        _Run(config.debug).show(error)
        status = _fail(str(error), getattr(error, "exit_status", 1))
    finally:
        os._exit(status)


@cli.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> int:
    """Print a script that completes the options in a shell.

    For bash: eval "$(fulgate completion bash)"
    """
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(cli, {}, "fulgate", COMPLETE).source())
    return 0


def _for_development(found: Settings) -> Config:
    """Give the settings; nobody waits for a stream at Ctrl+C."""
    config = found.config
    if (config.http or config.reload) and found.sources["graceful_timeout"] == "default":
        return config.replace(graceful_timeout=DEVELOPMENT_GRACE)
    return config


def _serve(config: Config, stack: contextlib.ExitStack) -> int:
    from fulgate.serve import run
    from fulgate.server import Server

    _need_app(config)
    process.open_standard_streams()
    front_class = _front() if config.http else None
    who = process.identity(config)
    process.prepare(config)
    logs = Logs(config)
    stack.callback(logs.close)
    if config.pid:
        stack.callback(process.PidFile(config.pid).remove)
    private = bool(config.http) and not config.bind
    if private:
        config = config.replace(bind=(_private_endpoint(who, stack),))
    if config.reload and who is not None:
        raise ConfigError("--reload is for development, and does not go with user and group")
    process.settle(config)
    entitle(config.app)
    # Before the sockets are bound, so that nobody connects to what cannot answer.
    app = _no_application
    if who is None and not config.reload:
        app = load_app(config.app, config.pythonpath)
    server = Server(_no_application, config, ended=logs.access)
    stack.callback(server.stop)
    server.bind()
    status = tuple(server.status_endpoints)
    whereabouts.tell([whereabouts.Place(tuple(server.endpoints), status, config.status_path)])
    if who is not None:  # afterwards, so that no code of the application runs as root
        logs.give_to(who.uid, who.gid)
        process.enter(config, who)
        app = load_app(config.app, config.pythonpath)
    server.app = app
    url = ""
    if front_class is not None:
        front = front_class(config.http, _for_front(server), config.static)
        stack.callback(front.stop, FRONT_TIMEOUT)
        front.start()
        url = front.url
    reloader = _reloader(config, server) if config.reload else None
    _announce(server.endpoints, config, url, server.status_endpoints, private=private)
    return reloader.run() if reloader is not None else run(server, reopen=logs.reopen)


def _reloader(config: Config, server: Server) -> Reloader:
    from fulgate.reload import Reloader

    # The child is where the folder, the environment and the process's file have led already.
    plain = config.replace(
        chdir="", env_file="", env=(), clear_env=False, nice=0, pid="", http="", static=()
    )
    return Reloader(plain, server.listeners, server.status_listeners)


def _serve_pools(found: Settings, stack: contextlib.ExitStack) -> int:
    from fulgate.supervised import Supervised

    config = found.config
    process.open_standard_streams()
    process.prepare(config)
    process.settle(config.replace(clear_env=False))  # for hooks; workers have each their own
    logs = Logs(config)
    stack.callback(logs.close)
    if config.pid:
        stack.callback(process.PidFile(config.pid).remove)
    supervised = Supervised(found.pools, logs, lambda: found.again().pools)
    stack.callback(supervised.close)
    apps = ", ".join(pool.app for pool in found.pools.values())

    def announce() -> None:
        _announce(supervised.endpoints, config.replace(app=apps), "", supervised.status_endpoints)

    return supervised.run(announce)


def _no_application(environ: object, start_response: object) -> Any:
    raise RuntimeError("the server was started before its application was loaded")


def _need_app(config: Config) -> None:
    if not config.app:
        raise ConfigError(
            "name the application: fulgate serve MODULE:ATTR, or app in fulgate.toml or in"
            " [tool.fulgate] of pyproject.toml"
        )


def _front() -> type[Front]:
    """Give the class of the HTTP front. Raises ConfigError where its server is not installed."""
    try:
        from fulgate.front import Front
    except ImportError as error:
        if error.name != "uvicorn":
            raise
        raise ConfigError("--http needs uvicorn: install fulgate[http]") from error
    return Front


def _for_front(server: Server) -> str:
    """Give an endpoint that the HTTP front can speak to. Raises ConfigError."""
    for endpoint in server.endpoints:
        if Endpoint.parse(endpoint).protocol == FASTCGI:
            return endpoint
    raise ConfigError("--http needs an endpoint of FastCGI: leave --bind out, or name one more")


def _private_endpoint(who: process.Identity | None, stack: contextlib.ExitStack) -> str:
    """Give a Unix endpoint in a new folder that nobody else can look into."""
    import shutil  # here, since they take long to import
    import tempfile

    folder = tempfile.mkdtemp(prefix="fulgate-")
    pid = os.getpid()

    def remove() -> None:
        if os.getpid() == pid:
            shutil.rmtree(folder, ignore_errors=True)

    stack.callback(remove)
    if who is None:
        return f"unix:{folder}/fulgate.sock"
    os.chown(folder, who.uid, who.gid)
    return f"unix:{folder}/fulgate.sock?owner={who.uid}&group={who.gid}"


def _stop(number: int, frame: object) -> None:
    raise _Stopped


def _announce(
    endpoints: Sequence[str],
    config: Config,
    url: str,
    status: Sequence[str] = (),
    *,
    private: bool = False,
) -> None:
    """Say where it listens, for people and for whoever waits for the line.

    On a `private` socket no web server has any business.
    """
    text = ""
    for endpoint in endpoints:
        line = f"fulgate {__version__} serves {config.app} on {endpoint}"
        text += line + "\n"
        if config.error_logfile != "-":
            log.info("%s", line)
    for endpoint in status:
        text += f"Its status is on {endpoint}\n"
    if url:
        text += f"Open {url}/\n"
    snippet = "" if private else nginx(endpoints[0], config.script_name)
    if snippet and (url or os.isatty(1)):
        text += f"\nFor nginx:\n\n{snippet}\n"
    # Not sys.stdout: what it could not write to a closed pipe would be an error again at the exit.
    with contextlib.suppress(OSError):
        os.write(1, text.encode("utf-8", "surrogateescape"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 2 for usage and configuration, 3 for an
    application that does not load and a socket that cannot be had.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    debug = os.environ.get("FULGATE_DEBUG", "").lower() in ("1", "true", "yes", "on")
    run = _Run(debug or "--debug" in arguments)
    try:
        status = cli.main(arguments, "fulgate", COMPLETE, standalone_mode=False, obj=run)
    except click.ClickException as error:
        return _fail(error.format_message(), 2)
    except click.Abort:
        return _fail("interrupted", 130)
    except FulgateError as error:
        run.show(error)
        return _fail(str(error), getattr(error, "exit_status", 1))
    except Exception as error:
        run.show(error)
        text = f"unexpected {type(error).__name__}: {error} (--debug shows where)"
        return _fail(text, 1)
    return status if isinstance(status, int) else 0


def _fail(text: str, status: int) -> int:
    click.echo("fulgate: error: " + " ".join(text.split()), err=True)
    return status
