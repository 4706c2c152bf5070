"""A run that is killed and resumed gives the bits of one that was not."""

from __future__ import annotations

import json
import random
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from tests import killing
from tests.killing import Kill
from tests.running import flip, good, histories, only_run, run_zoo, values
from zoo import checkpoint
from zoo.runs import Run

NO_TRACKING = "tracking.enabled=false"
BAGS = ["task=stub_bags", "trainer.epochs=4", "trainer.log_every=2"]
# Dropout, attention heads and top-k masking that draws from the generator of the loss.
MHA = [
    "task=wsi_mil", "model.arch=acmil_mha", "model.inner=32", "model.dropout=0.2",
    "trainer.epochs=2", "trainer.log_every=7", "trainer.checkpoint_every=10",
]  # fmt: skip
SEED = 20240607


@pytest.fixture(autouse=True)
def _known(stubs: None) -> None:
    """The stubs are known to this process and its children."""


def _same(run: Run, reference: Run) -> None:
    last, best, metrics = killing.outcome(run)
    expected_last, expected_best, expected = killing.outcome(reference)
    assert metrics == expected
    assert last == expected_last
    assert best == expected_best
    assert run.results() == reference.results()
    rubbish = [p for p in run.path.rglob(".*") if p.name != ".lock"]
    assert rubbish == []


def _steps(run: Run) -> int:
    return int(run.info["steps"])


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_at_random_steps_it_ends_with_the_same_bits(
    out: Path, tmp_path: Path, workers: int
) -> None:
    words = [*BAGS, f"trainer.workers={workers}", "trainer.checkpoint_every=3", NO_TRACKING]
    reference, _ = killing.undisturbed(words, tmp_path / "whole")
    kills = killing.at_steps(random.Random(SEED), _steps(reference), 3)
    print(f"seed {SEED}: {', '.join(map(str, kills))}")
    run, hits = killing.survive(words, out, kills)
    assert hits == 3
    _same(run, reference)


def test_the_number_of_workers_does_not_change_the_bits(out: Path, tmp_path: Path) -> None:
    words = [*BAGS, "trainer.epochs=2", NO_TRACKING]
    first, _ = killing.undisturbed([*words, "trainer.workers=0"], tmp_path / "0")
    second, _ = killing.undisturbed([*words, "trainer.workers=2"], tmp_path / "2")
    _same(second, first)


def test_killed_at_random_times_a_real_task_ends_with_the_same_bits(
    tracked: Path, tmp_path: Path
) -> None:
    reference, seconds = killing.undisturbed([*MHA, NO_TRACKING], tmp_path / "whole")
    kills = killing.at_times(random.Random(SEED), seconds, 3)
    print(f"seed {SEED}: {', '.join(map(str, kills))}")
    run, _ = killing.survive(MHA, tracked, kills)
    _same(run, reference)
    _tracked_once(run, tracked)


def _tracked_once(run: Run, out: Path) -> None:
    assert run.mlflow_id is not None
    known = histories(f"sqlite:///{out / 'mlflow.db'}", run.mlflow_id)
    assert known == {k: {v} for k, v in values(run, timed=True).items()}


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("words", [BAGS, MHA], ids=["stub_bags", "acmil_mha"])
def test_twenty_kills_leave_the_same_bits(
    tracked: Path, tmp_path: Path, words: list[str], workers: int
) -> None:
    words = [*words, f"trainer.workers={workers}", "trainer.checkpoint_every=2"]
    reference, seconds = killing.undisturbed([*words, NO_TRACKING], tmp_path / "whole")
    rng = random.Random(SEED + workers)
    kills = [
        *killing.at_times(rng, seconds, 10),
        *killing.at_steps(rng, _steps(reference), 10),
    ]
    rng.shuffle(kills)
    print(f"seed {SEED + workers}: {', '.join(map(str, kills))}")
    for n, kill in enumerate(kills):  # each point on a run of its own, so that all of them hit
        run, _ = killing.survive([*words, NO_TRACKING], tmp_path / f"k{n}", [kill])
        _same(run, reference)
    run, _ = killing.survive(words, tracked, kills)
    _same(run, reference)
    _tracked_once(run, tracked)


