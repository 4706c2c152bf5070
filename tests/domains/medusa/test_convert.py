from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.domains.medusa.bundles import write_bundle
from zoo.domains.medical.medusa import tensor_bundle
from zoo.domains.medical.medusa.body import LAYERS, Body
from zoo.domains.medical.medusa.config import MedusaModel
from zoo.domains.medical.medusa.convert import (
    Sizes,
    convert_official,
    infer_sizes,
    load_body_state,
    official_name,
    rename_official,
)
from zoo.domains.medical.medusa.model import build_model
from zoo.domains.medical.medusa.weight_files import read_weights
from zoo.errors import WeightsError

BODY = [1, 2, 4, 5, 7, 8, 10, 11, 13, 15, 16, 18, 20, 21, 23, 25, 26, 28, 30, 31, 33, 34]
WIDE = {1: 0, 34: 0, 18: 12, 23: 10, 28: 6, 33: 3}  # inputs of a layer other than the one before


def convolution(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}/kernel": shape, f"{name}/bias": shape[-1:]}


def statistics(name: str, count: int) -> dict[str, tuple[int, ...]]:
    kinds = ("gamma", "beta", "moving_mean", "moving_variance")
    return {f"{name}/{kind}": (count,) for kind in kinds}


def body_shapes(width: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for number, (into, out) in LAYERS.items():
        sizes = (3, 3, max(1, into * width), max(1, out * width))
        shapes |= convolution(f"sem/{number}", *sizes)
    return shapes


def official_shapes(
    width: int = 64,
    blocks: tuple[int, ...] = (3, 4, 6, 3),
    body: int = 32,
    heads: tuple[int, ...] = (0, 1, 2, 3),
    places: int = 2,
    classes: int = 2,
) -> dict[str, tuple[int, ...]]:
    """The official list of variables with shapes, written down from the specification."""
    shapes = body_shapes(body)
    wide = [width, 4 * width, 8 * width, 16 * width, 32 * width]
    for index, scale in enumerate(heads):
        shapes |= convolution(f"sem/{600 + index}", 7, 7, 1, wide[scale])
    shapes |= convolution("conv1", 7, 7, 3, width) | statistics("bn_conv1", width)
    for stage, count in enumerate(blocks, 2):
        inner = width * 2 ** (stage - 2)
        for index in range(count):
            into = wide[stage - 2] if index == 0 else 4 * inner
            sizes = {"2a": (1, 1, into, inner), "2b": (3, 3, inner, inner)}
            sizes["2c"] = (1, 1, inner, 4 * inner)
            if index == 0:
                sizes["1"] = (1, 1, into, 4 * inner)
            for branch, shape in sizes.items():
                name = f"{stage}{'abcdef'[index]}_branch{branch}"
                shapes |= convolution(f"res{name}", *shape) | statistics(f"bn{name}", shape[-1])
    return shapes | convolution("final_output", places**2 * wide[4], classes)


def official_state(**sizes: Any) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {k: torch.rand(s, generator=generator) for k, s in official_shapes(**sizes).items()}


SMALL: dict[str, Any] = {"width": 4, "blocks": (2, 1, 1, 1), "body": 2}


def test_the_released_network_has_372_variables() -> None:
    shapes = official_shapes()
    assert len(shapes) == 372
    assert sum(int(np.prod(s)) for s in shapes.values()) == 29_165_795
    assert sorted(LAYERS) == BODY


def test_every_parameter_of_ours_has_one_official_name() -> None:
    ours = {rename_official(key) for key in official_shapes()}
    with torch.device("meta"):
        model = build_model(MedusaModel(), 2)
    expected = {k for k in model.state_dict() if not k.endswith("num_batches_tracked")}
    assert ours == expected
    assert len(ours) == 372


@pytest.mark.parametrize(
    ("sizes", "variant", "image_size"),
    [
        ({}, "resnet1", 480),
        ({"places": 1, "classes": 3}, "resnet1", 224),
        ({"heads": (3,)}, "resnet2", 480),
        ({"heads": ()}, "resnet0_R", 480),
    ],
)
def test_an_official_network_loads_strictly(
    sizes: dict[str, Any], variant: str, image_size: int
) -> None:
    state = official_state(**{**SMALL, **sizes})
    conversion = convert_official(state)
    assert not conversion.missing
    assert not conversion.dropped
    settings = MedusaModel(
        variant=variant,
        backbone="small",
        width=4,
        blocks=(2, 1, 1, 1),
        body_width=2,
        image_size=image_size,
    )
    model = build_model(settings, sizes.get("classes", 2))
    model.load_state_dict(conversion.state, strict=True)
    ours = model.state_dict()
    for key, value in state.items():
        found = ours[conversion.renamed[key]]
        if value.dim() == 4:
            torch.testing.assert_close(found, value.permute(3, 2, 0, 1), rtol=0, atol=0)
        else:
            torch.testing.assert_close(found, value.mT if value.dim() == 2 else value)


def test_sizes_are_read_from_the_tensors() -> None:
    state = official_state(**SMALL, places=1, classes=3)
    assert infer_sizes(state) == Sizes(4, 3, 4, (2, 1, 1, 1), 2, 1)
    assert infer_sizes({k: v for k, v in state.items() if not k.startswith("sem")})[::4] == (0, 0)


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("sem/600/kernel:0", "sem/600/kernel"),
        ("private__conv_block_3/res3a_branch1/bias:0", "res3a_branch1/bias"),
        ("private__identity_block/bn2b_branch2c/moving_mean", "bn2b_branch2c/moving_mean"),
        ("final_output/bias/.ATTRIBUTES/VARIABLE_VALUE", "final_output/bias"),
        ("sem/1/kernel/Adam", None),
        ("private__conv_block/res2a_branch2a/kernel/Adam_1", None),
        ("beta1_power", None),
        ("xsem/1/kernel", None),
        ("conv1/kernel/more", None),
    ],
)
def test_names_are_matched_by_their_ending(key: str, name: str | None) -> None:
    assert official_name(key) == name


