"""flup's modules, names and arguments, on Fulgate's server: for programs written for flup.

`fulgate.flup.server.fcgi` is what flup calls `flup.server.fcgi`, and so on. `install` has a program
that imports flup by name get these; `python -m fulgate.flup SCRIPT` does so for a script as it is.
The camel-case names are flup's.
"""

from __future__ import annotations

from fulgate.flup.aliases import install

__all__ = ["install"]
