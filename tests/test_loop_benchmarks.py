"""The benchmarks of what is around the models run and name their forms."""

from __future__ import annotations

import shutil

import pytest
import torch

from zoo.benchmarks import download, engine, scaling
from zoo.errors import ZooError


def test_the_engine_is_measured_beside_a_bare_loop() -> None:
    rows = engine.run(torch.device("cpu"), quick=True)
    assert [row.form for row in rows] == ["bare loop", "zoo"]
    assert "the engine adds" in rows[0].case
    assert rows[1].speed < 1


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_a_download_is_measured_beside_curl() -> None:
    rows = download.run(torch.device("cpu"), quick=True)
    assert [row.form for row in rows] == ["curl", "curl and sha256sum", "zoo"]
    assert all(row.median_ms > 0 for row in rows)


@pytest.mark.slow
def test_two_processes_are_measured_beside_one_and_beside_a_bare_message() -> None:
    one, two, message = scaling.run(torch.device("cpu"), quick=True)
    assert [r.form for r in (one, two, message)] == ["1 process", "2 processes", "bare all-reduce"]
    assert (one.speed, message.mode) == (1.0, "message")
    assert "of 2 x one; a step is" in two.case
    assert "0.0148 MB of gradients" in message.case  # 3,697 numbers
    assert 0 < message.median_ms < two.median_ms * 2  # a step of two takes two samples
    assert message.speed == pytest.approx(2 * two.median_ms / message.median_ms, rel=0.5)


def test_a_training_that_cannot_be_measured_says_why() -> None:
    with pytest.raises(
        ZooError, match=r"task=no_such_task trainer.devices=1: error: .*no_such_task"
    ):
        scaling._train("no_such_task", 1, "cpu", 1, scaling._Case())
