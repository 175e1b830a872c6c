"""`python -m fulgate` is the command `fulgate`."""

from __future__ import annotations

import sys

from fulgate.cli import main

if __name__ == "__main__":
    sys.exit(main())
