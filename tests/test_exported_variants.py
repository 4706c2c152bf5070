"""Every kind of network that a configuration can ask for is traced for any batch; what all tasks
serve becomes an ONNX file."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.running import good, only_run
from zoo import exporting, get_task, registry
from zoo.domains.remote_sensing.crop_yield.baselines import History

CLASSES = {"classes": ["a", "b"]}
BAG = {"width": 8, "merge": {}, "extraction": {}, **CLASSES}
CREW = {"identities": ["1", "2", "3"], "cameras": ["1", "2"]}
PAST = {"history": History.of([("01001", 2020, 8.0)]).facts(), "yield_mean": 8.0, "ridge": None}
SEASON = {"steps": 32, "band_mean": [0.1] * 9, "years": [2009], **PAST}
VARIANTS: list[tuple[str, str, dict[str, Any]]] = [
    *(("wsi_mil", f"model.arch={arch}", BAG) for arch in ("acmil_ga", "acmil_mha", "abmil", "mha")),
    ("medusa", "model.variant=resnet2", CLASSES),
    ("medusa", "model.variant=resnet0_R", CLASSES),
    ("medusa", "model.variant=backbone_only", CLASSES),
    ("medusa", "model.resize=half_pixel model.head_activation=sigmoid", CLASSES),
    ("medusa", "optim.objective=body optim.select=dice", {}),
    ("her_seg", "", {"classes": ["foreground"]}),
    ("her_seg", "model.normalisation=official_eval", {"classes": ["a", "b", "c"]}),
    ("fusion_reid", "model.cnn=none", CREW),
    ("fusion_reid", "model.transformer=none", CREW),
    ("fusion_reid", "model.htm_mode=1 model.sharing=2 model.camera=none", CREW),
    ("fusion_reid", "model.htm_mode=3 model.neck_feature=after", CREW),
    *(("rgbd_sod", f"model.fusion={f}", {}) for f in ("position", "channel", "series", "concat")),
    ("rgbd_sod", "model.transformer=none model.share_encoders=true", {}),
    ("crop_yield", "model.routing=per_sample", SEASON),
    ("crop_yield", "model.operator=sobel", SEASON),
    (
        "crop_yield",
        "data.sensor=sentinel2 data.image_size=32 model.dim=24 model.depth=1",
        {"crop": "corn", **PAST},
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "words", "facts"), VARIANTS, ids=[f"{n}-{w}" for n, w, _ in VARIANTS]
)
def test_a_graph_gives_what_the_network_gives(name: str, words: str, facts: dict[str, Any]) -> None:
    task = get_task(name, "preset=sample", *words.split())
    torch.manual_seed(0)
    export = exporting.prepared(task, task.model(facts), facts, "network")
    program = exporting.traced(export)
    assert exporting.limits(program, export) == {}
    module = program.module()

    def run(inputs: exporting.Inputs) -> list[torch.Tensor]:
        with torch.no_grad():
            return list(module(*inputs.values()))

    assert exporting.compared(export, run, exporting.PT2_TOLERANCE, name) <= 1e-5
    told = exporting.described(export)
    assert [entry["name"] for entry in told["outputs"]] == list(export.outputs)
    assert all(entry["about"] for entry in told["inputs"] + told["outputs"])


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n, entry in registry.tasks().items() if entry.built])
def test_what_a_trained_task_serves_is_written_as_onnx(name: str, tmp_path: Path) -> None:
    words = (f"task={name}", "trainer.max_steps=1", "tracking.enabled=false", f"out={tmp_path}")
    good("train", *words, "-q")
    file = tmp_path / "served.onnx"
    good("export", only_run(tmp_path).path, "format=onnx", f"to={file}")
    told = json.loads(Path(f"{file}.json").read_text())
    assert told["part"] == "served"
    assert told["sample_data"]
    assert told["metrics"]
    free = {axis for entry in told["inputs"] for axis in entry["axes"] if axis}
    assert all(len(told["compared"]["sizes"][size]) >= 3 for size in free)
    assert "limits" not in told
