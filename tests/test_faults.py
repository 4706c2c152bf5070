"""Bad days of a training: what is told, what is kept, and how it goes on."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mlflow import MlflowClient

from tests import killing
from tests.killing import Kill
from tests.running import good, histories, only_run, run_zoo, values
from tests.toys import Points, Toy, config, fitted, trainer_of
from zoo import checkpoint, faults, tracking
from zoo.errors import TrainingError
from zoo.runs import Run

NO_TRACKING = "tracking.enabled=false"
BAGS = ["task=stub_bags", "trainer.epochs=2", "trainer.log_every=2", NO_TRACKING]


def _line(err: str) -> str:
    (line,) = err.splitlines()
    assert "Traceback" not in line
    return line.removeprefix("error: ")


# -- processes that die, signals ----------------------------------------------------------------


def test_a_loading_process_that_is_killed_ends_with_a_line_and_a_run_to_resume(
    out: Path,
) -> None:
    task = Toy(config(out, batch_size=1, workers=2, checkpoint_every="2"))
    task.train = Points(40, batch_size=1)
    read, main = task.train.item, os.getpid()

    def item(index: int, rng: np.random.Generator) -> Any:
        if index == 7 and os.getpid() != main:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(index, rng)

    task.train.item = item  # type: ignore[method-assign]
    trainer = trainer_of(task)
    with pytest.raises(TrainingError) as caught:  # noqa: SIM117
        with faults.told(task.config.trainer, trainer.run, trainer.at):
            trainer.fit()
    text = str(caught.value)
    assert re.search(r"a loading process (was killed \(Killed\)|ended unexpectedly) in step", text)
    assert "lower trainer.workers" in text
    kept = checkpoint.newest_name(trainer.run.checkpoints)
    assert f"last good checkpoint {kept}" in text if kept else "no checkpoint yet" in text
    assert f"continue with resume={trainer.run.path}" in text


def _there(process: int) -> bool:
    """Whether a process is still alive; one that only waits to be collected is not."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc")
def test_sigkill_leaves_no_loading_process_behind(out: Path, tmp_path: Path) -> None:
    """Not even those that have a batch to hand over which nobody will take."""
    names = tmp_path / "processes"
    names.mkdir()
    task = Toy(config(out, batch_size=1, workers=2))
    task.train = Points(40, batch_size=1)
    read = task.train.item

    def item(index: int, rng: np.random.Generator) -> Any:
        (names / str(os.getpid())).touch()
        return {**read(index, rng), "more": bytes(500_000)}

    def collate(items: list[Any]) -> Any:
        return {**Points.collate(task.train, items), "more": [i["more"] for i in items]}

    def loss(*_: Any) -> Any:
        time.sleep(0.3)  # the loading processes are at their next batches by now
        os.kill(os.getpid(), signal.SIGKILL)

    task.train.item, task.train.collate, task.loss = item, collate, loss  # type: ignore[method-assign, assignment]
    trainer = trainer_of(task)
    child = os.fork()
    if child == 0:
        try:
            trainer.fit()
        finally:
            os._exit(70)
    assert killing.ended(child) == -signal.SIGKILL
    workers = [int(p.name) for p in names.iterdir()]
    assert len(workers) == 2
    assert child not in workers
    end = time.monotonic() + 60
    while any(map(_there, workers)) and time.monotonic() < end:
        time.sleep(0.05)
    left = [w for w in workers if _there(w)]
    for worker in left:
        os.kill(worker, signal.SIGKILL)
    assert left == []


def test_memory_that_ends_while_an_item_is_read_is_no_broken_file(out: Path) -> None:
    task = Toy(config(out, on_error="skip", batch_size=2))
    task.train.item = lambda index, rng: (_ for _ in ()).throw(MemoryError())  # type: ignore[method-assign]
    with pytest.raises(MemoryError):
        fitted(task)


@pytest.mark.slow
def test_sigterm_for_the_whole_group_saves_and_resumes(
    stubs: None, out: Path, tmp_path: Path
) -> None:
    """As batch systems send it: to loading processes too, which must not take the run with them."""
    words = [*BAGS, "trainer.epochs=300", "trainer.workers=2"]
    command = [
        sys.executable,
        "-c",
        "from zoo.cli.main import run; run()",
        "train",
        *words,
        f"out={out}",
    ]
    child = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 120
    while not list(out.glob("*/checkpoints/step-*")) and time.monotonic() < end:
        time.sleep(0.05)
    os.killpg(child.pid, signal.SIGTERM)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 143, err
    assert "continue with resume=" in _line(err)
    assert only_run(out).status == "interrupted"
    good("train", f"resume={only_run(out).path}", "trainer.max_steps=1")


# -- numbers that are none ----------------------------------------------------------------------


