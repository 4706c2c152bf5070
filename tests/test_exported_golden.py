"""Exported files in a Python without the zoo give what the official systems gave.

`wsi_mil` runs by default, the other tasks are slow. No outputs of a whole `rgbd_sod` were ever
recorded, since its authors released no code: there the recorded part of it is exported.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.parity import crop_yield, fusion_reid, her_seg, medusa, rgbd_sod, wsi_mil
from tests.parity.golden import OWN, Case, roots
from zoo.domains.medical.her_seg.config import SegModel
from zoo.domains.medical.her_seg.convert import convert_official as convert_her
from zoo.domains.medical.her_seg.model import build_model as build_her
from zoo.domains.remote_sensing.crop_yield.sentinel import OneCounty
from zoo.domains.saliency.rgbd_sod.convert import convert_pyramid
from zoo.domains.saliency.rgbd_sod.pvt import PvtPyramid
from zoo.exporting import traced, write_pt2
from zoo.onnx_file import write_onnx
from zoo.task import Export

Check = Callable[[Case, str, Tensor], None]


@dataclass(frozen=True)
class Recorded:
    """A network, its recorded inputs, and how its outputs are held to the recorded ones."""

    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: dict[str, str]
    check: Check = Case.compare
    dynamic: tuple[str, ...] = field(default=("batch",))

    def export(self) -> Export:
        axes = {name: {0: self.dynamic[0]} for name in self.inputs} if self.dynamic else {}
        module = self.module.eval().requires_grad_(False)
        return Export(self.inputs, tuple(self.outputs), axes, module=module)


class Mil(nn.Module):
    """One slide, without the branches' axis of heads."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits, branches, attention = self.net(features)
        return logits, branches.squeeze(0), attention


def of_wsi(case: Case) -> Recorded:
    net = wsi_mil.build(case, wsi_mil.ARCHS[case.info["target"]])
    outputs = {"logits": "slide_logits", "branches": "sub_logits", "attention": "attn_raw"}
    features = case.tensors["input/features"].squeeze(0)
    return Recorded(Mil(net), {"features": features}, outputs, dynamic=("instances",))


def of_her(case: Case) -> Recorded:
    args = case.info["args"]
    net = build_her(SegModel(dim=args["dim"], image_size=args["img_size"]))
    net.load_state_dict(convert_her(her_seg.regenerated(case)).state)
    net.normalise = cast(Any, nn.Identity())  # the recorded input is normalised
    return Recorded(net, {"image": case.tensors["input/x"]}, {"logits": "logits"})


def of_medusa(case: Case) -> Recorded:
    given = case.group("input")
    inputs = {
        "image": given["image_u8"].permute(0, 3, 1, 2).float() / 255,
        "semantic": given["semantic"].permute(0, 3, 1, 2).contiguous(),
    }
    check = partial(_as_told, medusa.output)
    return Recorded(medusa.official(case), inputs, {"logits": "logits"}, check)


def _as_told(compare: Callable[..., None], case: Case, key: str, ours: Tensor) -> None:
    compare(case, key, ours, "logits")


def of_reid(case: Case) -> Recorded:
    given = case.group("input")
    inputs = {"image": given["x"] / 2 + 0.5, "camera": given["cam_label"].long()}
    return Recorded(fusion_reid.small_model(case), inputs, {"embedding": "all_before"})