def test_prefixes_and_optimiser_state_are_put_aside() -> None:
    state = official_state(**SMALL)
    plain = convert_official(state).state
    wrapped = {
        f"private__conv_block_{i}/{key}:0"
        if key.startswith(("res", "bn2", "bn3"))
        else f"{key}:0": v
        for i, (key, v) in enumerate(state.items())
    }
    slots = {f"{key[:-2]}/Adam:0": torch.zeros(1) for key in wrapped}
    extra = {"beta1_power:0": torch.zeros(()), "other/kernel": torch.zeros(3)}
    conversion = convert_official(wrapped | slots | extra)
    assert all(torch.equal(conversion.state[k], v) for k, v in plain.items())
    assert conversion.dropped["beta1_power:0"] == "optimiser state"
    assert conversion.dropped["other/kernel"] == "no such weight in this network"
    assert len(conversion.dropped) == len(slots) + 2


def test_a_top_without_bias_gets_zeros_and_what_lacks_is_named() -> None:
    state = official_state(**SMALL)
    del state["final_output/bias"], state["bn2a_branch1/gamma"]
    conversion = convert_official(state)
    assert conversion.missing == ["backbone.stages.0.0.shortcut.norm.weight"]
    assert torch.equal(conversion.state["backbone.classifier.bias"], torch.zeros(2))


def test_a_body_alone_is_converted() -> None:
    state = {k: v for k, v in official_state(**SMALL).items() if k in body_shapes(2)}
    conversion = convert_official(state)
    assert not conversion.missing
    assert all(key.startswith("body.conv") for key in conversion.state)


