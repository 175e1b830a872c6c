"""Writes docs/reference.md from the fields of Config: `python -m fulgate.reference`."""

from __future__ import annotations

import math
import sys

from fulgate.config import Setting, settings

__all__ = ["reference"]

HEAD = """\
# Reference: settings

<!-- Written by `python -m fulgate.reference`; the text is in src/fulgate/config.py. -->

Each setting has the same name everywhere: as an option of `fulgate serve` and `fulgate check`, as
a key of TOML, as an environment variable, and as a field of `fulgate.config.Config`. What comes
later in this list overrides what comes before:

1. the default;
2. a TOML file: the one that `--config` (or `FULGATE_CONFIG`) names, else `fulgate.toml` in the
   current folder, else the table `[tool.fulgate]` of `pyproject.toml` there;
3. the environment; a list is written with commas between its elements;
4. the command line; an option that makes a list is given once for each element.

`fulgate check --print-config` shows each value and where it came from. An unknown key is an error,
and so is a variable that looks like one of these misspelt. The application is the one argument of
the command: `fulgate serve MODULE:ATTR`.

Exit status: 0 after SIGTERM or SIGINT, also while starting; 2 for a wrong usage or configuration;
3 for an application that does not load, or a socket that cannot be bound; 128 and the number of
the signal, when a second one cut off what still ran.
"""


def reference() -> str:
    """Give the text of docs/reference.md."""
    text = HEAD
    section = ""
    for setting in settings():
        if setting.section != section:
            section = setting.section
            text += f"\n## {section}\n"
        text += _entry(setting)
    return text


def _entry(setting: Setting) -> str:
    option = f"`{setting.option}`"
    if setting.name == "app":
        option = "the command's argument"
    elif setting.type is not bool:
        option = ", ".join(f"`{name}`" for name in setting.options)
    else:
        option = f"`{setting.option}`, `--no-{setting.option[2:]}`"
    facts = [_kind(setting), f"default {_default(setting)}"]
    return (
        f"\n### {setting.name}\n\n{setting.help}\n\n"
        f"{'; '.join(facts)}. On the command line {option}; in the environment"
        f" `{setting.variable}`.\n"
    )


def _kind(setting: Setting) -> str:
    if setting.choices:
        return "One of " + ", ".join(f"`{choice}`" for choice in setting.choices)
    if setting.many:
        return "List of strings"
    kind = {str: "String", int: "Whole number", float: "Number", bool: "`true` or `false`"}
    text = kind[setting.type]
    if setting.low != -math.inf:
        text += f", at least {setting.low}"
    if setting.high != math.inf:
        text += f", at most {setting.high}"
    return text + (', or text such as "64k", "1M" or "1G"' if setting.size else "")


def _default(setting: Setting) -> str:
    if setting.many:
        return "empty"
    if setting.type is bool:
        return "`true`" if setting.default else "`false`"
    return f"`{setting.default}`" if setting.default != "" else "empty"


if __name__ == "__main__":
    sys.stdout.write(reference())
