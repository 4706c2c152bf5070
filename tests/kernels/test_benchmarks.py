from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

from zoo.benchmarks import BLOCKS, NAMES, __main__, gated_attention_pool, query_pool, run
from zoo.benchmarks.harness import Row, on_path


@pytest.mark.parametrize("name", list(NAMES))
def test_every_benchmark_can_be_run(name: str) -> None:
    for part in NAMES[name]:
        assert callable(import_module(part).run)


def test_benchmark_of_several_parts_gives_all_their_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Fake:
        @staticmethod
        def run(device: torch.device, quick: bool) -> list[int]:
            asked.append(quick)
            return [len(asked)]

    monkeypatch.setattr("zoo.benchmarks.import_module", lambda part: Fake)
    assert run("rgbd_sod", torch.device("cpu"), quick=True) == [1, 2]
    assert asked == [True, True]


@pytest.mark.parametrize("policy", gated_attention_pool.POLICIES)
def test_policies_and_the_eager_baseline_compute_the_same_gradients(policy: str) -> None:
    expected = gated_attention_pool.training("eager", 300, width=64)()
    found = gated_attention_pool.training(policy, 300, width=64)()
    error = 2e-2 if policy == "bfloat16" else 1e-4
    for mine, other in zip(found, expected, strict=True):
        bound = error * max(float(other.abs().max()), 0.05)  # the last is all cancellation
        torch.testing.assert_close(mine, other, atol=bound, rtol=0)


@pytest.mark.parametrize("block", ["query_pool", "few_key_attention"])
def test_forms_and_the_plain_baseline_compute_the_same(
    block: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(query_pool.SHAPES, "small", (2, 20, 16, 16, 2, 2, block == "query_pool"))
    outputs = [query_pool.make(block, "small", form, "fwd")() for form in ("key/value", "torch")]
    torch.testing.assert_close(outputs[0], outputs[1], atol=1e-5, rtol=1e-5)


def test_path_is_forced_for_one_form_only(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.delenv("ZOO_KERNELS", raising=False)
    assert on_path("torch", lambda: os.environ["ZOO_KERNELS"])() == "torch"
    assert "ZOO_KERNELS" not in os.environ


def test_command_prints_a_table_and_appends_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: object
) -> None:
    row = Row("block", "case", "eager", "fwd", "cpu", 1.0, 0.9, 1.1, 1.0)

    def fake(name: str, device: torch.device, quick: bool) -> list[Row]:
        assert (name, device.type, quick) == ("query_pool", "cpu", True)
        return [row]

    monkeypatch.setattr(__main__, "run", fake)
    file = f"{tmp_path}/rows.jsonl"
    threads = torch.get_num_threads()
    try:
        for _ in range(2):
            __main__.main(["query_pool", "--quick", "--json", file])
    finally:
        torch.set_num_threads(threads)
    assert "| block | case | fwd | eager | 1 (0.9-1.1) |" in capsys.readouterr().out
    with open(file) as lines:
        assert [json.loads(line)["form"] for line in lines] == ["eager", "eager"]


@pytest.mark.slow
def test_all_blocks_in_one_command(tmp_path: Path) -> None:
    """Each runs in a process of its own, which starts others to measure memory."""
    table = tmp_path / "results.md"
    command = [sys.executable, "-m", "zoo.benchmarks", "all", "--quick", "--table", str(table)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [line.split(" | ")[0].removeprefix("| ") for line in table.read_text().splitlines()]
    assert set(BLOCKS) <= set(rows)
