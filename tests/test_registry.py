"""The list of tasks: wrong entries are named, and every task that is built works end to end."""

import csv
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import zoo
from zoo import checkpoint, registry
from zoo.config import BaseConfig, resolve
from zoo.errors import ConfigError
from zoo.inference import evaluate_run, predict_paths
from zoo.progress import Reporter
from zoo.runs import Run
from zoo.task import Task
from zoo.training import begin, train

BUILT = [name for name, entry in registry.tasks().items() if entry.built]
ENTRY: dict[str, Any] = {
    "title": "Mine",
    "domain": "medical",
    "system": "MINE",
    "summary": "A task of my own.",
    "paper": {"title": "On mine", "url": "https://example.org"},
}
QUIET = Reporter(quiet=True)


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No registry of a test outlives it."""
    monkeypatch.delenv("ZOO_REGISTRY", raising=False)
    yield
    registry._load.cache_clear()


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Write a registry of one's own and name it in `ZOO_REGISTRY`."""

    def write(body: Any) -> Path:
        path = tmp_path / "mine.yaml"
        path.write_text(body if isinstance(body, str) else yaml.safe_dump(body))
        monkeypatch.setenv("ZOO_REGISTRY", str(path))
        return path

    return write


def refused() -> str:
    with pytest.raises(ConfigError) as caught:
        registry.tasks()
    text = str(caught.value)
    assert "\n" not in text
    return text


# -- what is wrong is named ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"title": None}, ["tasks.mine.title"]),
        ({"colour": "red"}, ["tasks.mine.colour"]),
        ({"paper": {"title": "x"}}, ["tasks.mine.paper.url"]),
        ({"code": "no colon"}, ["tasks.mine.code"]),
        ({"config": "a.b:c:d"}, ["tasks.mine.config"]),
        ({"aliases": ["Big"]}, ["tasks.mine.aliases.0"]),
        ({"presets": {"paper": {"set": {}}}}, ["tasks.mine.presets.paper.summary"]),
        ({"presets": {"Paper": {"summary": "x"}}}, ["tasks.mine.presets.Paper"]),
        (
            {"published": [{"dataset": "d", "metric": "m", "value": 1}]},
            ["tasks.mine.published.0.source"],
        ),
        (
            {"scores": [{"dataset": "d", "metric": "m", "value": 1}]},
            ["tasks.mine.scores.0.command"],
        ),
        (
            {"weights": {"w": {"urls": ["u"], "format": "zip", "licence": "MIT", "source": "s"}}},
            ["tasks.mine.weights.w.summary", "tasks.mine.weights.w.format"],
        ),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_wrong_entries_are_named_by_their_path(
    own: Any, change: dict[str, Any], words: list[str]
) -> None:
    path = own({"format": 1, "tasks": {"mine": ENTRY | change}})
    text = refused()
    assert str(path) in text
    for word in words:
        assert f"{word}" in text


def test_every_wrong_entry_is_told_at_once(own: Any) -> None:
    own({"format": 2, "tasks": {"mine": ENTRY | {"title": None}, "Other": ENTRY}})
    text = refused()
    assert all(word in text for word in ("format", "tasks.mine.title", "tasks.Other"))


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ("tasks: [", "not valid YAML"),
        ("- 1\n", "(top level)"),
        ("", "(top level)"),
        ("format: 1\n", "tasks"),
        ("!!python/object/apply:os.system ['true']", "not valid YAML"),
    ],
)
def test_files_that_are_no_registry(own: Any, body: str, word: str) -> None:
    path = own(body)
    text = refused()
    assert str(path) in text
    assert word in text


def test_a_registry_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ZOO_REGISTRY", str(tmp_path / "none.yaml"))
    assert "none.yaml: cannot be read (No such file" in refused()


# -- names --------------------------------------------------------------------------------------


def test_unknown_task_is_told_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown task 'wsi_mill'; did you mean 'wsi_mil'\?"):
        registry.find("wsi_mill")
    with pytest.raises(ConfigError, match=r"unknown task 'qqq'; tasks are: wsi_mil, her_seg"):
        registry.find("qqq")


def test_alias_names_the_task() -> None:
    assert registry.find("acmil") == registry.find("wsi_mil")
    assert resolve(["task=acmil"]).config.task == "wsi_mil"


def test_announced_task_is_not_built(announced: str) -> None:
    with pytest.raises(ConfigError, match=rf"'{announced}' is announced but not built.*wsi_mil"):
        registry.built(announced)