def test_nan_in_the_data_is_told_with_the_item_that_holds_it(out: Path) -> None:
    task = Toy(config(out, batch_size=4))
    task.train = Points(8, batch_size=4, poisoned=["p5", "p6"])
    with pytest.raises(TrainingError) as caught:
        fitted(task)
    text = str(caught.value)
    assert "the loss is nan in step 2 (epoch 1, items p4, p5, p6, p7)" in text
    assert "not finite as read: p5 (its 'x'); p6 (its 'x'); mend these items" in text


def test_a_loss_that_diverges_by_itself_blames_the_learning_rate(out: Path) -> None:
    task = Toy(config(out, batch_size=4))
    inner = task.loss
    task.loss = lambda m, b, r: {"loss": inner(m, b, r)["loss"] * float("inf")}  # type: ignore[method-assign,assignment]
    with pytest.raises(TrainingError, match=r"the loss is inf .* lower the learning rate"):
        fitted(task)


def test_items_of_ragged_batches_are_told_apart_too() -> None:
    good_bag, bad_bag = torch.zeros(3, 2), torch.tensor([[1.0, float("inf")]])
    batch = {"bags": [good_bag, bad_bag], "label": torch.tensor([0, 1]), "n": torch.tensor(2.0)}
    assert faults.poisoned(batch, ["a", "b"]) == {"b": "bags"}
    assert faults.poisoned({"packed": torch.full((5, 2), float("nan"))}, ["a", "b"]) == {}
    assert faults.poisoned(None, ["a"]) == {}


# -- a tracking database that is locked ---------------------------------------------------------


@pytest.fixture
def locked(tracked: Path) -> Iterator[tuple[Path, sqlite3.Connection]]:
    """A workspace whose tracking database another program keeps for itself."""
    with closing(sqlite3.connect(tracked / "mlflow.db", isolation_level=None)) as held:
        held.execute("BEGIN EXCLUSIVE")
        yield tracked, held


def _uri(out: Path, seconds: float) -> str:
    return f"sqlite:///{out / 'mlflow.db'}?timeout={seconds}"


def test_a_locked_database_stops_nothing_and_sync_brings_it_up_to_date(
    stubs: None, locked: tuple[Path, sqlite3.Connection]
) -> None:
    out, held = locked
    words = ["task=stub_bags", "trainer.epochs=1", f"tracking.uri={_uri(out, 0.05)}"]
    shown = good("train", *words, f"out={out}").out
    run = only_run(out)
    assert run.status == "finished"
    (warning,) = [line for line in shown.splitlines() if "not all was tracked" in line]
    assert "locked" in warning
    assert len(warning) < 300
    assert "SQL:" not in warning
    held.execute("ROLLBACK")
    good("runs", "sync", run.name, "--out", out)
    run = only_run(out)
    known = histories(f"sqlite:///{out / 'mlflow.db'}", str(run.mlflow_id))
    assert known == {k: {v} for k, v in values(run, timed=True).items()}


def test_a_database_that_is_locked_for_a_while_loses_nothing(
    stubs: None, locked: tuple[Path, sqlite3.Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, held = locked
    monkeypatch.setattr(tracking, "_RETRY_SECONDS", 0.01)
    inner = tracking.Mirror.close

    def close(self: tracking.Mirror, timeout: float = 60.0) -> None:
        end = time.monotonic() + 30
        while not self.trouble and time.monotonic() < end:  # it has met the lock
            time.sleep(0.01)
        held.execute("ROLLBACK")
        inner(self, timeout)

    monkeypatch.setattr(tracking.Mirror, "close", close)
    words = ["task=stub_bags", "trainer.epochs=1", f"tracking.uri={_uri(out, 0.05)}"]
    shown = good("train", *words, f"out={out}").out
    assert "not all was tracked" not in shown
    run = only_run(out)
    known = histories(f"sqlite:///{out / 'mlflow.db'}", str(run.mlflow_id))
    assert known == {k: {v} for k, v in values(run, timed=True).items()}


# -- a clock that jumps -------------------------------------------------------------------------


@pytest.mark.parametrize("jump", [-30 * 86_400.0, 400 * 86_400.0], ids=["back", "ahead"])
def test_a_clock_that_jumps_changes_neither_weights_nor_metrics(
    stubs: None, tracked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    words = ["task=stub_bags", "trainer.epochs=2", "trainer.checkpoint_every=10m"]
    good("train", *words, NO_TRACKING, f"out={tmp_path / 'whole'}")
    real, calls = time.time, 0

    def jumping() -> float:
        nonlocal calls
        calls += 1
        return real() + (jump if calls > 20 and calls % 3 else 0.0)

    monkeypatch.setattr(time, "time", jumping)
    good("train", *words, f"out={tracked}")
    monkeypatch.undo()
    run, reference = only_run(tracked), only_run(tmp_path / "whole")
    assert killing.outcome(run) == killing.outcome(reference)
    # '10m' counts by a clock that does not jump: no checkpoint more, none less.
    assert {p.name for p in run.checkpoints.glob("step-*")} == {
        p.name for p in reference.checkpoints.glob("step-*")
    }
    store = f"sqlite:///{tracked / 'mlflow.db'}"
    known = histories(store, str(run.mlflow_id))
    assert known == {k: {v} for k, v in values(run, timed=True).items()}
    latest = MlflowClient(store).get_run(str(run.mlflow_id)).data.metrics
    assert latest["train/epoch"] == 2  # the last step's, whatever its time says


# -- data that may only be read, data that change -----------------------------------------------


def _guarded(root: Path) -> None:
    """From now on, whoever of this process changes anything below `root` is refused."""

    def audit(event: str, given: tuple[Any, ...]) -> None:
        writing = event in (
            "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.chmod",
            "os.utime", "os.symlink", "os.link", "shutil.rmtree", "tempfile.mkstemp",
        )  # fmt: skip
        if event == "open":
            mode, flags = given[1], given[2]
            writing = bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)) or (
                isinstance(mode, str) and any(c in mode for c in "wax+")
            )
        named = [str(g) for g in given if isinstance(g, (str, Path))]
        if writing and any(n.startswith(f"{root}/") or n == str(root) for n in named):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), named[0])

    sys.addaudithook(audit)


