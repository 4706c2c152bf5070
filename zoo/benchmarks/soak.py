"""Kills trainings again and again, resumes them, and looks for a bit that differs.

`python -m zoo.benchmarks.soak --kills 100 --seed 1`

Every task of the registry trains some steps on its sample data set, with 0 and with 2 loading
processes: once undisturbed, then as often as asked with SIGKILL at random steps and at random
seconds, resumed by `resume=auto` until it is finished. Weights (last and best), every metric and
the results must be those of the undisturbed run. What is printed is enough to do it again.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from zoo import registry
from zoo.benchmarks.killing import Kill, Lost, at_steps, at_times, differences, survive, undisturbed
from zoo.runs import Run

_AT_MOST = 3  # kills of one run, so that it is also seen to end
_SHORT = ("trainer.log_every=2", "trainer.checkpoint_every=3", "tracking.enabled=false")


@dataclass
class Case:
    """A training that is killed, and what came of it.

    Attributes:
        task: Name in the registry.
        workers: Loading processes.
        words: Its settings.
        reference: The undisturbed run, once there is one.
        seconds: How long that took.
        runs: Trainings that were killed.
        hits: Kills that hit a training at work.
        wrong: What differed, one line each.
    """

    task: str
    workers: int
    words: list[str]
    reference: Run | None = None
    seconds: float = 0.0
    runs: int = 0
    hits: int = 0
    wrong: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """What the case is called in what is printed."""
        return f"{self.task}/{self.workers}"


def cases(tasks: Sequence[str], workers: Sequence[int], steps: int) -> list[Case]:
    """A short training of each task with each number of loading processes."""
    return [
        Case(
            task,
            number,
            [f"task={task}", f"trainer.workers={number}", f"trainer.max_steps={steps}", *_SHORT],
        )
        for task in tasks
        for number in workers
    ]


def kills_of(case: Case, rng: random.Random, most: int) -> list[Kill]:
    """Some kills in a row, at steps or at seconds of what the undisturbed run took."""
    count = rng.randint(1, max(1, min(_AT_MOST, most)))
    if case.reference is None or rng.random() < 0.5:
        return at_times(rng, case.seconds, count)
    return at_steps(rng, int(case.reference.info["steps"]), count)


def one(case: Case, number: int, seed: int, most: int, place: Path) -> list[Kill]:
    """Kill and resume one run of a case and compare its end; returns the kills that were meant.

    Folders of runs that are right are removed, those of wrong ones are left to be looked at.
    """
    rng = random.Random(f"{seed}/{case.name}/{number}")
    kills = kills_of(case, rng, most)
    out = place / f"{case.task}-{case.workers}-{number}"
    found: list[str] = []
    try:
        run, hits = survive(case.words, out, kills)
        case.hits += hits
        if case.reference is not None:
            found = differences(run, case.reference)
    except Lost as error:
        found = [str(error).strip().splitlines()[-1]]
    case.runs += 1
    case.wrong += [f"{case.name} run {number}: {text} ({out})" for text in found]
    if not found:
        shutil.rmtree(out, ignore_errors=True)
        out.with_suffix(".log").unlink(missing_ok=True)
    return kills


def soak(chosen: Sequence[Case], kills: int, seed: int, place: Path) -> Iterator[str]:
    """Do it; yields lines to print.

    Args:
        chosen: The trainings, taken in turn.
        kills: Kills that have to hit.
        seed: Of every choice.
        place: Folder for the runs.
    """
    for case in chosen:
        registry.load_object(registry.built(case.task)[1].code or "", case.task)
        out = place / f"{case.task}-{case.workers}"
        case.reference, case.seconds = undisturbed(case.words, out)
        steps = case.reference.info["steps"]
        yield f"{case.name}: undisturbed, {steps} steps in {case.seconds:.1f} s"
    number, misses = 0, 0
    while (hits := sum(case.hits for case in chosen)) < kills and misses < 50 * len(chosen):
        case = chosen[number % len(chosen)]
        before = (case.hits, len(case.wrong))
        meant = one(case, number, seed, kills - hits, place)
        hit = case.hits - before[0]
        misses = 0 if hit else misses + 1
        told = "; ".join(map(str, meant))
        good = "the same bits" if len(case.wrong) == before[1] else f"WRONG: {case.wrong[-1]}"
        yield f"{hits + hit:4d} {case.name} run {number}: {told}: {hit} hit; {good}"
        number += 1


def table(chosen: Sequence[Case]) -> str:
    """The outcome by case, in Markdown."""
    lines = [
        "| task | loading processes | runs | kills | runs that differ |",
        "|---|---|---|---|---|",
    ]
    for case in chosen:
        runs = {text.partition(":")[0] for text in case.wrong}
        lines.append(f"| {case.task} | {case.workers} | {case.runs} | {case.hits} | {len(runs)} |")
    total = [sum(case.runs for case in chosen), sum(case.hits for case in chosen)]
    wrong = sum(len({t.partition(":")[0] for t in case.wrong}) for case in chosen)
    lines.append(f"| all | | {total[0]} | {total[1]} | {wrong} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Soak and print; returns 1 if a bit differed.

    Args:
        arguments: Words of the command line; None: those of the process.
    """
    built = [name for name, entry in registry.tasks().items() if entry.built]
    parser = argparse.ArgumentParser(prog="python -m zoo.benchmarks.soak", description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="kills that have to hit")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tasks", default=",".join(built), help="separated by commas")
    parser.add_argument("--workers", default="0,2", help="loading processes, separated by commas")
    parser.add_argument("--steps", type=int, default=10, help="optimiser steps of a training")
    parser.add_argument("--out", type=Path, help="folder for the runs; wrong ones stay there")
    chosen = parser.parse_args(arguments)
    numbers = [int(word) for word in chosen.workers.split(",")]
    found = cases(chosen.tasks.split(","), numbers, chosen.steps)
    place = chosen.out or Path(tempfile.mkdtemp(prefix="zoo-soak-"))
    place.mkdir(parents=True, exist_ok=True)
    begun = time.perf_counter()
    print(f"seed {chosen.seed}, {chosen.kills} kills, runs in {place}", flush=True)
    for line in soak(found, chosen.kills, chosen.seed, place):
        print(line, flush=True)
    print(f"\n{table(found)}\n\nseed {chosen.seed}, {time.perf_counter() - begun:.0f} s")
    wrong = [text for case in found for text in case.wrong]
    if not wrong and chosen.out is None:
        shutil.rmtree(place, ignore_errors=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
