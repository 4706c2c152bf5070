"""Where a command shall write is looked at before it works: one line, and nothing is made."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.running import STUBS, good, only_run, run_zoo
from zoo import files
from zoo.errors import ConfigError


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a stub task."""
    out = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZOO_REGISTRY", str(STUBS))
        good("train", "task=stub_bags", "trainer.max_steps=1", f"out={out}",
             "tracking.enabled=false")  # fmt: skip
    return only_run(out).path


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stubs: None) -> Iterator[Path]:
    """A working directory with a file and a folder in the way; a test leaves nothing else."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    for name in ("folder.pt2", "folder.safetensors"):
        (tmp_path / name).mkdir()
    before = sorted(tmp_path.rglob("*"))
    yield tmp_path
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "file").read_text() == "mine"


IN_THE_WAY = "file is a file, not a folder; name another place"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("export", "RUN", "format=pt2", "to=folder.pt2"), "to=folder.pt2: is a folder"),
        (("export", "RUN", "format=pt2", "to=file/x/m.pt2"), f"to=file/x/m.pt2: {IN_THE_WAY}"),
        (
            ("weights", "convert", "task=stub_bags", "from=RUN", "to=folder.safetensors"),
            "to=folder.safetensors: is a folder; name a file",
        ),
        (
            ("weights", "convert", "task=stub_bags", "from=RUN", "to=file/m.safetensors"),
            IN_THE_WAY,
        ),
        (("weights", "export", "folder.pt2"), "folder.pt2: is a folder; name a file"),
        (("eval", "weights=RUN", "predict.out=file"), f"predict.out=file: {IN_THE_WAY}"),
        (("eval", "weights=RUN", "predict.out=file/below"), IN_THE_WAY),
        (("bench", "query_pool", "--json", "folder.pt2"), "--json folder.pt2: is a folder"),
        (("bench", "query_pool", "--table", "file/x.md"), f"--table file/x.md: {IN_THE_WAY}"),
    ],
    ids=lambda v: " ".join(v)[:40] if isinstance(v, tuple) else "",
)
def test_a_place_that_is_none_is_told_before_any_work(
    here: Path, trained: Path, words: tuple[str, ...], line: str
) -> None:
    shown = run_zoo(*(word.replace("RUN", str(trained)) for word in words))
    assert shown.code == 2
    assert line in shown.err
    assert shown.err.count("\n") == 1


def test_folders_above_need_not_exist(tmp_path: Path) -> None:
    files.check_place(tmp_path / "a" / "b" / "m.pt2", "to=m")
    files.check_place(tmp_path / "a" / "b", "out", folder=True)
    files.check_place(tmp_path, "out", folder=True)
    with pytest.raises(ConfigError, match="out: is a folder"):
        files.check_place(tmp_path, "out")


def test_a_cache_that_cannot_be_one(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(here / "file" / "cache"))
    for words in (
        ("train", "task=stub_bags"),
        ("weights", "list"),
        ("pull", "-q", "backbone/resnet50"),
    ):
        failed = run_zoo(*words)
        assert (failed.code, failed.err.count("\n")) == (2, 1), failed
        assert f"ZOO_CACHE={here / 'file' / 'cache'}: {here / IN_THE_WAY}" in failed.err
    shown = good("doctor").out
    (row,) = [line for line in shown.splitlines() if line.startswith("cache ")]
    assert "missing" in row
    assert "file is a file, not a folder" in row


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--device", "tpu"), "--device tpu: should be cpu, cuda or cuda:N"),
        (("--device", "cuda:99"), "--device cuda:99: there is no such CUDA device here"),
        (("--threads", "0"), "--threads 0: should be 1 or more"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, tuple) else "",
)
def test_benchmarks_name_a_wrong_device(words: tuple[str, ...], line: str) -> None:
    shown = run_zoo("bench", "query_pool", *words)
    assert (shown.code, shown.out) == (2, "")
    assert line in shown.err
    assert shown.err.count("\n") == 1


def test_the_report_names_a_command_that_repeats_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stubs: None
) -> None:
    monkeypatch.chdir(tmp_path)
    good("train", "task=stub_bags", "trainer.max_steps=1", "tracking.enabled=false")
    run = only_run(tmp_path / "runs")
    page = (run.path / "report.html").read_text()
    (words,) = re.findall(r"<code>zoo (train config=\S+)</code>", page)
    assert str(tmp_path) not in words
    good(*words.split(), "out=again")
    again = only_run(tmp_path / "again")
    assert again.results() == run.results()
