"""Command line of the benchmarks: `python -m zoo.benchmarks NAME [--device cuda] [--json FILE]`."""

from __future__ import annotations

import argparse
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from zoo.benchmarks import BLOCKS, NAMES, run, run_on
from zoo.benchmarks.harness import Row, device_name, json_lines, table, versions

_HEAD = """# Results of `zoo bench`

Device: {device}. Versions: {versions}. Written by `zoo bench all --table FILE`.

`speed` is the median over interleaved rounds of the first form's time over this one's; `memory` is
this form's peak above the inputs over the first one's, taken in fresh processes on the CPU."""


def _worded(found: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in found.items())


def _isolated(name: str, device: torch.device, quick: bool, threads: int) -> list[Row]:
    """Rows of a benchmark in a process of its own.

    What ran before decides whether the C library keeps freed memory or takes it anew, page by page,
    for each large tensor. Plain forms with N x N tensors ran 2.7 times faster after other work.
    """
    # A worker of `multiprocessing.Pool` could not start the processes in which memory is measured.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(run_on, name, str(device), quick, threads).result()


def main(arguments: list[str] | None = None) -> None:
    """Runs a benchmark, prints its table and appends JSON lines to a file if asked.

    Args:
        arguments: Words of the command line; None: those of the process.
    """
    parser = argparse.ArgumentParser(prog="python -m zoo.benchmarks", description=__doc__)
    parser.add_argument("name", choices=[*NAMES, "all"])
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    parser.add_argument("--json", type=Path, help="append one JSON object a row to this file")
    parser.add_argument("--table", type=Path, help="write the tables as Markdown to this file")
    parser.add_argument("--quick", action="store_true", help="small sizes, few rounds")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    device = torch.device(chosen.device)
    print(f"{device_name(device)}; {versions()}", flush=True)
    tables = [_HEAD.format(device=device_name(device), versions=_worded(versions()))]
    for name in BLOCKS if chosen.name == "all" else [chosen.name]:
        alone = chosen.name == "all" and device.type == "cpu"
        found = (
            _isolated(name, device, chosen.quick, chosen.threads)
            if alone
            else run(name, device, chosen.quick)
        )
        tables.append(table(found))
        print(f"\n{tables[-1]}", flush=True)
        if chosen.json is not None:
            with chosen.json.open("a") as file:
                file.write(json_lines(found))
        if chosen.table is not None:
            chosen.table.write_text("\n\n".join(tables) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
