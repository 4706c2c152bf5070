"""The task as the engine sees it: records, scores, figures, attention files, privacy."""

import copy
import io
import json
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

from tests.running import good, only_run
from zoo.config import resolve
from zoo.domains.medical.wsi_mil import figures, sample
from zoo.domains.medical.wsi_mil.attention import write_attention
from zoo.domains.medical.wsi_mil.config import Config
from zoo.domains.medical.wsi_mil.model import build_model
from zoo.domains.medical.wsi_mil.sample import Slide
from zoo.domains.medical.wsi_mil.task import Standardised, WsiMil
from zoo.errors import ConfigError, DataError
from zoo.evaluation import load_records, save_records
from zoo.privacy import alias
from zoo.task import Record

from .writers import write_labels, write_tensors

RNG = np.random.default_rng(0)
FACTS = {"width": 32, "classes": ["normal_tissue", "tumor_tissue"], "merge": {}, "extraction": {}}


def task_of(root: Path | None = None, *words: str) -> WsiMil:
    given = ["task=wsi_mil", "preset=sample", *words]
    config = resolve([*given, f"data.root={root}"] if root else given).config
    assert isinstance(config, Config)
    return WsiMil(config)


def records_of(task: WsiMil, part: str = "test") -> tuple[list[Record], dict[str, Any]]:
    splits = task.splits()
    facts = task.fit(splits["train"])
    torch.manual_seed(0)
    model = task.model(facts).eval()
    split = splits[part]
    batch = split.collate([split.item(i, RNG) for i in range(len(split.ids))])
    with torch.no_grad():
        return task.records(model, batch), facts


