"""A further process of a command with `trainer.devices=N`: reads what to do from its input.

The first process starts it by `python -m zoo.worker`; it says nothing and writes only the dense
outputs of its own items.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zoo.errors import ZooError
from zoo.progress import Reporter


def do(job: Mapping[str, Any]) -> None:
    """Take part in a training, an evaluation or a prediction.

    Args:
        job: `kind` and the words or configuration that the first process has as well.
    """
    quiet = Reporter(quiet=True)
    if job["kind"] == "train":
        from zoo.config import resolve
        from zoo.runs import Run
        from zoo.training import Start, train

        run = Run(Path(job["run"])) if job["run"] else None
        start = Start(resolve([], job["config"]), run, force=job["force"])
        train(start, quiet)
        return
    from zoo.inference import evaluate_run, predict_paths

    if job["kind"] == "eval":
        evaluate_run(job["pairs"], job["split"], quiet)
    else:
        predict_paths(job["pairs"], [Path(p) for p in job["paths"]], quiet)


def main() -> int:
    """Do the job and return the exit code; only what the first process cannot tell is told."""
    try:
        do(json.load(sys.stdin))
    except ZooError as error:
        if str(error):
            print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
