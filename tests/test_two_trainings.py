"""Two trainings in one workspace at once: neither touches the other, no run is done twice."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import killing
from tests.killing import Kill
from tests.running import good, histories, only_run, run_zoo, values
from zoo import runs
from zoo.config import resolve
from zoo.errors import ResumeError
from zoo.runs import Run
from zoo.training import begin

NO_TRACKING = "tracking.enabled=false"
BAGS = ["task=stub_bags", "trainer.log_every=2", "trainer.checkpoint_every=2"]


@pytest.fixture(autouse=True)
def _known(stubs: None) -> None:
    """The stubs are known to this process and its children."""


@contextmanager
def _together() -> Iterator[Path]:
    """A file whose removal lets every child that waits for it begin at the same moment."""
    gate = Path(os.environ["GATE"])
    gate.touch()
    yield gate
    gate.unlink(missing_ok=True)


def _wait() -> None:
    gate = Path(os.environ["GATE"])
    while gate.exists():
        time.sleep(0.001)


@pytest.fixture(autouse=True)
def _gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATE", str(tmp_path / "gate"))


def _at_once(commands: list[list[str]], log: Path) -> list[int]:
    """Exit codes of trainings that begin together, each a process of its own."""
    with _together():
        children = [
            killing.start(words, Path(f"{log}{n}"), before=_wait)
            for n, words in enumerate(commands)
        ]
        time.sleep(0.1)
    return [killing.ended(child) for child in children]


def test_two_at_once_are_as_each_alone(tracked: Path, tmp_path: Path) -> None:
    """Same workspace, same tracking database, same second: weights, metrics, reports, MLflow."""
    kinds = [[*BAGS, "trainer.epochs=2", f"seed={seed}"] for seed in (1, 2)]
    alone = {}
    for seed, words in zip((1, 2), kinds, strict=True):
        run, _ = killing.undisturbed([*words, NO_TRACKING], tmp_path / f"alone{seed}")
        alone[seed] = run
    codes = _at_once([[*words, f"out={tracked}"] for words in kinds], tmp_path / "log")
    assert codes == [0, 0], [(tmp_path / f"log{n}").read_text() for n in (0, 1)]
    made = [Run(file.parent) for file in tracked.glob("*/run.json")]
    assert sorted(r.info["seed"] for r in made) == [1, 2]
    for run in made:
        reference = alone[run.info["seed"]]
        assert run.status == "finished"
        assert killing.outcome(run) == killing.outcome(reference)
        assert run.results() == reference.results()
        other = next(r for r in made if r is not run)
        assert run.name in (run.path / "report.html").read_text()
        assert other.name not in (run.path / "report.html").read_text()
        good("runs", "sync", run.name, "--out", tracked)  # what a busy database kept waiting
        known = histories(f"sqlite:///{tracked / 'mlflow.db'}", str(Run(run.path).mlflow_id))
        assert known == {k: {v} for k, v in values(run, timed=True).items()}
    assert made[0].mlflow_id != made[1].mlflow_id


@pytest.fixture
def halfway(out: Path) -> Run:
    """A run that was killed after its fifth step."""
    kill = Kill(target="zoo.engine:Trainer._update", call=6, number=signal.SIGKILL)
    words = [*BAGS, "trainer.epochs=3", NO_TRACKING, f"out={out}"]
    assert killing.train(words, out.with_suffix(".log"), kill) == -9
    return only_run(out)


@pytest.mark.parametrize("word", ["auto", "name"])
def test_of_two_that_resume_one_run_one_works_and_one_is_refused(
    halfway: Run, out: Path, tmp_path: Path, word: str
) -> None:
    words = [*BAGS, "trainer.epochs=3", NO_TRACKING]
    reference, _ = killing.undisturbed(words, tmp_path / "whole")
    named = f"resume={'auto' if word == 'auto' else halfway.path}"
    given = [*words, named, f"out={out}"] if word == "auto" else [named]
    codes = _at_once([given, given], tmp_path / "log")
    logs = [(tmp_path / f"log{n}").read_text() for n in (0, 1)]
    made = [Run(file.parent) for file in out.glob("*/run.json")]
    resumed = next(r for r in made if r.name == halfway.name)
    assert killing.outcome(resumed) == killing.outcome(reference)
    if codes == [0, 0]:  # the other one came when all was done, and began a run of its own
        assert word == "auto"
        assert len(made) == 2
    else:
        assert sorted(codes) == [0, 2], logs
        told = logs[codes.index(2)]
        assert "error: " in told
        assert "is working on it" in told or "finished" in told
        assert len(made) == 1


def test_a_run_that_another_process_finished_meanwhile_is_not_done_again(
    halfway: Run, out: Path
) -> None:
    """The state is read again once the run is held: it may be old by then."""
    start = begin([f"resume={halfway.path}"])
    assert killing.train([f"resume={halfway.path}"], out.with_suffix(".log")) == 0
    before = {p: p.read_bytes() for p in halfway.path.rglob("*") if p.is_file()}
    from zoo.progress import Reporter
    from zoo.training import train

    with pytest.raises(ResumeError, match="has just been finished by another process"):
        train(start, Reporter(quiet=True))
    assert {p: p.read_bytes() for p in halfway.path.rglob("*") if p.is_file()} == before
    refused = run_zoo("train", f"resume={halfway.path}")
    assert refused.code == 2
    assert "is finished" in refused.err


def test_a_run_just_begun_is_not_taken_by_a_second_one(out: Path, tmp_path: Path) -> None:
    """`resume=auto` finds the first one's run; it is being worked on, so it is left alone."""
    words = [*BAGS, "trainer.epochs=60", NO_TRACKING, f"out={out}", "resume=auto"]
    first = killing.start(words, tmp_path / "first")
    try:
        end = time.monotonic() + 60
        while not list(out.glob("*/checkpoints/step-*")) and time.monotonic() < end:
            time.sleep(0.01)
        second = run_zoo("train", *words)
        assert second.code == 2
        assert "another process is working on it" in second.err
    finally:
        os.kill(first, signal.SIGTERM)
        assert killing.ended(first) == 143
    assert only_run(out).status == "interrupted"


