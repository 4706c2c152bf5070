"""Registering models, who gets the alias, and what is written down of it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from tests.running import good, histories, only_run, run_zoo, values
from tests.servers import Tracker, elsewhere, run_elsewhere, running, tracker
from zoo import checkpoint, packing, publishing, tracking
from zoo.errors import ZooError
from zoo.files import cache_dir
from zoo.promotion import (
    PENDING,
    PROMOTION,
    Measure,
    Registry,
    Verdict,
    measured,
    of_tags,
    verdict,
)
from zoo.runs import Run

NAME = "zoo-nothing"
ZOO = (sys.executable, "-c", "from zoo.cli.main import run; run()")
DATA = {"test": "d1"}


def measure(value: float | None, metric: str = "auc", **digests: str) -> Measure:
    return Measure(metric, value, "max", digests or DATA)


# -- the gate -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mine", "theirs", "force", "promoted", "state"),
    [
        (measure(0.8), measure(0.7), False, True, "better"),
        (measure(0.7), measure(0.7), False, False, "not better"),
        (measure(0.6), measure(0.7), False, False, "not better"),
        (measure(0.6), measure(0.7), True, True, "forced"),
        (measure(0.9), measure(0.7, test="d2"), False, False, "other data"),
        (measure(0.9), measure(0.7, test="d1", test_b="d3"), False, False, "other data"),
        (measure(0.9), measure(0.7, "dice"), False, False, "other metric"),
        (measure(None), measure(0.7), False, False, "no value"),
        (measure(0.1), measure(None), False, True, "better"),
        (measure(0.9), None, False, False, "not compared"),
        (Measure("mae", 1.0, "min", DATA), Measure("mae", 2.0, "min", DATA), False, True, "better"),
        (
            Measure("mae", 2.0, "min", DATA), Measure("mae", 1.0, "min", DATA), False, False,
            "not better",
        ),
    ],
)  # fmt: skip
def test_only_what_is_better_on_the_same_data_is_promoted(
    mine: Measure, theirs: Measure | None, force: bool, promoted: bool, state: str
) -> None:
    found = verdict(mine, theirs, "3", force)
    assert (found.promoted, found.state) == (promoted, state)
    assert "version 3" in found.why or state == "no value"
    assert ("--force" in found.why) == (not promoted)
    assert "\n" not in found.why


def test_the_first_version_is_promoted_whatever_its_value() -> None:
    assert verdict(measure(None), None, None, False).state == "first"


def test_a_run_is_judged_by_its_monitor_on_all_its_test_splits() -> None:
    results = {"test_a/mae": 0.2, "test_a/f": 0.5, "test_b/mae": 0.4, "test_b/f": 0.7}
    digests = {"test_a": "a", "test_b": "b"}
    found = measured(results, digests, ("mae", "min"))
    assert (found.metric, found.better, found.digests) == ("mae", "min", digests)
    assert found.value == pytest.approx(0.3)
    partly = {k: v for k, v in results.items() if k != "test_b/mae"}
    assert measured(partly, digests, ("mae", "min")).value is None
    assert measured({"test/auc": None}, DATA, ("auc", "max")).value is None


def test_without_a_monitor_a_usual_metric_is_taken_with_its_direction() -> None:
    results = {"test/loss": 1.0, "test/rank1": 0.5, "test/map": 0.4}
    assert measured(results, DATA, None) == Measure("map", 0.4, "max", DATA)
    assert measured({"test/hd95_mean": 3.0}, DATA, None).better == "min"
    assert measured(results, DATA, ("gone", "min")).metric == "map"
    assert measured({}, DATA, None) == Measure("", None, "max", DATA)


def test_measures_survive_tags() -> None:
    for one in (measure(1 / 3), measure(None), Measure("mae", 0.1, "min", {"test_a": "x"})):
        assert of_tags(one.tags()) == one
    assert of_tags({"zoo.metric": "auc"}) is None


# -- the registry -------------------------------------------------------------------------------


@pytest.fixture
def registry(tmp_path: Path, empty_store: Path) -> Registry:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    client.create_registered_model(NAME)
    return Registry(client, NAME)


def added(place: Registry, value: float, state: str = PENDING, **digests: str) -> str:
    tags = measure(value, **digests).tags() | {PROMOTION: state}
    return str(place.client.create_model_version(NAME, "nowhere", tags=tags).version)


def test_the_alias_moves_to_what_is_better_and_every_move_is_kept(registry: Registry) -> None:
    states = []
    for value, force in ((0.5, False), (0.4, False), (0.6, False), (0.3, True), (0.35, False)):
        states.append(registry.decide(added(registry, value), force).state)
    assert states == ["first", "not better", "better", "forced", "better"]
    assert registry.holder() == "5"
    assert [(m.version, m.former, m.why) for m in registry.history()] == [
        ("1", None, "first"), ("3", "1", "better"), ("4", "3", "forced"), ("5", "4", "better"),
    ]  # fmt: skip
    assert registry.history()[1].value == 0.6
    assert [v.tags[PROMOTION] for v in registry.versions()] == states


def test_other_test_data_are_registered_but_not_promoted(registry: Registry) -> None:
    registry.decide(added(registry, 0.5), False)
    found = registry.decide(added(registry, 0.9, test="other"), False)
    assert (found.promoted, registry.holder()) == (False, "1")
    assert "was tested on other data" in found.why


def test_rolling_back_goes_down_the_history_and_is_in_it(registry: Registry) -> None:
    for value in (0.5, 0.6, 0.7):
        registry.decide(added(registry, value), False)
    assert (registry.roll_back().version, registry.holder()) == ("2", "2")
    assert (registry.roll_back().version, registry.holder()) == ("1", "1")
    with pytest.raises(ZooError, match="no version had the alias before"):
        registry.roll_back()
    assert registry.roll_back("3").version == "3"
    assert [m.why for m in registry.history()][3:] == ["rollback"] * 3
    with pytest.raises(ZooError, match="no version 9; versions are 1, 2, 3"):
        registry.roll_back("9")
    with pytest.raises(ZooError, match="is version 3 already"):
        registry.roll_back("3")


def test_versions_are_decided_in_the_order_of_their_numbers(registry: Registry) -> None:
    first, second = added(registry, 0.5), added(registry, 0.4)
    done: list[Verdict] = []
    late = threading.Thread(target=lambda: done.append(registry.decide(second, False)))
    late.start()
    time.sleep(0.5)
    assert not done  # it waits for version 1, whose publisher is slow
    assert registry.decide(first, False).state == "first"
    late.join(20)
    assert [v.state for v in done] == ["not better"]
    assert registry.holder() == "1"


def test_a_publisher_that_died_holds_nobody_up(registry: Registry) -> None:
    dead, mine = added(registry, 0.9), added(registry, 0.5)
    registry.patience = 0.3
    assert registry.decide(mine, False).promoted
    assert registry.versions()[0].tags[PROMOTION] == "abandoned"
    assert registry.decide(dead, False).state == "better"  # published again, it is decided


def test_a_publisher_that_died_after_the_alias_moved_is_made_up_for(registry: Registry) -> None:
    mine = added(registry, 0.5)
    registry.move(mine, None, "first")
    assert registry.decide(mine, False).promoted
    assert registry.versions()[0].tags[PROMOTION] != PENDING
    assert len(registry.history()) == 1


# -- a run --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Run:
    """A stub's run: its model cannot be made into a graph, and it is not in MLflow yet."""
    from tests.running import STUBS

    out = tmp_path_factory.mktemp("recorded")
    (out / "mlflow.db").write_bytes(empty_store.read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZOO_REGISTRY", str(STUBS))
        good("train", "task=stub_bags", "preset=sample", f"out={out}", "tracking.enabled=false")
    return only_run(out)


@pytest.fixture
def workspace(recorded: Run, tmp_path: Path, stubs: None) -> Run:
    out = tmp_path / "runs"
    shutil.copytree(recorded.path.parent, out)
    return only_run(out)


def test_publishing_once_and_again(workspace: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    out = workspace.path.parent
    packed: list[Path] = []

    def pack(source: Any, folder: Path) -> dict[str, Any]:
        folder.mkdir()
        (folder / "MLmodel").write_text("flavors: {}\nutc_time_created: ''\n")
        packed.append(folder)
        return {}

    monkeypatch.setattr(packing, "pack", pack)
    first = good("publish", workspace.name, "--out", out).out
    assert f"{workspace.name} registered as zoo-stub_bags version 1" in first
    assert "promoted to zoo-stub_bags@champion: it is the first" in first
    assert f"{workspace.name} is already zoo-stub_bags version 1" in (
        good("publish", workspace.name, "--out", out).out
    )
    assert len(packed) == 1
    assert not packed[0].exists()
    client = MlflowClient(f"sqlite:///{out / 'mlflow.db'}")
    version = client.get_model_version_by_alias("zoo-stub_bags", "champion")
    assert version.run_id == Run(workspace.path).mlflow_id  # it was tracked on the way
    tags = version.tags
    digests = {d["name"]: d["digest"] for d in workspace.info["inputs"]}
    assert tags["zoo.digest.test"] == digests["stub_bags-test"]
    assert (tags["zoo.run"], tags["zoo.sample_data"]) == (workspace.name, "true")
    metric = tags["zoo.metric"]
    assert float(tags["zoo.value"]) == workspace.results()[f"test/{metric}"]
    assert "MIT" in tags["zoo.licence"]
    rows = json.loads(good("models", "--out", out, "--json").out)
    assert [(r["model"], r["version"], r["alias"]) for r in rows] == [
        ("zoo-stub_bags", "1", "champion")
    ]
    forced = good("publish", workspace.name, "--out", out, "--force", "--alias", "beta").out
    assert "promoted to zoo-stub_bags@beta: it is the first" in forced
    shown = json.loads(good("models", "history", "stub_bags", "--out", out, "--json").out)
    assert [m["version"] for m in shown] == ["1"]
    never = good("models", "history", "stub_bags", "--out", out, "--alias", "gamma").out
    assert never == "zoo-stub_bags@gamma was never given to a version\n"


@pytest.mark.parametrize(
    ("change", "words", "line"),
    [
        ({"status": "failed"}, [], "has failed"),
        ({"status": "interrupted"}, [], "is interrupted"),
        ({"status": "running"}, [], "still runs"),
        ({"cv": {}}, [], "publish one of its folds"),
        ({}, ["--alias", "v3"], "should be a word such as champion"),
        ({}, ["--uri", "http://u:hunter2@127.0.0.1:9"], "try `zoo runs sync` later"),
    ],
)
def test_what_is_not_published(
    workspace: Run, change: Mapping[str, Any], words: list[str], line: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    workspace.update(**change)
    failed = run_zoo("publish", workspace.name, "--out", workspace.path.parent, *words)
    assert failed.code in (1, 2)
    assert line in failed.err
    assert len(failed.err.splitlines()) == 1
    assert "hunter2" not in failed.err


def test_the_store_is_that_of_the_run_also_after_it_was_moved(
    workspace: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = workspace.path.parent
    source = packing.opened(workspace.name, out)
    assert source.task.config.out != out
    assert publishing.store_of(source) == f"sqlite:///{out / 'mlflow.db'}"
    (out / "mlflow.db").unlink()
    assert publishing.store_of(source) == f"sqlite:///{source.task.config.out / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://named")
    assert publishing.store_of(source) == "http://named"


def test_a_pickle_in_the_folder_stops_the_publisher(tmp_path: Path) -> None:
    import torch

    (tmp_path / "fine.safetensors").write_bytes(b"x")
    packing.no_pickle(tmp_path)
    torch.save({"a": torch.zeros(1)}, tmp_path / "model.bin")
    with pytest.raises(ZooError, match=r"model.bin: holds a pickle"):
        packing.no_pickle(tmp_path)


@pytest.mark.slow
def test_a_model_that_is_no_graph_brings_the_zoo_along(
    tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Elsewhere its own copy of the zoo predicts what `zoo predict` predicts here."""
    from zoo.domains.medical.wsi_mil.task import WsiMil
    from zoo.task import Export

    out = tmp_path / "runs"
    out.mkdir()
    shutil.copy(empty_store, out / "mlflow.db")
    good("train", "task=wsi_mil", "trainer.max_steps=2", f"out={out}")
    run = only_run(out)
    why = Export(why_not="it is a test")
    monkeypatch.setattr(WsiMil, "served", lambda self, model, facts: why)
    folder = tmp_path / "model"
    packing.pack(packing.opened(run.name, out), folder)
    assert "the zoo's code travels with it" in (folder / "artifacts" / "card.md").read_text()
    assert "it is a test" in (folder / "artifacts" / "card.md").read_text()
    (bag, *_) = sorted((cache_dir() / "samples").glob("wsi_mil-v*/**/*.h5"))
    good("predict", f"weights={run.path}", f"input={bag}", f"predict.out={tmp_path / 'here'}")
    code = (
        "import sys, mlflow, pandas as pd\n"
        "model = mlflow.pyfunc.load_model(sys.argv[1])\n"
        "made = model.predict(pd.DataFrame({'path': [sys.argv[2]]}))\n"
        "import zoo; assert zoo.__file__.startswith(sys.argv[1]), zoo.__file__\n"
        "print(made.to_json(orient='records'))\n"
    )
    told = run_elsewhere(elsewhere(tmp_path / "else"), code, str(folder), str(bag))
    (there,) = json.loads(told.splitlines()[-1])
    (here,) = json.loads((tmp_path / "here" / "predictions.json").read_text())
    assert there.keys() == here.keys()
    for key, value in here.items():
        assert there[key] == (pytest.approx(value) if isinstance(value, float) else value)
    failed = run_zoo("serve", folder, "--port", "0")
    assert "reads files where it runs and is not served over HTTP" in failed.err


# -- a real server ------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path: Path, empty_store: Path) -> Iterator[Tracker]:
    shutil.copy(empty_store, tmp_path / "server.db")
    with running(tracker(tmp_path, tmp_path / "server.db")) as up:
        yield up


@pytest.mark.slow
def test_two_trainers_that_promote_at_once_leave_one_champion(
    server: Tracker, tmp_path: Path
) -> None:
    outs = [tmp_path / "a", tmp_path / "b"]
    for out, steps in zip(outs, (1, 12), strict=True):
        good("train", "task=wsi_mil", f"trainer.max_steps={steps}", f"out={out}",
             f"tracking.uri={server.uri}")  # fmt: skip
    runs = [only_run(out) for out in outs]
    programs = [
        subprocess.Popen(
            [*ZOO, "publish", run.name, "--out", str(run.path.parent)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for run in runs
    ]  # fmt: skip
    told = [program.communicate(timeout=300)[0] for program in programs]
    assert [p.returncode for p in programs] == [0, 0], told
    place = Registry(MlflowClient(server.uri), "zoo-wsi_mil")
    versions = place.versions()
    assert {v.tags["zoo.run"] for v in versions} == {r.name for r in runs}
    assert [str(v.version) for v in versions] == ["1", "2"]
    assert all(v.tags[PROMOTION] in ("first", "better", "not better") for v in versions)
    best = max(versions, key=lambda v: (float(v.tags["zoo.value"]), -int(v.version)))
    assert place.holder() == str(best.version)
    promoted = [str(v.version) for v in versions if v.tags[PROMOTION] in ("first", "better")]
    assert [m.version for m in place.history()] == promoted


_RACE = """
import sys
from mlflow import MlflowClient
from zoo.promotion import PENDING, PROMOTION, Measure, Registry
client = MlflowClient(sys.argv[1])
for step in range(6):
    measure = Measure("auc", float(sys.argv[2]) + step / 100, "max", {"test": "d"})
    tags = measure.tags() | {PROMOTION: PENDING}
    source = f"runs:/{sys.argv[4]}/nothing"
    made = client.create_model_version(sys.argv[3], source, sys.argv[4], tags=tags)
    Registry(client, sys.argv[3]).decide(str(made.version), False)
"""


@pytest.mark.slow
def test_many_promotions_at_once_are_one_after_the_other(server: Tracker) -> None:
    client = MlflowClient(server.uri)
    client.create_registered_model(NAME)
    run = client.create_run("0").info.run_id
    words = [sys.executable, "-c", _RACE, server.uri]
    programs = [subprocess.Popen([*words, v, NAME, run]) for v in ("0.5", "0.515", "0.52")]
    assert [p.wait(300) for p in programs] == [0, 0, 0]
    place = Registry(client, NAME)
    versions, holder, expected = place.versions(), None, []
    assert len(versions) == 18
    for version in versions:  # as if one person had published them in this order
        value = float(version.tags["zoo.value"])
        if holder is None or value > holder:
            holder = value
            expected.append(str(version.version))
    assert [m.version for m in place.history()] == expected
    assert place.holder() == expected[-1]


@pytest.mark.slow
def test_a_server_that_restarts_in_the_middle_of_a_training_gets_every_value_once(
    server: Tracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from zoo.engine import Trainer

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(tracking, "_RETRY_SECONDS", 0.2)
    inner, steps = Trainer._update, []

    def counted(self: Trainer, *words: Any, **options: Any) -> Any:
        steps.append(time.monotonic())
        if len(steps) == 20:
            server.stop()
        if len(steps) == 60:
            server.start()
        return inner(self, *words, **options)

    monkeypatch.setattr(Trainer, "_update", counted)
    out = tmp_path / "runs"
    shown = good("train", "task=wsi_mil", "trainer.epochs=2", "trainer.log_every=1", f"out={out}",
                 f"tracking.uri={server.uri}")  # fmt: skip
    assert len(steps) > 80
    assert "not all was tracked" not in shown.out
    run = only_run(out)
    expected = {k: {v} for k, v in values(run, timed=True).items()}
    assert histories(server.uri, str(run.mlflow_id)) == expected
    client = MlflowClient(server.uri)
    for name in client.get_run(str(run.mlflow_id)).data.metrics:
        if not name.startswith("system/"):
            points = client.get_metric_history(str(run.mlflow_id), name)
            assert len(points) == len({p.step for p in points}), name
    assert len(client.search_runs(["1"])) == 1
    assert checkpoint.marked(run.checkpoints)["best"]
