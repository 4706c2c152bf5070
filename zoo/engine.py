"""The training loop, on Lightning Fabric, with exact resume.

An optimiser step is known by its number alone: which batches it takes follows from (seed, epoch),
what is random in it from (seed, step, process). A run that is interrupted and resumed therefore
does the same arithmetic as one that was not.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from zoo import checkpoint, faults
from zoo.checkpoint import load_weights
from zoo.config import BaseConfig
from zoo.data import order_rng, step_seed
from zoo.errors import TrainingError, ZooError
from zoo.evaluation import Outcome, evaluate
from zoo.fabric import Fabric
from zoo.loader import Feed, reseed
from zoo.machine import on_signals, workers_for
from zoo.phases import Phases
from zoo.position import Position
from zoo.progress import Pace, Reporter, clock, figures_line
from zoo.runs import Run
from zoo.startup import Startup
from zoo.stepping import Stepper, Stream, Tally, dealt
from zoo.task import Facts, Optim, Split, Task
from zoo.team import Team
from zoo.tracking import Metrics, Mirror


class Interrupted(ZooError):
    """The run was asked to stop; it has been saved and can be resumed."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


class Trainer:
    """Trains one model in one run folder.

    Args:
        task: The contract's implementation.
        fabric: Launched devices.
        splits: `train` and optionally `val`.
        facts: What `Task.fit` learnt.
        reporter: Tells the person in front of it.
        fresh: Whether the training begins here, rather than at a checkpoint.
        team: The processes that train together; none: this one alone.
    """

    run: Run
    stepper: Stepper

    def __init__(
        self,
        task: Task[Any],
        fabric: Fabric,
        splits: Mapping[str, Split],
        facts: Facts,
        reporter: Reporter,
        fresh: bool = True,
        team: Team | None = None,
    ) -> None:
        self.task, self.fabric, self.splits, self.facts = task, fabric, splits, facts
        self.team = team or Team(fabric)
        self.reporter = reporter
        self.metrics: Metrics | None = None
        self.mirror: Mirror | None = None
        self.startup: Startup | None = None
        self.config: BaseConfig = task.config
        self.trainer = self.config.trainer
        self.at = Position()
        reseed(self.config.seed)
        plain = task.model(facts)
        for line in task.pretrained(plain) if fresh else ():
            reporter.say(line)
        self.model = fabric.setup_module(plain)
        self.optims = {k: self._ready(o) for k, o in task.optimisers(plain).items()}
        self.phases = Phases(self.model, self.optims, self.config.task, self.team)
        self._asked: int | None = None
        self._items: list[str] = []  # of the step under way
        self._told: set[str] = set()
        self._saved_at = (0, time.monotonic())

    def _ready(self, optim: Optim) -> Optim:
        for group in optim.optimiser.param_groups:
            group.setdefault("initial_lr", group["lr"])
        wrapped = self.fabric.setup_optimizers(optim.optimiser)
        return Optim(cast("torch.optim.Optimizer", wrapped), optim.factor, optim.grad_scale)

    # -- state ----------------------------------------------------------------------------------

    def attach(self, run: Run, metrics: Metrics | None, mirror: Mirror | None) -> None:
        """Say where the run writes: its folder, its metrics file and its MLflow thread."""
        self.run, self.metrics, self.mirror = run, metrics, mirror

    def restore(self, found: checkpoint.Checkpoint) -> None:
        """Continue from a checkpoint."""
        load_weights(self.model, found)
        state = found.state
        for name, optim in self.optims.items():
            optim.optimiser.load_state_dict(state["optimisers"][name])
        self.fabric.strategy.precision.load_state_dict(state.get("precision", {}))
        self.at = Position(**state["position"])
        before = state.get("processes", self.team.size)
        if "batches" not in state["position"]:  # a checkpoint of version 0.1
            self.at.batches = self.at.within * self.trainer.accumulate * before
        if before != self.team.size:
            share = self.trainer.accumulate
            self.reporter.warn(
                f"{self.team.size} process{'es' if self.team.size > 1 else ''} instead of "
                f"{before}: a step now takes {self.team.size * share} batches instead of "
                f"{before * share}; every item of the epoch still comes once"
            )
        self._saved_at = (self.at.step, time.monotonic())
        if self.fabric.is_global_zero:
            # The index is of another moment if the run was killed between the two, or if newer
            # checkpoints turned out to be damaged.
            checkpoint.mark(found.path.parent, last=found.path.name, best=self.at.best_name)

    def save(self) -> str:
        """Write a checkpoint of this moment and return its name.

        Raises:
            TrainingError: The weights are not finite, so there is nothing worth keeping.
        """
        name = f"step-{self.at.step:08d}"
        if not all(bool(torch.isfinite(p).all()) for p in self.model.parameters()):
            what = "the weights are not finite"
            raise self.team.alike(
                faults.not_finite(what, self.run, self.at, self._items, step=self.at.step)
            )
        with self.team.agreed():
            if self.team.first:
                self._write(name)
        self._saved_at = (self.at.step, time.monotonic())
        return name

    def _write(self, name: str) -> None:
        state = {
            "optimisers": {k: o.optimiser.state_dict() for k, o in self.optims.items()},
            "precision": self.fabric.strategy.precision.state_dict(),
            "position": dict(vars(self.at)),
            "processes": self.team.size,
        }
        meta = {
            "task": self.config.task,
            "epoch": self.at.epoch,
            "config": self.config.stored(),
            "facts": self.facts,
        }
        folder = self.run.checkpoints
        checkpoint.save(folder, self.at.step, self.model.state_dict(), state, meta)
        checkpoint.mark(folder, last=name, best=self.at.best_name)
        checkpoint.prune(folder, self.trainer.keep_last, self.at.best_name, name)

    def _due(self) -> bool:
        every = self.trainer.checkpoint_every
        if every is None:
            return False
        if every.endswith("m"):
            # Clocks differ: of several processes the first one's was asked.
            return self._late() if self.team.size == 1 else self.stepper.late
        return self.at.step - self._saved_at[0] >= int(every)

    def _late(self) -> bool:
        every = self.trainer.checkpoint_every
        if every is None or not every.endswith("m") or not self.team.first:
            return False
        return time.monotonic() - self._saved_at[1] >= 60 * float(every[:-1])

    def _stop(self) -> int | None:
        """The signal after which to stop, known to all processes."""
        return self._asked if self.team.size == 1 else self.stepper.stop

    # -- the loop -------------------------------------------------------------------------------

    def fit(self) -> None:
        """Train until the last epoch or step.

        Raises:
            TrainingError: The loss or a gradient is not finite.
            Interrupted: SIGTERM or Ctrl-C came; the state has been saved.
        """
        self.stepper = Stepper(self.task, self.model, self.team)
        with on_signals(self.ask):
            while self.at.epoch < self.trainer.epochs and not self._enough():
                self._epoch()
        self.reporter.end()

    def _enough(self) -> bool:
        return self.trainer.max_steps is not None and self.at.step >= self.trainer.max_steps

    def _epoch(self) -> None:
        train = self.splits["train"]
        with self.team.agreed():
            batches = train.batches(self.at.epoch, order_rng(self.config.seed, self.at.epoch))
        if not batches:
            msg = "the training split made no batch; lower trainer.batch_size"
            raise self.team.alike(TrainingError(msg))
        size = self.trainer.accumulate * self.team.size
        # What is left is counted in batches: the number of processes may have been another.
        groups = [batches[i : i + size] for i in range(self.at.batches, len(batches), size)]
        steps = self.at.within + len(groups)
        left = (self.trainer.epochs - self.at.epoch - 1) * -(-len(batches) // size) + len(groups)
        title = f"epoch {self.at.epoch + 1}/{self.trainer.epochs}"
        self.reporter.begin(title, steps, self.at.within)
        pace = Pace()
        for found in self._steps(Stream(self._feed(train, groups)), groups, steps):
            pace.add(found.items, found.waited)
            self._first_step()
            self._count_skipped(found)
            self._after_step(found.losses, pace, steps, left)
            if self._enough():
                break
            if self.at.within < steps and (self._stop() is not None or self._due()):
                self.save()
                self._stop_if_asked()
        self._end_of_epoch(pace)

    def _first_step(self) -> None:
        """Tell and record where the time before the first step went."""
        if self.startup is None:
            return
        self.startup.mark("step")
        self.reporter.say(self.startup.line())
        self.log({f"time/start_{k}": v for k, v in self.startup.seconds.items()})
        self.startup = None

    def _feed(self, train: Split, groups: Sequence[Sequence[list[int]]]) -> Feed:
        mine, repeated = dealt(groups, self.team)
        if repeated and self.at.epoch == 0:
            count = sum(len(group) for group in groups)
            self.reporter.say(
                f"{count} batches over {self.team.size} processes: the last step of an epoch "
                f"repeats {repeated} without weight"
            )
        return Feed(
            train,
            mine,
            seed=self.config.seed,
            epoch=self.at.epoch,
            workers=workers_for(self.trainer),
            on_error=self.config.data.on_error,
            pin=self.fabric.device.type == "cuda",
        )

    def _steps(
        self, stream: Stream, groups: Sequence[Sequence[list[int]]], steps: int
    ) -> Iterator[Tally]:
        """Do the steps of an epoch, `steps` in all."""
        for group in groups:
            self.phases.enter(self.task.phase(self.at.epoch, self.at.within))
            found = self.stepper.gradients(
                group, stream, self._forward, self.fabric.backward, self._news, self.phases.now
            )
            self._items = found.names
            if found.items:
                # The mean is over the batches there were, skipped ones left out.
                share = len(group) / (len(group) - found.missed)
                found.losses = {name: value * share for name, value in found.losses.items()}
                self._scale(share)
                self._update(steps)
            self.at.step += 1
            self.at.within += 1
            self.at.batches += len(group)
            yield found

    def _news(self) -> tuple[int | None, bool]:
        return self._asked, self._late()

    def _forward(
        self, loss: Callable[..., dict[str, Tensor]], batch: Any, names: list[str], turn: int
    ) -> tuple[Tensor, dict[str, float]]:
        """The loss of one batch, and all its parts as numbers."""
        seed = step_seed(
            self.config.seed, self.at.step * self.trainer.accumulate + turn, self.team.rank
        )
        reseed(seed, self.fabric.device)
        # A different stream from the global one, though it comes from the same number.
        rng = torch.Generator(device=self.fabric.device).manual_seed(seed ^ 0x5DEECE66D)
        parts = loss(self.fabric.to_device(batch), rng)
        # One copy to the host for all of them: each would make a GPU wait.
        kind = parts["loss"].dtype
        numbers = torch.stack([v.detach().to(kind) for v in parts.values()]).tolist()
        values: dict[str, float] = dict(zip(parts, numbers, strict=True))
        if not math.isfinite(values["loss"]):
            what = f"the loss is {values['loss']}"
            raise self._not_finite(what, names, batch)
        return parts["loss"], values

    def _scale(self, share: float) -> None:
        for parameter in self.model.parameters() if share != 1.0 else ():
            if parameter.grad is not None:
                parameter.grad.mul_(share)

    def _update(self, steps: int) -> None:
        stepping = self.phases.stepping
        if self.trainer.clip_norm or self.trainer.clip_value:
            for name in stepping:
                self._clip(self.optims[name].optimiser)
        for name in stepping:
            optim = self.optims[name]
            factor = optim.factor(self.at.epoch, self.at.within, steps)
            for group in optim.optimiser.param_groups:
                group["lr"] = group["initial_lr"] * factor
                if optim.grad_scale != 1.0:
                    for p in group["params"]:
                        if p.grad is not None:
                            p.grad.mul_(optim.grad_scale)
            optim.optimiser.step()
        for optim in self.optims.values():
            optim.optimiser.zero_grad(set_to_none=True)

    def _clip(self, optimiser: Any) -> None:
        try:
            if self.trainer.clip_norm:
                # Half precision overflows now and then; its scaler skips such a step by itself.
                strict = self.trainer.precision != "16-mixed"
                self.fabric.clip_gradients(
                    self.model,
                    optimiser,
                    max_norm=self.trainer.clip_norm,
                    error_if_nonfinite=strict,
                )
            if self.trainer.clip_value:
                self.fabric.clip_gradients(self.model, optimiser, clip_val=self.trainer.clip_value)
        except RuntimeError as error:
            if "non-finite" not in str(error):
                raise
            what = "a gradient is not finite"
            raise self.team.alike(self._not_finite(what, self._items)) from error

    # -- what happens around steps ---------------------------------------------------------------

    def _after_step(self, losses: Mapping[str, float], pace: Pace, steps: int, left: int) -> None:
        at = self.at
        if losses:  # not if every item of the step was skipped
            at.add(losses)
        # An epoch shorter than log_every, or its last steps, would otherwise never be shown.
        if at.step % self.trainer.log_every == 0 or at.within == steps or self._enough():
            rates = {
                "train/lr" + (f"_{k}" if len(self.optims) > 1 else ""): o.optimiser.param_groups[0][
                    "lr"
                ]
                for k, o in self.optims.items()
            }
            self.log({f"train/{k}": v for k, v in at.take("log").items()} | rates)
        speed, wait = pace.summary().values()
        loss = losses.get("loss", math.nan)
        note = f"step {at.step}  loss {loss:.4f}  {speed:.3g} samples/s  data {wait:.0%}"
        self.reporter.step(at.within, note, pace.left(max(0, left - pace.steps)))

    def _count_skipped(self, found: Tally) -> None:
        self.at.skipped += found.skipped if self.team.size > 1 else len(found.broken)
        for line in found.broken:
            if line not in self._told:
                self.reporter.warn(f"skipped {line}")
        self._told.update(found.broken)

    def _end_of_epoch(self, pace: Pace) -> None:
        at = self.at
        ended = at.epoch + 1
        means = {f"train/epoch_{k}": v for k, v in at.take("epoch").items()}
        self.log(means | {"train/epoch": ended} | pace.summary())
        last = ended == self.trainer.epochs or self._enough()
        outcome = None
        if "val" in self.splits and (ended % self.trainer.eval_every == 0 or last):
            outcome = self._validate()
        better = outcome is not None and self._is_best(outcome)
        at.epoch, at.within, at.batches = ended, 0, 0
        self.stepper.agree(*self._news())
        if better:
            at.best_name = f"step-{at.step:08d}"
        if (
            better
            or last
            or self.trainer.checkpoint_every is None
            or self._due()
            or self._stop() is not None
        ):
            self.save()
        self._line(ended, means, outcome, pace)
        self._stop_if_asked()

    def _validate(self) -> Outcome:
        outcome = evaluate(
            self.fabric,
            self.task,
            self.model,
            self.splits["val"],
            self.facts,
            team=self.team,
            workers=workers_for(self.trainer),
        )
        self.log({f"val/{k}": v for k, v in outcome.metrics.items()})
        return outcome

    def _is_best(self, outcome: Outcome) -> bool:
        chosen = self.task.selection()
        if chosen is None:
            return False
        name, direction = chosen
        if name not in outcome.metrics:
            msg = f"the monitor '{name}' is not among the metrics: {', '.join(outcome.metrics)}"
            raise self.team.alike(TrainingError(msg))
        value = outcome.metrics[name]
        if math.isnan(value):
            return False
        sign = 1.0 if direction == "max" else -1.0
        if self.at.best is not None and sign * value <= sign * self.at.best:
            return False
        self.at.best = value
        return True

    def _line(
        self, ended: int, means: Mapping[str, float], outcome: Outcome | None, pace: Pace
    ) -> None:
        words = [f"epoch {ended}/{self.trainer.epochs}", f"step {self.at.step}"]
        words.append(f"loss {means.get('train/epoch_loss', math.nan):.4f}")
        if outcome is not None:
            words.append("val " + figures_line(_few(outcome.metrics)))
        summary = pace.summary()
        words.append(f"{summary['time/samples_per_second']:.3g} samples/s")
        words.append(f"data {summary['time/data_wait_share']:.0%}")
        if pace.steps:
            rest = (self.trainer.epochs - ended) * pace.seconds
            words.append(f"{clock(rest)} left")
        if self.at.best_name == f"step-{self.at.step:08d}":
            words.append("(best)")
        self.reporter.say("  ".join(words))

    def log(self, values: Mapping[str, float]) -> None:
        """Record metrics at the current step."""
        if self.metrics is not None:
            self.metrics.log(self.at.step, values)
        if self.mirror is not None:
            self.mirror.poke()

    def _not_finite(self, what: str, names: Sequence[str], batch: Any = None) -> TrainingError:
        return faults.not_finite(what, self.run, self.at, names, batch)

    def ask(self, number: int) -> None:
        """Stop after the current step because of signal `number`; a second Ctrl-C stops now."""
        if self._asked is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked = number

    def leave(self, number: int) -> None:
        """Stop now because of signal `number`: what is under way can be done again.

        Raises:
            Interrupted: Always.
        """
        msg = f"interrupted after step {self.at.step}; continue with resume={self.run.path}"
        raise Interrupted(msg, number)

    def _stop_if_asked(self) -> None:
        number = self._stop()
        if number is not None:
            self.leave(number)


def _few(metrics: Mapping[str, float], most: int = 4) -> dict[str, float]:
    return dict(list(metrics.items())[:most])


def parameters_of(model: nn.Module) -> dict[str, int]:
    """Parameter counts of a model: all, and those with gradient."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return {
        "parameters": int(np.sum([n for n, _ in sizes])),
        "trainable": int(np.sum([n for n, g in sizes if g])),
    }
