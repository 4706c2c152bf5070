"""Every command through the entry point of the program: output, exit codes, what is written."""

import csv
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import yaml

from tests.running import Zoo, good, histories, run_zoo
from zoo import __version__, registry
from zoo.cli import main as program
from zoo.data import written_once
from zoo.domains.medical.wsi_mil import sample
from zoo.errors import ConfigError, TrainingError
from zoo.runs import Run

TASK = "task=wsi_mil"
SMALL = {"train": 8, "val": 4, "test": 6}


@dataclass(frozen=True)
class Workspace:
    """A small data set and two trained runs, the first of them tracked in MLflow."""

    bags: Path
    out: Path
    first: Run
    second: Run
    said: str


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Workspace:
    base = tmp_path_factory.mktemp("cli")
    bags, out = base / "bags", base / "runs"
    sample.write_clam(bags, sample.slides(0, SMALL))
    out.mkdir()
    shutil.copy(empty_store, out / "mlflow.db")
    common = ["train", TASK, "preset=sample", f"data.root={bags}", f"out={out}"]
    said = good(*common, "trainer.epochs=1", "trainer.log_every=2").out
    good(*common, "trainer.max_steps=2", "seed=2", "tracking.enabled=false", "--quiet")
    runs = sorted((Run(p.parent) for p in out.glob("*/run.json")), key=lambda r: r.info["seed"])
    return Workspace(bags, out, *runs, said)


def one_line(*words: str | Path, code: int = 2) -> str:
    """The one line of stderr that a wrong command line gives."""
    result = run_zoo(*words)
    assert result.code == code, result
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1, result.err
    assert "Traceback" not in result.err
    return result.err


# -- looking around -----------------------------------------------------------------------------


def test_list(zoo: Zoo, announced: str) -> None:
    text = zoo("list")
    assert (text.code, text.err) == (0, "")
    rows = {line.split()[0]: line.split()[1] for line in text.out.splitlines()[1:]}
    assert rows.keys() == registry.tasks().keys()
    assert (rows["wsi_mil"], rows[announced]) == ("works", "coming")
    body = json.loads(zoo("list", "--json").out)
    assert [row["task"] for row in body] == list(registry.tasks())


@pytest.mark.parametrize("word", ["wsi_mil", "acmil", "task=wsi_mil"])
def test_info(zoo: Zoo, word: str) -> None:
    text = zoo("info", word)
    assert text.code == 0
    for part in ("wsi_mil: Whole-slide", "arxiv.org/abs/2311.07125", "presets:", "abmil"):
        assert part in text.out
    assert registry.tasks()["wsi_mil"].card_text().splitlines()[0] in text.out


def test_info_of_an_announced_task_and_as_json(zoo: Zoo, announced: str) -> None:
    assert "announced, not built" in zoo("info", announced).out
    assert json.loads(zoo("info", "wsi_mil", "--json").out)["domain"] == "medical"
    assert "did you mean 'her_seg'" in one_line("info", "her_sec")


def test_config_prints_what_config_reads(zoo: Zoo, tmp_path: Path) -> None:
    text = zoo("config", TASK, "optim.lr=0.5", "preset=mha")
    assert text.out.startswith("# wsi_mil, preset mha, the sample data set\n")
    assert yaml.safe_load(text.out)["optim"]["lr"] == 0.5
    (tmp_path / "c.yaml").write_text(text.out)
    assert zoo("config", f"config={tmp_path / 'c.yaml'}").out == text.out


def test_config_describes_every_key(zoo: Zoo) -> None:
    lines = zoo("config", TASK, "--describe", "optim.lr=0.5").out.splitlines()
    where = lines.index("optim.lr=0.5")
    assert lines[where + 1].strip() == "learning rate at the start of the cosine"
    assert len(lines) > 80
    assert "model.inner=32" in lines


def test_doctor(zoo: Zoo) -> None:
    rows = {row["part"]: row for row in json.loads(zoo("doctor", "--json").out)}
    assert rows["zoo"]["detail"].startswith(__version__)
    assert rows["torch"]["ok"] is True
    assert {"cores", "memory", "cache", "workspace", "MLflow", "Triton"} <= rows.keys()
    text = zoo("doctor")
    assert (text.code, text.err) == (0, "")
    assert len(text.out.splitlines()) == len(rows)
    for name, row in rows.items():
        if row["ok"] is False and "pip install" in row["detail"]:
            assert f"{name} " in text.out