# Two training steps, a checkpoint each three; every place where files change hands.
PLACES = [
    Kill(target="zoo.checkpoint:save_file", call=3),
    Kill(target="torch:save", call=3),
    Kill(target="zoo.checkpoint:files.sync", call=9),
    Kill(target="zoo.checkpoint:files.sync", call=12),
    Kill(target="zoo.checkpoint:mark", call=3),
    Kill(target="zoo.checkpoint:prune", call=3),
    Kill(target="zoo.engine:evaluate", call=2),
    Kill(target="zoo.training:load_weights", call=1),
    Kill(target="zoo.evaluation:save_records", call=1),
    Kill(target="zoo.report:write", call=1),
    Kill(target="matplotlib.figure:Figure.savefig", call=1),
    Kill(target="zoo.files:os.fsync", call=4),
]


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Run:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZOO_REGISTRY", str(Path(__file__).parent / "stubs" / "registry.yaml"))
        folder = tmp_path_factory.mktemp("short") / "whole"
        return killing.undisturbed([*BAGS, "trainer.epochs=2", NO_TRACKING], folder)[0]


@pytest.mark.parametrize("kill", PLACES, ids=lambda k: f"{k.target.partition(':')[2]}-{k.call}")
def test_killed_while_files_are_written(short: Run, out: Path, kill: Kill) -> None:
    words = [*BAGS, "trainer.epochs=2", "trainer.checkpoint_every=3", NO_TRACKING]
    run, hits = killing.survive(words, out, [kill])
    assert hits == 1
    _same(run, short)


def test_killed_between_the_last_checkpoint_and_the_index_the_best_is_still_the_best(
    out: Path, tmp_path: Path
) -> None:
    # Validation loss falls in every epoch here, so the last checkpoint is the best one.
    words = [*BAGS, "trainer.epochs=3", "optim.lr=0.01", NO_TRACKING]
    reference, _ = killing.undisturbed(words, tmp_path / "whole")
    assert checkpoint.marked(reference.checkpoints)["best"] == f"step-{_steps(reference):08d}"
    run, _ = killing.survive(words, out, [Kill(target="zoo.checkpoint:mark", call=3)])
    _same(run, reference)


# -- signals that ask -------------------------------------------------------------------------


def test_sigterm_saves_and_the_resumed_run_is_tracked_once(tracked: Path, tmp_path: Path) -> None:
    words = [*BAGS, "trainer.checkpoint_every=100"]
    reference, _ = killing.undisturbed([*words, NO_TRACKING], tmp_path / "whole")
    kill = Kill(target="zoo.engine:Trainer._update", call=9, number=signal.SIGTERM)
    log = tmp_path / "log"
    assert killing.train([*words, f"out={tracked}"], log, kill) == 143
    run = only_run(tracked)
    assert run.status == "interrupted"
    assert checkpoint.newest_name(run.checkpoints) == "step-00000009"
    assert f"continue with resume={run.path}" in log.read_text()
    assert killing.train([f"resume={run.path}"], log) == 0
    run = only_run(tracked)
    assert run.status == "finished"
    _same(run, reference)
    _tracked_once(run, tracked)


@pytest.mark.parametrize(
    "target", ["zoo.evaluation:save_records", "zoo.report:write", "zoo.engine:evaluate"]
)
def test_sigterm_outside_of_a_step_is_resumable_too(short: Run, out: Path, target: str) -> None:
    words = [*BAGS, "trainer.epochs=2", NO_TRACKING]
    kill = Kill(target=target, number=signal.SIGTERM)
    log = out.with_suffix(".log")
    assert killing.train([*words, f"out={out}"], log, kill) == 143
    assert only_run(out).status == "interrupted"
    run, _ = killing.survive(words, out, [])
    _same(run, short)


