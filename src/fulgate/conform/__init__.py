"""FastCGI 1.0 as statements that are held against any application server, from outside.

The server is asked over its socket; for some statements it is started anew. What it has to serve is
`fulgate.conform_app`, or the same in another language: docs/conformance.md says what that is.
"""

from __future__ import annotations
