"""Official ACMIL checkpoints under the zoo's names.

The official training script writes a pickled dict {model, optimizer, epoch, config} whose config
is an object of the script's own class. It is read with an allow-list: tensors, plain containers
and that one class, which is replaced by an empty stand-in. Nothing in the file is ever called.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from zoo.domains.medical.wsi_mil.model import MilModel, build_model
from zoo.errors import WeightsError
from zoo.kernels import GatedAttentionPool, QueryPool
from zoo.states import unpickled, unwrapped
from zoo.task import Adoption, Conversion, Facts

STRUCT = "utils.utils.Struct"
"""Where the official script defines the class of its configuration."""

_POOL, _ATTENTION = (block.OFFICIAL["acmil"] for block in (GatedAttentionPool, QueryPool))
RENAMES = [
    (r"q", r"queries"),
    (r"dimreduction\.fc1\.(\w+)", r"reduce.linear.\1"),
    (r"dimreduction\.resBlocks\.(\d+)\.block\.0\.(\w+)", r"reduce.blocks.\1.first.\2"),
    (r"dimreduction\.resBlocks\.(\d+)\.block\.2\.(\w+)", r"reduce.blocks.\1.second.\2"),
    *_POOL.renames(r"attention\.", r"pool."),
    *_ATTENTION.renames(r"attention\.", r"attention.pool."),
    (r"attention\.layer_norm\.(\w+)", r"attention.norm.\1"),
    *_ATTENTION.renames(r"sub_attention\.(\d+)\.", r"branches.\1.pool."),
    (r"sub_attention\.(\d+)\.layer_norm\.(\w+)", r"branches.\1.norm.\2"),
    (r"bag_attention\.v_proj\.(\w+)", r"bag.value.\1"),
    (r"bag_attention\.out_proj\.(\w+)", r"bag.out.\1"),
    (r"bag_attention\.layer_norm\.(\w+)", r"bag.norm.\1"),
    (r"classifier\.(\d+)\.fc\.(\w+)", r"branch_classifiers.\1.linear.\2"),
    (r"classifier\.fc\.(\w+)", r"slide_classifier.linear.\1"),
    (r"Slide_classifier\.fc\.(\w+)", r"slide_classifier.linear.\1"),
]
"""Whole official key -> our key, as regular expressions."""


class OfficialCheckpoint(NamedTuple):
    """What an official file holds, without its optimiser.

    Attributes:
        state: Tensors under the official keys.
        epoch: The epoch it was written after, if it says.
        config: The settings of the official script, if it has them.
    """

    state: dict[str, Tensor]
    epoch: int | None
    config: dict[str, Any]


class ModelSizes(NamedTuple):
    """What `build_model` needs to know, read from the shapes of official tensors.

    Attributes:
        arch: `acmil_ga`, `acmil_mha`, `abmil` or `mha`.
        feature_dim: Feature width F.
        inner: Inner width L.
        classes: Number of classes C.
        branches: Number of branches K.
        attention: Width of the gated scorer; 128 where there is none.
    """

    arch: str
    feature_dim: int
    inner: int
    classes: int
    branches: int
    attention: int

    def build(self) -> MilModel:
        """A model of these sizes with the default training settings."""
        return build_model(
            self.arch,
            self.feature_dim,
            self.inner,
            self.classes,
            branches=self.branches,
            attention=self.attention,
        )


class _Struct:
    """Stands in for the official configuration class; keeps attributes, does nothing."""


def load_official(path: Path | str) -> OfficialCheckpoint:
    """Reads an official checkpoint, or a bare state dict, without running anything in it.

    Args:
        path: File written by `torch.save`.

    Raises:
        WeightsError: The file is missing, broken, or holds anything but tensors, plain
            containers and the official configuration; the message names what was refused.
    """
    content = unpickled(path, [(_Struct, STRUCT)], f"'{STRUCT}'")
    return _unwrap(content, path)


def rename_official(key: str) -> str | None:
    """Our name of an official key, with or without `module.`; None if there is none."""
    key = key.removeprefix("module.")
    for pattern, ours in RENAMES:
        match = re.fullmatch(pattern, key)
        if match:
            return match.expand(ours)
    return None


def convert_tensor(our_key: str, value: Tensor) -> Tensor:
    """The official tensor in our shape: queries (1, K, L) lose their batch axis."""
    return value.squeeze(0) if our_key == "queries" and value.dim() == 3 else value


def infer_sizes(state: Mapping[str, Tensor]) -> ModelSizes:
    """Architecture and sizes of an official state dict.

    Multi-head models have `q`, ACMIL models a slide classifier beside those of the branches.

    Raises:
        WeightsError: Tensors that tell the sizes are missing.
    """
    state = {key.removeprefix("module."): value for key, value in state.items()}
    multi_head, branched = "q" in state, "Slide_classifier.fc.weight" in state
    head = "Slide_classifier.fc.weight" if branched else "classifier.fc.weight"
    scorer = "q" if multi_head else "attention.attention_weights.weight"
    telling = ("dimreduction.fc1.weight", head, scorer)
    absent = [key for key in telling if key not in state]
    if absent:
        msg = f"not an ACMIL state dict: no {', '.join(absent)}"
        raise WeightsError(msg)
    inner, feature_dim = state["dimreduction.fc1.weight"].shape
    arch = ("acmil_" if branched else "") + ("mha" if multi_head else "ga" if branched else "abmil")
    return ModelSizes(
        arch=arch,
        feature_dim=feature_dim,
        inner=inner,
        classes=state[head].shape[0],
        branches=state[scorer].shape[1 if multi_head else 0],
        attention=128 if multi_head else state[scorer].shape[1],
    )


def convert_official(state: Mapping[str, Tensor]) -> tuple[ModelSizes, Conversion]:
    """An official state dict under our names.

    Args:
        state: Official keys, as in `load_official(path).state`; a prefix `module.` is dropped.

    Returns:
        The sizes to build the model with and the conversion; `conversion.state` loads strictly
        if `conversion.missing` is empty.

    Raises:
        WeightsError: The architecture cannot be told, or a tensor has a shape that does not fit
            the others.
    """
    sizes = infer_sizes(state)
    try:
        with torch.device("meta"):
            expected = {key: value.shape for key, value in sizes.build().state_dict().items()}
    except ValueError as error:
        msg = f"no {sizes.arch} model has these sizes: {error}"
        raise WeightsError(msg) from error
    made, renamed, dropped, wrong = {}, {}, {}, []
    for key, value in state.items():
        ours = rename_official(key)
        if ours is None or ours not in expected:
            dropped[key] = f"{sizes.arch} has no such parameter"
            continue
        fitted = convert_tensor(ours, value)
        if fitted.shape != expected[ours]:
            wrong.append(f"{key} is {tuple(value.shape)}, not {tuple(expected[ours])}")
        made[ours], renamed[key] = fitted, ours
    if wrong:
        msg = f"shapes contradict each other: {'; '.join(wrong)}"
        raise WeightsError(msg)
    missing = [key for key in expected if key not in made]
    return sizes, Conversion(made, renamed, dropped, missing)


def _unwrap(content: object, path: Path | str) -> OfficialCheckpoint:
    """State, epoch and settings of what was unpickled."""
    wrapper: dict[Any, Any] = content if isinstance(content, dict) else {}
    state = unwrapped(content)
    if not state:
        msg = f"{path}: holds no state dict"
        raise WeightsError(msg)
    odd = [str(key) for key, value in state.items() if not isinstance(value, Tensor)]
    if odd:
        msg = f"{path}: not tensors in the state dict: {', '.join(odd[:5])}"
        raise WeightsError(msg)
    epoch, config = wrapper.get("epoch"), wrapper.get("config")
    if isinstance(config, _Struct):
        config = vars(config)
    return OfficialCheckpoint(
        {str(key): value for key, value in state.items()},
        epoch if isinstance(epoch, int) else None,
        dict(config) if isinstance(config, dict) else {},
    )


# -- without settings ---------------------------------------------------------------------------


def adopt(state: Mapping[str, Tensor], classes: Sequence[str] | None) -> Adoption:
    """Settings and facts of a model that comes without any.

    Args:
        state: Under our names; features that were standardised have `mean` and `deviation` in it.
        classes: Names that the user gave, in index order.

    Raises:
        WeightsError: It is no model of this task, or has another number of classes.
    """
    standardised = "net.reduce.linear.weight" in state
    sizes = our_sizes({k.removeprefix("net."): v for k, v in state.items()})
    if classes is not None and len(classes) != sizes.classes:
        msg = f"data.classes names {len(classes)} classes; the file has {sizes.classes}"
        raise WeightsError(msg)
    words = [
        f"model.arch={sizes.arch}",
        f"model.inner={sizes.inner}",
        f"model.attention={sizes.attention}",
        f"model.branches={sizes.branches}",
        f"data.standardise={str(standardised).lower()}",
    ]
    numbered = [f"class {i}" for i in range(sizes.classes)]
    facts: Facts = {
        "width": sizes.feature_dim,
        "classes": list(classes or numbered),
        "merge": {},
        "extraction": {},
    }
    if standardised:
        facts |= {k: state[k].tolist() for k in ("mean", "deviation")}
    told = [f"features of {sizes.feature_dim} values as stored; the file does not name the encoder"]
    if classes is None:
        told.append(
            f"the file does not name its {sizes.classes} classes; data.classes=[…] gives them names"
        )
    return Adoption(words, facts, told)


def our_sizes(state: Mapping[str, Tensor]) -> ModelSizes:
    """What `infer_sizes` tells, of tensors under our names.

    Raises:
        WeightsError: Tensors that tell the sizes are missing.
    """
    multi_head = "queries" in state
    branched = any(k.startswith("branch_classifiers.") for k in state)
    scorer = "queries" if multi_head else "pool.score.weight"
    telling = ("reduce.linear.weight", "slide_classifier.linear.weight", scorer)
    absent = [key for key in telling if key not in state]
    if absent:
        msg = f"no model of wsi_mil: no {', '.join(absent)}"
        raise WeightsError(msg)
    inner, feature_dim = state["reduce.linear.weight"].shape
    arch = ("acmil_" if branched else "") + ("mha" if multi_head else "ga" if branched else "abmil")
    return ModelSizes(
        arch=arch,
        feature_dim=feature_dim,
        inner=inner,
        classes=state["slide_classifier.linear.weight"].shape[0],
        branches=state[scorer].shape[0],
        attention=128 if multi_head else state[scorer].shape[1],
    )