def test_ctrl_c_saves_and_exits_130(short: Run, out: Path) -> None:
    words = [*BAGS, "trainer.epochs=2", NO_TRACKING]
    kill = Kill(target="zoo.engine:Trainer._update", call=2, number=signal.SIGINT)
    assert killing.train([*words, f"out={out}"], out.with_suffix(".log"), kill) == 130
    assert only_run(out).status == "interrupted"
    run, _ = killing.survive(words, out, [])
    _same(run, short)


# -- what a resume may and may not change -----------------------------------------------------


@pytest.fixture
def halfway(out: Path) -> Run:
    """A run that was interrupted after its third step."""
    kill = Kill(target="zoo.engine:Trainer._update", call=3, number=signal.SIGTERM)
    words = [*BAGS, "trainer.epochs=2", NO_TRACKING, f"out={out}"]
    assert killing.train(words, out.with_suffix(".log"), kill) == 143
    return only_run(out)


@pytest.mark.parametrize(
    ("word", "key"),
    [
        ("optim.lr=0.3", "optim.lr"),
        ("model.dropout=0.5", "model.dropout"),
        ("seed=9", "seed"),
        ("trainer.batch_size=3", "trainer.batch_size"),
        ("trainer.accumulate=2", "trainer.accumulate"),
        ("trainer.precision=bf16-mixed", "trainer.precision"),
    ],
)
def test_other_settings_are_refused_by_name(halfway: Run, out: Path, word: str, key: str) -> None:
    before = sorted(halfway.path.rglob("*"))
    result = run_zoo("train", f"resume={halfway.name}", f"out={out}", word)
    assert result.code == 2
    assert f"{key} (" in result.err
    assert only_run(out).status == "interrupted"
    assert sorted(halfway.path.rglob("*")) == before


def test_resume_auto_takes_only_a_run_of_the_same_settings(halfway: Run, out: Path) -> None:
    words = [*BAGS, "trainer.epochs=2", NO_TRACKING, f"out={out}", "resume=auto"]
    other = good("train", *words, "optim.lr=0.3")
    assert "no unfinished run with these settings" in other.out
    same = good("train", *words)
    assert f"resuming {halfway.name} after step 3" in same.out
    assert len(list(out.glob("*/run.json"))) == 2


def test_resume_auto_leaves_cross_validations_alone(out: Path) -> None:
    words = ["task=stub_years", NO_TRACKING, f"out={out}", "trainer.epochs=1"]
    good("cv", *words)
    (parent,) = out.glob("*/run.json")
    body = json.loads(parent.read_text()) | {"status": "interrupted"}
    parent.write_text(json.dumps(body))
    for child in (parent.parent / "folds").glob("*/run.json"):
        child.write_text(json.dumps(json.loads(child.read_text()) | {"status": "failed"}))
    shown = good("train", *words, "resume=auto").out
    assert "a new one begins" in shown
    result = run_zoo("train", f"resume={parent.parent}", f"out={out}")
    assert result.code == 2
    assert "zoo cv resume=" in result.err


def test_a_finished_run_is_trained_further_with_more_epochs_only(out: Path, tmp_path: Path) -> None:
    words = ["task=stub_alternating", "trainer.batch_size=4", "trainer.epochs=2", NO_TRACKING]
    good("train", *words, f"out={out}")
    run = only_run(out)
    refused = run_zoo("train", f"resume={run.name}", f"out={out}")
    assert refused.code == 2
    assert "is finished; raise trainer.epochs" in refused.err
    good("train", f"resume={run.name}", f"out={out}", "trainer.epochs=4")
    good("train", *words, "trainer.epochs=4", f"out={tmp_path / 'whole'}")
    longer, reference = only_run(out), only_run(tmp_path / "whole")
    last = killing.outcome(longer)[0]
    assert last == killing.outcome(reference)[0]  # constant rate: as if it had been 4 at once
    assert longer.results() == reference.results()
    # The run folder says what it is now, so that it can be found, compared and repeated.
    assert longer.config()["trainer"]["epochs"] == 4
    assert longer.config()["resume"] is None
    assert longer.info["fingerprint"] == reference.info["fingerprint"]