def test_doctor_says_what_a_broken_package_needs(
    zoo: Zoo, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "captum.py").write_text("raise OSError('libx.so:\\n cannot open')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "captum", raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:hunter2@host/")
    text = zoo("doctor").out
    assert "libx.so: cannot open; pip install '.[explain]'" in text
    assert "hunter2" not in text


def test_version_and_help(zoo: Zoo) -> None:
    assert zoo("--version").out == f"zoo {__version__}\n"
    for words in ((), ("data",), ("runs",), ("train",), ("eval",)):
        text = zoo(*words, "--help")
        assert text.code == 0
        assert text.out.startswith(f"Usage: {' '.join(['zoo', *words])}")
    for words in ((), ("data",)):
        text = zoo(*words)
        assert (text.code, text.out) == (2, "")
        assert text.err.startswith("Usage: zoo")


def test_completion_prints_a_script(zoo: Zoo) -> None:
    text = zoo("completion").out
    assert "complete -o default -F _zoo_complete zoo" in text
    assert zoo("complete-line", "--", "zoo train task=ws").out == "task=wsi_mil\n"


# -- data ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample data set with its defects, as the command writes it."""
    out = tmp_path_factory.mktemp("sample") / "bags"
    text = good("data", "sample", TASK, f"out={out}", "defects=true").out
    count = sum(1 for p in out.rglob("*") if p.is_file())
    assert text.splitlines()[0].startswith(f"{out}: {count} files, ")
    assert text.splitlines()[1] == f"zoo train task=wsi_mil preset=sample data.root={out}"
    assert [p.name for p in out.parent.iterdir()] == ["bags"]
    return out


def test_sample_refuses_a_folder_that_is_not_empty(zoo: Zoo, tmp_path: Path) -> None:
    (tmp_path / "bags").mkdir()
    (tmp_path / "bags" / "mine.txt").write_text("precious")
    text = one_line("data", "sample", TASK, f"out={tmp_path / 'bags'}")
    assert "bags is there already and not empty" in text
    (tmp_path / "file").write_text("x")
    assert "is there already" in one_line("data", "sample", TASK, f"out={tmp_path / 'file'}")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["bags", "file", "mine.txt"]


def test_sample_words(zoo: Zoo, tmp_path: Path, announced: str) -> None:
    out = f"out={tmp_path / 'x'}"
    assert "needs task=NAME and out=DIR" in one_line("data", "sample", TASK)
    assert "not 'seed=3'" in one_line("data", "sample", TASK, out, "seed=3")
    assert "defects=maybe: should be true" in one_line("data", "sample", TASK, out, "defects=maybe")
    assert "'soon' is announced" in one_line("data", "sample", f"task={announced}", out)
    assert [p.name for p in tmp_path.iterdir()] == ["announced"]


def test_sample_that_fails_leaves_nothing(
    zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(out: Path, defects: bool = False) -> None:
        (out / "half").write_text("x")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sample, "write", broken)
    assert "No space left" in one_line("data", "sample", TASK, f"out={tmp_path / 'x'}", code=1)
    assert [p.name for p in tmp_path.iterdir() if not p.name.endswith(".lock")] == []


def test_check_of_the_sample_finds_nothing_wrong(zoo: Zoo, work: Workspace) -> None:
    text = zoo("data", "check", TASK, f"data.root={work.bags}")
    assert text.code == 0
    assert text.out.endswith("0 errors, 0 warnings\n")
    assert "train: 8 slides" in text.out
    assert "32 features an instance" in text.out
    full = zoo("data", "check", TASK)
    assert (full.code, full.out.splitlines()[-1]) == (0, "0 errors, 0 warnings")


def test_check_names_every_defect(zoo: Zoo, written: Path) -> None:
    text = zoo("data", "check", TASK, f"data.root={written}")
    assert text.code == 2
    lines = [line for line in text.out.splitlines() if line.startswith(("error", "warning"))]
    names = {p.stem for p in written.rglob("defect_*")} | {"defect_no_features", "defect_unknown"}
    assert len(names) == 8
    for name in names:
        assert sum(name in line for line in lines) == 1, name
    errors = [line for line in lines if line.startswith("error")]
    assert text.out.splitlines()[-1] == f"{len(errors)} errors, {len(lines) - len(errors)} warnings"
    assert len(errors) == 7  # a slide without label is a warning
    skipped = zoo("data", "check", TASK, f"data.root={written}", "data.on_error=skip")
    assert (skipped.code, "0 errors, 8 warnings" in skipped.out) == (0, True)


