"""Give `import flup...` the modules of this package, whether flup is installed or not."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

__all__ = ["install"]

OURS = "fulgate.flup"


class _Alias:
    """Finds and loads "flup.x" as the very module "fulgate.flup.x"."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != "flup" and not name.startswith("flup."):
            return None
        real = OURS + name.removeprefix("flup")
        if importlib.util.find_spec(real) is None:
            raise ModuleNotFoundError(
                f"fulgate.flup stands in for flup, and has no module {name!r}", name=name
            )
        return ModuleSpec(name, self, is_package=None)  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(OURS + spec.name.removeprefix("flup"))
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        # It ran under its own name, whose spec the import system has just replaced.
        alias = module.__spec__
        assert alias is not None
        module.__spec__ = alias.loader_state


_alias = _Alias()


def install() -> None:
    """From now on `import flup` and `from flup.server.fcgi import WSGIServer` mean this package.

    To be called before the program imports flup; a module of flup that was imported already is
    forgotten, but who holds it keeps it. Calling it again does nothing.
    """
    if _alias in sys.meta_path:
        return
    for name in [name for name in sys.modules if name == "flup" or name.startswith("flup.")]:
        del sys.modules[name]
    sys.meta_path.insert(0, _alias)
