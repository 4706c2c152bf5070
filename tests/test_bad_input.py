"""What users get wrong: one line with the file or key in it, exit code 2, and nothing left."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.running import Result, good, run_zoo
from zoo.domains.medical.wsi_mil import survey
from zoo.domains.medical.wsi_mil.bags import H5Bag
from zoo.domains.medical.wsi_mil.sample import Slide, slides, write_clam
from zoo.runs import Run

TASK = "task=wsi_mil"
MADE = slides(0, {"train": 8, "val": 4, "test": 6})
LARGE = next(s for s in MADE if s.part == "train" and len(s.features) > 5)


def everything(*folders: Path) -> set[str]:
    return {str(p) for folder in folders for p in [folder, *folder.rglob("*")]}


class Place:
    """A data set, a workspace that is not there yet, and an empty current folder."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.bags, self.out = base / "bags", base / "runs"
        self.here = base / "here"
        self.here.mkdir()
        write_clam(self.bags, MADE)

    def h5(self, slide: Slide = LARGE) -> Path:
        return self.bags / "features" / "h5_files" / f"{slide.id}.h5"

    def refused(self, *words: str, command: str = "train", data: bool = True) -> list[str]:
        """The lines a wrong command line gives; nothing may have been written anywhere."""
        before = everything(self.base)
        given = [TASK, f"data.root={self.bags}"] if data else []
        result = run_zoo(command, *given, f"out={self.out}", *words)
        assert everything(self.base) == before
        return lines_of(result)


def lines_of(result: Result) -> list[str]:
    assert result.code == 2, result
    lines = result.err.splitlines()
    assert lines
    assert all(line.startswith("error: ") for line in lines), result.err
    assert "Traceback" not in result.err
    return lines


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    made = Place(tmp_path)
    monkeypatch.chdir(made.here)
    return made


# -- settings -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("optim.lrr=1", "unknown key 'optim.lrr'; did you mean 'optim.lr'?"),
        ("trainer.epochs=many", "trainer.epochs='many': should be a valid integer"),
        ("model.arch=acmil", "model.arch='acmil': should be 'acmil_ga', 'acmil_mha'"),
        ("preset=papr", "preset='papr': the task has no such preset; presets: paper"),
        ("seed=[1", "seed: '[1' is not valid YAML"),
        ("config=none.yaml", "config file 'none.yaml' cannot be read (No such file"),
        ("resume=none", "no run 'none' (folder, name or MLflow id) in "),
        ("weights=none", "no run 'none' (folder, name or MLflow id) in "),
        ("data.features=nowhere", "nowhere"),
        ("data.labels=nowhere.csv", "nowhere.csv"),
        ("data.splits=nowhere", "nowhere"),
        ("data.fold=7", "no split file number 7"),
        ("data.layout=trident", "layout 'trident'"),
        ("data.classes=[a, b]", "data.classes"),
    ],
)
def test_wrong_settings(place: Place, word: str, told: str) -> None:
    lines = place.refused(word)
    assert len(lines) == 1
    assert told in lines[0]


def test_every_wrong_setting_is_one_line(place: Place) -> None:
    lines = place.refused("optim.lrr=1", "seed=x", "model.branch=2")
    assert len(lines) == 3