def test_the_data_may_move_but_not_change(halfway: Run, out: Path, cache: Path) -> None:
    sample = cache / "samples" / "stub_bags-v1"
    moved, other = out.parent / "moved", out.parent / "other"
    shutil.copytree(sample, moved)
    shutil.copytree(sample, other)
    path = other / "train" / "train05.npz"
    with np.load(path) as body:
        arrays = {k: body[k] for k in body.files}
    np.savez(path, allow_pickle=False, features=arrays["features"] + 1, label=arrays["label"])
    result = run_zoo("train", f"resume={halfway.name}", f"out={out}", f"data.root={other}")
    assert result.code == 2
    assert "the data changed since it began (stub_bags-train)" in result.err
    good("train", f"resume={halfway.name}", f"out={out}", f"data.root={moved}")


def test_two_processes_cannot_work_on_one_run(halfway: Run, out: Path) -> None:
    before = (halfway.path / "run.json").read_bytes()
    with halfway.lock():
        result = run_zoo("train", f"resume={halfway.name}", f"out={out}")
        # A forked child must not let go of, or keep, its parent's lock.
        assert killing.train([f"resume={halfway.path}"], out.with_suffix(".2")) == 2
    assert result.code == 2
    assert "another process is working on it" in result.err
    assert (halfway.path / "run.json").read_bytes() == before
    good("train", f"resume={halfway.name}", f"out={out}")


def test_a_resume_falls_back_to_the_checkpoint_before_a_damaged_one(
    out: Path, tmp_path: Path
) -> None:
    words = [*BAGS, "trainer.checkpoint_every=2", "trainer.keep_last=2", NO_TRACKING]
    reference, _ = killing.undisturbed(words, tmp_path / "whole")
    kill = Kill(target="zoo.engine:Trainer._update", call=10)
    assert killing.train([*words, f"out={out}"], out.with_suffix(".log"), kill) == -9
    run = only_run(out)
    newest = checkpoint.newest_name(run.checkpoints)
    assert newest is not None
    flip(run.checkpoints / newest / "model.safetensors")
    shown = good("train", f"resume={run.name}", f"out={out}").out
    assert f"{newest}: model.safetensors is damaged" in shown
    assert f"resuming {run.name} after step" in shown
    _same(only_run(out), reference)


def test_a_resume_without_a_sound_checkpoint_begins_again(short: Run, out: Path) -> None:
    words = [*BAGS, "trainer.epochs=2", "trainer.checkpoint_every=2", "trainer.keep_last=1"]
    kill = Kill(target="zoo.engine:Trainer._update", call=6)
    words = [*words, NO_TRACKING, f"out={out}"]
    assert killing.train(words, out.with_suffix(".log"), kill) == -9
    run = only_run(out)
    for path in run.checkpoints.glob("step-*/state.pt"):
        path.write_bytes(path.read_bytes()[:100])
    shown = good("train", f"resume={run.name}", f"out={out}").out
    assert "no sound checkpoint; it starts from the beginning" in shown
    _same(only_run(out), short)


def test_a_resume_of_nothing_says_what_there_is(out: Path) -> None:
    result = run_zoo("train", "resume=nothing", f"out={out}")
    assert result.code == 2
    assert "no run 'nothing'" in result.err


def test_torn_last_line_of_the_metrics_is_mended(short: Run, halfway: Run, out: Path) -> None:
    with halfway.metrics_file.open("a") as file:
        file.write('{"step": 3, "time": 17')
    good("train", f"resume={halfway.name}", f"out={out}")
    run = only_run(out)
    assert all(json.loads(line) for line in run.metrics_file.read_text().splitlines())
    _same(run, short)
