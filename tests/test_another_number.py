"""A run goes on, and is evaluated, with another number of processes than it began with."""

from __future__ import annotations

import json
import signal
from collections import Counter
from pathlib import Path

import pytest
import torch

from tests.processes import (
    BAGS,
    QUIET,
    UPDATE,
    all_of,
    at_call,
    forked,
    noting,
    once,
    seen_in,
    send,
    trained,
)
from tests.running import good, only_run, run_zoo, values
from zoo import checkpoint, runs
from zoo.beginning import begin
from zoo.config import resolve
from zoo.runs import Run


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (2, 3), (2, 2)])
def test_a_resume_with_other_processes_loses_and_doubles_nothing(
    stubs: None, out: Path, tmp_path: Path, before: int, after: int
) -> None:
    words = [*BAGS, "trainer.accumulate=2", *QUIET]
    first, second = tmp_path / "first", tmp_path / "second"
    stop = at_call(0, UPDATE, 1, send(signal.SIGTERM))
    ended = trained(out, tmp_path / "a", *words, size=before, hook=all_of(noting(first), stop))
    assert ended.codes == [143] * before, ended.told()
    run = only_run(out)
    ended = trained(out, tmp_path / "b", f"resume={run.path}", size=after, hook=noting(second))
    assert ended.codes == [0] * after, ended.told()
    assert ("every item of the epoch still comes once" in ended.out[0]) == (before != after)
    parts = [seen_in(f) for f in (first, second)]
    assert all(0 < sum(p[0].values()) < 16 for p in parts)  # in the middle of an epoch
    both = {e: parts[0].get(e, Counter()) + parts[1].get(e, Counter()) for e in (0, 1)}
    assert both == once(2)
    assert only_run(out).status == "finished"


@pytest.mark.slow
def test_a_resume_with_as_many_processes_has_the_same_bits(
    stubs: None, out: Path, tmp_path: Path
) -> None:
    words = [*BAGS, *QUIET]
    whole = trained(tmp_path / "whole", tmp_path / "a", *words)
    assert whole.codes == [0, 0], whole.told()
    stop = at_call(1, UPDATE, 3, send(signal.SIGTERM))
    ended = trained(out, tmp_path / "b", *words, hook=stop)
    assert ended.codes == [143, 143], ended.told()
    assert trained(out, tmp_path / "c", f"resume={only_run(out).path}").codes == [0, 0]
    one, two = only_run(tmp_path / "whole"), only_run(out)
    assert values(one) == values(two)
    a, b = (checkpoint.best(r.checkpoints).model for r in (one, two))
    assert all(torch.equal(a[k], b[k]) for k in a)


# -- trainer.devices and torchrun ---------------------------------------------------------------


def stopped(out: Path, *words: str) -> Run:
    """A run that was begun with these words and did not finish."""
    run = runs.create(resolve([*BAGS, *QUIET, *words, f"out={out}"]).config, {})
    run.update(status="interrupted")
    return run


def chosen(out: Path, *words: str) -> str | None:
    start = begin([*BAGS, *QUIET, *words, f"out={out}", "resume=auto"])
    return start.run.name if start.run else None


def test_resume_auto_finds_the_run_of_another_number(stubs: None, out: Path) -> None:
    run = stopped(out, "trainer.devices=2")
    assert chosen(out) == chosen(out, "trainer.devices=3") == run.name
    assert begin([*BAGS, *QUIET, f"out={out}", "resume=auto"]).resolved.config.trainer.devices == 1
    assert chosen(out, "optim.lr=0.3") is None
    assert chosen(out, "trainer.epochs=3") is None
    own = stopped(out, "trainer.devices=3")
    assert chosen(out, "trainer.devices=2") == run.name  # its own number goes before a newer run
    assert chosen(out, "trainer.devices=3") == own.name
    run.update(status="finished")
    own.update(status="finished")
    assert chosen(out, "trainer.devices=2") is None


def test_a_damaged_run_hides_no_other(stubs: None, out: Path) -> None:
    run = stopped(out, "trainer.devices=2")
    (stopped(out, "trainer.devices=3").path / "config.yaml").write_text("trainer: 7\n")
    (stopped(out, "trainer.devices=4").path / "config.yaml").unlink()
    assert chosen(out) == run.name


def test_under_torchrun_its_number_counts(
    stubs: None, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = stopped(out, "trainer.devices=2")
    named = [f"resume={run.path}", f"out={out}"]
    assert begin(named).resolved.config.trainer.devices == 2  # alone, what it had
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert begin(named).resolved.config.trainer.devices == 1  # as many as torchrun started
    refused = run_zoo("train", *named, "trainer.devices=2")
    assert refused.code == 2
    (line,) = [line for line in refused.err.splitlines() if "error:" in line]
    assert "trainer.devices=2, but 3 processes were started on this machine" in line


@pytest.mark.slow
def test_a_run_of_two_goes_on_and_is_evaluated_with_any_number(
    stubs: None, out: Path, tmp_path: Path
) -> None:
    stop = at_call(0, UPDATE, 1, send(signal.SIGTERM))
    words = [*BAGS, *QUIET]
    ended = trained(out, tmp_path / "a", *words, "trainer.devices=2", hook=stop)
    assert ended.codes == [143, 143], ended.told()
    stop = at_call(0, UPDATE, 2, send(signal.SIGTERM))
    named = f"resume={only_run(out).path}"
    ended = trained(out, tmp_path / "b", named, size=3, hook=stop)
    assert ended.codes == [143] * 3, ended.told()
    assert "3 processes instead of 2" in ended.out[0]
    assert only_run(out).info["processes"] == 3
    said = good("train", *words, f"out={out}", "resume=auto").out
    assert "1 process instead of 3" in said
    run = only_run(out)
    assert (run.status, run.info["processes"]) == ("finished", 1)
    for size in (1, 2):
        folder = tmp_path / f"scores{size}"
        command = ["eval", f"weights={run.path}", f"predict.out={folder}"]
        ended = forked(command, size, tmp_path / f"c{size}")
        assert ended.codes == [0] * size, ended.told()
        assert json.loads((folder / "metrics.json").read_text()) == run.results()


@pytest.mark.slow
def test_weights_of_devices_that_are_not_here_are_evaluated(
    stubs: None, out: Path, tmp_path: Path
) -> None:
    """How many trained a run says nothing about the machine that evaluates it."""
    ended = trained(out, tmp_path / "a", *BAGS, *QUIET, "trainer.devices=2")
    assert ended.codes == [0, 0], ended.told()
    run = only_run(out)
    assert run.config()["trainer"]["devices"] == 2
    for size in (1, 3):
        folder = tmp_path / f"scores{size}"
        command = ["eval", f"weights={run.path}", f"predict.out={folder}"]
        ended = forked(command, size, tmp_path / f"said{size}")
        assert ended.codes == [0] * size, ended.told()
        assert json.loads((folder / "metrics.json").read_text()) == run.results()