def test_tensors_that_do_not_fit_are_told() -> None:
    state = official_state(**SMALL)
    with pytest.raises(WeightsError, match="two tensors for sem/2/bias"):
        convert_official(state | {"copy/sem/2/bias": state["sem/2/bias"]})
    state["sem/2/kernel"] = torch.zeros(3, 3, 2, 5)
    with pytest.raises(WeightsError, match=r"sem/2/kernel is \(3, 3, 2, 5\), here \(5, 2, 3, 3\)"):
        convert_official(state)
    with pytest.raises(WeightsError, match=r"no sem/1/kernel, conv1/kernel, final_output/kernel"):
        convert_official({"fc.weight": torch.zeros(2)})
    with pytest.raises(WeightsError, match="blocks of stages 2 to 5"):
        convert_official({k: v for k, v in state.items() if "res4" not in k and "bn4" not in k})
    numbered = {"layer_with_weights-0/kernel/.ATTRIBUTES/VARIABLE_VALUE": torch.zeros(2)}
    with pytest.raises(WeightsError, match=r"save it by tf\.train\.Saver"):
        convert_official(numbered)


# -- files --------------------------------------------------------------------------------------


def arrays(state: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {key: value.numpy() for key, value in state.items()}


@pytest.mark.parametrize("kind", ["npz", "safetensors", "index", "prefix"])
def test_dumps_and_checkpoints_give_the_same_network(kind: str, tmp_path: Path) -> None:
    state = official_state(**SMALL)
    path = tmp_path / f"model.{kind}"
    if kind == "npz":
        np.savez(path, **arrays(state))
    elif kind == "safetensors":
        save_file(state, path)
    else:
        index = write_bundle(tmp_path / "model", arrays(state))
        path = index if kind == "index" else tmp_path / "model"
    read = read_weights(path)
    assert read.keys() == state.keys()
    assert all(torch.equal(read[key], value) for key, value in state.items())


def test_checkpoint_keeps_numbers_of_every_size(tmp_path: Path) -> None:
    values: dict[str, np.ndarray] = {
        "step": np.array(7, np.int64),
        "none": np.zeros((0, 3), np.float32),
        **{f"long/name/{i:04d}": np.full((i % 4 + 1, 3), i, np.float64) for i in range(200)},
        "half": np.ones((2, 2), np.float16),
    }
    read = read_weights(write_bundle(tmp_path / "all", values))
    assert read.keys() == values.keys()
    for key, value in values.items():
        assert read[key].shape == value.shape
        np.testing.assert_array_equal(read[key].numpy(), value)


def test_checksum_is_that_of_the_standard() -> None:
    # RFC 3720, appendix B.4: 32 bytes of zeros have the CRC-32C 8a9136aa.
    crc = 0x8A9136AA
    rotated = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    assert tensor_bundle._masked(bytes(32)) == rotated


def test_damaged_checkpoints_are_told(tmp_path: Path) -> None:
    values = {"sem/1/kernel": np.zeros((3, 3, 1, 2), np.float32)}
    index = write_bundle(tmp_path / "ok", values)
    whole = index.read_bytes()
    for name, change, words in [
        ("flipped", bytes([whole[0] ^ 1]) + whole[1:], r"damaged \(a checksum differs\)"),
        ("cut", whole[:-9], "not the index of a TensorFlow checkpoint"),
        ("empty", b"", "not the index of a TensorFlow checkpoint"),
    ]:
        (tmp_path / f"{name}.index").write_bytes(change)
        with pytest.raises(WeightsError, match=words):
            read_weights(tmp_path / f"{name}.index")
    with pytest.raises(WeightsError, match="big-endian"):
        read_weights(write_bundle(tmp_path / "big", values, endian=1))
    with pytest.raises(WeightsError, match="compressed"):
        read_weights(write_bundle(tmp_path / "packed", values, packed=1))
    assert read_weights(write_bundle(tmp_path / "text", values, kind=7)) == {}
    data = tmp_path / "ok.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(WeightsError, match="cut short or damaged at sem/1/kernel"):
        read_weights(index)
    data.unlink()
    with pytest.raises(WeightsError, match=r"a checkpoint needs its data beside ok\.index"):
        read_weights(index)


def write_keras(path: Path, state: dict[str, Tensor], *, whole: bool = False) -> None:
    """The lung segmenter as Keras 2 saves it: pools and joins are layers without weights."""
    with h5py.File(path, "w") as file:
        root = file.create_group("model_weights") if whole else file
        names = []
        for place in range(35):
            name = f"conv2d_{place}" if place in LAYERS else f"layer_{place}"
            names.append(name)
            group = root.create_group(name)
            kinds = ("kernel", "bias") if place in LAYERS else ()
            group.attrs["weight_names"] = [f"{name}/{kind}:0".encode() for kind in kinds]
            for kind in kinds:
                group[f"{name}/{kind}:0"] = state[f"sem/{place}/{kind}"].numpy()
        root.attrs["layer_names"] = [name.encode() for name in names]


def body_state(width: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {k: torch.rand(s, generator=generator) for k, s in body_shapes(width).items()}


@pytest.mark.parametrize("whole", [False, True])
def test_keras_file_of_the_lung_segmenter_fills_the_body(whole: bool, tmp_path: Path) -> None:
    state = body_state(2)
    write_keras(tmp_path / "trained_model.hdf5", state, whole=whole)
    body = Body(2)
    body.load_state_dict(load_body_state(tmp_path / "trained_model.hdf5", body.state_dict()))
    for number in LAYERS:
        ours = body.get_parameter(f"conv{number}.weight")
        torch.testing.assert_close(ours, state[f"sem/{number}/kernel"].permute(3, 2, 0, 1))
        bias = body.get_parameter(f"conv{number}.bias")
        torch.testing.assert_close(bias, state[f"sem/{number}/bias"])


def test_body_of_a_whole_network_is_taken_from_it(tmp_path: Path) -> None:
    state = official_state(**SMALL)
    save_file(state, tmp_path / "all.safetensors")
    found = load_body_state(tmp_path / "all.safetensors", Body(2).state_dict())
    expected = state["sem/18/kernel"].permute(3, 2, 0, 1)
    torch.testing.assert_close(found["conv18.weight"], expected)


def test_other_hdf5_files_are_told(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "plain.h5", "w") as file:
        file["x"] = np.zeros(3)
    with pytest.raises(WeightsError, match="not a Keras weight file"):
        read_weights(tmp_path / "plain.h5")
    write_keras(tmp_path / "few.h5", body_state(2))
    with h5py.File(tmp_path / "few.h5", "a") as file:
        file.attrs["layer_names"] = file.attrs["layer_names"][:5]
    with pytest.raises(WeightsError, match="3 layers with weights; the lung segmenter has 22"):
        read_weights(tmp_path / "few.h5")
    write_keras(tmp_path / "link.h5", body_state(2))
    with h5py.File(tmp_path / "link.h5", "a") as file:
        del file["conv2d_4/conv2d_4/kernel:0"]
        file["conv2d_4/conv2d_4/kernel:0"] = h5py.ExternalLink("few.h5", "conv2d_5")
    with pytest.raises(WeightsError, match="lies outside of the file"):
        read_weights(tmp_path / "link.h5")


def test_other_files_are_told_in_a_line(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(2)}, tmp_path / "model.pth")
    for name in ("bad.npz", "bad.safetensors", "bad.h5"):
        (tmp_path / name).write_bytes(b"nothing of the kind")
    np.savez(tmp_path / "objects.npz", a=np.array([{}], dtype=object))
    for name, words in [
        ("model.pth", r"weights are read from \.safetensors, \.npz, \.hdf5, \.h5, \.index files"),
        ("gone.npz", "no such file"),
        ("bad.npz", "bad.npz"),
        ("bad.safetensors", "cannot be read"),
        ("bad.h5", "cannot be read"),
        ("objects.npz", "cannot be read"),
    ]:
        with pytest.raises(WeightsError, match=words) as told:
            read_weights(tmp_path / name)
        assert "\n" not in str(told.value)
        assert name in str(told.value)
