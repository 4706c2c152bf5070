"""Recorded cases of the official systems: finding them, and comparing every number in them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

REPOSITORY = Path(__file__).parents[2]
OWN = REPOSITORY / "tests" / "golden"
COMPARED = ("output", "grad")  # groups of tensors that a run must reproduce


def roots() -> dict[str, Path]:
    """Folders of cases: the chosen few kept with the tests, and all of them where they exist."""
    named = os.environ.get("ZOO_GOLDEN")
    more = Path(named) if named else REPOSITORY.parent / "shared" / "golden"
    if named and not more.is_dir():
        msg = f"ZOO_GOLDEN is {more}, which is not a folder"
        raise FileNotFoundError(msg)
    return {"own": OWN} | ({"all": more} if more.is_dir() else {})


def find_cases() -> dict[str, Path]:
    """Readable id -> JSON file of every case."""
    return {
        f"{label}/{path.relative_to(root).with_suffix('')}": path
        for label, root in roots().items()
        for path in sorted(root.rglob("*.json"))
    }


def find_folders() -> dict[str, Path]:
    """Readable id -> every task folder, with cases in it or not."""
    return {
        f"{label}/{path.name}": path
        for label, root in roots().items()
        for path in sorted(root.iterdir())
        if path.is_dir()
    }


@dataclass(frozen=True)
class Case:
    """One recorded case, and which of its records have been compared."""

    path: Path
    open: set[str] = field(default_factory=set, compare=False)

    def __post_init__(self) -> None:
        self.open.update(key for key in self.tensors if key.split("/")[0] in COMPARED)

    @cached_property
    def info(self) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads(self.path.read_text())
        return loaded

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        stored = self.path.with_suffix(".safetensors")
        return load_file(stored) if stored.exists() else {}

    def group(self, name: str) -> dict[str, Tensor]:
        """Tensors of a group, such as `input` or `state/mha`, without the group's name."""
        start = name + "/"
        return {k.removeprefix(start): v for k, v in self.tensors.items() if k.startswith(start)}

    def names(self, group: str, ending: str) -> list[str]:
        """The stems of `<stem>.<ending>` in a group; sub-cases are found by them."""
        stop = "." + ending
        return [k.removesuffix(stop) for k in self.group(group) if k.endswith(stop)]

    def compare(self, key: str, ours: Tensor | float) -> None:
        """Compares one record within the tolerance of the case and ticks it off."""
        kind = "grad_tolerance" if key.startswith("grad/") else "tolerance"
        limits = self.info.get(kind, self.info["tolerance"])
        expected = self.tensors[key]
        actual = torch.as_tensor(ours).detach().to(expected.dtype)
        torch.testing.assert_close(
            actual,
            expected,
            rtol=limits["rtol"],
            atol=limits["atol"],
            equal_nan=True,
            msg=lambda text: f"{self.path.stem}: {key}: {text}",
        )
        self.open.discard(key)

    def compare_if_recorded(self, key: str, ours: Callable[[], Tensor | float]) -> None:
        """The same for a record that not every case has; computed only if it does."""
        if key in self.tensors:
            self.compare(key, ours())

    def skip(self, group: str, listed: str) -> None:
        """Ticks off the records that the case itself declares to be rounding noise."""
        for name in self.info.get(listed, []):
            self.open.discard(f"{group}{name}")