def test_check_tells_leakage(zoo: Zoo, tmp_path: Path) -> None:
    slides = sample.slides(0, SMALL)
    sample.write_clam(tmp_path, slides)
    path = tmp_path / "dataset_csv" / "sample.csv"
    with path.open() as file:
        rows = list(csv.reader(file))
    for row in rows[1:]:
        if row[1] in (slides[0].id, slides[-1].id):
            row[0] = "same_patient"
    with path.open("w") as file:
        csv.writer(file).writerows(rows)
    text = zoo("data", "check", TASK, f"data.root={tmp_path}")
    assert text.code == 2
    assert text.out.count("same_patient") == 1
    assert "both 'train' and 'test'" in text.out


def test_prepare_of_a_task_that_reads_files_as_they_are(zoo: Zoo, tmp_path: Path) -> None:
    assert "needs out=DIR" in one_line("data", "prepare", "task=rgbd_sod")
    told = one_line("data", "prepare", "task=rgbd_sod", f"out={tmp_path / 'x'}")
    assert "nothing to prepare" in told
    assert not list(tmp_path.iterdir())


# -- training and what follows ------------------------------------------------------------------


def test_training_says_and_writes_what_it_did(work: Workspace) -> None:
    lines = work.said.splitlines()
    assert lines[0] == f"wsi_mil, preset sample, data {work.bags}"
    assert lines[1].startswith(f"run {work.first.path}")
    assert "epoch 1/1" in work.said
    assert lines[-1] == f"report {work.first.path / 'report.html'}"
    assert work.first.status == work.second.status == "finished"
    for name in ("config.yaml", "metrics.jsonl", "report.html", "predictions/test/predictions.csv"):
        assert (work.first.path / name).is_file()
    assert not list(work.out.rglob(".writing*"))


def test_training_is_tracked(work: Workspace) -> None:
    uri = f"sqlite:///{work.out / 'mlflow.db'}"
    assert work.first.mlflow_id
    assert work.second.mlflow_id is None
    logged = {name for name, _ in histories(uri, work.first.mlflow_id)}
    assert {"train/loss", "val/auc", "test/auc", "test/instance_auc"} <= logged


def test_quiet_says_nothing(zoo: Zoo, work: Workspace, tmp_path: Path) -> None:
    text = zoo(
        "train",
        TASK,
        "preset=sample",
        f"data.root={work.bags}",
        f"out={tmp_path}",
        "trainer.max_steps=1",
        "tracking.enabled=false",
        "-q",
    )
    assert (text.code, text.out, text.err) == (0, "", "")


def test_runs(zoo: Zoo, work: Workspace) -> None:
    text = zoo("runs", "--out", work.out).out
    assert [work.first.name in text, work.second.name in text] == [True, True]
    rows = {row["run"]: row for row in json.loads(zoo("runs", "--json", "--out", work.out).out)}
    first = rows[work.first.name]
    assert (first["state"], first["preset"], first["seed"]) == ("finished", "sample", 1)
    assert first["mlflow"] == work.first.mlflow_id
    assert first["result"].startswith("test/auc ")


def test_runs_of_an_empty_place(zoo: Zoo, tmp_path: Path) -> None:
    assert zoo("runs", "--out", tmp_path / "none").out == f"no runs in {tmp_path / 'none'}\n"
    assert json.loads(zoo("runs", "--json", "--out", tmp_path).out) == []
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "run.json").write_text("{")
    assert zoo("runs", "--out", tmp_path).out.startswith("no runs")
    assert not (tmp_path / "none").exists()


def test_compare(zoo: Zoo, work: Workspace) -> None:
    words = [work.first.name, work.second.name[-6:], "--out", work.out]
    body = json.loads(zoo("compare", *words, "--json").out)
    settings = {row["setting"]: row for row in body["settings"]}
    assert {"seed", "trainer.epochs", "trainer.max_steps"} <= settings.keys()
    assert not [name for name in settings if name.startswith("data")]
    assert settings["seed"][work.second.name] == "2"
    results = {row["metric"]: row for row in body["results"]}
    row = results["test/auc"]
    first, second = (run.results()["test/auc"] for run in (work.first, work.second))
    assert row["difference"] == pytest.approx(second - first)
    text = zoo("compare", *words).out
    assert "settings that differ" in text
    assert "test/auc" in text
    assert "the settings are the same" in zoo("compare", words[0], words[0], *words[2:]).out