class Column(nn.Module):
    """The official network's column of yields."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, histogram: Tensor, years: Tensor) -> Tensor:
        made: Tensor = self.net(histogram, years)[:, None]
        return made


def of_modis(case: Case) -> Recorded:
    net = crop_yield.build_modis(case.info["args"], crop_yield.year_map(case))
    crop_yield.load(net, case.group("state"))
    given = case.group("input")
    inputs = {"histogram": given["x"], "years": given["years"].long()}
    return Recorded(Column(net), inputs, {"yield": "y"}, _forward)


def of_sentinel(case: Case) -> Recorded:
    net = crop_yield.build_sentinel(case.info["args"])
    crop_yield.load(net, case.group("state"))
    raw = case.group("input")["raw_uint8"]
    assert len(raw) == 1
    pictures, _ = crop_yield.pictures_of(raw, "unit")
    names = ("pictures",)
    return Recorded(OneCounty(net), {"pictures": pictures}, {"logs": "y"}, _forward, names)


def _forward(case: Case, key: str, ours: Tensor) -> None:
    crop_yield.check(case, "forward", {key: ours})


def of_rgbd(case: Case) -> Recorded:
    net = PvtPyramid(*rgbd_sod.sizes(case))
    net.load_state_dict(convert_pyramid(case.group("state")))
    outputs = {f"stage{i}": f"stage{i}" for i in (1, 2, 3, 4)}
    return Recorded(net, {"x": case.tensors["input/x"]}, outputs)


CASES: dict[str, Callable[[Case], Recorded]] = {
    "wsi_mil/ga_eval_k4": of_wsi,
    "wsi_mil/mha_eval_k3": of_wsi,
    "her_seg/whole_official_dim96_img128": of_her,
    "medusa/whole_resnet1_224_eval": of_medusa,
    "reid/fusion_small_eval": of_reid,
    "crop_yield/modis_whole_narrow": of_modis,
    "crop_yield/s2_whole_small": of_sentinel,
    "rgbd_sod/pvtv2_pyramid": of_rgbd,
}

WITHOUT = """
import sys
for name in sys.argv[4:]:
    sys.modules[name] = None
    try:
        __import__(name)
    except ImportError:
        continue
    raise SystemExit(name + ' can be imported')
"""
BY_TORCH = """
import numpy, torch
given = numpy.load(sys.argv[2])
model = torch.export.load(sys.argv[1]).module()
found = model(*(torch.from_numpy(given[name]) for name in given.files))
numpy.savez(sys.argv[3], *(value.numpy() for value in found))
"""
BY_ONNXRUNTIME = """
import numpy, onnxruntime
given = numpy.load(sys.argv[2])
session = onnxruntime.InferenceSession(sys.argv[1], providers=['CPUExecutionProvider'])
numpy.savez(sys.argv[3], *session.run(None, {name: given[name] for name in given.files}))
assert 'torch' not in [name for name, module in sys.modules.items() if module]
"""


def elsewhere(file: Path, inputs: dict[str, Tensor], code: str, *without: str) -> list[Tensor]:
    """What a file gives in a Python that has none of `without`."""
    given, found = file.with_suffix(".in.npz"), file.with_suffix(".out.npz")
    np.savez(given, **{name: value.numpy() for name, value in inputs.items()})
    words: list[Any] = [sys.executable, "-W", "ignore", "-c", WITHOUT + code]
    words += [file, given, found, *without]
    done = subprocess.run(
        words, cwd=file.parent, capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr
    with np.load(found) as body:
        return [torch.from_numpy(body[name]) for name in body.files]


def path_of(name: str) -> Path:
    found = [root / f"{name}.json" for root in reversed(roots().values())]
    there = [path for path in found if path.is_file()]
    if not there:
        pytest.skip(f"the recorded case {name} is not among {OWN} and ZOO_GOLDEN is not set")
    return there[0]


def heavy(name: str, *others: Any) -> Any:
    marks = () if name == "wsi_mil/ga_eval_k4" else (pytest.mark.slow,)
    return pytest.param(name, *others, marks=marks)


@pytest.mark.parametrize("form", ["pt2", "onnx"])
@pytest.mark.parametrize("name", [heavy(name) for name in CASES])
def test_a_file_gives_the_golden_outputs_without_the_zoo(
    name: str, form: str, tmp_path: Path
) -> None:
    case = Case(path_of(name))
    recorded = CASES[name](case)
    export = recorded.export()
    file = tmp_path / f"network.{form}"
    write = {"pt2": write_pt2, "onnx": write_onnx}[form]
    write(traced(export), export, file, {})
    code, without = (
        (BY_TORCH, ("zoo",)) if form == "pt2" else (BY_ONNXRUNTIME, ("zoo", "torch", "onnx"))
    )
    found = elsewhere(file, recorded.inputs, code, *without)
    assert len(found) == len(recorded.outputs)
    for value, key in zip(found, recorded.outputs.values(), strict=True):
        recorded.check(case, f"output/{key}", value)
        assert f"output/{key}" not in case.open
