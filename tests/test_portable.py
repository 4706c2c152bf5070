"""Portable weights: what they hold, what never travels, damage; format 1 keeps loading."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.running import flip, good
from zoo import checkpoint, conversion, portable
from zoo.config import resolve
from zoo.errors import ConfigError, WeightsError

KEPT = Path(__file__).parent / "formats"

STATE = {
    "a": torch.arange(6, dtype=torch.float32).view(2, 3),
    "half": torch.ones(3, dtype=torch.bfloat16),
    "count": torch.tensor(7),
    "empty": torch.zeros(0, 4),
    "flags": torch.tensor([True, False]),
}


def written(path: Path, **changes: Any) -> Path:
    body: dict[str, Any] = {
        "task": "wsi_mil",
        "config": {"task": "wsi_mil", "data": {"standardise": True}},
        "facts": {"classes": ["a", "b"], "mean": [0.5, 1e-30]},
        "about": {"source": "a test", "licence": "MIT"},
    }
    return portable.write(path, STATE, **(body | changes))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    read = portable.read(written(tmp_path / "deep" / "w.safetensors"))
    assert read is not None
    assert read.state.keys() == STATE.keys()
    for key, value in STATE.items():
        assert read.state[key].dtype == value.dtype
        assert torch.equal(read.state[key], value)
    assert read.task == "wsi_mil"
    assert read.facts == {"classes": ["a", "b"], "mean": [0.5, 1e-30]}
    assert read.about["licence"] == "MIT"
    assert read.about["zoo"]
    again = written(tmp_path / "again.safetensors")
    assert again.read_bytes() == read.path.read_bytes()
    assert load_file(again)["a"].shape == (2, 3)  # any tool reads it


def test_tied_and_strided_tensors_are_written_out(tmp_path: Path) -> None:
    base = torch.arange(12.0).view(3, 4)
    path = tmp_path / "w.safetensors"
    numbered: Any = {1: 2}
    tied = {"a": base, "b": base, "t": base.mT}
    portable.write(path, tied, task="t", config={}, facts=numbered, about={})
    read = portable.read(path)
    assert read is not None
    assert torch.equal(read.state["t"], base.mT)
    assert read.facts == {"1": 2}


def test_nothing_local_travels(tmp_path: Path) -> None:
    config = resolve(
        [
            "task=her_seg",
            f"data.root={tmp_path}",
            f"data.split={tmp_path / 'split.json'}",
            "model.sam_weights=relative/sam.pth",
            f"predict.out={tmp_path / 'o'}",
            "tracking.uri=http://user:secret@host:5000",
            f"weights={tmp_path / 'w.pth'}",
            "data.target=/an/absolute/word",
            "seed=7",
        ]
    ).config
    read = portable.read(
        written(tmp_path / "w.safetensors", task="her_seg", config=config.stored())
    )
    assert read is not None
    text = json.dumps(read.config)
    for word in (str(tmp_path), "secret", "sam.pth", "/an/absolute", "runs"):
        assert word not in text
    assert read.config["seed"] == 7
    assert read.config["data"]["fit"] == "squash"
    same = resolve([], read.config).config
    assert same.model == config.model.model_copy(update={"sam_weights": None})


def test_plain_tensors_are_no_portable_file(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "plain.safetensors", {"format": "pt"})
    assert portable.read(tmp_path / "plain.safetensors") is None
    with pytest.raises(WeightsError, match="no such file"):
        portable.read(tmp_path / "absent.safetensors")
    with pytest.raises(ConfigError, match=r"are a \.safetensors file"):
        written(tmp_path / "w.bin")
    with pytest.raises(ConfigError, match="must be JSON"):
        written(tmp_path / "w.safetensors", facts={"x": np.zeros(2)})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["plain.safetensors"]


def test_damage_is_told(tmp_path: Path) -> None:
    path = written(tmp_path / "w.safetensors")
    whole = path.read_bytes()
    flip(path, place=-3)
    with pytest.raises(WeightsError, match="its hash differs"):
        portable.read(path)
    path.write_bytes(whole.replace(b"a test", b"a tent"))
    with pytest.raises(WeightsError, match="its hash differs"):
        portable.read(path)
    path.write_bytes(whole[:-5])
    with pytest.raises(WeightsError, match="not a readable safetensors file"):
        portable.read(path)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("[]", "its description"),
        ('{"format": 1}', "its description"),
        ("{", "its description"),
        ('{"format": 99}', "format 99 are newer than this zoo; upgrade it"),
    ],
)
def test_a_description_that_is_wrong_or_newer(tmp_path: Path, entry: str, words: str) -> None:
    save_file(STATE, tmp_path / "w.safetensors", {"zoo": entry})
    with pytest.raises(WeightsError, match=words):
        portable.read(tmp_path / "w.safetensors")


# -- the promise: what was written before keeps loading -----------------------------------------


def test_a_checkpoint_of_format_1_gives_its_recorded_outputs() -> None:
    found = checkpoint.load(KEPT / "format-1" / "step-00000024")
    assert found.meta["format"] == 1
    assert found.state
    predicted(KEPT / "format-1" / "step-00000024")


def test_a_portable_file_of_format_1_gives_its_recorded_outputs() -> None:
    path = KEPT / "portable-1.safetensors"
    with safe_open(path, "pt") as file:
        assert json.loads(file.metadata()["zoo"])["format"] == 1
    predicted(path)


def predicted(path: Path) -> None:
    """Probabilities and attention of the stored bags, by the stored weights."""
    bags = load_file(KEPT / "format-1-outputs.safetensors")
    task, found, facts = conversion.trained([f"weights={path}"])
    model = task.model(facts)
    checkpoint.load_weights(model, found)
    assert len(facts["classes"]) == 2
    assert len(facts["mean"]) == facts["width"]
    with torch.no_grad():
        for name in ("0", "1"):
            output: Any = model.eval()(bags[f"features.{name}"])
            made = output.logits.softmax(-1)
            torch.testing.assert_close(made, bags[f"probabilities.{name}"], rtol=1e-4, atol=1e-5)
            attention = output.attention.softmax(-1).mean((0, 1))
            torch.testing.assert_close(attention, bags[f"attention.{name}"], rtol=1e-4, atol=1e-6)


def test_the_kept_files_are_small() -> None:
    size = sum(p.stat().st_size for p in KEPT.rglob("*") if p.is_file())
    assert 0 < size < 100_000


def test_the_normalisation_in_the_file_is_in_force(tmp_path: Path) -> None:
    """Prediction takes the mean and deviation of the file, whatever lies in a folder beside it."""
    read = portable.read(KEPT / "portable-1.safetensors")
    assert read is not None
    width = int(read.facts["width"])
    bag = torch.rand(9, width, generator=torch.Generator().manual_seed(2))
    torch.save(bag, tmp_path / "bag.pt")

    def moved(mean: float) -> Path:
        facts = read.facts | {"mean": [mean] * width, "deviation": [2.0] * width}
        state = read.state | {
            "mean": torch.full((width,), mean),
            "deviation": torch.full((width,), 2.0),
        }
        return portable.write(
            tmp_path / f"{mean}.safetensors",
            state,
            task=read.task,
            config=read.config,
            facts=facts,
            about={},
        )

    found = []
    for mean in (0.0, 1.0):
        path, out = moved(mean), tmp_path / f"out-{mean}"
        words = [f"weights={path}", f"input={tmp_path / 'bag.pt'}", f"predict.out={out}"]
        good("predict", *words, "predict.dense=false")
        (row,) = csv.DictReader((out / "predictions.csv").open())
        task, _, facts = conversion.trained([f"weights={path}"])
        net: Any = task.model(facts).eval()
        net.load_state_dict(read.state | {k: torch.tensor(facts[k]) for k in ("mean", "deviation")})
        with torch.no_grad():
            expected = net.net((bag - mean) / 2).logits.softmax(-1)[0, 0]
        assert float(row[f"p_{facts['classes'][0]}"]) == pytest.approx(float(expected), abs=1e-5)
        found.append(float(expected))
    assert abs(found[0] - found[1]) > 1e-4
