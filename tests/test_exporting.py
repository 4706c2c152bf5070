"""Tracing, describing, writing and comparing; `zoo export` on a small model."""

import json
import os
import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.running import good, run_zoo
from zoo import exporting, get_task, onnx_file, portable
from zoo.errors import ConfigError, ZooError
from zoo.kernels import GatedAttentionPool
from zoo.task import Export

ROOT = Path(__file__).resolve().parents[1]


class Two(nn.Module):
    """Two inputs whose rows belong together, a vector a row and a map of another size."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(4, 3)

    def forward(self, rows: Tensor, picture: Tensor) -> tuple[Tensor, Tensor]:
        small = nn.functional.avg_pool2d(picture, 2)
        return self.line(rows) + picture.mean((1, 2, 3))[:, None], small


def two() -> Export:
    torch.manual_seed(0)
    return Export(
        inputs={"rows": torch.randn(2, 4), "picture": torch.rand(2, 1, 6, 8)},
        outputs=("score", "small"),
        dynamic={"rows": {0: "batch"}, "picture": {0: "batch", 2: "height", 3: "width"}},
        module=Two().eval().requires_grad_(False),
        others=[{"rows": torch.randn(1, 4), "picture": torch.rand(1, 1, 10, 16)}],
        about={"rows": "(B, 4) numbers"},
    )


def one(module: nn.Module, rows: int = 3) -> Export:
    """A module of one input (rows, 4)."""
    inputs = {"x": torch.randn(rows, 4, generator=torch.Generator().manual_seed(1))}
    return Export(inputs, ("y",), {"x": {0: "rows"}}, module=module.eval().requires_grad_(False))


# -- tracing ------------------------------------------------------------------------------------


def spaces(program: torch.export.ExportedProgram) -> set[str]:
    targets = [node.target for node in program.graph.nodes]
    return {t.namespace for t in targets if isinstance(t, torch._ops.OpOverload)}


def test_blocks_are_traced_by_their_definitions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_KERNELS", "torch")

    class Pool(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pool = GatedAttentionPool(4, 8, 2)

        def forward(self, x: Tensor) -> Tensor:
            pooled: Tensor = self.pool(x).pooled
            return pooled

    program = exporting.traced(one(Pool()))
    assert spaces(program) == {"aten"}
    assert os.environ["ZOO_KERNELS"] == "torch"
    assert not any("stack_trace" in node.meta for node in program.graph.nodes)


def test_an_operator_of_somebody_else_is_named() -> None:
    with torch.library._scoped_library("test_exporting", "FRAGMENT") as library:
        library.define("twice(Tensor x) -> Tensor")
        library.impl("twice", lambda x: 2 * x, "CompositeExplicitAutograd")
        library.impl("twice", lambda x: torch.empty_like(x), "Meta")

        class Foreign(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                made: Tensor = torch.ops.test_exporting.twice(x)
                return made

        with pytest.raises(ZooError, match=r"not PyTorch's own: test_exporting\.twice"):
            exporting.traced(one(Foreign()))


def test_a_size_that_became_a_constant_is_an_error() -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * torch.ones(x.shape[0] // 1 if int(x.shape[0]) == 3 else 3, 1)

    with pytest.raises(ZooError, match=r"cannot be traced: .*rows|cannot be traced: .*size\(\)\[0"):
        exporting.traced(one(Fixed()))


def test_an_example_of_one_row_serves_any_number() -> None:
    export = one(nn.Linear(4, 2), rows=1)
    program = exporting.traced(export)
    x = torch.randn(7, 4)
    (found,) = program.module()(x)
    torch.testing.assert_close(found, exporting.outputs_of(export, {"x": x})["y"])


def test_outputs_are_counted() -> None:
    export = Export({"x": torch.zeros(2, 4)}, ("a", "b"), module=nn.Identity())
    with pytest.raises(ValueError, match="2 outputs are named, the module gives 1"):
        exporting.outputs_of(export, export.inputs)


# -- description --------------------------------------------------------------------------------


def test_description_names_every_axis() -> None:
    told = exporting.described(two())
    rows, picture = told["inputs"]
    assert rows == {
        "name": "rows",
        "dtype": "float32",
        "shape": [-1, 4],
        "axes": ["batch", None],
        "about": "(B, 4) numbers",
    }
    assert picture["axes"] == ["batch", None, "height", "width"]
    score, small = told["outputs"]
    assert (score["shape"], score["axes"]) == ([-1, 3], ["batch", None])
    assert small["shape"] == [-1, 1, -1, -1]
    assert small["axes"] == ["batch", None, "(height)", "(width)"]


def test_a_size_that_does_not_vary_is_no_dynamic_one() -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.ones(3, 1)

    with pytest.raises(ValueError, match="'rows' is called dynamic, but the network takes no"):
        exporting.described(one(Fixed()))


# -- files --------------------------------------------------------------------------------------


def test_a_file_is_written_compared_and_keeps_sizes_of_one_name_equal(tmp_path: Path) -> None:
    export, file = two(), tmp_path / "two.pt2"
    program = exporting.traced(export)
    assert exporting.limits(program, export) == {}
    assert exporting.write_pt2(program, export, file, {"task": "none"}) <= 1e-6
    assert [p.name for p in tmp_path.iterdir()] == ["two.pt2"]
    extra = {exporting.DESCRIPTION: ""}
    module = torch.export.load(file, extra_files=extra).module()
    assert json.loads(extra[exporting.DESCRIPTION]) == {"task": "none"}
    score, small = module(torch.randn(4, 4), torch.rand(4, 1, 2, 12))
    assert (score.shape, small.shape) == ((4, 3), (4, 1, 1, 6))
    assert not score.requires_grad
    with pytest.raises((AssertionError, RuntimeError), match=r"Guard failed|to be equal to 4"):
        module(torch.randn(4, 4), torch.rand(3, 1, 2, 12))


def test_what_differs_is_not_left(tmp_path: Path) -> None:
    export, other = one(nn.Linear(4, 2)), one(nn.Linear(4, 2))
    words = r"bad.pt2 differs from the network on x \(3, 4\): 'y' by .*, 1e-05 of its largest"
    with pytest.raises(ZooError, match=words):
        exporting.write_pt2(exporting.traced(other), export, tmp_path / "bad.pt2", {})
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_told_before_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export = one(nn.Linear(4, 2))
    program = exporting.traced(export)
    usage = shutil.disk_usage(tmp_path)._replace(free=1_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ZooError, match=r"5 MB are needed and 1 MB are free"):
        exporting.write_pt2(program, export, tmp_path / "full.pt2", {})
    assert not list(tmp_path.iterdir())


def test_a_graph_of_few_sizes_is_found_out(tmp_path: Path) -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2 if x.shape[0] <= 4 else x * 3

    export = one(Branching())
    program = exporting.traced(export)
    assert exporting.limits(program, export) == {"rows": (1, 4)}
    with pytest.raises(ZooError, match=r"few.pt2 does not run on x \(5, 4\)"):
        exporting.write_pt2(program, export, tmp_path / "few.pt2", {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("theirs", "wanted"),
    [
        (torch.tensor([1.0, -4.0]), 0.0),
        (torch.tensor([1.1, -4.0]), 0.025),
        (torch.tensor([torch.nan, -4.0]), float("inf")),
        (torch.tensor([1.0, -torch.inf]), float("inf")),
        (torch.tensor([1.0]), float("inf")),
        (torch.tensor([1.0, -4.0]).double(), float("inf")),
    ],
)
def test_difference_is_relative_to_the_largest_magnitude(theirs: Tensor, wanted: float) -> None:
    ours = torch.tensor([1.0, -4.0])
    assert exporting._difference(ours, theirs) == pytest.approx(wanted)
    assert exporting._difference(ours * torch.nan, ours * torch.nan) == 0
    assert exporting._difference(ours > 0, ours < 0) == 1


def test_random_batches_stay_among_the_examples_values() -> None:
    export = two()
    found = list(exporting.cases(export))
    assert [len(inputs["rows"]) for inputs in found] == [2, 1, *exporting.BATCHES]
    for inputs in found[2:]:
        assert inputs["picture"].shape[1:] == (1, 6, 8)
        assert 0 <= float(inputs["picture"].min()) <= float(inputs["picture"].max()) <= 1
    again = list(exporting.cases(export))
    assert all(torch.equal(a["rows"], b["rows"]) for a, b in zip(found, again, strict=True))
    years = Export({"year": torch.tensor([3, 5])}, ("y",), {"year": {0: "b"}})
    for inputs in exporting.cases(years):
        assert set(inputs["year"].tolist()) <= {3, 5}


# -- the command --------------------------------------------------------------------------------

FACTS = {"width": 8, "classes": ["normal", "tumor"], "merge": {}, "extraction": {}}


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small untrained model as portable weights."""
    task = get_task("wsi_mil", "preset=sample")
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("held") / "mine.safetensors"
    about = {"source": "made for a test", "licence": "CC0"}
    state = task.model(FACTS).state_dict()
    config = task.config.stored()
    return portable.write(path, state, task="wsi_mil", config=config, facts=FACTS, about=about)


