"""Writes the files of this folder: a checkpoint and a portable file, and what they predict.

Run once a format, from the repository's root; files of older formats are never written again:

    python tests/formats/write.py
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from zoo import checkpoint, conversion, portable
from zoo.cli.main import main

HERE = Path(__file__).resolve().parent
TRAIN = ["task=wsi_mil", "model.inner=16", "model.attention=8", "model.branches=2"]
TRAIN += ["model.masked=2", "data.standardise=true", "trainer.max_steps=24"]
TRAIN += ["trainer.accelerator=cpu", "tracking.enabled=false"]


def write() -> None:
    """One short training on the sample data set; its checkpoint is kept as it was written."""
    # No path of this machine is stored: the training runs where it is, in `runs`.
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        if main(["train", *TRAIN, "--quiet"]):
            raise SystemExit(1)
        (checkpoints,) = Path("runs").glob("*/checkpoints")
        found = checkpoint.best(checkpoints)
        name = f"format-{checkpoint.FORMAT}"
        shutil.copytree(found.path, HERE / name / found.path.name, dirs_exist_ok=True)
        task, read, facts = conversion.trained([f"weights={found.path}"])
    path = HERE / f"portable-{portable.FORMAT}.safetensors"
    about = {"run": "a short training on the sample data set"}
    portable.write(
        path, read.model, task="wsi_mil", config=read.meta["config"], facts=facts, about=about
    )
    model = task.model(facts).eval()
    checkpoint.load_weights(model, read)
    outputs = {}
    draw = torch.Generator().manual_seed(1)
    for bag, count in enumerate((5, 11)):
        features = torch.rand(count, facts["width"], generator=draw)
        with torch.no_grad():
            made = model(features)
        outputs[f"features.{bag}"] = features
        outputs[f"probabilities.{bag}"] = made.logits.softmax(-1)
        outputs[f"attention.{bag}"] = made.attention.softmax(-1).mean((0, 1))
    save_file(outputs, HERE / f"{name}-outputs.safetensors")


if __name__ == "__main__":
    write()
