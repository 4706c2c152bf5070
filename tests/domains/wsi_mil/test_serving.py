"""What is served of a slide model: the same numbers as the records, from a bag as it is stored."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from zoo.config import resolve
from zoo.domains.medical.wsi_mil.config import Config
from zoo.domains.medical.wsi_mil.task import WsiMil
from zoo.exporting import compared, prepared, traced

RNG = np.random.default_rng(0)


def task_of(root: Path, *words: str) -> WsiMil:
    config = resolve(["task=wsi_mil", "preset=sample", f"data.root={root}", *words]).config
    assert isinstance(config, Config)
    return WsiMil(config)


def built(task: WsiMil) -> tuple[Any, dict[str, Any], Any]:
    splits = task.splits()
    facts = task.fit(splits["train"])
    torch.manual_seed(0)
    return splits, facts, task.model(facts).eval()


@pytest.mark.parametrize(
    "words", [("model.arch=acmil_ga", "data.standardise=true"), ("model.arch=acmil_mha",)]
)
def test_bags_give_what_prediction_writes(
    clam: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    task = task_of(clam, *words)
    splits, facts, model = built(task)
    export = task.served(model, facts)
    test = splits["test"]
    assert export.module is not None
    for index in range(len(test.ids)):
        item = test.item(index, RNG)
        with torch.no_grad():
            (record,) = task.records(model, test.collate([item]))
            probabilities, attention = export.module.eval()(item["features"])
        assert probabilities.shape == (1, len(facts["classes"]))
        np.testing.assert_allclose(probabilities[0], record.values["probabilities"], atol=1e-6)
        np.testing.assert_allclose(attention, record.values["attention"], atol=1e-6)
    assert record.write is not None
    (table,) = (p for p in record.write(tmp_path) if p.suffix == ".csv")
    np.testing.assert_allclose(pd.read_csv(table)["attention"], attention, atol=1e-6)


@pytest.mark.parametrize("arch", ["acmil_ga", "acmil_mha", "abmil", "mha"])
def test_the_traced_model_takes_any_bag(clam: Path, arch: str) -> None:
    task = task_of(clam, f"model.arch={arch}")
    _, facts, model = built(task)
    export = prepared(task, model, facts)
    program = traced(export).module()
    assert {len(o["features"]) for o in export.others} >= {1, 2}
    with torch.no_grad():
        assert compared(export, lambda i: program(*i.values()), 1e-6, "the graph") < 1e-6


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_broken_bag_gives_no_number(clam: Path, value: float) -> None:
    task = task_of(clam)
    _, facts, model = built(task)
    export = task.served(model, facts)
    assert export.module is not None
    features = export.inputs["features"].clone()
    features[3, 5] = value
    with torch.no_grad():
        assert all(made.isnan().all() for made in export.module(features))


def test_what_is_told_of_inputs_and_outputs(clam: Path) -> None:
    task = task_of(clam)
    _, facts, model = built(task)
    facts = facts | {"extraction": {"encoder": "resnet50", "magnification": 20.0, "overlap": 0}}
    export = task.served(model, facts)
    assert set(export.about) == {*export.inputs, *export.outputs}
    assert "encoder resnet50, magnification 20.0" in export.about["features"]
    assert ", ".join(facts["classes"]) in export.about["probabilities"]