def test_compare_of_what_cannot_be_compared(work: Workspace) -> None:
    assert "two runs or more" in one_line("compare", work.first.name, "--out", work.out)
    text = one_line("compare", work.first.name, "nothing", "--out", work.out)
    assert f"no run 'nothing' (folder, name or MLflow id) in {work.out}" in text
    assert work.second.name in text


def test_eval_gives_the_result_of_the_training(zoo: Zoo, work: Workspace, tmp_path: Path) -> None:
    name = str(work.first.mlflow_id)
    text = zoo("eval", f"weights={name}", f"out={work.out}", f"predict.out={tmp_path / 'e'}")
    assert text.code == 0, text.err
    assert "test/auc" in text.out
    assert f"written to {tmp_path / 'e'}" in text.out
    measured = json.loads((tmp_path / "e" / "metrics.json").read_text())
    for key, value in work.first.results().items():
        assert measured[key] == pytest.approx(value), key
    assert (tmp_path / "e" / "figures" / "test_roc.png").is_file()


def test_eval_of_another_split_and_wrong_ones(zoo: Zoo, work: Workspace, tmp_path: Path) -> None:
    words = ["eval", f"weights={work.first.path}", f"predict.out={tmp_path / 'e'}"]
    text = zoo(*words, "--split", "val")
    assert "val/auc" in text.out
    assert "test/auc" not in text.out
    assert "splits are train, val, test" in one_line(*words, "--split", "valid")
    assert "weights= is missing" in one_line("eval", TASK)
    assert "no run 'x'" in one_line("eval", "weights=x", f"out={work.out}")
    assert "of task 'wsi_mil', not 'her_seg'" in one_line(*words, "task=her_seg")
    assert "cannot score foreign" in one_line("eval", TASK, f"predict.foreign={tmp_path}")
    assert "no such file" in one_line("eval", TASK, f"predict.foreign={tmp_path / 'none'}")