def test_every_task_of_the_zoo_is_built() -> None:
    assert all(entry.built for entry in registry.tasks().values())


def test_names_and_aliases_are_unique() -> None:
    labels = [x for n, e in registry.tasks().items() for x in (n, *e.aliases)]
    assert len(labels) == len(set(labels))


@pytest.mark.parametrize(
    ("tasks", "told"),
    [
        ({"wsi_mil": ENTRY}, "task 'wsi_mil' is already in the zoo"),
        ({"acmil": ENTRY}, "'acmil' names both 'wsi_mil' and 'acmil'"),
        ({"mine": ENTRY | {"aliases": ["reid"]}}, "'reid' names both 'fusion_reid' and 'mine'"),
        ({"mine": ENTRY | {"aliases": ["a", "a"]}}, "'a' names both 'mine' and 'mine'"),
    ],
)
def test_a_name_is_given_once(own: Any, tasks: dict[str, Any], told: str) -> None:
    own({"format": 1, "tasks": tasks})
    assert told in refused()


# -- a registry of one's own --------------------------------------------------------------------


def test_own_registry_adds_a_task(own: Any) -> None:
    path = own(
        {
            "format": 1,
            "tasks": {
                "mine": ENTRY
                | {
                    "aliases": ["my"],
                    "config": "zoo_test_own:Config",
                    "code": "zoo_test_own:Mine",
                    "card": "mine.md",
                    "presets": {"sample": {"summary": "s", "set": {"model": {"width": 3}}}},
                }
            },
        }
    )
    path.with_name("mine.md").write_text("# mine, a card")
    path.with_name("zoo_test_own.py").write_text(
        "from pydantic import Field\n"
        "from zoo.config import BaseConfig, Section\n"
        "class Net(Section):\n"
        "    width: int = Field(1, description='width')\n"
        "class Config(BaseConfig):\n"
        "    model: Net = Field(default_factory=Net, description='network')\n"
        "class Mine:\n"
        "    def __init__(self, config): self.config = config\n"
    )
    assert "wsi_mil" in registry.tasks()
    resolved = resolve(["task=my"])
    assert resolved.config.flat()["model.width"] == 3
    assert resolved.entry.card_text() == "# mine, a card"
    assert type(zoo.get_task("mine")).__name__ == "Mine"
    with pytest.raises(ConfigError, match=r"did you mean 'model.width'"):
        resolve(["task=mine", "model.widht=2"])


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ("zoo_no_such_module:Config", "tasks.mine.config: module 'zoo_no_such_module' not found"),
        ("zoo.config:Confg", "tasks.mine.config: module 'zoo.config' has no 'Confg'"),
        ("zoo.nothing.here:X", "tasks.mine.config: module 'zoo.nothing.here' not found"),
    ],
)
def test_wrong_dotted_names(own: Any, config: str, told: str) -> None:
    own({"format": 1, "tasks": {"mine": ENTRY | {"config": config, "code": "zoo.task:Task"}}})
    with pytest.raises(ConfigError, match=re.escape(told)):
        resolve(["task=mine"])


def test_missing_dependency_of_a_task_is_another_message(own: Any) -> None:
    path = own(
        {
            "format": 1,
            "tasks": {
                "mine": ENTRY
                | {
                    "config": "zoo.config:BaseConfig",
                    "code": "zoo_test_needy:Mine",
                    "extras": ["pathology"],
                    "presets": {"sample": {"summary": "s"}},
                }
            },
        }
    )
    path.with_name("zoo_test_needy.py").write_text("import zoo_no_such_package\n")
    with pytest.raises(
        ConfigError, match=r"needs the package 'zoo_no_such_package'.*pip install.*pathology"
    ):
        train(begin(["task=mine"]), QUIET)


# -- every task that is built -------------------------------------------------------------------


