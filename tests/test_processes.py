"""Several processes train, evaluate and predict as one."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter, deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import psutil
import pytest
import torch
import yaml

from tests.processes import (
    BAGS,
    CPU,
    QUIET,
    UPDATE,
    at_call,
    forked,
    free_port,
    noted,
    noting,
    once,
    seen_in,
    send,
    started,
    trained,
)
from tests.running import good, histories, only_run, run_zoo, values
from tests.toys import Toy, trainer_of
from tests.toys import config as toy_config
from zoo import checkpoint
from zoo.config import resolve
from zoo.engine import Interrupted
from zoo.errors import ConfigError, DataError, TrainingError
from zoo.place import Place, place
from zoo.runs import Run
from zoo.stepping import Stream, dealt
from zoo.team import _packed, _unpacked

TASKS = ["wsi_mil", "her_seg", "medusa", "crop_yield", "fusion_reid", "rgbd_sod"]


def same_chance(rank: int) -> None:
    """Every step draws the same numbers in every process, so that sums can be compared."""
    from zoo import engine

    engine.step_seed = lambda seed, step, rank: 7  # type: ignore[assignment]


def test_two_processes_train_as_one(stubs: None, tracked: Path, tmp_path: Path) -> None:
    file = tmp_path / "seen"
    ended = trained(tracked, tmp_path / "said", *BAGS, hook=noting(file))
    assert ended.codes == [0, 0], ended.told()
    assert ended.errors == []
    assert ended.out[1] == ""  # one speaks
    assert seen_in(file) == once(2)
    padding = [row for row in noted(file) if not row["real"]]
    assert ended.out[0].count("repeats 1 without weight") == 1
    assert padding
    run = only_run(tracked)  # one run folder, whose metrics come once
    assert run.info["processes"] == 2
    assert run.info["steps"] == 2 * 5 - 1
    assert histories(f"sqlite:///{tracked / 'mlflow.db'}", str(run.mlflow_id)) == {
        k: {v} for k, v in values(run, timed=True).items()
    }
    # The same weights scored by one process give the same numbers.
    rows = good("eval", f"weights={run.path}", f"predict.out={tmp_path / 'e'}")
    assert rows.out
    assert json.loads((tmp_path / "e" / "metrics.json").read_text()) == run.results()


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({}, Place()),
        (
            {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"},
            Place(3, 4, 1, 2),
        ),
        (
            {"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "7",
             "SLURM_STEP_ID": "0", "SLURM_STEP_TASKS_PER_NODE": "4(x2)"},
            Place(5, 8, 1, 4, slurm=True),
        ),
        # The script of a job is one process, whatever its step is going to start.
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "7"}, Place()),
    ],
)  # fmt: skip
def test_a_process_knows_its_place(environment: dict[str, str], found: Place) -> None:
    assert place(environment) == found
    assert found.machines in (1, 2)


def test_processes_must_be_spread_evenly() -> None:
    found = place({"SLURM_PROCID": "0", "SLURM_NTASKS": "6", "SLURM_TASKS_PER_NODE": "4,2"})
    with pytest.raises(ConfigError, match="not spread evenly over the machines"):
        _ = found.machines


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["train", "trainer.devices=3"], "but 2 processes were started on this machine"),
        (["cv"], "run it once, with trainer.devices=N"),
    ],
)
def test_what_several_processes_cannot_do_is_told(
    stubs: None, out: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], told: str
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = run_zoo(*words, "task=stub_years", f"out={out}")
    assert result.code == 2
    assert told in result.err
    assert result.err.count("error:") == 1
    assert not out.exists()


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (DataError("a.h5: ends\ntoo early"), DataError, "a.h5: ends\ntoo early"),
        (OSError(28, "No space left on device", "/x/y"), OSError, "[Errno 28] No space left"),
        (torch.OutOfMemoryError("CUDA out of memory"), RuntimeError, "OutOfMemoryError: CUDA out"),
        (KeyError("data"), RuntimeError, "KeyError: 'data'"),
    ],
)
def test_an_error_travels_without_its_object(error: Exception, kind: type, words: str) -> None:
    packed = _packed(error, 3)
    assert packed is not None
    found = _unpacked(json.loads(json.dumps(packed)))
    assert type(found) is kind
    assert str(found).startswith(words)
    assert getattr(found, "exit_code", 1) == getattr(error, "exit_code", 1)
    assert found.__notes__[0].startswith("in process 3:")


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_batches_are_dealt_whole_and_padding_is_known(size: int) -> None:
    batches = [[10 * i, 10 * i + 1] for i in range(7)]
    groups = [batches[i : i + 2 * size] for i in range(0, 7, 2 * size)]
    teams = [SimpleNamespace(rank=rank, size=size) for rank in range(size)]
    shares = [dealt(groups, team) for team in teams]
    assert len({len(mine) for mine, _ in shares}) == 1  # nobody waits for ever
    assert {repeated for _, repeated in shares} == {-7 % size}
    every = [batch for mine, _ in shares for batch in mine]
    extra = Counter(map(tuple, every)) - Counter(map(tuple, batches))
    assert sum(extra.values()) == -7 % size
    assert {tuple(b) for b in every} == {tuple(b) for b in batches}


def test_a_process_without_a_readable_batch_looks_ahead() -> None:
    rows: list[tuple[list[str], dict[str, int] | None]]
    rows = [([], None), ([], None), (["c"], {"x": 3}), (["d"], {"x": 4})]
    feed = SimpleNamespace(skipped=["a is broken"], __iter__=None)
    stream = Stream.__new__(Stream)
    stream.__dict__ |= {"_feed": feed, "_items": iter(rows), "_ahead": deque(), "_good": None}
    assert stream.take() == ([], None, ["a is broken"])
    assert stream.substitute() == (["c"], {"x": 3})
    assert [stream.take()[0] for _ in range(3)] == [[], ["c"], ["d"]]  # nothing is lost by it
    assert stream.substitute() == (["d"], {"x": 4})
    stream.__dict__ |= {"_items": iter(rows[:2]), "_good": None}
    with pytest.raises(TrainingError, match="no batch of this process can be read"):
        stream.substitute()


def test_a_checkpoint_that_counts_no_batches_goes_on(out: Path) -> None:
    task = Toy(toy_config(out, batch_size=1, accumulate=3, epochs=2))
    whole = trainer_of(task)
    whole.fit()
    trainer = trainer_of(task)
    trainer.ask(signal.SIGTERM)
    with pytest.raises(Interrupted):
        trainer.fit()
    found, _ = checkpoint.newest(trainer.run.checkpoints)
    assert found is not None
    assert found.state["position"].pop("batches") == 3  # as version 0.1 wrote it
    del found.state["processes"]
    again = trainer_of(task)
    again.restore(found)
    assert again.at.batches == 3
    again.fit()
    for a, b in zip(again.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(a, b)


# -- bad days -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_in_one_process_is_told_once(
    stubs: None, out: Path, tmp_path: Path, rank: int
) -> None:
    def broken() -> None:
        msg = "file of slide 7 ends too early"
        raise DataError(msg)

    hook = at_call(rank, "zoo.stepping:Stream.take", 3, broken)
    ended = trained(out, tmp_path / "said", *BAGS, *QUIET, hook=hook)
    assert ended.codes == [2, 2], ended.told()
    assert ended.errors == ["error: file of slide 7 ends too early"]
    assert only_run(out).status == "failed"


@pytest.mark.slow
@pytest.mark.parametrize(
    "target",
    ["zoo.training:_facts", "zoo.evaluation:_through", "zoo.engine:order_rng"],
)
def test_an_error_outside_of_steps_is_told_once(
    stubs: None, out: Path, tmp_path: Path, target: str
) -> None:
    def broken() -> None:
        msg = "the disk is tired"
        raise OSError(5, msg, "/data/x")

    hook = at_call(1, target, 1, broken)
    ended = trained(out, tmp_path / "said", *BAGS, *QUIET, hook=hook)
    assert 0 not in ended.codes, ended.told()
    assert len(ended.errors) == 1, ended.told()
    assert "the disk is tired" in ended.errors[0]


@pytest.mark.slow
def test_a_broken_file_is_named_once_and_can_be_skipped(
    stubs: None, out: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    good("data", "sample", "task=stub_bags", f"out={data}", "defects=true")
    words = ["task=stub_bags", "preset=sample", f"data.root={data}", *QUIET, "trainer.epochs=2"]
    ended = trained(out, tmp_path / "a", *words)
    assert ended.codes == [2, 2], ended.told()
    assert len(ended.errors) == 1
    assert "train03.npz" in ended.errors[0]


@pytest.mark.slow
def test_a_process_whose_batch_is_broken_takes_part_all_the_same(
    stubs: None, tmp_path: Path
) -> None:
    """One bag a batch, so that all of one is broken: the step is the mean of the others."""
    data = tmp_path / "pictures"
    good("data", "sample", "task=stub_testsets", f"out={data}")
    broken = data / "train" / "train3.npz"
    broken.write_bytes(broken.read_bytes()[:40])
    words = ["task=stub_testsets", "preset=sample", f"data.root={data}", *QUIET]
    words += ["trainer.batch_size=1", "data.on_error=skip", "trainer.epochs=1"]
    two = trained(tmp_path / "two", tmp_path / "a", *words, hook=same_chance)
    one = trained(
        tmp_path / "one", tmp_path / "b", *words, "trainer.accumulate=2", size=1, hook=same_chance
    )
    assert (two.codes, one.codes) == ([0, 0], [0]), two.told() + one.told()
    assert two.out[0].count("skipped") == one.out[0].count("skipped") == 1
    first, second = only_run(tmp_path / "one"), only_run(tmp_path / "two")
    assert second.info["skipped"] == 1
    assert values(first) == pytest.approx(values(second), nan_ok=True)
    a, b = (checkpoint.best(r.checkpoints).model for r in (first, second))
    for key in a:
        torch.testing.assert_close(a[key], b[key])


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("target", [UPDATE, "zoo.evaluation:_through", "zoo.training:_finish"])
def test_a_process_that_is_killed_ends_the_others(
    stubs: None, out: Path, tmp_path: Path, rank: int, target: str
) -> None:
    hook = at_call(rank, target, 1, send(signal.SIGKILL))
    begun = time.monotonic()
    ended = trained(out, tmp_path / "said", *BAGS, *QUIET, hook=hook)
    assert time.monotonic() - begun < 60
    assert ended.codes[rank] == -signal.SIGKILL
    assert ended.codes[1 - rank] == 1
    run = only_run(out)
    if rank == 0:  # torchrun tells that it is gone
        assert ended.errors == []
    else:
        (line,) = ended.errors
        assert "another process ended unexpectedly, and so do the others" in line
        assert f"continue with resume={run.path}" in line
        assert run.status == "failed"
    again = trained(out, tmp_path / "again", f"resume={run.path}")
    assert again.codes == [0, 0], again.told()


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_to_one_process_stops_all_after_the_same_step(
    stubs: None, out: Path, tmp_path: Path, rank: int, number: int, code: int
) -> None:
    hook = at_call(rank, UPDATE, 2, send(number))
    ended = trained(out, tmp_path / "said", *BAGS, *QUIET, hook=hook)
    assert ended.codes == [code, code], ended.told()
    (line,) = ended.errors
    run = only_run(out)
    assert f"continue with resume={run.path}" in line
    assert run.status == "interrupted"
    found, _ = checkpoint.newest(run.checkpoints)
    assert found is not None
    assert found.state["processes"] == 2


# -- predicting ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_prediction_is_shared_and_written_once(stubs: None, out: Path, tmp_path: Path) -> None:
    good("train", *BAGS, *QUIET, f"out={out}")
    run = only_run(out)
    folder = next((Path(os.environ["ZOO_CACHE"]) / "samples").glob("stub_bags-*")) / "test"
    files = sorted(folder.glob("*.npz"))
    words = ["predict", f"weights={run.path}", f"input=[{','.join(map(str, files))}]"]
    one = forked([*words, f"predict.out={tmp_path / 'one'}"], 1, tmp_path / "a")
    two = forked([*words, f"predict.out={tmp_path / 'two'}"], 2, tmp_path / "b")
    assert (one.codes, two.codes) == ([0], [0, 0]), two.told()
    assert two.out[1] == ""
    assert two.out[0] == one.out[0].replace(str(tmp_path / "one"), str(tmp_path / "two"))
    names = [
        sorted(p.relative_to(tmp_path / n).as_posix() for p in (tmp_path / n).rglob("*.*"))
        for n in ("one", "two")
    ]
    assert names[0] == names[1]
    assert sum("dense/" in name for name in names[1]) == len(files)
    for name in names[0]:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    # Without a folder of its own, all processes write into one.
    free = forked([*words, f"out={tmp_path / 'free'}"], 2, tmp_path / "c")
    assert free.codes == [0, 0], free.told()
    (made,) = (tmp_path / "free").iterdir()
    assert len(pd.read_csv(made / "predictions.csv")) == len(files)


# -- the tasks ----------------------------------------------------------------------------------

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_two_processes_step_as_one_that_accumulates_two(task: str, tmp_path: Path) -> None:
    """The gradient is that of the mean over both batches, and scores are those of one process.

    Batch norm's statistics are left out: those of two processes have seen the first one's batches.
    """
    words = [f"task={task}", *QUIET, CPU, "trainer.max_steps=3", "trainer.workers=0"]
    runs = []
    for size, more in ((1, ["trainer.accumulate=2"]), (2, ["trainer.accumulate=1"])):
        out = tmp_path / str(size)
        said = tmp_path / f"said{size}"
        ended = forked(["train", *words, *more, f"out={out}"], size, said, same_chance, 500)
        assert ended.codes == [0] * size, ended.told()
        runs.append(only_run(out))
    one, two = [checkpoint.newest(r.checkpoints)[0] for r in runs]
    assert one is not None
    assert two is not None
    for key, weight in one.model.items():
        if not key.endswith(_STATISTICS):
            torch.testing.assert_close(two.model[key], weight, rtol=1e-5, atol=1e-6, msg=key)
    losses, both = [{k: v for k, v in values(r).items() if k[0] == "train/loss"} for r in runs]
    assert losses == pytest.approx(both, rel=1e-6)
    scores = []
    for size in (1, 2):
        out = tmp_path / f"eval{size}"
        said = tmp_path / f"scored{size}"
        command = ["eval", f"weights={runs[1].path}", f"predict.out={out}", CPU]
        ended = forked(command, size, said, seconds=500)
        assert ended.codes == [0] * size, ended.told()
        scores.append(json.loads((out / "metrics.json").read_text()))
    assert scores[0] == scores[1]
    assert scores[0] == runs[1].results()


@pytest.mark.slow
def test_identities_stay_together_in_a_batch(stubs: None, out: Path, tmp_path: Path) -> None:
    words = ["task=stub_identities", *QUIET, "trainer.log_every=1"]
    ended = trained(out, tmp_path / "said", *words, hook=noting(tmp_path / "seen"))
    assert ended.codes == [0, 0], ended.told()
    data = only_run(out).config()["data"]
    p, k = data["identities"], data["instances"]
    for row in noted(tmp_path / "seen"):
        people = Counter(name.partition("-")[0] for name in row["names"])
        assert list(people.values()) == [k] * p


@pytest.mark.slow
def test_loading_processes_serve_each_of_them(stubs: None, out: Path, tmp_path: Path) -> None:
    plain = trained(tmp_path / "plain", tmp_path / "a", *BAGS, *QUIET)
    ended = trained(out, tmp_path / "b", *BAGS, *QUIET, "trainer.workers=2")
    assert ended.codes == plain.codes == [0, 0], ended.told()
    assert values(only_run(out)) == values(only_run(tmp_path / "plain"))


# -- real programs ------------------------------------------------------------------------------


def _ended(process: Any, seconds: float = 200) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=seconds)
    return process.returncode, out, err


def _after_steps(out: Path, count: int, seconds: float = 120) -> Run:
    """Wait until a run has logged some steps."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        runs = [Run(file.parent) for file in out.glob("*/run.json")]
        if runs and len(runs[0].metrics()) >= count:
            return runs[0]
        time.sleep(0.05)
    msg = "the training does not begin"
    raise AssertionError(msg)


