"""Command line of the benchmarks: `python -m zoo.benchmarks NAME [--device cuda] [--json FILE]`."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from zoo.benchmarks import BLOCKS, module
from zoo.benchmarks.harness import device_name, json_lines, table, versions


def main(arguments: list[str] | None = None) -> None:
    """Runs a benchmark, prints its table and appends JSON lines to a file if asked.

    Args:
        arguments: Words of the command line; None: those of the process.
    """
    parser = argparse.ArgumentParser(prog="python -m zoo.benchmarks", description=__doc__)
    parser.add_argument("name", choices=[*BLOCKS, "all"])
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    parser.add_argument("--json", type=Path, help="append one JSON object a row to this file")
    parser.add_argument("--quick", action="store_true", help="small sizes, few rounds")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    device = torch.device(chosen.device)
    print(f"{device_name(device)}; {versions()}", flush=True)
    for name in BLOCKS if chosen.name == "all" else [chosen.name]:
        found = module(name).run(device, quick=chosen.quick)
        print(f"\n{table(found)}", flush=True)
        if chosen.json is not None:
            with chosen.json.open("a") as file:
                file.write(json_lines(found))


if __name__ == "__main__":
    main()