@pytest.fixture(scope="module", params=BUILT)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def run(name: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two steps on the task's own sample data set."""
    out = tmp_path_factory.mktemp(name)
    words = [f"task={name}", f"out={out}", "trainer.max_steps=2", "tracking.enabled=false"]
    return train(begin(words), QUIET)


def test_configurations_need_no_torch() -> None:
    code = (
        "import sys; from zoo import registry\n"
        "for n, e in registry.tasks().items():\n"
        "    if e.built: registry.load_object(e.config, n)\n"
        "print(*sorted({'torch', 'mlflow', 'pandas', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_every_preset_resolves(name: str) -> None:
    entry = registry.tasks()[name]
    assert {"paper", "sample"} <= set(entry.presets)
    for preset, body in entry.presets.items():
        assert body.summary
        config = resolve([f"task={name}", f"preset={preset}"]).config
        assert config.preset == preset


def test_config_and_code_fit_together(name: str) -> None:
    entry = registry.tasks()[name]
    kind = registry.load_object(entry.config or "", name)
    code = registry.load_object(entry.code or "", name)
    assert issubclass(kind, BaseConfig)
    assert issubclass(code, Task)
    assert set(kind.model_fields) >= set(BaseConfig.model_fields)
    assert (entry.domain == "medical") == code.medical


def test_card_is_there_and_says_something(name: str) -> None:
    text = registry.tasks()[name].card_text()
    assert text.startswith("#")
    assert len(text.split()) > 150
    assert "{{" not in text  # a figure that was still to be filled in
    assert registry.tasks()[name].paper.url.rsplit("/", 1)[-1] in text
    if registry.tasks()[name].domain == "medical":
        assert re.search(r"(?i)not for diagnos", text)


@pytest.mark.parametrize("task", list(registry.tasks()))
def test_figures_have_a_source(task: str) -> None:
    entry = registry.tasks()[task]
    assert entry.title
    assert entry.summary
    assert entry.paper.url.startswith("https://")
    for published in entry.published:
        assert len(published.source) > 5
        assert published.dataset
        assert published.metric
    for score in entry.scores:
        assert score.command.startswith("zoo ")
    for weights in entry.weights.values():
        assert weights.licence
        assert weights.source
        assert weights.preset in entry.presets


def test_files_named_by_the_registry_ship_with_the_package(name: str) -> None:
    entry = registry.tasks()[name]
    assert entry.card is not None
    assert resources.files("zoo").joinpath(entry.card).is_file()


def test_task_trains_two_steps(run: Run, name: str) -> None:
    assert run.status == "finished"
    assert run.info["task"] == name
    assert run.info["steps"] == 2
    assert any(key.startswith("test") for key in run.results())
    assert run.info["parameters"]["parameters"] <= 2_500_000
    assert (run.path / "report.html").stat().st_size > 5000
    steps = {row["step"] for row in run.metrics()}
    assert max(steps) == 2


def test_saved_weights_are_those_that_were_scored(run: Run) -> None:
    stored = checkpoint.best(run.checkpoints)
    assert stored.meta["config"] == run.config()
    rows, out = evaluate_run([f"weights={run.path}", f"out={run.path.parent}"], "", QUIET)
    assert {r["metric"]: pytest.approx(r["value"], nan_ok=True) for r in rows} == run.results()
    assert out.parent == run.path.parent


def test_training_moved_every_weight(run: Run, name: str) -> None:
    stored = checkpoint.best(run.checkpoints)
    task = zoo.get_task(name)
    torch.manual_seed(0)
    model = task.model(stored.meta["facts"])
    fresh = dict(model.state_dict())
    assert set(fresh) == set(stored.model)
    assert all(torch.isfinite(v).all() for v in stored.model.values() if v.is_floating_point())
    model.load_state_dict(stored.model, strict=True)


def test_task_predicts_on_files(run: Run, name: str, tmp_path: Path) -> None:
    """The sample data set's own folder is what any task must be able to predict on."""
    root = zoo.get_task(name).root()
    words = [f"weights={run.path}", f"out={run.path.parent}", f"predict.out={tmp_path / 'p'}"]
    words += ["predict.dense=false"]  # pictures of hundreds of items are the tasks' own tests
    rows, out = predict_paths(words, [root], QUIET)
    assert out == tmp_path / "p"
    assert rows
    with (out / "predictions.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(rows)
    if registry.tasks()[name].domain == "medical":
        assert "Not for diagnosis" in (out / "NOTICE.txt").read_text()
    assert len({r["id"] for r in rows}) == len(rows)


def test_sample_is_written_once_and_is_small(name: str) -> None:
    root = zoo.get_task(name).root()
    before = root.stat().st_mtime_ns
    assert zoo.get_task(name).root() == root
    assert root.stat().st_mtime_ns == before
    assert sum(p.stat().st_size for p in root.rglob("*") if p.is_file()) < 60e6
    # Written beside its name and renamed: nothing else is left there.
    assert not [p for p in root.parent.iterdir() if p.name.startswith(".")]
