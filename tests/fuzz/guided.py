"""The process that atheris runs in: `python -m tests.fuzz.guided TARGET [libFuzzer's options]`.

Only Fulgate's own modules are instrumented: what its tests do is no coverage.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["fulgate"]):
    from tests.fuzz.targets import TARGETS


def main() -> None:
    target = TARGETS[sys.argv.pop(1)]
    atheris.Setup(sys.argv, target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