def test_names_of_runs_of_one_second_differ(out: Path, stubs: None) -> None:
    config = resolve(["task=stub_bags", f"out={out}"]).config
    made = [runs.create(config, {}) for _ in range(50)]
    assert len({r.path for r in made}) == 50


@pytest.mark.slow
def test_two_at_once_are_killed_and_resumed_side_by_side(tracked: Path, tmp_path: Path) -> None:
    """Each is killed at random steps while the other one goes on; both end as if alone."""
    rng = random.Random(20240607)
    kinds = [[*BAGS, "trainer.epochs=4", f"seed={seed}", f"out={tracked}"] for seed in (1, 2)]
    alone = [
        killing.undisturbed([*w[:-1], NO_TRACKING], tmp_path / f"alone{n}")[0]
        for n, w in enumerate(kinds)
    ]
    left = [3, 3]
    running: dict[int, int] = {}
    while any(n >= 0 for n in left) or running:
        for which, words in enumerate(kinds):
            if which not in running and left[which] >= 0:
                kill = None
                if left[which]:
                    target = "zoo.engine:Trainer._update"
                    kill = Kill(target=target, call=rng.randint(2, 8))
                log = tmp_path / f"log{which}"
                running[which] = killing.start([*words, "resume=auto"], log, kill)
                left[which] -= 1
        for which, child in list(running.items()):
            done, _ = os.waitpid(child, os.WNOHANG)
            if done:
                del running[which]
        time.sleep(0.01)
    made = {Run(f.parent).info["seed"]: Run(f.parent) for f in tracked.glob("*/run.json")}
    assert sorted(made) == [1, 2]
    for which, reference in enumerate(alone):
        assert killing.outcome(made[which + 1]) == killing.outcome(reference)
        assert json.loads((made[which + 1].path / "run.json").read_text())["status"] == "finished"
