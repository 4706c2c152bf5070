"""The training loop: accumulation, clipping, schedules, phases, selection, broken items."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.running import good, only_run, run_zoo, series, values
from tests.toys import WIDTH, Points, Toy, config, fitted, trainer_of
from zoo import checkpoint, engine
from zoo.checkpoint import load_weights
from zoo.data import order_rng, step_seed
from zoo.engine import Interrupted, Position, parameters_of
from zoo.errors import DataError, TrainingError, WeightsError
from zoo.evaluation import collect, evaluate
from zoo.loader import reseed
from zoo.machine import workers_for
from zoo.runs import Run
from zoo.task import Optim, Phase


def _weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


# -- steps --------------------------------------------------------------------------------------


def test_accumulated_batches_have_the_gradient_of_one_big_batch(out: Path) -> None:
    big, _ = fitted(Toy(config(out, batch_size=8)))
    small, _ = fitted(Toy(config(out, batch_size=2, accumulate=4)))
    assert small.at.step == big.at.step == 1
    torch.testing.assert_close(_weights(small.model), _weights(big.model))


def test_a_short_last_group_is_averaged_over_what_it_has(out: Path) -> None:
    task = Toy(config(out, batch_size=2, accumulate=3))  # 4 batches: a group of 3 and one of 1
    trainer, run = fitted(task)
    assert trainer.at.step == 2
    plain = Toy(config(out, batch_size=2))
    reference = trainer_of(plain).model
    for rows in (slice(0, 6), slice(6, 8)):
        x, y = torch.from_numpy(task.train.x[rows]), torch.from_numpy(task.train.y[rows])
        loss = (reference(x).squeeze(-1) - y).square().mean()
        grads = torch.autograd.grad(loss, list(reference.parameters()))
        with torch.no_grad():
            for p, g in zip(reference.parameters(), grads, strict=True):
                p -= 0.1 * g
    torch.testing.assert_close(_weights(trainer.model), _weights(reference))
    assert len(series(run, "train/loss")) == 2


@pytest.mark.parametrize("limit", [{"clip_norm": 0.01}, {"clip_value": 0.001}])
def test_gradients_are_clipped(out: Path, limit: dict[str, float]) -> None:
    task = Toy(config(out, batch_size=8, **limit))
    before = _weights(trainer_of(task).model)
    moved = (_weights(fitted(task)[0].model) - before) / 0.1
    if "clip_norm" in limit:
        assert float(moved.norm()) == pytest.approx(0.01, rel=1e-4)
    else:
        assert float(moved.abs().max()) == pytest.approx(0.001, rel=1e-4)


def test_the_schedule_factor_is_set_before_each_step(out: Path) -> None:
    task = Toy(config(out, batch_size=2, epochs=2))
    seen = []

    def factor(epoch: int, step: int, steps: int) -> float:
        seen.append((epoch, step, steps))
        return 1.0 / (1 + epoch * steps + step)

    def optims(model: nn.Module) -> dict[str, Optim]:
        groups = [{"params": [model.weight]}, {"params": [model.bias], "lr": 0.2}]
        return {"sgd": Optim(torch.optim.SGD(groups, lr=0.1), factor)}

    task.make_optims = optims
    trainer, run = fitted(task)
    assert seen == [(e, s, 4) for e in (0, 1) for s in range(4)]
    assert series(run, "train/lr") == pytest.approx([0.1 / n for n in range(1, 9)])
    groups = trainer.optims["sgd"].optimiser.param_groups
    assert [g["lr"] for g in groups] == pytest.approx([0.1 / 8, 0.2 / 8])


def test_gradients_are_rescaled_for_the_optimiser_that_asks(out: Path) -> None:
    moved = []
    for scale in (1.0, 7.0):
        task = Toy(config(out, batch_size=8))

        def optims(model: nn.Module, scale: float = scale) -> dict[str, Optim]:
            return {
                "weight": Optim(torch.optim.SGD([model.weight], lr=0.01), grad_scale=scale),
                "bias": Optim(torch.optim.SGD([model.bias], lr=0.01)),
            }

        task.make_optims = optims
        before = trainer_of(task).model
        after, run = fitted(task)
        moved.append([a - b for a, b in zip(after.model.parameters(), before.parameters(),
                                            strict=True)])  # fmt: skip
        assert {"train/lr_weight", "train/lr_bias"} <= {name for name, _ in values(run)}
    torch.testing.assert_close(moved[1][0], 7 * moved[0][0])
    torch.testing.assert_close(moved[1][1], moved[0][1])


def test_max_steps_stops_in_the_middle_of_an_epoch(out: Path) -> None:
    task = Toy(config(out, batch_size=2, epochs=9, max_steps=6))
    task.val = Points(3, name="v")
    trainer, run = fitted(task)
    assert trainer.at.step == 6
    assert [step for name, step in values(run) if name == "train/loss"] == [1, 2, 3, 4, 5, 6]
    assert [step for name, step in values(run) if name == "val/loss"] == [4, 6]
    assert checkpoint.newest_name(run.checkpoints) == "step-00000006"


def test_log_every_logs_means_of_the_steps_since(out: Path) -> None:
    every = series(fitted(Toy(config(out, batch_size=2, epochs=2)))[1], "train/loss")
    _, run = fitted(Toy(config(out, batch_size=2, epochs=2, log_every=3)))
    # Four steps an epoch: each third step, and what is left over at the end of an epoch.
    parts = [every[:3], every[3:4], every[4:6], every[6:]]
    assert series(run, "train/loss") == pytest.approx([np.mean(part) for part in parts])
    assert [step for name, step in values(run) if name == "train/loss"] == [3, 4, 6, 8]
    epochs = [np.mean(every[:4]), np.mean(every[4:])]
    assert series(run, "train/epoch_loss") == pytest.approx(epochs)


def test_an_epoch_order_depends_on_seed_and_epoch_alone(out: Path) -> None:
    split = Points(20, batch_size=4, shuffle=True)
    first = split.batches(0, order_rng(1, 0))
    assert first == split.batches(0, order_rng(1, 0))
    assert first != split.batches(1, order_rng(1, 1))
    assert first != split.batches(0, order_rng(2, 0))
    assert sorted(i for batch in first for i in batch) == list(range(20))
    assert len({step_seed(s, n, r) for s in (1, 2) for n in (0, 1) for r in (0, 1)}) == 8


def test_a_split_without_batches_is_an_error(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = Toy(config(out))
    monkeypatch.setattr(task.train, "batches", lambda epoch, rng: [])
    with pytest.raises(TrainingError, match="made no batch"):
        fitted(task)


# -- phases -------------------------------------------------------------------------------------


def _two(task: Toy) -> None:
    task.net = lambda: nn.Sequential(
        nn.Sequential(nn.Linear(WIDTH, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)), nn.Linear(4, 1)
    )


def test_a_phase_freezes_and_stills_and_the_next_restores(out: Path) -> None:
    task = Toy(config(out, batch_size=4, epochs=3, keep_last=9))
    _two(task)
    fixed = "1.bias"
    make = task.net

    def net() -> nn.Module:
        model = make()
        model.get_parameter(fixed).requires_grad_(False)  # the model's own choice stays
        return model

    task.net = net
    phases = [Phase(("sgd",), ("0",), ("0.1",)), Phase(("sgd",), ("0.0.weight",)), None]
    task.phases = lambda epoch, step: phases[epoch]
    seen = []
    trainer = trainer_of(task)
    update = trainer._update

    def watched(steps: int) -> None:
        model = trainer.model.module
        seen.append(
            {
                "grad": {n for n, p in model.named_parameters() if p.requires_grad},
                "still": {n for n, m in model.named_modules() if not m.training},
            }
        )
        update(steps)

    trainer._update = watched  # type: ignore[method-assign]
    start = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    trainer.fit()
    everything = {"0.0.weight", "0.0.bias", "0.1.weight", "0.1.bias", "1.weight"}
    assert [s["grad"] for s in seen[::2]] == [
        {"1.weight"}, everything - {"0.0.weight"}, everything
    ]  # fmt: skip
    assert [s["still"] for s in seen[::2]] == [{"0.1"}, set(), set()]
    one, two, three = [
        checkpoint.load(p).model for p in sorted(trainer.run.checkpoints.glob("step-*"))
    ]
    same = {k for k in start if torch.equal(start[k], one[k])}
    assert same == set(start) - {"1.weight"}
    assert torch.equal(one["0.0.weight"], two["0.0.weight"])
    assert int(two["0.1.num_batches_tracked"]) == 2
    assert not torch.equal(two["0.0.weight"], three["0.0.weight"])
    assert torch.equal(start[fixed], three[fixed])


def test_optimisers_outside_of_the_phase_do_not_step(out: Path) -> None:
    task = Toy(config(out, batch_size=8, epochs=2, keep_last=9))

    def optims(model: nn.Module) -> dict[str, Optim]:
        return {
            "a": Optim(torch.optim.SGD([model.weight], lr=0.1, momentum=0.9)),
            "b": Optim(torch.optim.SGD([model.bias], lr=0.1)),
        }

    task.make_optims = optims
    task.phases = lambda epoch, step: Phase(("a",) if epoch == 0 else ("b",))
    start = trainer_of(task).model.state_dict()
    _, run = fitted(task)
    one, two = [checkpoint.load(p).model for p in sorted(run.checkpoints.glob("step-*"))]
    assert torch.equal(start["bias"], one["bias"])
    assert not torch.equal(start["weight"], one["weight"])
    assert torch.equal(one["weight"], two["weight"])
    assert not torch.equal(one["bias"], two["bias"])


@pytest.mark.parametrize(
    ("phase", "named"),
    [
        (Phase(("adam",)), "optimiser 'adam'"),
        (Phase(("sgd",), frozen=("encoder",)), "module 'encoder'"),
        (Phase(("sgd",), still=("0.7",)), "module '0.7'"),
    ],
)
def test_a_phase_that_names_nothing_is_an_error(out: Path, phase: Phase, named: str) -> None:
    task = Toy(config(out))
    _two(task)
    task.phases = lambda epoch, step: phase
    with pytest.raises(TrainingError, match=named):
        fitted(task)


# -- selection ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("direction", "scores", "best"),
    [
        ("max", [0.5, 0.7, 0.7, 0.6], 2),
        ("min", [0.5, 0.3, 0.3, 0.4], 2),
        ("max", [float("nan"), 0.1, float("nan"), 0.05], 2),
        ("max", [-2.0, -3.0, -1.5, -1.5], 3),
        ("min", [0.0, -1.0, 1.0, 0.5], 2),
        ("min", [0.4, 0.3, 0.2, 0.1], 4),
    ],
)
def test_the_best_epoch_is_the_first_with_the_best_value(
    out: Path, direction: str, scores: list[float], best: int
) -> None:
    task = Toy(config(out, batch_size=8, epochs=4, keep_last=1))
    task.val, task.chosen, task.scores = Points(2, name="v"), ("loss", direction), list(scores)
    trainer, run = fitted(task)
    assert trainer.at.best_name == f"step-{best:08d}"
    assert trainer.at.best == scores[best - 1]
    index = {"last": "step-00000004", "best": f"step-{best:08d}"}
    assert checkpoint.marked(run.checkpoints) == index
    there = sorted(p.name for p in run.checkpoints.glob("step-*"))
    assert there == sorted(set(index.values()))  # keep_last=1 keeps the best as well
    assert checkpoint.best(run.checkpoints).path.name == f"step-{best:08d}"


def test_a_monitor_that_is_never_a_number_leaves_the_last_as_result(out: Path) -> None:
    task = Toy(config(out, batch_size=8, epochs=2))
    task.val, task.scores = Points(2, name="v"), [float("nan")] * 2
    trainer, run = fitted(task)
    assert trainer.at.best_name is None
    assert checkpoint.best(run.checkpoints).path.name == "step-00000002"
    assert series(run, "val/loss") == [None, None]


def test_a_monitor_that_does_not_exist_is_named(out: Path) -> None:
    task = Toy(config(out, batch_size=8))
    task.val, task.chosen = Points(2, name="v"), ("dice", "max")
    with pytest.raises(TrainingError, match=r"the monitor 'dice' is not among the metrics: loss"):
        fitted(task)


def test_validation_happens_every_few_epochs_and_after_the_last(out: Path) -> None:
    task = Toy(config(out, batch_size=8, epochs=5, eval_every=2))
    task.val = Points(2, name="v")
    _, run = fitted(task)
    assert [step for name, step in values(run) if name == "val/loss"] == [2, 4, 5]


def test_validation_leaves_no_trace_in_training(out: Path) -> None:
    task, other = (Toy(config(out, batch_size=2, epochs=3)) for _ in range(2))
    for t in (task, other):
        _two(t)
    task.val = Points(5, name="v")
    first, second = fitted(task)[0], fitted(other)[0]
    assert torch.equal(_weights(first.model), _weights(second.model))


def test_old_checkpoints_are_removed(out: Path) -> None:
    _, run = fitted(Toy(config(out, batch_size=8, epochs=5, keep_last=2)))
    names = sorted(p.name for p in run.checkpoints.iterdir())
    assert names == ["index.json", "step-00000004", "step-00000005"]


def test_checkpoints_every_few_steps_or_minutes(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"batch_size": 1, "epochs": 2, "keep_last": 99}
    _, run = fitted(Toy(config(out, checkpoint_every="3", **options)))
    steps = [int(p.name[5:]) for p in sorted(run.checkpoints.glob("step-*"))]
    assert steps == [3, 6, 9, 12, 15, 16]  # counted from the one before; always after the last
    clock = iter(range(0, 100_000, 25))
    monkeypatch.setattr(engine.time, "monotonic", lambda: float(next(clock)))
    _, run = fitted(Toy(config(out, checkpoint_every="1m", **options)))
    assert 1 < len(list(run.checkpoints.glob("step-*"))) < 16


# -- broken items and numbers -------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_item_stops_the_training_with_its_name(out: Path, workers: int) -> None:
    task = Toy(config(out, batch_size=2, workers=workers))
    task.train = Points(8, batch_size=2, broken=["p5"])
    with pytest.raises(DataError) as caught:
        fitted(task)
    assert str(caught.value) == "file of p5 ends too early"


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_items_are_skipped_and_counted(out: Path, workers: int) -> None:
    broken = ["p2", "p4", "p5"]
    task = Toy(config(out, on_error="skip", batch_size=2, epochs=2, workers=workers))
    task.train = Points(8, batch_size=2, broken=broken)
    trainer, run = fitted(task)
    assert trainer.at.skipped == 6
    assert trainer.at.step == 8
    good_losses = [v for v in series(run, "train/loss") if v is not None]
    assert len(good_losses) == 6  # the batch of p4 and p5 has nothing, in both epochs
    first = series(run, "train/epoch_loss")[0]
    assert first == pytest.approx(np.mean(good_losses[:3]))


def test_a_step_with_a_skipped_batch_is_the_mean_of_the_others(out: Path) -> None:
    broken = Toy(config(out, on_error="skip", batch_size=2, accumulate=2, max_steps=1))
    broken.train = Points(4, batch_size=2, broken=["p2", "p3"])
    alone = Toy(config(out, batch_size=2, max_steps=1))
    alone.train = Points(2, batch_size=2)
    one, first = fitted(broken)
    two, second = fitted(alone)
    assert torch.equal(_weights(one.model), _weights(two.model))
    assert series(first, "train/loss") == series(second, "train/loss")


@pytest.mark.parametrize("workers", [0, 2])
def test_whatever_a_library_raises_the_item_is_named(
    out: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = Toy(config(out, batch_size=2, workers=workers))
    read = task.train.item

    def item(index: int, rng: np.random.Generator) -> Any:
        return {}["data"] if index == 5 else read(index, rng)

    monkeypatch.setattr(task.train, "item", item)
    with pytest.raises(DataError, match="'p5': KeyError: 'data'"):
        fitted(task)


def test_skipped_items_survive_an_interruption_in_the_middle_of_an_epoch(out: Path) -> None:
    task = Toy(config(out, on_error="skip", batch_size=2))
    task.train = Points(8, batch_size=2, broken=["p1", "p6"])
    trainer = trainer_of(task)
    trainer.ask(signal.SIGTERM)
    with pytest.raises(Interrupted):
        trainer.fit()
    found, _ = checkpoint.newest(trainer.run.checkpoints)
    assert found is not None
    assert found.state["position"]["skipped"] == 1
    again = trainer_of(task)
    again.restore(found)
    again.fit()
    assert again.at.skipped == 2


def test_an_epoch_without_a_readable_item_trains_nothing(out: Path) -> None:
    task = Toy(config(out, on_error="skip", batch_size=4))
    task.train = Points(8, batch_size=4, broken=[f"p{i}" for i in range(8)])
    before = _weights(trainer_of(task).model)
    trainer, run = fitted(task)
    assert torch.equal(_weights(trainer.model), before)
    assert trainer.at.skipped == 8
    assert series(run, "train/epoch_loss") == []


def test_a_loss_that_is_not_finite_stops_with_step_items_and_checkpoint(out: Path) -> None:
    task = Toy(config(out, batch_size=2, epochs=2, checkpoint_every="1"))
    task.train = Points(8, batch_size=2, poisoned=["p5"])
    with pytest.raises(TrainingError) as caught:
        fitted(task)
    message = str(caught.value)
    assert "the loss is nan in step 3 (epoch 1, items p4, p5)" in message
    assert "last good checkpoint step-00000002" in message


def test_a_gradient_that_is_not_finite_is_found_when_clipping(out: Path) -> None:
    class Root(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + self.bias.clamp(min=0).mul(0).sqrt()  # d sqrt at 0: inf * 0

    task = Toy(config(out, batch_size=8, clip_norm=1.0))
    task.net = lambda: Root(WIDTH, 1)
    with pytest.raises(TrainingError, match="a gradient is not finite in step 1"):
        fitted(task)


def test_weights_that_are_not_finite_are_never_saved(out: Path) -> None:
    class Root(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + self.bias.clamp(min=0).mul(0).sqrt()

    task = Toy(config(out, batch_size=8))  # the loss itself is finite in this one step
    task.net = lambda: Root(WIDTH, 1)
    trainer = trainer_of(task)
    with pytest.raises(TrainingError, match="the weights are not finite in step 1"):
        trainer.fit()
    assert not list(trainer.run.checkpoints.glob("step-*"))


def test_a_failed_run_says_so_and_can_be_resumed(stubs: None, out: Path) -> None:
    data = out.parent / "data"
    good("data", "sample", "task=stub_testsets", f"out={data}")
    path = data / "train" / "train3.npz"
    with np.load(path) as body:
        arrays = {k: body[k] for k in body.files}
    np.savez(path, allow_pickle=False, **arrays | {"image": arrays["image"] * np.nan})
    words = [f"out={out}", f"data.root={data}", "trainer.batch_size=1", "tracking.enabled=false"]
    result = run_zoo(
        "train", "task=stub_testsets", *words, "preset=sample", "trainer.checkpoint_every=1"
    )
    assert result.code == 1
    assert "items train3" in result.err
    run = only_run(out)
    assert run.status == "failed"
    sound = checkpoint.newest_name(run.checkpoints)
    if sound is not None:
        assert sound in result.err
    again = run_zoo("train", f"resume={run.name}", f"out={out}")  # the same arithmetic
    assert again.code == 1
    assert again.err == result.err


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_files_through_the_command_line(stubs: None, out: Path, workers: int) -> None:
    words = ["task=stub_testsets", f"out={out}", "tracking.enabled=false"]
    words += [f"trainer.workers={workers}", "trainer.max_steps=1", "trainer.batch_size=4"]
    data = out.parent / "pictures"
    good("data", "sample", "task=stub_testsets", f"out={data}", "defects=true")
    result = run_zoo("train", *words, f"data.root={data}")
    assert result.code == 2
    assert result.err.count("test_b1.npz: cannot be read") == 1
    assert "Traceback" not in result.err
    shown = good("train", *words, f"data.root={data}", "data.on_error=skip")
    assert "test_b: skipped" in shown.out
    assert "test_b1.npz" in shown.out


# -- positions, signals, weights ----------------------------------------------------------------


def test_position_counts_means() -> None:
    at = Position()
    at.add({"loss": 1.0})
    at.add({"loss": 3.0, "part": 2.0})
    assert at.take("log") == {"loss": 2.0, "part": 1.0}
    assert at.take("log") == {}
    assert at.take("epoch") == {"loss": 2.0, "part": 1.0}


def test_a_second_ctrl_c_stops_at_once_and_handlers_are_put_back(out: Path) -> None:
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    task = Toy(config(out, batch_size=2))
    trainer = trainer_of(task)

    def interrupt(steps: int) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    trainer._update = interrupt  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before


def test_weights_that_do_not_fit_are_named(out: Path) -> None:
    _, run = fitted(Toy(config(out)))
    found = checkpoint.best(run.checkpoints)
    with pytest.raises(WeightsError, match=r"weight is \(1, 3\), not \(2, 3\)"):
        load_weights(nn.Linear(WIDTH, 2), found)
    with pytest.raises(WeightsError, match=r"missing 0\.bias, 0\.weight; unknown bias, weight"):
        load_weights(nn.Sequential(nn.Linear(WIDTH, 1)), found)


def test_weights_start_another_training(stubs: None, out: Path) -> None:
    words = ["task=stub_bags", f"out={out}", "tracking.enabled=false", "trainer.max_steps=1"]
    good("train", *words)
    first = only_run(out)
    good("train", *words, f"weights={first.name}", "optim.lr=1e-9", f"out={out}")
    (second,) = [r for r in (Run(p) for p in out.iterdir()) if r.name != first.name]
    a, b = (checkpoint.best(r.checkpoints).model for r in (first, second))
    for key in a:
        torch.testing.assert_close(a[key], b[key], atol=1e-6, rtol=0)


def test_parameters_and_workers(out: Path) -> None:
    model = nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    assert parameters_of(model) == {"parameters": 8, "trainable": 6}
    assert workers_for(config(out, workers=5).trainer) == 5


def test_evaluation_scores_each_unit_once_and_in_order(out: Path) -> None:
    task = Toy(config(out, batch_size=3))
    trainer, _ = fitted(task)

    class Repeating(Points):
        """Some items come twice, as padding over several processes would do."""

        def batches(self, epoch: int, rng: np.random.Generator) -> list[list[int]]:
            return [[4, 2], [2, 0, 1], [3, 4]]

    ticks: list[int] = []
    records, _, _ = collect(
        trainer.fabric, task, trainer.model, Repeating(5, name="r"), tick=ticks.append
    )
    assert [r.id for r in records] == ["r0", "r1", "r2", "r3", "r4"]
    assert ticks == [2, 3, 2]
    assert not trainer.model.training


def test_a_split_with_nothing_readable_cannot_be_scored(out: Path) -> None:
    task = Toy(config(out, on_error="skip"))
    trainer, _ = fitted(task)
    bad = Points(2, name="b", broken=["b0", "b1"])
    with pytest.raises(DataError, match="nothing could be evaluated: file of b0 ends too early"):
        evaluate(trainer.fabric, task, trainer.model, bad, {})


def test_seeding_one_device_draws_what_seeding_all_of_them_draws() -> None:
    def drawn() -> tuple[float, float, list[float]]:
        return random.random(), float(np.random.random()), torch.rand(3).tolist()

    reseed(5)
    expected = drawn()
    assert drawn() != expected
    reseed(5, torch.device("cpu"))
    assert drawn() == expected
