"""Lightning Fabric, imported without torchmetrics.

Fabric asks for torchmetrics' version by importing it, and with it torchvision, SciPy's signal
processing and torch's compiler: more than half of the seconds before a first step. A stand-in with
the version alone answers the question; whoever needs torchmetrics imports the real one later.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from importlib import metadata
from types import ModuleType


@contextlib.contextmanager
def versions_alone(name: str) -> Iterator[None]:
    """Let `import name` give a module with nothing but `__version__`.

    Args:
        name: A package. One that is imported already, or not installed, is left as it is.
    """
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        version = ""
    if name in sys.modules or not version:
        yield
        return
    stand_in = ModuleType(name)
    stand_in.__version__ = version  # type: ignore[attr-defined]
    sys.modules[name] = stand_in
    try:
        yield
    finally:
        if sys.modules.get(name) is stand_in:
            del sys.modules[name]


with versions_alone("torchmetrics"):
    from lightning_fabric import Fabric as Fabric
