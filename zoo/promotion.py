"""Which version of a registered model people get by its alias, and how that came about.

A new version takes the alias only if it is better on the same test data by the same metric, or if
somebody insists. MLflow cannot compare and set an alias in one step. Every version is therefore
registered with the mark that its promotion is pending, and versions are decided in the order of
their numbers, which the registry hands out one by one: two publishers never decide at once. Each
move of an alias is a tag of its own on the registered model, so that none is overwritten.
"""

from __future__ import annotations

import contextlib
import json
import math
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from zoo.errors import ConfigError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CHAMPION = "champion"
PROMOTION = "zoo.promotion"
"""Tag of a version: `pending`, then what became of it."""

PENDING = "pending"
_DIGEST = "zoo.digest."
_PATIENCE = 60.0  # seconds after which a publisher that has not decided is taken for dead
_POLL = 0.1
# What a test split is judged by where the task has no monitor, and which metrics are costs.
_FIRST = ("map", "rank1", "auc", "dice", "r2", "accuracy", "iou")
_COSTS = ("loss", "mae", "mse", "rmse", "error", "hd95", "distance", "deviation")

Better = Literal["max", "min"]


@dataclass(frozen=True)
class Measure:
    """What a version is judged by.

    Attributes:
        metric: Name without the split.
        value: Mean over the test splits; None where it is not a number.
        better: Direction.
        digests: Test split -> fingerprint of its data.
    """

    metric: str
    value: float | None
    better: Better
    digests: Mapping[str, str]

    def tags(self) -> dict[str, str]:
        """As tags of a version."""
        value = {} if self.value is None else {"zoo.value": repr(self.value)}
        digests = {f"{_DIGEST}{split}": digest for split, digest in self.digests.items()}
        return {"zoo.metric": self.metric, "zoo.better": self.better} | value | digests

    def shown(self) -> str:
        """`auc 0.913`."""
        return f"{self.metric} {'–' if self.value is None else format(self.value, '.4g')}"


def of_tags(tags: Mapping[str, str]) -> Measure | None:
    """What `Measure.tags` wrote; None for a version that somebody else registered."""
    better = tags.get("zoo.better")
    if "zoo.metric" not in tags or better not in ("max", "min"):
        return None
    try:
        value = float(tags["zoo.value"]) if "zoo.value" in tags else None
    except ValueError:
        value = None
    digests = {k.removeprefix(_DIGEST): v for k, v in tags.items() if k.startswith(_DIGEST)}
    return Measure(tags["zoo.metric"], value, "max" if better == "max" else "min", digests)


def measured(
    results: Mapping[str, float | None],
    digests: Mapping[str, str],
    monitor: tuple[str, Better] | None,
) -> Measure:
    """What a run is judged by: the task's monitor on its test splits, else a usual metric.

    Args:
        results: `<split>/<metric>` -> value.
        digests: Test split -> fingerprint of its data.
        monitor: The task's, with its direction.
    """
    names = list(dict.fromkeys(key.partition("/")[2] for key in results))
    name = monitor[0] if monitor else ""
    if name not in names:
        name = next((n for n in _FIRST if n in names), names[0] if names else "")
    better: Better = "min" if any(cost in name for cost in _COSTS) else "max"
    if monitor and monitor[0] == name:
        better = monitor[1]
    values = [results.get(f"{split}/{name}") for split in digests]
    numbers = [float(v) for v in values if v is not None and math.isfinite(v)]
    whole = bool(numbers) and len(numbers) == len(values)
    return Measure(name, sum(numbers) / len(numbers) if whole else None, better, dict(digests))


@dataclass(frozen=True)
class Verdict:
    """Whether a version takes the alias, and why.

    Attributes:
        promoted: It does.
        why: One line.
        state: What stands in the version's tag.
    """

    promoted: bool
    why: str
    state: str


def verdict(mine: Measure, theirs: Measure | None, holder: str | None, force: bool) -> Verdict:
    """Compare a version with the one that holds the alias.

    Args:
        mine: Of the new version.
        theirs: Of the holder, None if nothing is known of it.
        holder: The version that holds the alias, None if no version does.
        force: Promote whatever the comparison says.
    """
    if holder is None:
        return Verdict(True, "it is the first", "first")
    if force:
        return Verdict(True, f"forced in place of version {holder}", "forced")
    hint = "; --force promotes it all the same"
    if theirs is None:
        why = f"nothing is known of version {holder}, which somebody else registered{hint}"
        return Verdict(False, why, "not compared")
    if dict(mine.digests) != dict(theirs.digests):
        why = f"version {holder} was tested on other data{hint}"
        return Verdict(False, why, "other data")
    if mine.metric != theirs.metric:
        why = f"version {holder} was chosen by {theirs.metric}, this one by {mine.metric}{hint}"
        return Verdict(False, why, "other metric")
    if mine.value is None or (theirs.value is None and mine.value is None):
        return Verdict(False, f"its {mine.metric} is not a number{hint}", "no value")
    old = theirs.value
    ahead = old is None or (mine.value > old if mine.better == "max" else mine.value < old)
    against = f"{mine.metric} {mine.value:.6g} against {'–' if old is None else f'{old:.6g}'}"
    if ahead:
        return Verdict(True, f"{against} of version {holder}", "better")
    return Verdict(False, f"{against} of version {holder} is not better{hint}", "not better")


# -- the registry -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Move:
    """One move of an alias.

    Attributes:
        version: The version that took it.
        former: The version that had it; None if none had.
        time: UTC.
        why: `first`, `better`, `forced` or `rollback`.
        metric: What the version is judged by.
        value: Its value.
    """

    version: str
    former: str | None
    time: str
    why: str
    metric: str = ""
    value: float | None = None