def _tree(root: Path) -> dict[str, tuple[int, int]]:
    found = [root, *root.rglob("*")]
    return {str(p): (p.stat().st_mtime_ns, p.stat().st_size) for p in found}


ALL = ["wsi_mil", "her_seg", "medusa", "crop_yield", "fusion_reid", "rgbd_sod"]


@pytest.mark.parametrize(
    "task", ["stub_bags", *(pytest.param(t, marks=pytest.mark.slow) for t in ALL)]
)
def test_data_that_may_only_be_read_are_enough(
    request: pytest.FixtureRequest, tmp_path: Path, task: str
) -> None:
    if task not in ALL:
        request.getfixturevalue("stubs")
    root = tmp_path / "data"
    good("data", "sample", f"task={task}", f"out={root}")
    before = _tree(root)
    words = [f"task={task}", "preset=sample", f"data.root={root}", "trainer.max_steps=1"]
    log = tmp_path / "log"
    code = killing.train(
        [*words, NO_TRACKING, f"out={tmp_path / 'runs'}"], log, before=lambda: _guarded(root)
    )
    assert code == 0, log.read_text()
    assert _tree(root) == before


@pytest.fixture
def halfway(stubs: None, out: Path) -> Run:
    """A run on data of the user's that was interrupted after its third step."""
    data = out.parent / "data"
    good("data", "sample", "task=stub_bags", f"out={data}")
    kill = Kill(target="zoo.engine:Trainer._update", call=3, number=signal.SIGTERM)
    words = [*BAGS, f"data.root={data}", "preset=sample", f"out={out}"]
    assert killing.train(words, out.with_suffix(".log"), kill) == 143
    path = data / "train" / "train05.npz"
    with np.load(path, allow_pickle=False) as body:
        arrays = {k: body[k] for k in body.files}
    np.savez(path, allow_pickle=False, features=arrays["features"] + 1, label=arrays["label"])
    return only_run(out)


def test_changed_data_are_refused_or_forced_and_then_noted(
    halfway: Run, tracked_store: Path
) -> None:
    was = {row["name"]: row["digest"] for row in halfway.info["inputs"]}
    words = ["train", f"resume={halfway.path}"]
    before = (halfway.path / "run.json").read_bytes()
    refused = run_zoo(*words)
    assert refused.code == 2
    line = _line(refused.err)
    assert "the data changed since it began (stub_bags-train); start a new run" in line
    assert "--force" in line
    assert (halfway.path / "run.json").read_bytes() == before
    store = f"sqlite:///{tracked_store}"
    tracked = ["tracking.enabled=true", f"tracking.uri={store}"]
    shown = good(*words, "--force", *tracked).out
    assert f"warning: the data changed since {halfway.name} began (stub_bags-train)" in shown
    assert f"resuming {halfway.name} after step 3" in shown
    run = Run(halfway.path)
    (change,) = run.info["data_changes"]
    assert change["step"] == 3
    assert list(change["splits"]) == ["stub_bags-train"]
    now = {row["name"]: row["digest"] for row in run.info["inputs"]}
    assert change["splits"]["stub_bags-train"] == {
        "was": was["stub_bags-train"], "is": now["stub_bags-train"],
    }  # fmt: skip
    assert now["stub_bags-val"] == was["stub_bags-val"]
    found = MlflowClient(store).get_run(str(run.mlflow_id))
    assert found.data.tags["zoo.data_changed"] == "after step 3: stub_bags-train"
    assert (
        "The data changed while this run was interrupted" in (run.path / "report.html").read_text()
    )


@pytest.fixture
def tracked_store(tmp_path: Path, empty_store: Path) -> Path:
    return Path(shutil.copy(empty_store, tmp_path / "store.db"))
