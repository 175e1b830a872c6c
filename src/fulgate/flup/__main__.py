"""`python -m fulgate.flup SCRIPT [ARGUMENT]...`: run a script that imports flup, on Fulgate."""

from __future__ import annotations

import os
import runpy
import sys

from fulgate.flup.aliases import install

USAGE = """\
usage: python -m fulgate.flup SCRIPT [ARGUMENT]...
       python -m fulgate.flup -m MODULE [ARGUMENT]...

Run a program that imports flup by name; it gets fulgate.flup instead.
"""


def main() -> None:
    """Run the script that the command line names, as Python itself would."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help") or arguments == ["-m"]:
        wanted = arguments[:1] in (["-h"], ["--help"])
        print(USAGE, end="", file=sys.stdout if wanted else sys.stderr)
        sys.exit(0 if wanted else 2)
    install()
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        sys.path[0] = os.getcwd()
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        sys.path[0] = os.path.dirname(os.path.abspath(arguments[0]))
        runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    main()
