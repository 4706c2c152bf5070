"""Layers, types and messages of the configuration."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from zoo import registry
from zoo.config import BaseConfig, choices, keys, parse, resolve, to_yaml
from zoo.errors import ConfigError

BUILT = [name for name, entry in registry.tasks().items() if entry.built]
TASK = "task=wsi_mil"


def errors(*words: str) -> list[str]:
    """The lines of the error that the words give."""
    with pytest.raises(ConfigError) as caught:
        resolve(words)
    assert caught.value.exit_code == 2
    return str(caught.value).splitlines()


def values(*words: str) -> dict[str, Any]:
    return resolve(words).config.flat()


@pytest.fixture
def file(tmp_path: Path) -> Any:
    def write(text: str) -> str:
        (tmp_path / "my.yaml").write_text(text)
        return f"config={tmp_path / 'my.yaml'}"

    return write


# -- layers -------------------------------------------------------------------------------------


def test_defaults_then_preset_then_file_then_words(file: Any) -> None:
    key = "optim.lr"
    config = file("optim: {lr: 0.5, weight_decay: 0.25}\ntrainer.epochs: 7\n")
    assert values(TASK, "preset=paper")[key] == 1e-4
    assert values(TASK, "preset=sample")[key] == 3e-3
    from_file = values(TASK, "preset=sample", config)
    assert (from_file[key], from_file["trainer.epochs"]) == (0.5, 7)
    both = values(TASK, "preset=sample", config, "optim.lr=0.75")
    assert (both[key], both["optim.weight_decay"], both["model.inner"]) == (0.75, 0.25, 32)
    # The order of the words does not matter, and of two equal keys the last one counts.
    assert values("optim.lr=0.75", config, TASK, "optim.lr=0.8")[key] == 0.8


def test_base_lies_below_words_and_brings_its_preset() -> None:
    base = resolve([TASK, "preset=abmil", "seed=5"]).config.stored()
    resolved = resolve(["optim.lr=0.5", "data.root=/elsewhere"], base)
    flat = resolved.config.flat()
    assert (flat["preset"], flat["seed"], flat["model.branches"]) == ("abmil", 5, 1)
    assert (flat["optim.lr"], flat["data.root"]) == (0.5, "/elsewhere")
    assert resolve(["preset=mha"], base).config.flat()["model.arch"] == "acmil_mha"


def test_preset_follows_from_the_data() -> None:
    sample, own = resolve([TASK]), resolve([TASK, "data.root=/d"])
    assert (sample.config.preset, sample.sample) == ("sample", True)
    assert (own.config.preset, own.sample) == ("paper", False)
    assert resolve([TASK, "preset=paper"]).sample
    assert sample.origin == "wsi_mil, preset sample, the sample data set"
    assert own.origin == "wsi_mil, preset paper, data /d"


def test_a_task_named_in_the_file(file: Any) -> None:
    assert values(file("task: acmil\nseed: 4\n"))["seed"] == 4


def test_configuration_is_frozen() -> None:
    config = resolve([TASK]).config
    with pytest.raises(ValidationError):
        config.seed = 3
    with pytest.raises(ValidationError):
        config.trainer.epochs = 3


def test_values_are_yaml() -> None:
    flat = values(
        TASK,
        "data.classes=[a, 2]",
        "data.merge={1: x}",
        "data.merge.y=z",
        "optim.lr=1e-4",
        "trainer.clip_norm=null",
        "trainer.max_steps=",
        "data.standardise=true",
        "tracking.tags={team: blue}",
    )
    assert flat["data.classes"] == ["a", "2"]
    assert (flat["data.merge.1"], flat["data.merge.y"]) == ("x", "z")
    assert flat["optim.lr"] == 1e-4
    assert flat["trainer.clip_norm"] is None
    assert flat["trainer.max_steps"] is None
    assert flat["data.standardise"] is True
    assert flat["tracking.tags.team"] == "blue"


def test_home_is_expanded() -> None:
    assert resolve([TASK, "data.root=~/d"]).config.data.root == Path.home() / "d"


# -- messages -----------------------------------------------------------------------------------


def test_all_errors_at_once(file: Any) -> None:
    config = file("modell: {branches: 2}\noptim: {lrr: 1}\n")
    lines = errors(
        TASK, config, "optim.wd=1", "seed=x", "trainer.epochs=0", "data.fold=[1", "model=3"
    )
    assert len(lines) == 7
    for start in (
        "data.fold: '[1' is not valid YAML",
        "unknown key 'modell.branches'; did you mean 'model.branches'?",
        "unknown key 'optim.lrr'; did you mean 'optim.lr'?",
        "unknown key 'optim.wd'",
        "seed='x': should be a valid integer",
        "trainer.epochs=0: should be greater than or equal to 1",
        "'model' is a section, not a value; its keys: model.arch",
    ):
        assert sum(line.startswith(start) for line in lines) == 1, start
    # A wrong key out of a file is said to be in that file.
    assert [line.endswith("my.yaml)") for line in lines].count(True) == 2


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("optim.lrr", "optim.lr"),
        ("trainer.epoch", "trainer.epochs"),
        ("lr", "optim.lr"),
        ("batch_size", "trainer.batch_size"),
        ("sed", "seed"),
        ("data.rooot", "data.root"),
        ("seed.x", "seed"),
    ],
)
def test_did_you_mean(given: str, meant: str) -> None:
    assert errors(TASK, f"{given}=1") == [f"unknown key '{given}'; did you mean '{meant}'?"]


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("trainer.epochs=1.5", "trainer.epochs=1.5: should be a valid integer"),
        ("optim.lr=fast", "optim.lr='fast': should be a valid number"),
        ("optim.lr=-1", "optim.lr=-1: should be greater than 0"),
        ("data.standardise=perhaps", "data.standardise='perhaps': should be a valid boolean"),
        ("data.layout=clem", "data.layout='clem': should be 'auto', 'acmil', 'clam'"),
        ("data.classes=a", "data.classes='a': should be a valid list"),
        ("tracking.tags=3", "tracking.tags=3: should be a valid dictionary"),
        ("trainer.checkpoint_every=soon", "trainer.checkpoint_every='soon': should be a number of"),
        ("trainer.checkpoint_every=0", "trainer.checkpoint_every=0: should be a number of steps"),
        ("data.root=2020-01-01", None),
        ("optim=null", "'optim' is a section, not a value"),
        ("preset=papr", "preset='papr': the task has no such preset; presets: paper, medical_ssl"),
        ("preset=[a]", "preset=['a']: the task has no such preset"),
        ("seed", "'seed' is not of the form key=value"),
        ("=3", "'=3' is not of the form key=value"),
        ("a b=3", "'a b=3' is not of the form key=value"),
        ("seed={", "seed: '{' is not valid YAML"),
        ("seed=!!python/name:os.system", "seed: '!!python/name:os.system' is not valid YAML"),
    ],
)
def test_wrong_values(word: str, told: str | None) -> None:
    if told is None:
        assert values(TASK, word)["data.root"] == "2020-01-01"
        return
    lines = errors(TASK, word)
    assert len(lines) == 1
    assert lines[0].startswith(told)


def test_wrong_task(announced: str) -> None:
    assert errors("task=wsi_mill") == ["unknown task 'wsi_mill'; did you mean 'wsi_mil'?"]
    assert errors()[0].startswith("task=NAME is missing; tasks are: wsi_mil")
    assert errors("tsk=wsi_mil")[0] == "unknown key 'tsk'; did you mean 'task'?"
    assert "did you mean 'task=wsi_mil'?" in errors("acmil")[0]
    assert "'soon' is announced but not built" in errors(f"task={announced}")[0]
    assert len(errors("task=nothing", "seed=[")) == 2


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "cannot be read (No such file or directory)"),
        ("a: [", "is not valid YAML"),
        ("- 1\n", "holds no mapping"),
        ("just words\n", "holds no mapping"),
        ("x: !!python/object/apply:os.system ['true']\n", "is not valid YAML"),
        (b"\xff\xfe\x00", "cannot be read"),
    ],
    ids=["missing", "broken", "list", "text", "python", "binary"],
)
def test_wrong_files(tmp_path: Path, text: str | bytes | None, told: str) -> None:
    path = tmp_path / "c.yaml"
    if text is not None:
        path.write_bytes(text.encode() if isinstance(text, str) else text)
    lines = errors(TASK, f"config={path}")
    assert len(lines) == 1
    assert lines[0].startswith(f"config file '{path}' ")
    assert told in lines[0]


def test_empty_file_and_folder(tmp_path: Path, file: Any) -> None:
    assert values(TASK, file("")) == values(TASK)
    assert "cannot be read" in errors(TASK, f"config={tmp_path}")[0]


def test_key_below_a_value_within_one_file(file: Any) -> None:
    config = file("tracking:\n  tags: {a: x}\n'tracking.tags.a.b': y\n")
    lines = errors(TASK, config)
    assert any("tracking.tags.a" in line for line in lines)


# -- nothing is interpolated --------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["${oc.env:HOME}", "${", "${}", "a${b", "${seed}", "$HOME", "???", "${a:${b}}"]
)
def test_interpolation_is_off(text: str, file: Any) -> None:
    assert values(TASK, f"data.id_column={text}")["data.id_column"] == text
    config = file(yaml.safe_dump({"data": {"id_column": text}, "tracking": {"tags": {text: text}}}))
    flat = values(TASK, config)
    assert flat["data.id_column"] == text
    assert resolve([TASK, config]).config.tracking.tags == {text: text}
    base = resolve([TASK, config]).config.stored()
    assert resolve([], base).config.flat()["data.id_column"] == text


# -- what is stored -----------------------------------------------------------------------------


def test_written_configuration_reads_back(tmp_path: Path) -> None:
    config = resolve(
        [
            TASK,
            "preset=mha",
            "data.root=/ä b/c",
            "data.classes=['0', '1', 'no']",
            "data.merge={'0': '1', x: 'yes'}",
            "data.id_column=${x}",
            "trainer.checkpoint_every=10m",
            "tracking.tags={a: 'null', b: '1e3'}",
            "optim.lr=1e-5",
            "resume=auto",
        ]
    ).config
    (tmp_path / "c.yaml").write_text(to_yaml(config), encoding="utf-8")
    assert resolve([f"config={tmp_path / 'c.yaml'}"]).config == config


@pytest.mark.parametrize("task", BUILT)
def test_every_preset_reads_back(task: str, tmp_path: Path) -> None:
    for preset in registry.tasks()[task].presets:
        config = resolve([f"task={task}", f"preset={preset}"]).config
        path = tmp_path / f"{preset}.yaml"
        path.write_text(to_yaml(config), encoding="utf-8")
        assert resolve([f"config={path}"]).config == config


def test_fingerprint_is_of_what_determines_the_result() -> None:
    plain = resolve([TASK]).config.fingerprint()
    for same in ("out=elsewhere", "tracking.enabled=false", "resume=auto", "predict.dense=false"):
        assert resolve([TASK, same]).config.fingerprint() == plain
    for other in ("seed=2", "optim.lr=0.1", "preset=paper", "data.root=/d", "trainer.epochs=3"):
        assert resolve([TASK, other]).config.fingerprint() != plain


def test_credentials_are_not_stored() -> None:
    uri = "https://me:hunter2@host:1/p?token=hunter2&x=1"
    config = resolve([TASK, f"tracking.uri={uri}"]).config
    assert config.tracking.uri == uri
    for text in (to_yaml(config), str(config.stored()), str(config.flat())):
        assert "hunter2" not in text
        assert "//me" not in text
        assert "host:1/p" in text


# -- every task's keys --------------------------------------------------------------------------


@pytest.fixture(params=BUILT)
def kind(request: pytest.FixtureRequest) -> type[BaseConfig]:
    entry = registry.tasks()[request.param]
    found: type[BaseConfig] = registry.load_object(entry.config or "", request.param)
    return found


def test_every_key_is_described(kind: type[BaseConfig]) -> None:
    for key, text, _ in keys(kind):
        assert len(text) > 5, key
        assert not text.endswith("."), key
    for name, info in kind.model_fields.items():
        assert info.description, name


def test_every_choice_is_accepted_and_another_is_not(kind: type[BaseConfig]) -> None:
    task = next(n for n in BUILT if registry.tasks()[n].config == f"{kind.__module__}:Config")
    seen = 0
    for key, _, _ in keys(kind):
        for value in choices(kind, key):
            try:
                flat = values(f"task={task}", f"{key}={value}")
            except ConfigError as error:
                told = str(error)
                if told.startswith(f"{key}="):
                    pytest.fail(told)
                continue  # it contradicts another setting of the preset, but is no wrong word
            found = flat[key][0] if isinstance(flat[key], list) else flat[key]
            assert str(found).lower() == value.lower()
            seen += 1
        if choices(kind, key):
            assert errors(f"task={task}", f"{key}=no_such_choice")[0].startswith(key)
    assert seen > 5


def test_choices() -> None:
    kind = registry.load_object(registry.tasks()["wsi_mil"].config or "", "wsi_mil")
    assert choices(kind, "model.arch") == ["acmil_ga", "acmil_mha", "abmil", "mha"]
    assert choices(kind, "data.standardise") == ["true", "false"]
    assert choices(kind, "optim.lr") == choices(kind, "no.such") == choices(kind, "model") == []


def test_words_are_split_at_the_first_sign() -> None:
    assert parse(["a.b=c=d", "x="]) == ({"a.b": "c=d", "x": None}, [])