LONG = ["train", "task=stub_bags", *QUIET, "trainer.epochs=100000", "trainer.log_every=1"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_under_torchrun_leaves_a_checkpoint(stubs: None, out: Path, number: int) -> None:
    with started([*LONG, f"out={out}"], 2) as process:
        run = _after_steps(out, 5)
        process.send_signal(number)
        _, _, err = _ended(process)
    assert err.count("continue with resume=") == 1, err
    run = only_run(out)
    assert run.status == "interrupted"
    found, notes = checkpoint.newest(run.checkpoints)
    assert found is not None
    assert notes == []


@pytest.mark.slow
def test_the_zoo_starts_the_other_processes_itself(stubs: None, out: Path, tmp_path: Path) -> None:
    words = ["train", *BAGS, *QUIET, "trainer.devices=2", CPU]
    with started([*words, f"out={out}"]) as process:
        code, said, err = _ended(process)
    assert (code, err.strip()) == (0, ""), err
    assert said.count("epoch 2/2") == 1
    run = only_run(out)
    forks = trained(tmp_path / "forks", tmp_path / "said", *BAGS, *QUIET)
    assert forks.codes == [0, 0]
    assert values(run) == values(only_run(tmp_path / "forks"))
    # Of the two that trained it, evaluation needs one.
    assert run.config()["trainer"]["devices"] == 2
    good("eval", f"weights={run.path}", f"predict.out={tmp_path / 'e'}")


def _others(process: Any) -> list[psutil.Process]:
    found = psutil.Process(process.pid).children(recursive=True)
    return [p for p in found if "zoo.worker" in " ".join(p.cmdline())]


@pytest.mark.slow
@pytest.mark.parametrize("which", ["other", "first"])
def test_a_killed_process_leaves_none_behind(stubs: None, out: Path, which: str) -> None:
    with started([*LONG, "trainer.devices=2", CPU, f"out={out}"]) as process:
        run = _after_steps(out, 5)
        (other,) = _others(process)
        (other if which == "other" else process).send_signal(signal.SIGKILL)
        code, _, err = _ended(process, 60)
        _, alive = psutil.wait_procs([other], timeout=30)
    assert alive == []
    (line,) = [line for line in err.splitlines() if "error:" in line]
    if which == "other":
        assert code == 1
        assert "process 1 of 2 (killed by SIGKILL) ended unexpectedly" in line
        assert f"continue with resume={run.path}" in line
    else:
        assert code == -signal.SIGKILL
        assert "process 0 of 2 ended unexpectedly" in line


@pytest.mark.slow
def test_sigterm_to_the_first_process_stops_both(stubs: None, out: Path) -> None:
    with started([*LONG, "trainer.devices=2", CPU, f"out={out}"]) as process:
        _after_steps(out, 5)
        (other,) = _others(process)
        process.send_signal(signal.SIGTERM)
        code, _, err = _ended(process, 60)
        _, alive = psutil.wait_procs([other], timeout=30)
    assert code == 143
    assert alive == []
    assert err.count("error:") == err.count("continue with resume=") == 1
    assert only_run(out).status == "interrupted"


@pytest.mark.slow
def test_folds_are_trained_by_several_processes(stubs: None, out: Path) -> None:
    words = ["cv", "task=stub_years", *QUIET, "trainer.devices=2", CPU, "trainer.epochs=1"]
    with started([*words, f"out={out}"]) as process:
        code, _, err = _ended(process, 400)
    assert code == 0, err
    assert len(list(out.glob("*/run.json"))) == 1
    folds = [Run(p.parent) for p in out.glob("*/folds/*/run.json")]
    assert len(folds) > 1
    assert {f.info["processes"] for f in folds} == {2}


# -- the page on clusters -----------------------------------------------------------------------

PAGE = Path(__file__).resolve().parents[1] / "docs" / "clusters.md"


def _script(folder: Path) -> Path:
    text = PAGE.read_text(encoding="utf-8")
    file = folder / "train.slurm"
    file.write_text(text.partition("```bash file=train.slurm\n")[2].partition("```")[0])
    assert file.read_text().startswith("#!/bin/bash\n#SBATCH")
    return file


def test_the_slurm_script_is_sound_and_every_line_explained(tmp_path: Path) -> None:
    script = _script(tmp_path)
    subprocess.run(["bash", "-n", script], check=True)
    text = PAGE.read_text(encoding="utf-8")
    told = text.partition("| line | what it does |")[2].partition("## Kubernetes")[0]
    options = re.findall(r"--[a-z][a-z-]+", script.read_text())
    assert len(options) > 12
    assert {o for o in options if o not in told} <= {"--job-name", "--time"}


def test_the_kubernetes_job_is_sound_and_every_line_explained() -> None:
    text = PAGE.read_text(encoding="utf-8")
    body, _, after = text.partition("```yaml\n")[2].partition("```")
    service, job = yaml.safe_load_all(body)
    assert service["spec"]["selector"]["job-name"] == job["metadata"]["name"]
    spec = job["spec"]
    pod = spec["template"]["spec"]
    assert pod["subdomain"] == service["metadata"]["name"]
    (container,) = pod["containers"]
    program, *words = container["command"]
    assert program == "torchrun"
    at = words.index("zoo")
    flags = dict(w.removeprefix("--").partition("=")[::2] for w in words[:at])
    assert int(flags["nnodes"]) == spec["completions"] == spec["parallelism"]
    assert int(flags["nproc-per-node"]) == container["resources"]["limits"]["nvidia.com/gpu"]
    assert flags["master-addr"] == f"{job['metadata']['name']}-0.{pod['subdomain']}"
    assert int(flags["shutdown-timeout"]) < pod["terminationGracePeriodSeconds"]
    mounts = {m["name"] for m in container["volumeMounts"]}
    assert mounts == {v["name"] for v in pod["volumes"]}
    from torch.distributed.run import get_args_parser

    parsed = get_args_parser().parse_args(
        [w.replace("$(JOB_COMPLETION_INDEX)", "1") for w in words]
    )
    assert parsed.no_python
    assert parsed.training_script == "zoo"
    resolve([w for w in parsed.training_script_args if "=" in w])
    explained = after.partition("| line | what it does |")[2]
    for word in (*(f"--{f}" for f in flags), *(e["name"] for e in container["env"])):
        assert word in explained, word


@pytest.mark.slow
def test_the_slurm_script_trains_on_one_machine(stubs: None, out: Path, tmp_path: Path) -> None:
    places = {"GPUS": "2", "OUT": str(out), "PORT": str(free_port())}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", _script(tmp_path), "task=stub_bags", *QUIET, CPU, "trainer.epochs=1"],
        env={**os.environ, **places, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    assert only_run(out).info["processes"] == 2
