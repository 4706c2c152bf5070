"""How the recorded metrics of `medusa` are run."""

from __future__ import annotations

import numpy as np
import torch

from tests.parity.golden import Case
from zoo.domains.medical.decisions import confusion_matrix
from zoo.domains.medical.medusa import metrics


def metrics_target(case: Case) -> None:
    inputs = case.group("input")
    assert set(case.info["cases"]) == {k.removeprefix("labels") for k in inputs if "labels" in k}
    for number, info in case.info["cases"].items():
        labels = inputs[f"labels{number}"].numpy()
        guesses = inputs[f"predictions{number}"].numpy()
        table = confusion_matrix(labels, guesses, len(info["classes"]))
        recall, precision = metrics.sensitivity(table), metrics.ppv(table)
        _compare(case, f"confusion{number}", table)
        _compare(case, f"sensitivity{number}", recall)
        _compare(case, f"ppv{number}", precision)
        _compare(case, f"accuracy{number}", np.array([metrics.accuracy(table)]))
        names = [n.capitalize() for n in info["classes"]]
        printed = [
            f"{what} " + ", ".join(f"{n}: {v:.3f}" for n, v in zip(names, values, strict=True))
            for what, values in (("Sens", recall), ("PPV", precision))
        ]
        assert printed == info["printed"]
        # The whole set of figures agrees with its parts, whatever the probabilities behind it.
        chances = np.eye(len(info["classes"]))[guesses]
        found = metrics.radiograph_metrics(
            labels, chances, list(info["classes"]), len(info["classes"]) - 1
        )
        for i, name in enumerate(metrics.slugs(list(info["classes"]))):
            assert found[f"sensitivity_{name}"] == recall[i]
            assert found[f"ppv_{name}"] == precision[i]


def _compare(case: Case, name: str, ours: np.ndarray) -> None:
    expected = case.tensors[f"output/{name}"]
    actual = torch.from_numpy(np.asarray(ours)).to(expected.dtype)
    limit = case.info["tolerance"]["atol"]
    torch.testing.assert_close(actual, expected, rtol=0, atol=limit, msg=lambda t: f"{name}: {t}")
    case.open.discard(f"output/{name}")


TARGETS = {"metrics": metrics_target}