def private(body: bytes) -> list[bytes]:
    return [b for b in (str(ROOT).encode(), str(Path.home()).encode(), b"/tmp/") if b in body]


def test_export_writes_a_described_file(
    held: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = good("export", held, "format=pt2")
    file = tmp_path / "wsi_mil-mine-served.pt2"
    told = json.loads(Path(f"{file}.json").read_text())
    assert sorted(p.name for p in tmp_path.iterdir()) == [file.name, f"{file.name}.json"]
    assert (told["task"], told["part"], told["classes"]) == ("wsi_mil", "served", FACTS["classes"])
    assert (told["licence"], told["weights"]) == ("CC0", "made for a test")
    assert told["notice"] == "Research software. Not for diagnosis."
    assert told["sha256"] in said.out
    assert told["compared"]["difference"] <= told["compared"]["tolerance"]
    assert {1, 3, 5} <= set(told["compared"]["sizes"]["instances"])
    names = [entry["name"] for entry in told["inputs"] + told["outputs"]]
    module = torch.export.load(file).module()
    found = module(torch.randn(11, 8))
    assert names[1:] == ["probabilities", "attention"]
    assert [tuple(v.shape) for v in found] == [(1, 2), (11,)]
    with zipfile.ZipFile(file) as archive:
        bodies = [archive.read(name) for name in archive.namelist()]
    assert not [leak for body in bodies for leak in private(body)]


def test_export_of_weights_can_be_used_again(held: Path, tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    good("export", f"weights={held}", "format=safetensors", f"to={file}", "-q")
    before, after = portable.read(held), portable.read(file)
    assert before is not None
    assert after is not None
    assert (after.facts, after.config, after.task) == (before.facts, before.config, "wsi_mil")
    assert all(torch.equal(after.state[k], v) for k, v in before.state.items())
    good("export", file, "format=pt2", "part=network", f"to={tmp_path / 'net.pt2'}", "-q")
    told = json.loads((tmp_path / "net.pt2.json").read_text())
    assert [e["name"] for e in told["outputs"]] == ["logits", "branch_logits", "attention"]
    assert not private((tmp_path / "weights.safetensors.json").read_bytes())


def test_onnx_file_names_its_sizes_and_tells_nothing_of_this_machine(
    held: Path, tmp_path: Path
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    file = tmp_path / "bag.onnx"
    said = good("export", held, "format=onnx", f"to={file}")
    assert "allowed 0.0001" in said.out
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (features,) = session.get_inputs()
    assert (features.name, features.shape) == ("features", ["instances", 8])
    assert [o.shape for o in session.get_outputs()] == [[1, 2], ["instances"]]
    notes = json.loads(session.get_modelmeta().custom_metadata_map[onnx_file.NOTES])
    assert notes["opset"] == onnx_file.OPSET
    assert notes["classes"] == FACTS["classes"]
    body = file.read_bytes()
    assert not private(body)
    assert b"stack_trace" not in body


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["format=pt2"], "export needs one WEIGHTS and format="),
        (["W"], "export needs one WEIGHTS and format="),
        (["W", "format=tflite"], "format=tflite: one of pt2, onnx, safetensors is needed"),
        (["W", "format=pt2", "part=all"], "part=all: pt2 is written of served or network"),
        (["W", "format=safetensors", "part=served"], "safetensors is written of network"),
        (["W", "format=onnx", "to=a.pt2"], "to=a.pt2: a onnx file ends in .onnx"),
        (["nowhere", "format=pt2"], "nowhere"),
    ],
)
def test_wrong_words_get_one_line(held: Path, words: list[str], told: str) -> None:
    result = run_zoo("export", *[str(held) if w == "W" else w for w in words])
    assert result.code == 2
    assert told in result.err
    assert len(result.err.splitlines()) == 1


def test_a_missing_package_gets_the_command_before_any_work(
    held: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    result = run_zoo("export", held, "format=onnx", f"to={tmp_path / 'x.onnx'}")
    assert result.code == 2
    assert "pip install '.[export]'" in result.err
    assert not list(tmp_path.iterdir())


def test_a_task_that_cannot_be_exported_says_why(stubs: None) -> None:
    task = get_task("stub_bags")
    with pytest.raises(ConfigError, match=r"'stub_bags' cannot be exported \(part=served\): a st"):
        exporting.prepared(task, nn.Identity(), {})


def test_preparation_puts_the_network_to_rest() -> None:
    task: Any = get_task("wsi_mil", "preset=sample")
    model = task.model(FACTS).train()
    export = exporting.prepared(task, model, FACTS, "network")
    assert export.module is model
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
