"""The command `fulgate`. Its options are the fields of Config."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import click
from click.core import ParameterSource
from click.shell_completion import get_completion_class

from fulgate import __version__, process
from fulgate.config import Config, Setting, settings
from fulgate.endpoint import DEFAULT, AllowedClients, Endpoint, check_exposed
from fulgate.errors import ConfigError, FulgateError
from fulgate.loader import load_app
from fulgate.logs import Logs
from fulgate.settings import Settings, load
from fulgate.snippet import nginx

if TYPE_CHECKING:
    from fulgate.front import Front

__all__ = ["cli", "main"]

COMPLETE = "_FULGATE_COMPLETE"
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
        [*([setting.short] if setting.short else []), setting.option, setting.name],
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


@click.group(
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="fulgate")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Serve a Python web application to a web server over FastCGI."""
    if ctx.invoked_subcommand is None:
        names = "serve, check, migrate, doctor or completion"
        raise click.UsageError(f"name a command: {names}; see fulgate --help")


@cli.command("serve", cls=_Command, params=_params())
@_configured
def serve(found: Settings) -> int:
    """Serve an application until SIGTERM or SIGINT."""
    before = {number: signal.signal(number, _stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with contextlib.ExitStack() as stack:
            try:
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
    if print_config:
        click.echo(found.toml(), nl=False)
    config = found.config
    _need_app(config)
    process.identity(config)
    process.prepare(config)
    allowed = AllowedClients.of(config.allowed_clients)
    for text in config.bind:
        endpoint = Endpoint.parse(text)
        endpoint.check()
        check_exposed(endpoint, allowed)
    if config.http:
        _front()(config.http, DEFAULT, config.static)
    load_app(config.app, config.pythonpath)
    click.echo(f"fulgate: the configuration is good, and {config.app} loads", err=True)
    return 0


@cli.command("migrate")
@click.argument("file", type=click.Path())
@click.option("--write", is_flag=True, help="Rewrite the file, and keep what it was as FILE.bak.")
def migrate(file: str, write: bool) -> int:
    """Rewrite a program made for flup, and show the difference.

    The exit status is 0 when there is nothing to change, 1 when there is, and 4 when something is
    left that has no translation: it is named, with its line.
    """
    from fulgate.migrate import command

    return command(file, write)


@cli.command("doctor")
@click.option("--pid", type=click.IntRange(1), required=True, help="The process to look at.")
@click.option("--py-spy/--no-py-spy", default=True, help="Use py-spy, where it is installed.")
def doctor(pid: int, py_spy: bool) -> int:
    """Say what a running server has imported, what its threads do, and who waits for it.

    The exit status is 1 when something is wrong.
    """
    from fulgate.doctor import command

    return command(pid, py_spy)


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
    """Give the settings; behind our own HTTP front nobody waits for a stream at Ctrl+C."""
    if found.config.http and found.sources["graceful_timeout"] == "default":
        return found.config.replace(graceful_timeout=DEVELOPMENT_GRACE)
    return found.config


def _serve(config: Config, stack: contextlib.ExitStack) -> int:
    from fulgate.serve import Server, run

    _need_app(config)
    process.open_standard_streams()
    front_class = _front() if config.http else None
    who = process.identity(config)
    process.prepare(config)
    logs = Logs(config)
    stack.callback(logs.close)
    if config.pid:
        stack.callback(process.PidFile(config.pid).remove)
    if config.http and not config.bind:
        config = config.replace(bind=(_private_endpoint(who, stack),))
    if who is None:  # before the sockets are bound, so that nobody connects to what cannot answer
        app = load_app(config.app, config.pythonpath)
    server = Server(_no_application, config, ended=logs.access)
    stack.callback(server.stop)
    server.bind()
    if who is not None:  # afterwards, so that no code of the application runs as root
        logs.give_to(who.uid, who.gid)
        process.drop(who)
        app = load_app(config.app, config.pythonpath)
    server.app = app
    url = ""
    if front_class is not None:
        front = front_class(config.http, server.endpoints[0], config.static)
        stack.callback(front.stop, FRONT_TIMEOUT)
        front.start()
        url = front.url
    _announce(server.endpoints, config, url)
    return run(server)


def _no_application(environ: object, start_response: object) -> NoReturn:
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


def _private_endpoint(who: process.Identity | None, stack: contextlib.ExitStack) -> str:
    """Give a Unix endpoint in a new folder that nobody else can look into."""
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


def _announce(endpoints: Sequence[str], config: Config, url: str) -> None:
    """Say where it listens, for people and for whoever waits for the line."""
    text = ""
    for endpoint in endpoints:
        line = f"fulgate {__version__} serves {config.app} on {endpoint}"
        text += line + "\n"
        if config.error_logfile != "-":
            log.info("%s", line)
    if url:
        text += f"Open {url}/\n"
    if url or os.isatty(1):
        text += "\nFor nginx:\n\n" + nginx(endpoints[0], config.script_name) + "\n"
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
