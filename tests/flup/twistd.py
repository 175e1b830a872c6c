"""twistd, for a .tac that imports flup by name."""

from fulgate.flup import install

install()

from twisted.scripts.twistd import run  # noqa: E402

run()