def test_predict_writes_labels_and_attention(zoo: Zoo, work: Workspace, tmp_path: Path) -> None:
    files = sorted((work.bags / "features" / "h5_files").glob("*.h5"))[:2]
    given = f"input=[{files[0]}, {files[1]}]"
    out = tmp_path / "p"
    text = zoo("predict", f"weights={work.first.path}", given, f"predict.out={out}")
    assert text.code == 0, text.err
    assert "Not for diagnosis" in text.out
    with (out / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == [f.stem for f in files]
    stored = json.loads((out / "predictions.json").read_text())
    assert [row["id"] for row in stored] == [row["id"] for row in rows]
    for row, path in zip(rows, files, strict=True):
        assert row["predicted"] in sample.CLASSES
        shares = [float(row[f"p_{name}"]) for name in sample.CLASSES]
        assert sum(shares) == pytest.approx(1)
        with h5py.File(out / "dense" / path.name) as file, h5py.File(path) as source:
            np.testing.assert_array_equal(file["coords"][()], source["coords"][()])
            assert file["attention"][()].sum() == pytest.approx(1, abs=1e-5)


def test_predict_without_dense_output(zoo: Zoo, work: Workspace, tmp_path: Path) -> None:
    out = tmp_path / "p"
    words = [f"weights={work.first.path}", f"predict.out={out}", "predict.dense=false"]
    text = zoo("predict", *words, f"input={work.bags / 'features'}", "--quiet")
    assert (text.code, text.out) == (0, "")
    assert sorted(p.name for p in out.iterdir()) == [
        "NOTICE.txt",
        "predictions.csv",
        "predictions.json",
    ]


def test_predict_words(work: Workspace, tmp_path: Path) -> None:
    words = ["predict", f"weights={work.first.path}", f"predict.out={tmp_path / 'p'}"]
    assert "needs input=PATH" in one_line(*words)
    assert "x.h5: there is no such file" in one_line(*words, f"input={tmp_path / 'x.h5'}")
    assert "input: '[a' is not valid YAML" in one_line(*words, "input=[a")
    assert "did you mean 'predict.dense'" in one_line(
        *words, f"input={tmp_path}", "predict.dens=false"
    )
    assert "weights= is missing" in one_line("predict", f"input={tmp_path}")
    assert not list(tmp_path.iterdir())


# -- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["foo"], "zoo: No such command 'foo'. See 'zoo --help'."),
        (["data", "foo"], "zoo data: No such command 'foo'. See 'zoo data --help'."),
        (["list", "--nope"], "zoo list: No such option: --nope"),
        (["info"], "zoo info: Missing argument"),
        (["train", TASK, "--out", "x"], "No such option: --out"),
        (["cv", TASK, "--seeds", "1,x"], "--seeds 1,x: should be whole numbers"),
        (["train", TASK, "optim.lrr=1"], "unknown key 'optim.lrr'; did you mean 'optim.lr'?"),
        (["train"], "task=NAME is missing"),
        (["train", "wsi_mil"], "did you mean 'task=wsi_mil'?"),
    ],
)
def test_usage_errors_are_told(zoo: Zoo, words: list[str], told: str) -> None:
    result = zoo(*words)
    assert (result.code, result.out) == (2, "")
    assert told in result.err
    assert all(line.startswith("error: ") for line in result.err.splitlines())


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Make `zoo list` raise something."""

    def raising(error: BaseException) -> None:
        def fail() -> None:
            raise error

        monkeypatch.setattr(registry, "tasks", fail)

    return raising


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (ConfigError("a\nb"), 2, "error: a\nerror: b\n"),
        (TrainingError("loss is nan"), 1, "error: loss is nan\n"),
        (KeyError("x"), 1, "error: KeyError: 'x'; --debug shows more\n"),
        (ValueError("two\nlines"), 1, "error: ValueError: two lines; --debug shows more\n"),
        (MemoryError(), 1, "error: MemoryError: ; --debug shows more\n"),
        (KeyboardInterrupt(), 130, "error: interrupted\n"),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, BaseException) else "",
)
def test_exit_codes(zoo: Zoo, failing: Any, error: BaseException, code: int, told: str) -> None:
    failing(error)
    result = zoo("list")
    assert (result.code, result.out) == (code, "")
    assert result.err.lstrip("\n") == told


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("error", [ConfigError("wrong"), KeyError("x")])
def test_debug_shows_the_traceback(failing: Any, error: Exception, place: int) -> None:
    failing(error)
    words = ["list"]
    words.insert(place, "--debug")
    with pytest.raises(type(error)):
        run_zoo(*words)


def test_red_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert program.main(["foo"]) == 2
    assert capsys.readouterr().err.startswith("\x1b[31merror: ")
    monkeypatch.setenv("NO_COLOR", "1")
    program.main(["foo"])
    assert capsys.readouterr().err.startswith("error: ")


# -- what starts quickly ------------------------------------------------------------------------

_LIGHT = """
import sys
from zoo.cli.main import main
for words, code in (
    (["--help"], 0), (["train", "--help"], 0), (["list"], 0), (["info", "wsi_mil"], 0),
    (["config", "task=wsi_mil"], 0), (["config", "task=wsi_mil", "--describe"], 0),
    (["train", "task=wsi_mil", "optim.lrr=1"], 2), (["cv", "task=wsi_mil", "seed=x"], 2),
    (["complete-line", "--", "zoo train task=wsi_mil "], 0), (["completion"], 0),
):
    got = main(words)
    heavy = {"torch", "mlflow", "pandas", "matplotlib", "lightning_fabric"} & sys.modules.keys()
    assert got == code and not heavy, (words, got, heavy)
"""


def test_light_commands_import_neither_torch_nor_mlflow() -> None:
    done = subprocess.run([sys.executable, "-c", _LIGHT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_installed_program(tmp_path: Path) -> None:
    """The script itself: exit code and streams, and a reader that goes away early."""
    zoo = Path(sys.executable).with_name("zoo")
    wrong = subprocess.run([zoo, "config", TASK, "sed=1"], capture_output=True, text=True)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr == "error: unknown key 'sed'; did you mean 'seed'?\n"
    listed = subprocess.Popen(
        [zoo, "config", TASK, "--describe"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert listed.stdout is not None
    assert listed.stderr is not None
    listed.stdout.close()
    assert b"Traceback" not in listed.stderr.read()
    listed.stderr.close()
    listed.wait()
    assert not list(tmp_path.iterdir())


def test_written_once_waits_for_another_writer(tmp_path: Path) -> None:
    """Two processes that need the same data set write it once."""
    import threading

    calls = []

    def write(folder: Path) -> None:
        calls.append(folder)
        time.sleep(0.05)
        (folder / "x").write_text("whole")

    threads = [
        threading.Thread(target=written_once, args=(tmp_path / "set", write)) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert (tmp_path / "set" / "x").read_text() == "whole"
