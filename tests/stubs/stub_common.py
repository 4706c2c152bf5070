"""What the stub tasks share: items as npz files in one folder a split, read and checked alike."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from zoo.config import BaseConfig
from zoo.data import ListSplit, fingerprint
from zoo.errors import DataError
from zoo.task import Batch, Finding, Task

C = TypeVar("C", bound=BaseConfig)


def save(folder: Path, name: str, **arrays: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / f"{name}.npz", allow_pickle=False, **arrays)


def load(path: Path) -> dict[str, np.ndarray]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as body:
            return {k: body[k] for k in body.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        msg = f"{path}: cannot be read ({error}); copy it again"
        raise DataError(msg) from error


def listed(folder: Path) -> list[Path]:
    found = sorted(folder.glob("*.npz"))
    if not found:
        msg = f"{folder}: there are no npz files"
        raise DataError(msg)
    return found


def digest(paths: Sequence[Path]) -> str:
    return fingerprint((p.name, hashlib.sha256(p.read_bytes()).hexdigest()) for p in paths)


class Files(ListSplit):
    """Items that are npz files; the group is the name up to the first hyphen."""

    def __init__(self, paths: Sequence[Path], *, train: bool = False, **options: Any) -> None:
        self.paths = list(paths)
        self.train = train
        names = [p.stem for p in paths]
        groups = [n.partition("-")[0] for n in names]
        super().__init__(names, groups, digest(self.paths), shuffle=train, **options)

    def item(self, index: int, rng: np.random.Generator) -> Batch:
        return {
            "id": self.ids[index],
            "group": self.groups[index],
            **load(self.paths[index]),
        }

    def collate(self, items: list[Batch]) -> Batch:
        return stacked(items)


def stacked(items: Sequence[Mapping[str, Any]]) -> Batch:
    batch: Batch = {}
    for key in items[0]:
        values = [item[key] for item in items]
        if isinstance(values[0], np.ndarray):
            batch[key] = torch.from_numpy(np.stack(values))
        else:
            batch[key] = values
    return batch


def array(value: Tensor) -> np.ndarray:
    result: np.ndarray = value.detach().cpu().numpy()
    return result


def writer(name: str, value: np.ndarray) -> Callable[[Path], list[Path]]:
    def write(out: Path) -> list[Path]:
        out.mkdir(parents=True, exist_ok=True)
        path = out / f"{name}.npy"
        np.save(path, value, allow_pickle=False)
        return [path]

    return write


class StubTask(Task[C]):
    """A task over folders of npz files."""

    def check(self, deep: bool = False) -> list[Finding]:
        paths = sorted(self.root().rglob("*.npz"))
        if not paths:
            return [Finding("error", "no npz files", str(self.root()), "set data.root")]
        findings = [Finding("info", f"{len(paths)} files", str(self.root()))]
        for path in paths if deep else ():
            try:
                load(path)
            except DataError as error:
                findings.append(Finding("error", str(error)))
        return findings


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40])
