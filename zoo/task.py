"""The contract between a task and the engine.

A task says what its data are, how a model is built, what the loss is and how a whole split is
scored. The engine does the rest: order, precision, accumulation, checkpoints, gathering, logging.
Nothing here knows a domain, and no task knows another.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Generic,
    Literal,
    Protocol,
    TypeVar,
    runtime_checkable,
)

import numpy as np
import torch
from torch import Tensor, nn

from zoo.config import BaseConfig
from zoo.errors import ConfigError, printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Batch = dict[str, Any]
Facts = dict[str, Any]
Metrics = dict[str, float]
C = TypeVar("C", bound=BaseConfig)

NOTICE = "Research software. Not for diagnosis."
"""What the outputs of a medical task carry."""


@dataclass(frozen=True)
class Finding:
    """One line of `zoo data check`: what was looked for, where, and what to do about it.

    Attributes:
        level: `error` stops a training, `warning` and `info` are printed.
        what: What was found.
        where: File, row or folder.
        remedy: What the user can do; empty when there is nothing to do.
    """

    level: Literal["info", "warning", "error"]
    what: str
    where: str = ""
    remedy: str = ""

    def line(self) -> str:
        """The finding as one line of text."""
        parts = [f"{self.where}: {self.what}" if self.where else self.what]
        if self.remedy:
            parts.append(self.remedy)
        return printable("; ".join(parts))


@dataclass(frozen=True)
class Record:
    """One unit of evaluation: a slide, image, volume, clip, crop or county-year.

    Attributes:
        id: Unique within its split; padding of the last step under several processes is removed
            by it.
        group: Patient, identity or county: what the leakage check and the bootstrap resample by.
        values: Small arrays that `Task.score` and `Task.figures` need; gathered over processes
            and stored with the run. Numbers and strings only, no objects.
        write: Writes the dense output (mask, map, volume, attention) below a folder and returns
            the files written. Called by the process that made the record.
    """

    id: str
    group: str
    values: Mapping[str, np.ndarray]
    write: Callable[[Path], list[Path]] | None = None


@runtime_checkable
class Split(Protocol):
    """A set of items and the order in which they make batches.

    Attributes:
        ids: One name an item, unique, in a fixed order.
        groups: The patient, identity or county of each item.
        digest: Fingerprint of what the split holds; the same data give the same digest.
    """

    ids: Sequence[str]
    groups: Sequence[str]
    digest: str

    def item(self, index: int, rng: np.random.Generator) -> Batch:
        """Read and augment item `index`; all chance comes from `rng`."""
        ...

    def batches(self, epoch: int, rng: np.random.Generator) -> list[list[int]]:
        """The item indices of every batch of `epoch`, a pure function of its arguments.

        Resuming slices this list and several processes deal it out batch by batch, so a batch
        (P x K identities, packed bags, balanced classes) always stays whole.
        """
        ...

    def collate(self, items: list[Batch]) -> Batch:
        """Join items to what the model takes."""
        ...


@dataclass(frozen=True)
class Optim:
    """An optimiser with its schedule.

    Attributes:
        optimiser: Built over parameters of the model it was made for.
        factor: `(epoch, step, steps_per_epoch) -> factor` on every group's initial learning rate,
            with `step` the optimiser step within the epoch; set before each step.
        grad_scale: Gradients of this optimiser's parameters are multiplied by it before the step.
    """

    optimiser: torch.optim.Optimizer
    factor: Callable[[int, int, int], float] = lambda epoch, step, steps: 1.0
    grad_scale: float = 1.0


@dataclass(frozen=True)
class Phase:
    """What trains at a moment.

    Attributes:
        step: Names of the optimisers that step.
        frozen: Module prefixes whose parameters take no gradient.
        still: Module prefixes kept in eval mode (batch statistics rest, dropout is off).
    """

    step: tuple[str, ...]
    frozen: tuple[str, ...] = ()
    still: tuple[str, ...] = ()


@dataclass(frozen=True)
class Export:
    """What an exported model takes and gives, or why there is none.

    Attributes:
        inputs: Example input tensors by name, in the order of the model's forward.
        outputs: Names of the outputs, in order.
        dynamic: Input name -> {axis: name of the dynamic size}.
        why_not: Reason when the model cannot be exported; the rest is then empty.
        module: What is traced, where it is not the model itself: a module around it that prepares
            the inputs or makes probabilities of logits. It returns tensors in the order of
            `outputs`.
        others: Further inputs, of other sizes, on which the exported file is compared with it.
        about: Input or output name -> what it is: axes, range and units, in a few words.
    """

    inputs: Mapping[str, Tensor] = field(default_factory=dict)
    outputs: Sequence[str] = ()
    dynamic: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    why_not: str = ""
    module: nn.Module | None = None
    others: Sequence[Mapping[str, Tensor]] = ()
    about: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """The outputs of several methods side by side.

    Attributes:
        rows: One a method and split, with `method` and `split` first: comparison.csv.
        texts: File name -> content, for instance `comparison.md`.
        figures: Name -> picture.
    """

    rows: Sequence[dict[str, Any]]
    texts: Mapping[str, str] = field(default_factory=dict)
    figures: Mapping[str, Figure] = field(default_factory=dict)


@dataclass(frozen=True)
class Conversion:
    """An official checkpoint under the zoo's names.

    Attributes:
        state: Tensors under our keys.
        renamed: Official key -> our key.
        dropped: Official keys that have no place here, with the reason.
        missing: Our keys the checkpoint does not have.
    """

    state: dict[str, Tensor]
    renamed: dict[str, str]
    dropped: dict[str, str]
    missing: list[str]


@dataclass(frozen=True)
class Adoption:
    """What published weights that come without settings imply.

    Attributes:
        words: `key=value` settings that the tensors themselves tell, such as widths.
        facts: What would travel with weights of our own.
        told: Lines on what was assumed, since no tensor tells it: class names, say.
        needs: What only a training set can tell, so that these weights cannot be used without
            one; empty where there is nothing.
    """

    words: Sequence[str]
    facts: Facts
    told: Sequence[str] = ()
    needs: str = ""


class Task(ABC, Generic[C]):
    """What a domain implements; see the design notes in `docs/adding-a-task.md`.

    Attributes:
        monitor: Metric that selects the best epoch and its direction; None makes the last epoch
            the result.
        medical: Whether outputs carry `NOTICE`.
        sample_version: Raised whenever `write_sample` writes something else; names the cached
            sample data set.
        serving: True in `zoo eval` and `zoo predict`, where the weights rest and what they gave
            may be kept; False in a training.
    """

    monitor: ClassVar[tuple[str, Literal["max", "min"]] | None]
    medical: ClassVar[bool] = False
    sample_version: ClassVar[int] = 1
    serving: bool = False

    def __init__(self, config: C) -> None:
        self.config = config

    def selection(self) -> tuple[str, Literal["max", "min"]] | None:
        """The monitor in force; override it where the configuration chooses."""
        return self.monitor

    # -- data -----------------------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def write_sample(cls, out: Path, defects: bool = False) -> None:
        """Write the task's sample data set into the empty folder `out`.

        Seeded, clean, learnable, in real file formats and layout; with `defects`, also the
        broken files that the check must find.
        """

    def root(self) -> Path:
        """Where the data are: `data.root`, else the sample data set, written once to the cache."""
        from zoo.data import cache_dir, written_once

        if self.config.data.root is not None:
            return self.config.data.root
        name = f"{self.config.task}-v{self.sample_version}"
        return written_once(cache_dir() / "samples" / name, self.write_sample)

    def settled(self) -> C:
        """The configuration with the folder the data are really in."""
        data = self.config.data.model_copy(update={"root": self.root()})
        return self.config.model_copy(update={"data": data})

    @abstractmethod
    def check(self, deep: bool = False) -> list[Finding]:
        """Look at every file the configuration names.

        Args:
            deep: Read the files whole (`zoo data check`); otherwise what can be seen quickly, as
                before each training.
        """

    def prepare(self, out: Path, shard: int, shards: int) -> None:
        """Turn raw files into what training reads; `shard` of `shards` may run in parallel.

        Raises:
            ConfigError: The task reads its files as they are.
        """
        msg = f"task '{self.config.task}' has nothing to prepare: it reads its files as they are"
        raise ConfigError(msg)

    def folds(self) -> list[dict[str, str]]:
        """Overrides of each training in `zoo cv`, for instance `{"data.fold": "2"}`."""
        return [{}]

    @abstractmethod
    def splits(self) -> dict[str, Split]:
        """`train`, optionally `val`, and `test` or several `test_<name>`."""

    def fit(self, train: Split) -> Facts:
        """What has to be learnt from training data alone and travels with the weights.

        JSON only. It is stored in checkpoints and exports and never recomputed at prediction.
        """
        return {}

    def settle(self, records: Sequence[Record], facts: Facts) -> Facts:
        """What has to be chosen on validation with the final weights, such as an operating point.

        Called once after training with the validation records of the selected weights. What it
        returns joins the facts that are stored with those weights, before a test split is scored;
        until then (validation during training) such facts are not there.
        """
        return {}

    # -- training -------------------------------------------------------------------------------

    @abstractmethod
    def model(self, facts: Facts) -> nn.Module:
        """Build the model, with loss centres and the like as submodules."""

    def pretrained(self, model: nn.Module) -> Sequence[str]:
        """Put published weights (a backbone's, say) into a fresh model.

        Called when a training begins, never at resume, evaluation or prediction: the files are
        not needed then.

        Returns:
            Lines to tell: what was loaded and what was not.
        """
        return ()

    @abstractmethod
    def optimisers(self, model: nn.Module) -> dict[str, Optim]:
        """The optimisers by name."""

    def phase(self, epoch: int, step: int) -> Phase | None:
        """What trains in this step; None trains everything."""
        return None

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch, rng: torch.Generator) -> dict[str, Tensor]:
        """`loss` (a scalar with gradient) and named parts for the log; never calls backward.

        Steps of one phase give the same names: several processes sum them up.
        """

    # -- evaluation -----------------------------------------------------------------------------

    @abstractmethod
    def records(self, model: nn.Module, batch: Batch) -> list[Record]:
        """Predictions for a batch, in eval mode and without gradient."""

    @abstractmethod
    def score(self, records: Sequence[Record], facts: Facts) -> Metrics:
        """Metrics of a whole split at once; names in snake_case without the split."""

    def intervals(self, records: Sequence[Record], facts: Facts) -> dict[str, tuple[float, float]]:
        """95 % intervals of some of the metrics, resampled by group."""
        return {}

    def figures(self, records: Sequence[Record], facts: Facts) -> Iterable[tuple[str, Figure]]:
        """Pictures for the report."""
        return ()

    def tables(
        self, records: Sequence[Record], facts: Facts
    ) -> Iterable[tuple[str, list[dict[str, Any]]]]:
        """Small tables for the report: a title and rows."""
        return ()

    # -- use ------------------------------------------------------------------------------------

    @abstractmethod
    def inputs(self, paths: Sequence[Path], facts: Facts) -> Split:
        """The items of `zoo predict` on files and folders."""

    def rows(self, records: Sequence[Record], facts: Facts) -> list[dict[str, Any]]:
        """One row a prediction for predictions.csv; by default every scalar value."""
        return [
            {"id": r.id} | {k: v.item() for k, v in r.values.items() if np.ndim(v) == 0}
            for r in records
        ]

    def remarks(self, records: Sequence[Record], facts: Facts) -> Sequence[str]:
        """Lines told after a prediction: what a user should know of all of it at once."""
        return ()

    def finish(self, records: Sequence[Record], facts: Facts, out: Path) -> Sequence[Path]:
        """Write what takes all records of a split at once: rank lists, a map of all counties.

        Called by `zoo predict`, and by `zoo eval` for each split, after the predictions of each
        record were written.

        Args:
            records: All of them, in the order of the split.
            facts: Those stored with the weights.
            out: Folder of these predictions; it exists.

        Returns:
            The files written.
        """
        return ()

    def methods(self, predictions: Path) -> Mapping[str, Path]:
        """The methods whose outputs lie in a folder, by name; by default it is one method's."""
        return {predictions.resolve().name: predictions}

    def foreign(self, predictions: Path) -> Mapping[str, Sequence[Record]]:
        """Records of each test split from someone else's outputs, scored without a model.

        There are no facts then: `score` and the pictures get an empty dictionary. What a user
        should know (files left out, sizes that differ) stands in the attribute `notes` of what
        is returned, if it has one: one line each.

        Raises:
            ConfigError: The task has no such format.
        """
        msg = f"task '{self.config.task}' cannot score foreign predictions"
        raise ConfigError(msg)

    def compared(self, found: Mapping[str, Mapping[str, Sequence[Record]]]) -> Comparison:
        """Tables and pictures of several methods on several splits; by default their scores.

        Args:
            found: Method -> split -> records, as `foreign` gave them.
        """
        rows = [
            {"method": method, "split": split, **self.score(records, {})}
            for method, splits in found.items()
            for split, records in splits.items()
        ]
        return Comparison(rows)

    def export(self, model: nn.Module, facts: Facts) -> Export:
        """The network alone for export: example inputs, or why it cannot be exported."""
        return Export(why_not="not supported by this task yet")

    def served(self, model: nn.Module, facts: Facts) -> Export:
        """The model for people who load it by name: from what they have to what they want.

        Preparation as the adapter does it and probabilities are inside, in torch's operators
        alone; by default it is the network.
        """
        return self.export(model, facts)

    def read(self, path: Path) -> dict[str, Tensor]:
        """Tensors of somebody's weight file, in the container its authors wrote.

        Raises:
            WeightsError: The file is missing, broken, or holds more than tensors.
        """
        from zoo.states import read_state

        return read_state(path)

    def preparation(self, facts: Facts) -> str:
        """How inputs are scaled before they meet the model, in a few words; for messages."""
        return ""

    def convert(self, state: Mapping[str, Tensor]) -> Conversion:
        """An official checkpoint's tensors under our names.

        Raises:
            ConfigError: There is no official checkpoint for the task.
        """
        msg = f"task '{self.config.task}' has no official checkpoint to convert"
        raise ConfigError(msg)

    def adopt(self, state: Mapping[str, Tensor]) -> Adoption:
        """Settings and facts of published weights under our names that come without any.

        Raises:
            ConfigError: The tensors do not tell enough.
            WeightsError: They are not of this task.
        """
        msg = (
            f"task '{self.config.task}': these weights come without settings and facts; "
            "use them for training (`zoo train weights=…`)"
        )
        raise ConfigError(msg)
