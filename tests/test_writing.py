"""Writing that is cut short: killed at any line, a disk that is full, files that are damaged."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import killing
from tests.killing import Kill
from tests.running import good, only_run, run_zoo
from zoo import checkpoint, files, tracking
from zoo.runs import Run

NO_TRACKING = "tracking.enabled=false"
BAGS = ["task=stub_bags", "trainer.epochs=2", "trainer.log_every=2", NO_TRACKING]
STATE = {"optimisers": {"x": {"state": {0: {"step": torch.tensor(3.0)}}}}, "position": {"step": 3}}
META = {"task": "toy", "facts": {"mean": [0.5]}, "config": {"task": "toy"}, "epoch": 1}


def _save(folder: Path, step: int, value: float) -> None:
    """What a training does to keep a moment: a checkpoint, the index, the old ones removed."""
    checkpoint.save(folder, step, {"a": torch.full((300,), value)}, STATE, META)
    checkpoint.mark(folder, last=f"step-{step:08d}", best=None)
    checkpoint.prune(folder, 2, None, f"step-{step:08d}")


def _line(err: str) -> str:
    (line,) = err.splitlines()
    assert "Traceback" not in line
    return line.removeprefix("error: ")


# -- SIGKILL at every step of a checkpoint write ------------------------------------------------


def _killed_before_line(number: int, act: Callable[[], None]) -> bool:
    """Fork, do `act`, and die by SIGKILL before the n-th line of the zoo's writing code.

    Returns:
        Whether it died; if not, `act` has fewer lines than that.
    """
    mine = {checkpoint.__file__, files.__file__}
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        count = 0

        def trace(frame: Any, event: str, _: Any) -> Any:
            nonlocal count
            if frame.f_code.co_filename not in mine:
                return None
            if event == "line":
                count += 1
                if count == number:
                    os.kill(os.getpid(), signal.SIGKILL)
            return trace

        code = 70
        try:
            sys.settrace(trace)
            act()
            sys.settrace(None)
            code = 0
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL), f"line {number}: exit {code}"
    return code != 0


@pytest.mark.parametrize("again", [False, True], ids=["new", "written again"])
@pytest.mark.parametrize("stride", [11, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_before_any_line_of_a_write_a_sound_checkpoint_is_left(
    tmp_path: Path, again: bool, stride: int
) -> None:
    """Each eleventh line here, each of them in the slow tests."""
    start = tmp_path / "start"
    for step in (1, 2, 3) if again else (1, 2):
        _save(start, step, float(step))
    died, number, outcomes = True, 1 - stride, set()
    while died:
        number += stride
        folder = tmp_path / "now"
        shutil.copytree(start, folder)
        died = _killed_before_line(number, lambda: _save(tmp_path / "now", 3, 30.0))
        found, notes = checkpoint.newest(folder)
        assert found is not None, f"line {number}"
        assert notes == [], f"line {number}: {notes}"
        value = float(found.model["a"][0])
        outcomes.add((found.path.name[-1], value))
        usable = checkpoint.best(folder)  # whatever the index names
        assert usable.path.name in ("step-00000002", "step-00000003")
        checkpoint.clean(folder)
        _save(folder, 4, 4.0)  # training goes on
        assert checkpoint.best(folder).model["a"][0] == 4.0
        assert not [p for p in folder.iterdir() if p.name.startswith((".writing", ".stale"))]
        shutil.rmtree(folder)
    assert number > 60
    old = {("2", 2.0), ("3", 3.0)} if again else {("2", 2.0)}
    assert {("3", 30.0)} < outcomes <= old | {("3", 30.0)}
    assert stride > 1 or outcomes == old | {("3", 30.0)}


def test_killed_while_the_last_old_checkpoint_is_removed_nothing_of_it_is_left(
    stubs: None, out: Path
) -> None:
    """Nothing is written after it that would clean up, so the resume itself has to."""
    words = [*BAGS, "trainer.epochs=3", "trainer.keep_last=1", "optim.lr=0.01", f"out={out}"]
    kill = Kill(target="zoo.checkpoint:shutil.rmtree", call=2)
    assert killing.train(words, out.with_suffix(".log"), kill) == -9
    run = only_run(out)
    left = [p.name for p in run.checkpoints.glob(".*")]
    assert [name[:12] for name in left] == [".stale-step-"]
    good("train", f"resume={run.path}")
    assert list(run.checkpoints.glob(".*")) == []
    assert only_run(out).status == "finished"


# -- a full disk --------------------------------------------------------------------------------


@contextmanager
def _files_end_after(size: int) -> Iterator[None]:
    """Every write beyond `size` bytes of a file fails, whoever writes: torch, safetensors, we."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_write_that_fails_at_any_byte_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    _save(tmp_path, 1, 1.0)
    failed, codes, written = 0, set(), max(p.stat().st_size for p in tmp_path.glob("step-*/*"))
    for size in range(0, written + 200, 97):
        try:
            with _files_end_after(size):
                _save(tmp_path, 2, 2.0)
        except OSError as error:
            failed += 1
            codes.add(error.errno)
        else:
            break
        found, notes = checkpoint.newest(tmp_path)
        assert found is not None
        assert (found.path.name, notes) == ("step-00000001", [])
        assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
    assert failed > 10
    assert codes <= {errno.EFBIG, errno.EIO, errno.ENOSPC}
    assert checkpoint.best(tmp_path).model["a"][0] == 2.0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a megabyte."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode != 0:
        pytest.skip("no file system can be mounted here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize("left", [0, 3_000, 30_000])
def test_a_full_disk_stops_with_a_line_and_the_run_goes_on_when_there_is_room(
    stubs: None, small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: int
) -> None:
    """A real file system that fills up in the middle of a training, also while it writes."""
    monkeypatch.setattr(files, "need_space", lambda folder, size: None)  # told beforehand else
    good("train", *BAGS, f"out={tmp_path / 'whole'}")
    filler, inner, calls = small_disk / "filler", checkpoint.save, 0

    def save(*given: Any) -> Path:
        nonlocal calls
        calls += 1
        if calls == 2:
            free = shutil.disk_usage(small_disk).free
            filler.write_bytes(b"x" * max(0, free - left))
        return inner(*given)

    monkeypatch.setattr(checkpoint, "save", save)
    out = small_disk / "runs"
    failed = run_zoo("train", *BAGS, f"out={out}")
    monkeypatch.setattr(checkpoint, "save", inner)
    assert failed.code == 1
    line = _line(failed.err)
    assert "No space left on device" in line
    assert "cannot be written after step" in line
    run = only_run(out)
    first = checkpoint.newest_name(run.checkpoints)
    assert f"last good checkpoint {first}" in line
    assert f"continue with resume={run.path}" in line
    filler.unlink()
    good("train", f"resume={run.path}")
    run = only_run(out)
    assert run.status == "finished"
    assert killing.outcome(run) == killing.outcome(only_run(tmp_path / "whole"))


def test_a_disk_without_room_for_a_checkpoint_is_told_before_it_is_written(
    stubs: None, small_disk: Path
) -> None:
    """The check of free space asks for a megabyte, which this disk has not got."""
    (small_disk / "other").write_bytes(bytes(200_000))
    result = run_zoo("train", *BAGS, f"out={small_disk / 'runs'}")
    assert result.code == 1
    assert "make room and resume" in _line(result.err)


def test_no_run_folder_is_left_where_none_can_be_written(
    stubs: None, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(files, "write_text", full)
    result = run_zoo("train", *BAGS, f"out={out}")
    assert result.code == 2
    assert "no run folder can be made there (No space left on device)" in _line(result.err)
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_metrics_that_cannot_be_written_stop_with_a_line(
    stubs: None, out: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """And the end of the run, which cannot be written either, hides nothing."""

    def log(self: tracking.Metrics, step: int, given: Any) -> None:
        if step > 3:
            raise OSError(number, os.strerror(number), "metrics.jsonl")

    def update(self: Run, **given: Any) -> None:
        if given.get("status") == "failed":
            raise OSError(number, os.strerror(number), "run.json")

    monkeypatch.setattr(tracking.Metrics, "log", log)
    monkeypatch.setattr(Run, "update", update)
    result = run_zoo("train", *BAGS, f"out={out}")
    assert result.code == 1
    assert f"metrics.jsonl: cannot be written after step 4 ({os.strerror(number)})" in (
        _line(result.err)
    )
    assert "its end was not written down" in result.out


# -- damage in the folder of a run --------------------------------------------------------------


_HOWS = [pytest.param(h, marks=pytest.mark.slow) for h in ("cut", "empty", "flip", "nonsense")]


@pytest.mark.parametrize("how", ["cut, few", *_HOWS])
def test_whatever_file_of_a_run_is_damaged_it_resumes_rightly_or_tells_a_line(
    halfway_clean: Run, tmp_path: Path, how: str
) -> None:
    """Never a traceback, and never other weights than those of an undisturbed run.

    Here the files of the run itself; with those of its checkpoints in the slow tests.
    """
    expected = killing.outcome(only_run(tmp_path / "whole"))
    paths = [p for p in halfway_clean.path.rglob("*") if p.is_file() and p.name != ".lock"]
    assert len(paths) > 5
    if how == "cut, few":
        how, paths = "cut", [p for p in paths if "step-" not in str(p)]
    ended = set()
    for path in sorted(paths):
        copy = tmp_path / "copy" / halfway_clean.name
        shutil.rmtree(copy.parent, ignore_errors=True)
        shutil.copytree(halfway_clean.path, copy)
        target = copy / path.relative_to(halfway_clean.path)
        body = target.read_bytes()
        middle = len(body) // 2
        target.write_bytes(
            {
                "cut": body[:middle],
                "empty": b"",
                "flip": body[:middle] + bytes([body[middle] ^ 0x10]) + body[middle + 1 :],
                "nonsense": b"[1, 2]",
            }[how]
        )
        result = run_zoo("train", f"resume={copy}", f"out={copy.parent}")
        assert result.code in (0, 1, 2), (path, result)
        ended.add(result.code)
        if result.code:
            assert "--debug shows more" not in result.err, (path, result.err)
            assert len(result.err.splitlines()) <= 2, (path, result.err)
        elif path.name not in ("metrics.jsonl", "config.yaml"):
            # A flipped digit of a metric or of a free setting stays what it is.
            assert killing.outcome(Run(copy))[:2] == expected[:2], path
    assert 0 in ended


@pytest.fixture
def halfway_clean(stubs: None, out: Path, tmp_path: Path) -> Run:
    words = [*BAGS, "trainer.checkpoint_every=2", "trainer.epochs=2"]
    good("train", *words, f"out={tmp_path / 'whole'}")
    kill = Kill(target="zoo.engine:Trainer._update", call=5, number=signal.SIGKILL)
    assert killing.train([*words, f"out={out}"], out.with_suffix(".log"), kill) == -9
    return only_run(out)