@dataclass
class Registry:
    """A registered model in a store.

    Attributes:
        client: Of the store.
        name: Name of the registered model.
        alias: The alias that is moved.
    """

    client: MlflowClient
    name: str
    alias: str = CHAMPION
    patience: float = field(default=_PATIENCE)

    def holder(self) -> str | None:
        """The version that has the alias."""
        found = self.client.get_registered_model(self.name).aliases.get(self.alias)
        return None if found is None else str(found)

    def versions(self) -> list[ModelVersion]:
        """All versions, oldest first."""
        found: list[ModelVersion] = []
        token = None
        while True:
            query = f"name='{self.name}'"
            page = self.client.search_model_versions(query, max_results=1000, page_token=token)
            found += page
            token = page.token
            if not token:
                return sorted(found, key=lambda v: int(v.version))

    def history(self) -> list[Move]:
        """Every move of the alias, oldest first."""
        tags = self.client.get_registered_model(self.name).tags
        head = f"zoo.{self.alias}_history."
        moves = []
        for key in (k for k in tags if k.startswith(head)):
            with contextlib.suppress(ValueError, TypeError):  # somebody's own tag of that name
                move = Move(**json.loads(tags[key]))
                moves.append((key[len(head) :].partition(".")[0], move.time, move))
        return [move for _, _, move in sorted(moves, key=lambda m: m[:2])]

    def decide(self, version: str, force: bool) -> Verdict:
        """Move the alias to a version if it earns it; waits for versions registered before."""
        self._wait_for(version)
        mine = of_tags(self._tags(version))
        holder = self.holder()
        theirs = None if holder is None else of_tags(self._tags(holder))
        if holder == version:
            found = Verdict(True, "it is that already", self._tags(version).get(PROMOTION, "first"))
            if found.state in (PENDING, "abandoned"):  # its publisher died after the alias moved
                self.client.set_model_version_tag(self.name, version, PROMOTION, "better")
            return found
        nothing = Measure("", None, "max", {})
        found = verdict(mine or nothing, theirs, holder, force)
        if found.promoted:
            self.move(version, holder, found.state)
        self.client.set_model_version_tag(self.name, version, PROMOTION, found.state)
        return found

    def move(self, version: str, former: str | None, why: str) -> None:
        """Give the alias to a version and write that down."""
        measure = of_tags(self._tags(version))
        now = datetime.now(UTC)
        entry = Move(
            version,
            former,
            now.isoformat(timespec="milliseconds"),
            why,
            measure.metric if measure else "",
            measure.value if measure else None,
        )
        # Counted, since clocks of two machines differ; the rest keeps two of one count apart.
        count = len(self.history()) + 1
        key = f"zoo.{self.alias}_history.{count:06d}.v{version}-{secrets.token_hex(2)}"
        # First the record: a process that dies in between leaves a line too many, not too few.
        self.client.set_registered_model_tag(self.name, key, json.dumps(asdict(entry)))
        self.client.set_registered_model_alias(self.name, self.alias, version)

    def roll_back(self, to: str | None = None) -> Move:
        """Give the alias back to the version that had it before, or to a named one.

        Raises:
            ConfigError: There is no such version, or none before.
        """
        holder = self.holder()
        target = to or _former(self.history(), holder)
        known = {str(v.version) for v in self.versions()}
        if target is None:
            msg = (
                f"{self.name}@{self.alias}: no version had the alias before; --to VERSION names one"
            )
            raise ConfigError(msg)
        if target not in known:
            msg = f"{self.name}: there is no version {target}; versions are {_listed(known)}"
            raise ConfigError(msg)
        if target == holder:
            msg = f"{self.name}@{self.alias} is version {target} already"
            raise ConfigError(msg)
        self.move(target, holder, "rollback")
        return self.history()[-1]

    def _tags(self, version: str) -> dict[str, str]:
        return dict(self.client.get_model_version(self.name, version).tags)

    def _wait_for(self, version: str) -> None:
        """Until every version with a lower number is decided, or its publisher seems dead."""
        begun = time.monotonic()
        while True:
            versions = {str(v.version): v for v in self.versions()}
            born = versions[version].creation_timestamp
            waiting = []
            for number, other in versions.items():
                if int(number) >= int(version) or other.tags.get(PROMOTION) != PENDING:
                    continue
                # Both times are the registry's, so clocks that differ do no harm.
                age = (born - other.creation_timestamp) / 1000 + time.monotonic() - begun
                if age < self.patience:
                    waiting.append(number)
                else:
                    self.client.set_model_version_tag(self.name, number, PROMOTION, "abandoned")
            if not waiting:
                return
            time.sleep(_POLL)


def _former(history: Sequence[Move], holder: str | None) -> str | None:
    """The version before the holder, with what was rolled back taken as never promoted."""
    stack: list[str] = []
    for move in history:
        if move.why == "rollback" and move.version in stack:
            del stack[stack.index(move.version) + 1 :]
        else:
            stack.append(move.version)
    while stack and stack[-1] == holder:
        stack.pop()
    return stack[-1] if stack else None


def _listed(known: set[str]) -> str:
    return ", ".join(sorted(known, key=int)) or "none yet"


def shown(move: Move) -> dict[str, Any]:
    """A move as a row of a table."""
    return {
        "time": move.time,
        "version": move.version,
        "before": move.former or "",
        "why": move.why,
        "metric": move.metric,
        "value": move.value if move.value is not None else "",
    }
