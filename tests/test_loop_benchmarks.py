"""The benchmarks of what is around the models run and name their forms."""

from __future__ import annotations

import shutil

import pytest
import torch

from zoo.benchmarks import download, engine


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
