"""`fulgate replay`: say to an application again what was recorded, and compare its answers."""

from __future__ import annotations

import click

from fulgate.client.asked import connectable
from fulgate.client.recording import Recording
from fulgate.client.replay import replay
from fulgate.commands.options import Unreachable
from fulgate.endpoint import Endpoint
from fulgate.errors import BindError

__all__ = ["command"]


@click.command("replay", short_help="Say a recording again, and compare the answers.")
@click.argument("file", type=click.Path(dir_okay=False))
@click.argument("endpoint", type=connectable, required=False)
@click.option(
    "--ignore-header",
    multiple=True,
    metavar="NAME",
    help="A header that may differ.  [Date always may]",
)
@click.option("--pace", is_flag=True, help="Keep the times between the recorded pieces, too.")
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="For each wait.",
)
def command(
    file: str,
    endpoint: Endpoint | None,
    ignore_header: tuple[str, ...],
    pace: bool,
    timeout: float,
) -> int:
    """Replay a recording against ENDPOINT, or where it was made, and compare the answers.

    Connections are replayed one after the other. The exit status is 0 when all answers are what
    they were, and 1 when one is not.
    """  # fmt: skip
    recording = Recording.read(file)
    target = endpoint or connectable(recording.endpoint)
    ignored = frozenset({"date", *(name.lower() for name in ignore_header)})
    count = different = 0
    for conversation in recording.conversations():
        try:
            for outcome in replay(
                conversation, target, timeout=timeout, pace=pace, ignored=ignored
            ):
                count += 1
                different += bool(outcome.differences)
                mark = "differs" if outcome.differences else "same"
                click.echo(f"{outcome.connection} {outcome.name}: {mark}")
                for text in outcome.differences:
                    click.echo(f"    {text}")
        except (OSError, BindError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise Unreachable(f"cannot connect to {target}: {reason}") from error
    click.echo(f"{count} compared, {different} different")
    return 1 if different else 0