def test_an_unknown_form_of_blocks(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_KERNELS", "nothing")
    (line,) = place.refused()
    assert line.startswith("error: ZOO_KERNELS=nothing: should be one of auto, triton")


def test_unknown_task(place: Place) -> None:
    assert place.refused("task=wsi_mill", data=False) == [
        "error: unknown task 'wsi_mill'; did you mean 'wsi_mil'?"
    ]


@pytest.mark.parametrize("command", ["train", "cv"])
def test_missing_root(place: Place, command: str) -> None:
    root = place.base / "nowhere"
    (line,) = place.refused(TASK, f"data.root={root}", data=False, command=command)
    assert line == f"error: {root}: no such file or folder; set data.root to the data set"


def test_cross_validation_on_broken_data(place: Place) -> None:
    told = truncated(place)
    (line,) = place.refused("data.folds=2", command="cv")
    assert all(word in line for word in told)


def test_root_without_a_data_set(place: Place) -> None:
    (line,) = place.refused(TASK, f"data.root={place.here}", data=False)
    assert f"{place.here}: no features of any layout" in line


# -- data ---------------------------------------------------------------------------------------


def change(path: Path, **arrays: np.ndarray | None) -> None:
    with h5py.File(path, "a") as file:
        for name, values in arrays.items():
            del file[name]
            if values is not None:
                file[name] = values


def label_without_features(place: Place) -> list[str]:
    shutil.rmtree(place.bags / "splits")
    with (place.bags / "dataset_csv" / "sample.csv").open("a") as file:
        file.write("p,lonely,tumor_tissue\n")
    return ["sample.csv", "slide 'lonely' has a label but no features"]


def without_coords(place: Place) -> list[str]:
    change(place.h5(), coords=None)
    return [str(place.h5()), "no data set 'coords' beside the features", "extract"]


def not_a_number(place: Place) -> list[str]:
    features = LARGE.features.copy()
    features[4, 2] = np.nan
    change(place.h5(), features=features)
    return [str(place.h5()), "1 of", "NaN or infinite", "row 4", "extract the slide again"]


def infinite(place: Place) -> list[str]:
    features = LARGE.features.copy()
    features[0] = np.inf
    change(place.h5(), features=features)
    return [str(place.h5()), "NaN or infinite features", "row 0"]


def empty_bag(place: Place) -> list[str]:
    change(place.h5(), features=LARGE.features[:0], coords=LARGE.coords[:0])
    return [str(place.h5()), "the bag is empty", "leave the slide out"]


def unknown_slide(place: Place) -> list[str]:
    path = place.bags / "splits" / "sample" / "splits_0.csv"
    with path.open("a") as file:
        file.write("99,nobody,,\n")
    return ["splits_0.csv", "split 'train' names slide 'nobody'", "no features", "no label"]


def truncated(place: Place) -> list[str]:
    body = place.h5().read_bytes()
    place.h5().write_bytes(body[: len(body) // 2])
    return [str(place.h5()), "cannot be read as HDF5", "copy it again"]


def no_hdf5(place: Place) -> list[str]:
    place.h5().write_text("404: not found")
    return [str(place.h5()), "cannot be read as HDF5"]


def wrong_width(place: Place) -> list[str]:
    change(place.h5(), features=LARGE.features[:, :-1])
    return [str(place.h5()), "31 features an instance, other slides 32", "encoder"]


def patient_in_two_splits(place: Place) -> list[str]:
    path = place.bags / "dataset_csv" / "sample.csv"
    text = path.read_text()
    first, last = MADE[0], MADE[-1]
    for slide in (first, last):
        text = text.replace(f"{slide.patient},{slide.id},", f"one_patient,{slide.id},")
    path.write_text(text)
    return ["both 'train' and 'test'", "one_patient", "in one split only"]


def empty_table(place: Place) -> list[str]:
    (place.bags / "dataset_csv" / "sample.csv").write_text("case_id,slide_id,label\n")
    return ["sample.csv", "no rows"]


def path_in_a_table(place: Place) -> list[str]:
    with (place.bags / "dataset_csv" / "sample.csv").open("a") as file:
        file.write("p,../../etc/passwd,tumor_tissue\n")
    return ["sample.csv", "no plain name"]


DEFECTS: list[Callable[[Place], list[str]]] = [
    label_without_features,
    without_coords,
    not_a_number,
    infinite,
    empty_bag,
    unknown_slide,
    truncated,
    no_hdf5,
    wrong_width,
    patient_in_two_splits,
    empty_table,
    path_in_a_table,
]


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda f: f.__name__)
def test_broken_data(place: Place, defect: Callable[[Place], list[str]]) -> None:
    words = defect(place)
    (line,) = place.refused()
    for word in words:
        assert word in line


def test_every_broken_file_is_told(place: Place) -> None:
    for slide in MADE[:3]:
        place.h5(slide).write_text("x")
    lines = place.refused()
    assert [slide.id in line for slide, line in zip(MADE, lines, strict=False)] == [True] * 3


def test_very_many_broken_files_are_counted(place: Place) -> None:
    for slide in MADE[:14]:
        place.h5(slide).write_text("x")
    lines = place.refused()
    assert len(lines) == 11
    # All training slides are among them, which is told as well.
    assert lines[-1] == "error: … and 5 more; `zoo data check` lists all"


# -- values are looked at before anything is written --------------------------------------------


def words(place: Place, *more: str) -> list[str]:
    common = ["preset=sample", f"data.root={place.bags}", f"out={place.out}", "--quiet"]
    return ["train", TASK, *common, "trainer.max_steps=1", "tracking.enabled=false", *more]


def test_bags_are_read_once(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the check read stays in memory: a file that goes away after it is not missed."""
    read: list[str] = []
    original = H5Bag.read

    def counted(self: H5Bag) -> object:
        read.append(self.id)
        return original(self)

    monkeypatch.setattr(H5Bag, "read", counted)
    good(*words(place))
    assert sorted(read) == sorted(s.id for s in MADE)
    read.clear()
    good(*words(place, "data.in_memory=false"))
    assert len(read) > len(MADE) - 8
    assert read.count(next(s.id for s in MADE if s.part == "test")) == 1


def test_a_large_data_set_is_read_while_training(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the run says so and its folder tells that it failed."""
    not_a_number(place)
    monkeypatch.setattr(survey, "_READ_FIRST", 1000)
    more = ("trainer.max_steps=null", "trainer.epochs=1")
    (line,) = lines_of(run_zoo(*words(place, *more)))
    assert LARGE.id in line
    (run,) = (Run(p.parent) for p in place.out.glob("*/run.json"))
    assert run.status == "failed"


def test_broken_bags_are_skipped_on_demand(place: Place) -> None:
    not_a_number(place)
    result = good(*(w for w in words(place, "data.on_error=skip") if w != "--quiet"))
    assert "warning: skipped" in result.out
    assert LARGE.id in result.out


# -- prediction ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("trained")
    write_clam(base / "bags", MADE)
    common = ["train", TASK, "preset=sample", f"data.root={base / 'bags'}", "--quiet"]
    good(*common, f"out={base / 'runs'}", "trainer.max_steps=1", "tracking.enabled=false")
    (file,) = base.glob("runs/*/run.json")
    return file.parent


@pytest.mark.parametrize(
    "defect", [not_a_number, empty_bag, truncated, without_coords], ids=lambda f: f.__name__
)
def test_prediction_on_broken_files(
    place: Place, trained: Path, defect: Callable[[Place], list[str]]
) -> None:
    told = defect(place)
    given = [f"weights={trained}", f"input={place.bags / 'features'}"]
    (line,) = place.refused(*given, command="predict", data=False)
    assert all(word in line for word in told)
    target = f"predict.out={place.base / 'p'}"
    result = run_zoo("predict", *given, target, "data.on_error=skip")
    assert result.code == 0
    assert f"warning: skipped {place.h5()}" in result.out
    with (place.base / "p" / "predictions.csv").open() as file:
        assert len(file.readlines()) == len(MADE)  # a head line and all slides but one


def test_prediction_with_another_width(place: Place, trained: Path) -> None:
    for slide in MADE:
        change(place.h5(slide), features=slide.features[:, :-1])
    shutil.rmtree(place.bags / "features" / "pt_files")
    given = [f"weights={trained}", f"input={place.bags / 'features'}"]
    lines = place.refused(*given, command="predict", data=False)
    assert len(lines) == 11
    assert "31 features an instance, but the model was trained on 32 (synthetic-32)" in lines[0]


@pytest.mark.parametrize("name", ["model.safetensors", "meta.json"])
def test_damaged_weights(place: Place, trained: Path, name: str) -> None:
    run = place.base / "copy"
    shutil.copytree(trained, run)
    (path,) = run.rglob(name)
    path.write_bytes(path.read_bytes()[:-3] + b"xyz")
    given = [f"weights={run}", f"input={place.h5()}"]
    (line,) = lines_of(run_zoo("predict", *given, f"out={place.out}"))
    assert f"checkpoint {path.parent}: {name}" in line
    assert "use another checkpoint" in line
    assert not place.out.exists()


def test_a_workspace_that_cannot_be_written(place: Place) -> None:
    """A file where the workspace should be: told in a line, not by a traceback."""
    place.out.write_text("a file")
    (line,) = lines_of(run_zoo(*words(place)))
    assert line.startswith(f"error: out={place.out}: no run folder can be made there")
    assert place.out.read_text() == "a file"


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read anything")
def test_a_file_that_may_not_be_read(place: Place) -> None:
    place.h5().chmod(0)
    (line,) = place.refused()
    assert str(place.h5()) in line