def record(
    name: str, label: int, probabilities: Sequence[float], size: int = 12, coords: bool = True
) -> Record:
    rng = np.random.default_rng(len(name) + size)
    attention = rng.dirichlet(np.ones(size)).astype(np.float32)
    values = {
        "probabilities": np.array(probabilities),
        "label": np.array(label),
        "instances": np.array(size),
        "hold_90": np.array(max(1, size // 2)),
        "attention": attention,
        "loss": np.array(0.5),
    }
    if coords:
        values["coords"] = np.stack([np.arange(size) % 4, np.arange(size) // 4], 1) * 512
    return Record(name, f"patient of {name}", values)


def drawn(records: Sequence[Record], classes: Sequence[str]) -> dict[str, Figure]:
    """The figures by name; each is rendered, since mistakes in text show up only then."""
    made = dict(figures.all_figures(records, classes))
    for figure in made.values():
        figure.savefig(io.BytesIO(), format="png", dpi=40)
    return made


def texts(figure: Figure) -> str:
    found = [t.get_text() for t in figure.findobj(lambda a: hasattr(a, "get_text"))]
    return "\n".join(found)


# -- records and scores -------------------------------------------------------------------------


def test_records_of_a_batch_are_those_of_single_slides(clam: Path) -> None:
    task = task_of(clam)
    splits = task.splits()
    facts = task.fit(splits["train"])
    model = task.model(facts).eval()
    test = splits["test"]
    items = [test.item(i, RNG) for i in range(len(test.ids))]
    with torch.no_grad():
        packed = task.records(model, test.collate(items))
        single = [task.records(model, test.collate([item]))[0] for item in items]
    for a, b in zip(packed, single, strict=True):
        assert (a.id, a.group) == (b.id, b.group)
        assert set(a.values) == set(b.values)
        for key in a.values:
            np.testing.assert_allclose(a.values[key], b.values[key], atol=2e-6, err_msg=key)


@pytest.mark.parametrize("arch", ["acmil_ga", "acmil_mha", "abmil", "mha"])
def test_values_of_a_record(clam: Path, slides: list[Slide], arch: str) -> None:
    branches = "model.branches=1" if arch in ("abmil", "mha") else "model.branches=3"
    records, _ = records_of(task_of(clam, f"model.arch={arch}", branches))
    known = {s.id: s for s in slides}
    assert [r.id for r in records] == [s.id for s in slides if s.part == "test"]
    for r in records:
        slide, values = known[r.id], r.values
        assert r.group == slide.patient
        assert values["label"] == slide.label
        assert values["probabilities"].sum() == pytest.approx(1)
        assert values["attention"].shape == (len(slide.features),)
        assert values["attention"].sum() == pytest.approx(1, abs=1e-5)
        assert values["instances"] == len(slide.features)
        assert 1 <= values["hold_90"] <= len(slide.features)
        assert np.isfinite(values["loss"])
        np.testing.assert_array_equal(values["coords"], slide.coords)
        np.testing.assert_array_equal(values["annotated"], slide.instances)
        single = slide.instances.min() == slide.instances.max()
        assert np.isnan(values["instance_auc"]) == single


def test_scores(clam: Path) -> None:
    task = task_of(clam)
    records, facts = records_of(task)
    score = task.score(records, facts)
    assert {
        "auc",
        "accuracy",
        "balanced_accuracy",
        "f1_macro",
        "f1_micro",
        "quadratic_kappa",
        "calibration_error",
        "recall_0",
        "recall_1",
        "loss",
        "attention_share_90",
        "instance_auc",
        "f1_micro_plus_auc",
    } == set(score)
    right = [r.values["probabilities"].argmax() == r.values["label"] for r in records]
    assert score["accuracy"] == score["f1_micro"] == pytest.approx(np.mean(right))
    assert score["f1_micro_plus_auc"] == pytest.approx(score["f1_micro"] + score["auc"])
    assert score["loss"] == pytest.approx(np.mean([r.values["loss"] for r in records]))
    intervals = task.intervals(records, facts)
    assert set(intervals) == {"auc", "accuracy", "balanced_accuracy", "f1_macro"}
    low, high = intervals["accuracy"]
    assert low <= score["accuracy"] <= high


@pytest.mark.parametrize(
    ("select", "name", "direction"),
    [
        ("f1_micro+auc", "f1_micro_plus_auc", "max"),
        ("f1_macro+auc", "f1_macro_plus_auc", "max"),
        ("auc", "auc", "max"),
        ("loss", "loss", "min"),
    ],
)
def test_selection(select: str, name: str, direction: str) -> None:
    task = task_of(None, f"optim.select={select}")
    assert task.selection() == (name, direction)
    records = [record("a", 0, [0.8, 0.2]), record("b", 1, [0.4, 0.6]), record("c", 1, [0.7, 0.3])]
    assert name in task.score(records, FACTS)


def test_score_without_annotated_tiles() -> None:
    records = [record("a", 0, [0.8, 0.2]), record("b", 1, [0.4, 0.6])]
    assert "instance_auc" not in task_of().score(records, FACTS)


def test_rows_and_tables() -> None:
    records = [
        record("slide_a", 0, [0.8, 0.2]),
        record("slide_b", 1, [0.9, 0.1]),
        record("slide_c", -1, [0.1, 0.9]),
    ]
    rows = task_of().rows(records, FACTS)
    assert [row["id"] for row in rows] == ["slide_a", "slide_b", "slide_c"]
    assert [row["predicted"] for row in rows] == ["normal_tissue", "normal_tissue", "tumor_tissue"]
    assert [row["label"] for row in rows] == ["normal_tissue", "tumor_tissue", ""]
    assert rows[1]["p_tumor_tissue"] == pytest.approx(0.1)
    assert rows[0]["instances_holding_90"] == 6
    assert [row["alias"] for row in rows] == [alias(row["id"]) for row in rows]
    json.dumps(rows)
    ((title, table),) = task_of().tables(records[:2], FACTS)
    assert title == "Classes"
    assert table == [
        {"class": "normal_tissue", "slides": 1, "predicted": 2, "recall": 1.0},
        {"class": "tumor_tissue", "slides": 1, "predicted": 0, "recall": 0.0},
    ]
    # Nothing to be recalled is not a recall of 0.
    ((_, alone),) = task_of().tables(records[:1], FACTS)
    assert alone[1]["recall"] is None


def test_records_survive_being_stored(clam: Path, tmp_path: Path) -> None:
    task = task_of(clam)
    records, facts = records_of(task)
    save_records(tmp_path / "r.npz", records)
    again = load_records(tmp_path / "r.npz")
    assert task.score(again, facts) == pytest.approx(task.score(records, facts))
    assert set(drawn(again, facts["classes"])) == set(drawn(records, facts["classes"]))


# -- the model ----------------------------------------------------------------------------------


def test_standardised_model_equals_standardised_features(clam: Path, slides: list[Slide]) -> None:
    task = task_of(clam, "data.standardise=true")
    train = task.splits()["train"]
    facts = json.loads(json.dumps(task.fit(train)))
    every = np.concatenate([s.features for s in slides if s.part == "train"]).astype(np.float64)
    np.testing.assert_allclose(facts["mean"], every.mean(0), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(facts["deviation"], every.std(0), rtol=1e-12)
    model = task.model(facts).eval()
    assert isinstance(model, Standardised)
    raw = torch.from_numpy(slides[-1].features.astype(np.float32))
    scaled = (
        (raw.double() - torch.tensor(facts["mean"])) / torch.tensor(facts["deviation"])
    ).float()
    with torch.no_grad():
        ours, plain = model(raw), model.net(scaled)
        torch.testing.assert_close(ours.logits, plain.logits, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(ours.attention, plain.attention, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(ours.logits, model.net(raw).logits, atol=1e-4)
    # Mean and deviation travel with the weights.
    assert {"mean", "deviation"} <= set(model.state_dict())
    other = task.model(facts | {"mean": [0.0] * 32, "deviation": [1.0] * 32})
    other.load_state_dict(model.state_dict(), strict=True)
    with torch.no_grad():
        assert torch.equal(other.eval()(raw).logits, ours.logits)


@pytest.mark.parametrize("preset", ["paper", "abmil", "mha", "table", "sample"])
@pytest.mark.parametrize("standardise", [False, True])
def test_weights_load_strictly(preset: str, standardise: bool) -> None:
    task = task_of(None, f"preset={preset}")
    facts = FACTS | ({"mean": [0.5] * 32, "deviation": [2.0] * 32} if standardise else {})
    first, second = task.model(facts), task.model(facts)
    with torch.no_grad():
        for value in first.parameters():
            value.add_(0.1)
    second.load_state_dict(copy.deepcopy(first.state_dict()), strict=True)
    bag = torch.randn(7, 32)
    with torch.no_grad():
        assert torch.equal(first.eval()(bag).logits, second.eval()(bag).logits)


def test_official_weights_load_strictly_into_the_model() -> None:
    ours = build_model("acmil_ga", 32, 16, 2, attention=8, branches=3)
    official = {
        "dimreduction.fc1.weight": "reduce.linear.weight",
        "attention.attention_V.0.weight": "pool.value.weight",
        "attention.attention_V.0.bias": "pool.value.bias",
        "attention.attention_U.0.weight": "pool.gate.weight",
        "attention.attention_U.0.bias": "pool.gate.bias",
        "attention.attention_weights.weight": "pool.score.weight",
        "attention.attention_weights.bias": "pool.score.bias",
        "Slide_classifier.fc.weight": "slide_classifier.linear.weight",
        "Slide_classifier.fc.bias": "slide_classifier.linear.bias",
    }
    for k in range(3):
        for kind in ("weight", "bias"):
            key = f"branch_classifiers.{k}.linear.{kind}"
            official[f"classifier.{k}.fc.{kind}"] = key
    state = ours.state_dict()
    assert set(official.values()) == set(state)
    words = ("preset=paper", "model.inner=16", "model.attention=8", "model.branches=3")
    task = task_of(None, *words)
    done = task.convert({theirs: state[key] for theirs, key in official.items()})
    assert done.missing == []
    assert done.renamed == official
    model = task.model(FACTS)
    model.load_state_dict(done.state, strict=True)


def test_sizes_that_do_not_fit_together() -> None:
    task = task_of(None, "model.arch=acmil_mha", "model.inner=9")
    with pytest.raises(ConfigError, match=r"model.inner=9: the 8 heads"):
        task.model(FACTS)


def test_loss_has_its_parts_and_reaches_every_weight(clam: Path) -> None:
    task = task_of(clam, "optim.diversity=0.5")
    train = task.splits()["train"]
    model = task.model(task.fit(train))
    batch = train.collate([train.item(i, RNG) for i in range(4)])
    parts = task.loss(model, batch, torch.Generator().manual_seed(0))
    assert set(parts) == {"loss", "slide", "branch", "diversity"}
    total = parts["slide"] + parts["branch"] + 0.5 * parts["diversity"]
    torch.testing.assert_close(parts["loss"], total)
    parts["loss"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_masking_draws_from_the_given_generator(clam: Path) -> None:
    task = task_of(clam, "model.mask_drop=0.5")
    train = task.splits()["train"]
    model = task.model(task.fit(train)).train()
    sizes = [peek.count for peek in train.peeks]
    batch = train.collate([train.item(int(np.argmax(sizes)), RNG)])

    def loss(seed: int) -> float:
        with torch.no_grad():
            return float(task.loss(model, batch, torch.Generator().manual_seed(seed))["loss"])

    torch.manual_seed(1)
    first = loss(3)
    torch.manual_seed(2)
    assert loss(3) == first
    assert len({loss(seed) for seed in range(6)}) > 1


def test_schedule_is_half_a_cosine() -> None:
    task = task_of(None, "trainer.epochs=4", "optim.lr=0.5", "optim.lr_min=0.1")
    optim = task.optimisers(task.model(FACTS))["adamw"]
    assert optim.optimiser.param_groups[0]["lr"] == 0.5
    assert optim.factor(0, 0, 10) == pytest.approx(1)
    assert optim.factor(2, 0, 10) == pytest.approx((1 + 0.2) / 2)
    assert optim.factor(3, 10, 10) == pytest.approx(0.2)


def test_export_says_how_to_call_the_model() -> None:
    task = task_of()
    model = task.model(FACTS).eval()
    spec = task.export(model, FACTS)
    assert spec.why_not == ""
    with torch.no_grad():
        output = model(*spec.inputs.values())
    assert tuple(output._fields) == tuple(spec.outputs)
    assert spec.dynamic == {"features": {0: "instances"}}


# -- data ---------------------------------------------------------------------------------------


def test_the_check_and_the_splits_read_each_file_once(
    clam: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = task_of(clam)
    assert not [f for f in task.check() if f.level != "info"]
    splits = task.splits()
    for path in (clam / "features").rglob("*.h5"):
        path.unlink()
    for split in splits.values():
        for index in range(len(split.ids)):
            assert split.item(index, RNG)["features"].isfinite().all()
    away = task_of(clam, "data.in_memory=false")
    with pytest.raises(DataError):
        away.splits()


def test_check_and_prediction_of_nothing(tmp_path: Path) -> None:
    (found,) = task_of(tmp_path / "none").check()
    assert found.level == "error"
    with pytest.raises(DataError, match="no features found"):
        task_of().inputs([tmp_path], FACTS)


def test_folds(clam: Path) -> None:
    assert task_of(clam, "data.folds=3").folds() == [{"data.fold": str(n)} for n in range(3)]
    assert task_of(clam).folds() == [{"data.fold": "0"}]


# -- figures ------------------------------------------------------------------------------------


@lru_cache
def three() -> tuple[Record, ...]:
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.ones(3), 9)
    return tuple(record(f"slide_{i}", i % 3, p.tolist(), size=3 + i) for i, p in enumerate(shares))


def test_figures_of_two_classes(clam: Path) -> None:
    records, facts = records_of(task_of(clam))
    made = drawn(records, facts["classes"])
    assert list(made) == ["roc", "confusion", "attention_concentration", "attention_over_coords"]
    roc = made["roc"].axes[0]
    assert len(roc.get_lines()) == 2  # one curve and the diagonal
    assert "tumor_tissue, AUC" in texts(made["roc"])
    counts = [int(t.get_text()) for t in made["confusion"].axes[0].texts]
    assert sum(counts) == len(records)
    many = [r for r in records if r.values["instances"] > 1]
    shown = texts(made["attention_over_coords"])
    assert sum(alias(r.id) in shown for r in many) == min(6, len(many))


def test_figures_of_three_classes() -> None:
    made = drawn(three(), ["a", "b", "c"])
    assert len(made["roc"].axes[0].get_lines()) == 4
    assert len(made["confusion"].axes[0].texts) == 9


def test_a_class_that_does_not_occur_has_no_curve() -> None:
    records = [r for r in three() if int(r.values["label"]) < 2]
    made = drawn(records, ["a", "b", "c"])
    assert "c, AUC" not in texts(made["roc"])
    assert "a, AUC" in texts(made["roc"])


def test_figures_without_coordinates_or_labels(tmp_path: Path, slides: list[Slide]) -> None:
    write_tensors(tmp_path, slides)
    write_labels(tmp_path, slides)
    records, facts = records_of(task_of(tmp_path, "data.val_fraction=0"))
    assert "coords" not in records[0].values
    assert list(drawn(records, facts["classes"])) == ["roc", "confusion", "attention_concentration"]
    unknown = [record("a", -1, [0.4, 0.6], coords=False)]
    assert list(drawn(unknown, ["x", "y"])) == ["attention_concentration"]


@pytest.mark.parametrize("size", [1, 2, 30])
def test_figures_of_a_single_slide(size: int) -> None:
    made = drawn([record("only", 1, [0.4, 0.6], size=size)], ["x", "y"])
    assert ("attention_over_coords" in made) == (size > 1)
    assert "1 slides" in texts(made["roc"])


@pytest.mark.parametrize(
    "name", ["<script>alert(1)</script>", "$x^{", "a $\\frac$ b", "x" * 200, "Größe 中", "_hidden"]
)
def test_figures_with_odd_class_names(name: str) -> None:
    records = [record("a", 0, [0.8, 0.2]), record("b", 1, [0.4, 0.6])]
    made = drawn(records, ["other", name])
    assert len(made) == 4
    (legend,) = (t.get_text() for t in made["roc"].axes[0].get_legend().get_texts())
    shown = legend.strip().replace("\\$", "$")
    assert shown.startswith(name[:12])
    assert len(shown) < 40
    assert len(made["attention_concentration"].axes[0].get_legend().get_texts()) == 3


def test_figures_name_slides_by_alias_alone() -> None:
    records = [
        record("JANE_DOE_1958", 0, [0.8, 0.2]),
        record("JOHN_ROE_1961", 1, [0.4, 0.6]),
    ]
    for figure in drawn(records, ["x", "y"]).values():
        assert not re.search("JANE|JOHN|patient", texts(figure))
    over = texts(drawn(records, ["x", "y"])["attention_over_coords"])
    assert alias("JANE_DOE_1958") in over


# -- attention files ----------------------------------------------------------------------------


def test_attention_files_of_a_record(clam: Path, slides: list[Slide], tmp_path: Path) -> None:
    records, _ = records_of(task_of(clam, "model.branches=3"))
    slide = max((s for s in slides if s.part == "test"), key=lambda s: len(s.features))
    chosen = next(r for r in records if r.id == slide.id)
    assert chosen.write is not None
    paths = chosen.write(tmp_path)
    assert [p.name for p in paths] == [f"{slide.id}.h5", f"{slide.id}.csv"]
    with h5py.File(paths[0]) as file:
        assert set(file) == {"attention", "branch_attention", "coords"}
        attention, branches = file["attention"][()], file["branch_attention"][()]
        np.testing.assert_array_equal(file["coords"][()], slide.coords)
        assert file["coords"].attrs["patch_size_level0"] == 512
        assert file.attrs["slide_id"] == slide.id
        assert "Not for diagnosis" in file.attrs["note"]
    assert branches.shape == (3, len(slide.features))
    np.testing.assert_allclose(branches.sum(1), 1, atol=1e-5)
    np.testing.assert_allclose(attention, branches.mean(0), atol=1e-7)
    np.testing.assert_allclose(attention, chosen.values["attention"], atol=1e-7)
    table = pd.read_csv(paths[1])
    assert list(table) == ["instance", "x", "y", "attention", "branch_0", "branch_1", "branch_2"]
    np.testing.assert_allclose(table["attention"], attention, rtol=1e-5)
    np.testing.assert_array_equal(table[["x", "y"]].to_numpy(), slide.coords)


@pytest.mark.parametrize(
    ("formats", "names"), [("h5", ["s.h5"]), ("csv", ["s.csv"]), ("both", ["s.h5", "s.csv"])]
)
def test_attention_without_coordinates(tmp_path: Path, formats: Any, names: list[str]) -> None:
    branches = np.full((2, 4), 0.25)
    options: dict[str, Any] = {"name": "s", "branches": branches, "settings": {"encoder": "e"}}
    write_attention(tmp_path, coords=None, formats=formats, **options)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(names)
    if formats != "csv":
        with h5py.File(tmp_path / "s.h5") as file:
            assert set(file) == {"attention", "branch_attention"}
    if formats != "h5":
        assert list(pd.read_csv(tmp_path / "s.csv")) == [
            "instance",
            "attention",
            "branch_0",
            "branch_1",
        ]


# -- what leaves the run folder -----------------------------------------------------------------


def test_names_of_slides_and_patients_stay_in_the_run_folder(
    tmp_path: Path, slides: list[Slide], tracked: Path
) -> None:
    renamed = [
        Slide(
            f"JANE-{s.id}", f"DOE-{s.patient}", s.part, s.label, s.features, s.coords, s.instances
        )
        for s in slides
    ]
    root = tmp_path / "bags"
    sample.write_clam(root, renamed)
    table = root / "dataset_csv" / "sample.csv"
    table.write_text(table.read_text().replace("tumor_tissue", "<script>alert(1)</script>"))
    words = ["train", "task=wsi_mil", "preset=sample", f"data.root={root}", f"out={tracked}"]
    said = good(*words, "trainer.max_steps=1")
    run = only_run(tracked)
    private = re.compile(rb"JANE|DOE-")

    page = (run.path / "report.html").read_bytes()
    assert not private.search(page)
    assert b"<script" not in page
    assert b"&lt;script&gt;" in page
    assert b"Not for diagnosis" in page
    assert not re.search(rb"""(?:src|href)=(?!["']?data:)""", page)

    sent = [p for p in (tracked / "artifacts").rglob("*") if p.is_file()]
    assert {"report.html", "config.yaml", "metrics.jsonl"} <= {p.name for p in sent}
    for path in [*sent, tracked / "mlflow.db", run.path / "run.json", run.metrics_file]:
        assert not private.search(path.read_bytes()), path
    assert not re.search("JANE|DOE-", said.out + said.err)

    # The table that resolves the alias stays beside the weights.
    rows = pd.read_csv(run.path / "predictions" / "test" / "predictions.csv")
    assert rows["id"].str.startswith("JANE-").all()
    assert list(rows["alias"]) == [alias(name) for name in rows["id"]]
