"""Out of memory, and the batch size that `trainer.batch_size=auto` finds."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import killing
from tests.running import good, only_run, run_zoo
from tests.toys import Points, Toy, config, trainer_of
from zoo import batch_size, faults
from zoo.errors import TrainingError

NO_TRACKING = "tracking.enabled=false"
BAGS = ["task=stub_bags", "trainer.epochs=2", "trainer.log_every=2", NO_TRACKING]


def _line(err: str) -> str:
    (line,) = err.splitlines()
    assert "Traceback" not in line
    return line.removeprefix("error: ")


# -- memory -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has …"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:1] . DefaultCPUAllocator: can't allocate"
                     " memory: you tried to allocate 4 bytes. Error code 12"),
        MemoryError("Unable to allocate 3.1 TiB for an array"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    ],
    ids=lambda e: type(e).__name__,
)  # fmt: skip
def test_out_of_memory_names_batch_size_and_precision(out: Path, error: Exception) -> None:
    task = Toy(config(out, batch_size=4, precision="64-true"))
    trainer = trainer_of(task)
    with pytest.raises(TrainingError) as caught:  # noqa: SIM117
        with faults.told(task.config.trainer, trainer.run, trainer.at):
            raise error
    text = str(caught.value)
    assert "out of memory in step 1 (epoch 1) with trainer.batch_size=4 and " in text
    assert "trainer.precision=64-true" in text
    assert "trainer.batch_size=auto" in text
    assert "there is no checkpoint yet" in text
    assert ("2.00 GiB more were asked for" in text) == ("CUDA out" in str(error))


def test_other_errors_pass_as_they_are(out: Path) -> None:
    for error in (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), OSError(2, "gone")):
        with pytest.raises(type(error)) as caught, faults.told(config(out).trainer):
            raise error
        assert caught.value is error


def _short_of_memory(
    monkeypatch: pytest.MonkeyPatch, most: int, task: str = "stub_testsets"
) -> None:
    """A machine on which no more than `most` items fit."""
    from zoo import registry

    kind: Any = registry.load_object(registry.built(task)[1].code or "", task)
    inner = kind.loss

    def loss(self: Any, model: Any, batch: Any, rng: torch.Generator) -> dict[str, Tensor]:
        if len(batch["id"]) > most:
            msg = "CUDA out of memory. Tried to allocate 1.50 GiB."
            raise torch.OutOfMemoryError(msg)
        found: dict[str, Tensor] = inner(self, model, batch, rng)
        return found

    monkeypatch.setattr(kind, "loss", loss)


PICTURES = ["task=stub_testsets", "preset=sample", "trainer.epochs=2", NO_TRACKING]


def test_out_of_memory_through_the_command_line(
    stubs: None, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _short_of_memory(monkeypatch, 2)
    result = run_zoo("train", *PICTURES, "trainer.batch_size=8", f"out={out}")
    assert result.code == 1
    line = _line(result.err)
    assert "out of memory in step 1" in line
    assert "trainer.batch_size=8 and trainer.precision=32-true (1.50 GiB more" in line
    assert only_run(out).status == "failed"


@pytest.mark.parametrize(("most", "found"), [(1, 1), (100, 2)])
def test_auto_finds_the_largest_batch_that_fits(
    stubs: None, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int, found: int
) -> None:
    """And what is trained with it is what the number itself would have given, bit by bit."""
    _short_of_memory(monkeypatch, most)
    shown = good("train", *PICTURES, "trainer.batch_size=auto", f"out={out}").out
    assert f"trainer.batch_size=auto: {found} (" in shown
    told = "2 does not fit into memory" if most < 100 else "more would leave less than 4 steps"
    assert told in shown
    run = only_run(out)
    assert run.config()["trainer"]["batch_size"] == found
    good("train", *PICTURES, f"trainer.batch_size={found}", f"out={tmp_path / 'same'}")
    assert killing.outcome(run) == killing.outcome(only_run(tmp_path / "same"))


def test_a_resumed_run_keeps_the_size_that_was_found(
    stubs: None, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*PICTURES, "trainer.batch_size=auto", f"out={out}"]
    with monkeypatch.context() as patch:
        _short_of_memory(patch, 1)
        patch.setattr("zoo.training._finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert run_zoo("train", *words).code == 130
    shown = good("train", *words, "resume=auto").out  # more would fit now
    assert "resuming" in shown
    assert "trainer.batch_size=auto:" not in shown
    assert only_run(out).config()["trainer"]["batch_size"] == 1


def test_auto_says_why_it_cannot_choose(
    stubs: None, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    auto = "trainer.batch_size=auto"
    own_rule = run_zoo("train", *BAGS, auto, f"out={out}")
    several = run_zoo("train", *PICTURES, auto, "trainer.devices=2", f"out={out}")
    folds = run_zoo("cv", "task=stub_years", auto, NO_TRACKING, f"out={out}")
    _short_of_memory(monkeypatch, 0)
    nothing = run_zoo("train", *PICTURES, auto, f"out={out}")
    wrong = run_zoo("train", *PICTURES, "trainer.batch_size=0", f"out={out}")
    for result, words in (
        (own_rule, "batches by a rule of its own; set a number"),
        (several, "find it with trainer.devices=1"),
        (folds, "the folds of a cross-validation need one size"),
        (nothing, "not even one item fits"),
        (wrong, "trainer.batch_size=0: should be at least 1, or auto"),
    ):
        assert result.code == 2, result
        assert words in _line(result.err)
    assert not out.exists()


def test_p_times_k_batches_have_no_automatic_size(tmp_path: Path) -> None:
    from zoo.domains.reid.fusion_reid.split import ReidSplit

    split = ReidSplit.__new__(ReidSplit)
    assert "P identities with K crops each" in batch_size.why_not(split)


def test_auto_on_a_processor_stops_before_the_system_would_end_the_process(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing raises there: what half as much took is compared with what is free."""
    taken = iter([0, 0, 10**9, 2 * 10**9, 10**13])
    monkeypatch.setattr(batch_size, "_resident", lambda: next(taken))
    told: list[str] = []
    task = Toy(config(out))
    trainer = trainer_of(task)
    monkeypatch.setattr(trainer.reporter, "say", told.append)
    assert batch_size.find(trainer, Points(64), trainer.reporter) == 4
    assert "8 would take more memory than is free" in told[0]


def test_a_failure_that_is_not_memory_is_no_reason_to_halve(out: Path) -> None:
    task = Toy(config(out))
    task.loss = lambda *_: (_ for _ in ()).throw(RuntimeError("shapes differ"))  # type: ignore[method-assign,assignment]
    trainer = trainer_of(task)
    with pytest.raises(RuntimeError, match="shapes differ"):
        batch_size.find(trainer, task.train, trainer.reporter)


def test_largest() -> None:
    for most_that_fits in range(0, 40):
        found = batch_size.largest(lambda n, m=most_that_fits: n <= m, 33)  # type: ignore[misc]
        expected = [n for n in (0, 1, 2, 4, 8, 16, 32) if n <= most_that_fits][-1]
        assert found == expected
