from __future__ import annotations

import os
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from zoo.domains.medical.wsi_mil.convert import (
    ModelSizes,
    convert_official,
    infer_sizes,
    load_official,
    rename_official,
)
from zoo.domains.medical.wsi_mil.model import build_model
from zoo.errors import WeightsError


def linear(name: str, out: int, into: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def official_shapes(
    arch: str, wide: int, inner: int, classes: int, branches: int, attn: int
) -> dict[str, tuple[int, ...]]:
    """The official key list with its shapes, written down from the specification."""
    shapes: dict[str, tuple[int, ...]] = {"dimreduction.fc1.weight": (inner, wide)}
    branched = arch.startswith("acmil")
    if arch in ("acmil_ga", "abmil"):
        shapes |= linear("attention.attention_V.0", attn, inner)
        shapes |= linear("attention.attention_U.0", attn, inner)
        shapes |= linear("attention.attention_weights", branches, attn)
    else:
        shapes["q"] = (1, branches, inner)
        names = [f"sub_attention.{i}" for i in range(branches)] if branched else ["attention"]
        for name in names:
            for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
                shapes |= linear(f"{name}.{part}", inner, inner)
        for name in names + ["bag_attention"] * branched:
            shapes |= {f"{name}.layer_norm.{kind}": (inner,) for kind in ("weight", "bias")}
        for part in ("v_proj", "out_proj") if branched else ():
            shapes |= linear(f"bag_attention.{part}", inner, inner)
    if not branched:
        return shapes | linear("classifier.fc", classes, inner)
    for i in range(branches):
        shapes |= linear(f"classifier.{i}.fc", classes, inner)
    return shapes | linear("Slide_classifier.fc", classes, inner)


def official_state(*sizes: Any) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {key: torch.randn(shape) for key, shape in official_shapes(*sizes).items()}


SIZES = [
    ("acmil_ga", 20, 16, 3, 4, 6),
    ("acmil_ga", 20, 16, 2, 1, 6),
    ("acmil_mha", 20, 24, 3, 3, 128),
    ("acmil_mha", 20, 24, 3, 1, 128),
    ("abmil", 20, 16, 5, 1, 6),
    ("mha", 20, 24, 2, 1, 128),
]


@pytest.fixture
def struct() -> Iterator[type]:
    """The class the official script pickles, importable only while a file is written."""

    class Struct:
        def __init__(self, **entries: Any) -> None:
            self.__dict__.update(entries)

    Struct.__module__, Struct.__qualname__ = "utils.utils", "Struct"
    inner = types.ModuleType("utils.utils")
    inner.Struct = Struct
    sys.modules |= {"utils": types.ModuleType("utils"), "utils.utils": inner}
    yield Struct
    for name in ("utils", "utils.utils"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("sizes", SIZES)
def test_official_file_loads_into_our_model(
    sizes: tuple[Any, ...], zipped: bool, struct: type, tmp_path: Path
) -> None:
    state, path = official_state(*sizes), tmp_path / "checkpoint-best.pth"
    parameter = torch.nn.Parameter(torch.zeros(2))
    wrapper = {
        "model": {f"module.{key}": value for key, value in state.items()},
        "optimizer": torch.optim.AdamW([parameter]).state_dict(),
        "epoch": 7,
        "config": struct(lr=1e-4, pretrain="medical_ssl", seed=2, names=["a"]),
    }
    torch.save(wrapper, path, _use_new_zipfile_serialization=zipped)
    for name in ("utils", "utils.utils"):
        del sys.modules[name]  # a reader does not have the official code

    read = load_official(path)
    assert read.epoch == 7
    assert read.config == {"lr": 1e-4, "pretrain": "medical_ssl", "seed": 2, "names": ["a"]}
    found, conversion = convert_official(read.state)
    assert found == ModelSizes(*sizes)
    assert not conversion.missing
    assert not conversion.dropped
    model = found.build()
    model.load_state_dict(conversion.state, strict=True)
    ours = model.state_dict()
    assert len(ours) == len(state)
    for key, value in state.items():
        name = conversion.renamed[f"module.{key}"]
        assert torch.equal(ours[name].view(value.shape), value), key


@pytest.mark.parametrize("sizes", SIZES)
def test_every_parameter_of_ours_has_one_official_name(sizes: tuple[Any, ...]) -> None:
    names = [rename_official(key) for key in official_shapes(*sizes)]
    arch, wide, inner, classes, branches, attn = sizes
    model = build_model(arch, wide, inner, classes, branches=branches, attention=attn)
    assert sorted(map(str, names)) == sorted(model.state_dict())


def test_bare_state_dict_is_read_too(tmp_path: Path) -> None:
    state = official_state(*SIZES[0])
    torch.save(state, tmp_path / "bare.pth")
    read = load_official(tmp_path / "bare.pth")
    assert read.state.keys() == state.keys()
    assert (read.epoch, read.config) == (None, {})


def test_dropped_and_missing_keys_are_reported() -> None:
    state = official_state(*SIZES[0])
    state["attention.unknown"] = torch.zeros(1)
    state["classifier.9.fc.bias"] = torch.zeros(3)
    del state["classifier.2.fc.bias"]
    _, conversion = convert_official(state)
    assert conversion.dropped.keys() == {"attention.unknown", "classifier.9.fc.bias"}
    assert "acmil_ga has no such parameter" in conversion.dropped["attention.unknown"]
    assert conversion.missing == ["branch_classifiers.2.linear.bias"]


def test_shapes_that_contradict_each_other_are_named() -> None:
    state = official_state(*SIZES[0])
    state["attention.attention_V.0.weight"] = torch.zeros(6, 15)
    with pytest.raises(WeightsError, match=r"attention_V\.0\.weight is \(6, 15\), not \(6, 16\)"):
        convert_official(state)
    state = official_state("mha", 20, 20, 2, 1, 128)
    with pytest.raises(WeightsError, match="no mha model has these sizes"):
        convert_official(state)


def test_other_networks_are_told_what_is_missing() -> None:
    with pytest.raises(WeightsError, match=r"no dimreduction\.fc1\.weight, classifier\.fc\.weight"):
        infer_sizes({"conv1.weight": torch.zeros(3, 3)})


class Malicious:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (self.command,)


class Unknown:
    pass


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_command_is_refused_and_not_run(zipped: bool, tmp_path: Path) -> None:
    path, trace = tmp_path / "evil.pth", tmp_path / "trace"
    wrapper = {"model": official_state(*SIZES[0]), "config": Malicious(f"touch {trace}")}
    torch.save(wrapper, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match=r"evil\.pth: refused.*'(posix|nt)\.system'"):
        load_official(path)
    assert not trace.exists()


def test_any_other_class_is_refused_by_name(tmp_path: Path) -> None:
    torch.save({"model": {}, "config": Unknown()}, tmp_path / "odd.pth")
    with pytest.raises(WeightsError, match=r"odd\.pth: refused.*test_convert\.Unknown'"):
        load_official(tmp_path / "odd.pth")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"model": {}}, "no state dict"),
        ({"model": {"a": 1}}, "not tensors in the state dict: a"),
        ([1], "no state dict"),
    ],
)
def test_files_without_a_state_dict(content: object, words: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=words):
        load_official(tmp_path / "x.pth")


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"gone\.pth: no such file"):
        load_official(tmp_path / "gone.pth")
    for content in (b"", b"text, not a pickle", b"\x80\x02}q\x00("):
        (tmp_path / "broken.pth").write_bytes(content)
        with pytest.raises(WeightsError, match=r"broken\.pth: not a readable checkpoint"):
            load_official(tmp_path / "broken.pth")
    whole = tmp_path / "whole.pth"
    torch.save({"model": official_state(*SIZES[0])}, whole)
    (tmp_path / "cut.pth").write_bytes(whole.read_bytes()[:900])
    with pytest.raises(WeightsError, match=r"cut\.pth: not a readable checkpoint"):
        load_official(tmp_path / "cut.pth")
