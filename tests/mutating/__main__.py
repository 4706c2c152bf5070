"""`python -m tests.mutating --task T --count 1000 --seed S`: damage, use, judge, report."""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections import Counter
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported


def main() -> int:
    """Run mutations of one task or all; the exit code is the number of faults, at most 100."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutating", description=__doc__)
    parser.add_argument("--task", default="all", help="name of a task, or all")
    parser.add_argument("--count", type=int, default=1000, help="mutations a task")
    parser.add_argument("--seed", type=int, default=0, help="seeds what is damaged and how")
    parser.add_argument("--only", type=int, help="one mutation by its number, told in full")
    parser.add_argument("--set", help="one data set by its name")
    given = parser.parse_args()

    from tests.mutating.sets import SETS

    tasks = dict.fromkeys(s.task for s in SETS) if given.task == "all" else [given.task]
    return min(100, sum(_run(task, given) for task in tasks))


def _run(task: str, given: argparse.Namespace) -> int:
    from tests.mutating.trial import Bench, scratch

    with tempfile.TemporaryDirectory(prefix="zoo-mutating-", dir=scratch()) as folder:
        bench = Bench(task, Path(folder))
        if given.set:
            bench.sets = [s for s in bench.sets if s.name == given.set]
        counts: Counter[str] = Counter()
        kinds: Counter[str] = Counter()
        begun, most, slowest, number = time.perf_counter(), 0, 0.0, 0
        busy = time.process_time()
        while counts["mutations"] < given.count:
            number = given.only if given.only is not None else number + 1
            started = time.perf_counter()
            verdict = bench.trial(given.seed, number)
            if verdict is None:
                if given.only is not None:
                    break
                continue
            slowest = max(slowest, time.perf_counter() - started)
            most = max(most, verdict.grown)
            counts["mutations"] += 1
            counts["refused" if verdict.told() else "harmless"] += 1
            kinds[verdict.damage.kind] += 1
            if verdict.faults or given.only is not None:
                counts["with faults"] += bool(verdict.faults)
                print(f"--only {number}  {verdict}".encode("unicode_escape").decode(), flush=True)
                for fault in verdict.faults:
                    print(f"    {fault}".encode("unicode_escape").decode(), flush=True)
            if given.only is not None:
                for name, told in verdict.lines.items():
                    print(f"    {name}: {told[:5]}".encode("unicode_escape").decode())
                break
        spent = time.perf_counter() - begun
        print(
            f"{task}, seed {given.seed}: {counts['mutations']} mutations of {len(kinds)} kinds, "
            f"{counts['harmless']} harmless, {counts['refused']} refused, "
            f"{counts['with faults']} with faults; {spent:.0f} s, "
            f"{time.process_time() - busy:.0f} s of a core, slowest {slowest:.1f} s, "
            f"{most / 2**20:.0f} MB at most",
            flush=True,
        )
        return counts["with faults"]


if __name__ == "__main__":
    raise SystemExit(main())
