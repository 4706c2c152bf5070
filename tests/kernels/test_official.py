"""Blocks of official checkpoints: recorded outputs, the exact way back, one line an error."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import zoo.kernels
from tests.parity.golden import Case, roots
from zoo.domains.medical.wsi_mil import convert as wsi_mil
from zoo.kernels import (
    BroadcastGate,
    FewKeyAttention,
    GatedAttentionPool,
    GatedLinearAttention,
    QueryPool,
    softmax_pool,
)
from zoo.kernels.official import OfficialModule, from_tensorflow, to_tensorflow

State = dict[str, Tensor]
PREFIXES = ["", "attention.", "module.net.7.attention."]
GATED, MHA, MFU = "attention_gated", "mha", "blocks.0.attn."


def golden(name: str) -> Case:
    """A recorded case, wherever it is kept."""
    for root in reversed(roots().values()):
        if (root / f"{name}.json").is_file():
            return Case(root / f"{name}.json")
    pytest.skip(f"the case {name} is not here: set ZOO_GOLDEN to the folder of all cases")


def below(state: Mapping[str, Tensor], prefix: str) -> State:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def placed(state: Mapping[str, Tensor], prefix: str) -> State:
    """A block's state inside of a larger one, which has other keys beside it."""
    other = {"classifier.weight": torch.zeros(2, 2)} if prefix else {}
    return {prefix + key: value for key, value in state.items()} | other


def near(case: Case, key: str, ours: Tensor) -> None:
    limits = case.info["tolerance"]
    limits = limits.get("forward", limits) if "rtol" not in limits else limits
    if "rtol" not in limits:  # MEDUSA's is in words
        limits = {"rtol": 1e-4, "atol": 2e-5}
    rtol, atol = limits["rtol"], limits["atol"]
    torch.testing.assert_close(ours.detach(), case.tensors[key], rtol=rtol, atol=atol)


def affine(state: Mapping[str, Tensor], layer: str) -> tuple[Tensor, Tensor]:
    return state[f"{layer}.weight"], state[f"{layer}.bias"]


def normed(state: Mapping[str, Tensor], layer: str, x: Tensor, eps: float = 1e-5) -> Tensor:
    return functional.layer_norm(x, x.shape[-1:], *affine(state, layer), eps)


def gelu_mlp(state: Mapping[str, Tensor], x: Tensor) -> Tensor:
    hidden = functional.gelu(functional.linear(x, *affine(state, "mlp.fc1")))
    return functional.linear(hidden, *affine(state, "mlp.fc2"))


# -- recorded outputs ---------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("system", [None, "acmil"])
def test_gated_pool_of_acmil(prefix: str, system: str | None) -> None:
    case = golden("wsi_mil/modules_small")
    pool = GatedAttentionPool.from_official(
        placed(case.group(f"state/{GATED}"), prefix), prefix, system
    )
    x = case.tensors["input/x"]
    near(case, f"output/{GATED}", pool(x).logits.mT)
    near(case, f"output/{GATED}", pool.gated_logits(x).mT)


@pytest.mark.parametrize("prefix", ["attention.", "module.attention."])
def test_gated_pool_out_of_a_whole_checkpoint_is_the_model_s(prefix: str) -> None:
    state = golden("wsi_mil/ga_eval_k4").group("state")
    wrapped = {f"module.{key}": value for key, value in state.items()}
    pool = GatedAttentionPool.from_official(wrapped, prefix)
    sizes, conversion = wsi_mil.convert_official(state)
    model = sizes.build()
    model.load_state_dict(conversion.state)
    x = torch.randn(9, 16)
    for ours, theirs in zip(pool(x), model.pool(x), strict=True):
        assert torch.equal(ours, theirs)


class GatedNet(nn.Module):
    """The gated scorer of CLAM, in the layers its checkpoints have."""

    def __init__(self, dim: int, hidden: int, branches: int) -> None:
        super().__init__()
        first, second = nn.Linear(dim, hidden), nn.Linear(dim, hidden)
        self.attention_a = nn.Sequential(first, nn.Tanh(), nn.Dropout(0.25))
        self.attention_b = nn.Sequential(second, nn.Sigmoid(), nn.Dropout(0.25))
        self.attention_c = nn.Linear(hidden, branches)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention_c(self.attention_a(x) * self.attention_b(x))


def test_gated_pool_of_clam() -> None:
    fc = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Dropout(0.25), GatedNet(6, 5, 2))
    whole = nn.ModuleDict({"attention_net": fc, "classifiers": nn.Linear(6, 2)}).eval()
    pool = GatedAttentionPool.from_official(whole.state_dict(), "attention_net.3.")
    rows = fc[:3](torch.randn(11, 8))
    logits = fc[3](rows)
    found = pool(rows)
    torch.testing.assert_close(found.logits, logits)
    torch.testing.assert_close(found.pooled[0], logits.softmax(0).mT @ rows)


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize(
    ("name", "queries", "outputs"),
    [("mha", "q", "mha"), ("mha", "q3", "mha_q3"), ("mha_down2", "q", "mha_down2")],
)
def test_query_pool_of_acmil(prefix: str, name: str, queries: str, outputs: str) -> None:
    case = golden("wsi_mil/modules_small")
    state = case.group(f"state/{name}")
    pool = QueryPool.from_official(placed(state, prefix), prefix, heads=8)
    q, x = case.tensors[f"input/{queries}"][0], case.tensors["input/x"]
    found = pool(q, x)
    near(case, f"output/{outputs}_attn_raw", found.logits.mT.unflatten(0, (8, -1)))
    near(case, f"output/{outputs}_feat", normed(state, "layer_norm", found.features[0], 1e-6))


@pytest.mark.parametrize("root", ["", "HTM.blocks.0.MUF_RES.", "module.HTM.blocks.0.MFU."])
def test_query_pool_of_fusion_reid(root: str) -> None:
    case = golden("reid/mfu")
    state = below(case.group("state"), "blocks.0.")
    whole = {root + key: value for key, value in case.group("state").items()}
    pool = QueryPool.from_official(whole, f"{root}{MFU}", heads=12)
    cls = case.tensors["input/cls"].unsqueeze(1)
    cls = cls + pool(normed(state, "norm1", cls), case.tensors["input/kv"]).features
    near(case, "output/y", cls + gelu_mlp(state, normed(state, "norm2", cls)))


def plain_attention(state: State, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Segment Anything's attention by its own names."""
    names = (("q_proj", q), ("k_proj", k), ("v_proj", v))
    q, k, v = (
        functional.linear(x, *affine(state, name)).unflatten(-1, (heads, -1)).transpose(1, 2)
        for name, x in names
    )
    mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    return functional.linear(mixed, *affine(state, "out_proj"))


def to_image(state: State, place: str, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    pool = QueryPool.from_official(state, f"{place}_token_to_image.", heads=heads)
    pooled, _ = softmax_pool(pool.query_logits(q, k), v)
    return pool.project(pooled)


@pytest.mark.parametrize("prefix", ["", "module.mask_decoder.transformer."])
def test_attentions_of_her_seg_s_decoder(prefix: str) -> None:
    """The official two-way transformer, written out, with our blocks across.

    In float64, for its layers amplify rounding: the record itself is 2e-5 off.
    """
    case = golden("her_seg/two_way_transformer")
    heads = case.info["args"]["num_heads"]
    own = {key: value.double() for key, value in case.group("state").items()}
    state = {prefix + key: value for key, value in own.items()}
    given = {key: value.double() for key, value in case.group("input").items()}
    keys, keys_at = (given[f"image_{x}"].flatten(2).mT for x in ("embedding", "pe"))
    queries = at = given["tokens"]
    for i in range(2):
        layer = below(own, f"layers.{i}.")
        mine = below(layer, "self_attn.")
        seen = queries if i == 0 else queries + at
        read = plain_attention(mine, seen, seen, queries, heads)
        queries = normed(layer, "norm1", read if i == 0 else queries + read)
        place = f"{prefix}layers.{i}.cross_attn"
        read = to_image(state, place, queries + at, keys + keys_at, keys, heads)
        queries = normed(layer, "norm2", queries + read)
        hidden = functional.linear(queries, *affine(layer, "mlp.lin1")).relu()
        queries = queries + functional.linear(hidden, *affine(layer, "mlp.lin2"))
        queries = normed(layer, "norm3", queries)
        back = FewKeyAttention.from_official(state, f"{place}_image_to_token.", heads=heads)
        keys = normed(layer, "norm4", keys + back(keys + keys_at, queries + at, queries))
    read = to_image(state, f"{prefix}final_attn", queries + at, keys + keys_at, keys, heads)
    found = {"queries": normed(own, "norm_final_attn", queries + read), "keys": keys}
    for name, value in found.items():
        wanted = case.tensors[f"output/{name}"].double()
        torch.testing.assert_close(value.detach(), wanted, rtol=1e-4, atol=5e-5)


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("name", ["linear_attention", "linear_attention_small_denominator"])
def test_linear_attention_of_her_seg(prefix: str, name: str) -> None:
    case = golden(f"her_seg/{name}")
    state, heads = placed(case.group("state"), prefix), case.info["args"]["num_heads"]
    block = GatedLinearAttention.from_official(state, prefix, heads=heads)
    near(case, "output/y", block(case.tensors["input/x"]))


@pytest.mark.parametrize("prefix", ["", "image_encoder.layers.1.blocks.0."])
@pytest.mark.parametrize("name", ["lgvit_block", "lgvit_block_small_input"])
def test_gated_linear_attention_of_her_seg(prefix: str, name: str) -> None:
    case = golden(f"her_seg/{name}")
    own, heads = case.group("state"), case.info["args"]["num_heads"]
    block = GatedLinearAttention.from_official(placed(own, prefix), prefix, heads=heads)
    x = case.tensors["input/x"]
    x = x + functional.linear(block(normed(own, "norm1", x)), *affine(own, "out_proj"))
    near(case, "output/y", x + gelu_mlp(own, normed(own, "norm2", x)))


@pytest.mark.parametrize("name", ["head_odd_119", "head_upscale", "head_downscale"])
@pytest.mark.parametrize("saved", ["", ":0", "/.ATTRIBUTES/VARIABLE_VALUE"])
def test_map_gate_of_medusa(name: str, saved: str) -> None:
    case = golden(f"medusa/{name}")
    state = {f"{key}{saved}": value for key, value in case.group("state").items()}
    slots = {"sem/600/kernel/Adam": torch.zeros(1), "sem/601/kernel": torch.zeros(1)}
    gate = BroadcastGate.from_official(state | slots, "sem/600/")
    x, level = (case.tensors[f"input/{k}"].permute(0, 3, 1, 2) for k in ("x", "body_map"))
    near(case, "output/y", gate(x, level).permute(0, 2, 3, 1))


@pytest.mark.parametrize("prefix", ["", "module.se."])
def test_channel_gate_of_dfyp(prefix: str) -> None:
    case = golden("crop_yield/s2_rca_avg")
    gate = BroadcastGate.from_official(placed(case.group("state"), prefix), prefix)
    near(case, "output/y", gate(case.tensors["input/x"]))


# -- the way back -------------------------------------------------------------------------------


def recorded(name: str, group: str, prefix: str = "") -> State:
    return below(golden(name).group(group), prefix)


EACH: dict[str, tuple[Callable[..., Any], Callable[[], State], str, dict[str, int]]] = {
    "gated": (
        GatedAttentionPool.from_official,
        lambda: recorded("wsi_mil/modules_small", f"state/{GATED}"),
        "acmil",
        {},
    ),
    "acmil": (
        QueryPool.from_official,
        lambda: recorded("wsi_mil/modules_small", f"state/{MHA}_down2"),
        "acmil",
        {"heads": 8},
    ),
    "fusion_reid": (
        QueryPool.from_official,
        lambda: recorded("reid/mfu", "state", MFU),
        "fusion_reid",
        {"heads": 12},
    ),
    "token_to_image": (
        QueryPool.from_official,
        lambda: recorded("her_seg/two_way_transformer", "state", "final_attn_token_to_image."),
        "her_seg",
        {"heads": 2},
    ),
    "image_to_token": (
        FewKeyAttention.from_official,
        lambda: recorded(
            "her_seg/two_way_transformer", "state", "layers.1.cross_attn_image_to_token."
        ),
        "her_seg",
        {"heads": 2},
    ),
    "linear": (
        GatedLinearAttention.from_official,
        lambda: recorded("her_seg/linear_attention_small_denominator", "state"),
        "her_seg_attention",
        {"heads": 6},
    ),
    "gated_linear": (
        GatedLinearAttention.from_official,
        lambda: recorded("her_seg/lgvit_block_small_input", "state"),
        "her_seg",
        {"heads": 12},
    ),
    "map": (
        BroadcastGate.from_official,
        lambda: recorded("medusa/head_odd_119", "state", "sem/600/"),
        "medusa",
        {},
    ),
    "channel": (
        BroadcastGate.from_official,
        lambda: {"fc.0.weight": torch.randn(1, 3), "fc.2.weight": torch.randn(3, 1)},
        "dfyp_sentinel2",
        {},
    ),
}
BESIDE = ("layer_norm", "norm1", "norm2", "mlp", "out_proj.")
"""Of the official modules around the blocks; `out_proj` is a block's own elsewhere."""


def owned(state: State, block: str) -> State:
    """What of a recorded state is the block's."""
    around = ("layer_norm",) if block != "gated_linear" else BESIDE
    return {k: v for k, v in state.items() if not k.startswith(around) and "rotations" not in k}


@pytest.mark.parametrize("block", EACH)
@pytest.mark.parametrize("prefix", ["", "net.3."])
def test_the_way_back_is_exact(block: str, prefix: str) -> None:
    build, make, system, settings = EACH[block]
    state = make()
    made = build(state, **settings)
    back = made.to_official(system, prefix)
    wanted = {prefix + key: value for key, value in owned(state, block).items()}
    assert back.keys() == wanted.keys()
    for key, value in wanted.items():
        assert torch.equal(back[key], value), key
        assert back[key].is_contiguous()
    again = build(back, prefix, system, **settings)
    for key, value in made.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key


def test_clam_and_acmil_name_the_same_parameters() -> None:
    pool = GatedAttentionPool(5, 4, 2)
    through = GatedAttentionPool.from_official(pool.to_official("clam"))
    x = torch.randn(6, 5)
    assert torch.equal(through(x).pooled, pool(x).pooled)
    assert pool.to_official("clam").keys().isdisjoint(pool.to_official("acmil"))


@pytest.mark.parametrize("shape", [(3, 5, 1, 8), (7, 2), (4,)])
def test_tensorflow_s_layout_and_back(shape: tuple[int, ...]) -> None:
    value = torch.randn(shape)
    ours = from_tensorflow(value)
    assert tuple(ours.shape) == {4: (8, 1, 3, 5), 2: (2, 7), 1: (4,)}[len(shape)]
    assert torch.equal(to_tensorflow(ours), value)


# -- what is made -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_tensors_are_copied_in_their_dtype(dtype: torch.dtype) -> None:
    state = {k: v.to(dtype) for k, v in EACH["fusion_reid"][1]().items()}
    pool = QueryPool.from_official(state, heads=12)
    assert {p.dtype for p in pool.parameters()} == {dtype}
    assert all(p.requires_grad for p in pool.parameters())
    with torch.no_grad():
        pool.query.weight.zero_()
        pool.to_official("fusion_reid")["k.weight"].zero_()
    assert bool(state["q.weight"].any())
    assert bool(pool.key.weight.any())


def test_no_random_numbers_are_drawn() -> None:
    before = torch.get_rng_state()
    state = EACH["gated"][1]()
    GatedAttentionPool.from_official(state)
    assert torch.equal(torch.get_rng_state(), before)


def test_query_biases_of_fusion_reid_are_read_where_they_are() -> None:
    pool = QueryPool(24, 12, key_norm=True)
    state = pool.to_official("fusion_reid", "attn.")
    assert "attn.q.bias" in state
    again = QueryPool.from_official(state, "attn.", heads=12)
    assert torch.equal(again.query.bias, pool.query.bias)


def test_every_block_with_parameters_has_its_names() -> None:
    classes = [vars(zoo.kernels)[name] for name in zoo.kernels.__all__]
    blocks = [c for c in classes if isinstance(c, type) and issubclass(c, nn.Module)]
    named = {c.__name__ for c in blocks if issubclass(c, OfficialModule) and c.OFFICIAL}
    assert {c.__name__ for c in blocks} - named == {"MutualAttention", "ChannelAttention"}
    for bare in (zoo.kernels.MutualAttention(), zoo.kernels.ChannelAttention()):
        assert not list(bare.parameters())
        assert not list(bare.buffers())


# -- errors -------------------------------------------------------------------------------------


def refusal(call: Callable[[], object]) -> str:
    """The one line of the error that a call ends in."""
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the callers compare the words
        call()
    text = str(error.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("block", EACH)
def test_each_missing_key_is_told(block: str) -> None:
    build, make, system, settings = EACH[block]
    for key in owned(make(), block):
        state = placed(make(), "net.")
        del state[f"net.{key}"]
        text = refusal(lambda state=state: build(state, "net.", system, **settings))
        assert f"of {system} at prefix 'net.': missing net.{key}" in text


@pytest.mark.parametrize("block", EACH)
def test_unknown_keys_are_told(block: str) -> None:
    build, make, system, settings = EACH[block]
    state = placed(make() | {"extra.weight": torch.zeros(1)}, "module.net.")
    text = refusal(lambda: build(state, "net.", system, **settings))
    assert text.endswith(f"of {system} at prefix 'net.': unknown module.net.extra.weight")


@pytest.mark.parametrize("block", EACH)
def test_each_wrong_shape_is_told(block: str) -> None:
    build, make, _, settings = EACH[block]
    for key, value in owned(make(), block).items():
        state = make() | {key: torch.zeros(*value.shape, 2)}
        text = refusal(lambda state=state: build(state, **settings))
        assert f"{key} is {(*value.shape, 2)}" in text


def test_shapes_that_contradict_each_other() -> None:
    state = placed(EACH["gated"][1](), "attention.")
    state["attention.attention_U.0.weight"] = torch.zeros(12, 31)
    text = refusal(lambda: GatedAttentionPool.from_official(state, "attention."))
    assert text == ("GatedAttentionPool: attention.attention_U.0.weight is (12, 31), not (12, 32)")


def test_integers_are_no_weights() -> None:
    state = EACH["gated"][1]()
    state["attention_weights.bias"] = torch.zeros(4, dtype=torch.int8)
    text = refusal(lambda: GatedAttentionPool.from_official(state))
    assert text == "GatedAttentionPool: attention_weights.bias is of torch.int8"


def test_the_right_prefix_is_named() -> None:
    state = golden("wsi_mil/ga_eval_k4").group("state")
    for prefix in ("", "pool.", "attention"):
        text = refusal(lambda prefix=prefix: GatedAttentionPool.from_official(state, prefix))
        assert text.endswith("; there is one at prefix 'attention.'")
        assert "unknown" not in text
    heads = golden("wsi_mil/mha_train_stkim").group("state")
    text = refusal(lambda: QueryPool.from_official(heads, "attention.", heads=8))
    assert "there is one at prefix 'sub_attention.0.', 'sub_attention.1.'" in text


def test_an_empty_state_is_refused() -> None:
    text = refusal(lambda: GatedAttentionPool.from_official({}))
    assert "missing attention_V.0.weight" in text
    assert "there is one" not in text


def test_arrays_are_no_tensors() -> None:
    state: dict[str, Any] = {**EACH["map"][1]()}
    state["bias"] = state["bias"].numpy()
    text = refusal(lambda: BroadcastGate.from_official(state))
    assert text == "no tensors: bias"


def test_some_biases_are_not_enough() -> None:
    state = EACH["fusion_reid"][1]() | {"q.bias": torch.zeros(24)}
    text = refusal(lambda: QueryPool.from_official(state, heads=12))
    assert text == "not a QueryPool of fusion_reid at prefix '': missing k.bias, v.bias"


def test_one_name_twice_is_refused() -> None:
    state = EACH["gated"][1]()
    state["module.attention_weights.bias"] = torch.zeros(4)
    text = refusal(lambda: GatedAttentionPool.from_official(state))
    assert text.startswith("attention_weights.bias and module.attention_weights.bias are two")


def test_another_rotary_table_is_refused() -> None:
    for table in (torch.zeros(3), torch.zeros(6, 6, 12, 2)):
        state = EACH["linear"][1]() | {"rope.rotations": table}
        text = refusal(lambda state=state: GatedLinearAttention.from_official(state, heads=6))
        assert text == "rope.rotations is not the table that GatedLinearAttention computes"


def test_systems_are_told() -> None:
    words = "GatedAttentionPool has no names of 'abmil', only of acmil, clam"
    pool = GatedAttentionPool(3, 2)
    assert refusal(lambda: pool.to_official("abmil")) == words
    state = pool.to_official("acmil")
    assert refusal(lambda: GatedAttentionPool.from_official(state, "", "abmil")) == words


def test_what_a_system_cannot_hold_is_not_written() -> None:
    text = refusal(lambda: QueryPool(8, 2, key_norm=True).to_official("acmil"))
    assert text == ("QueryPool as of acmil: no names for key_norm.weight, key_norm.bias")
    text = refusal(lambda: QueryPool(8, 2, bias=False).to_official("fusion_reid"))
    assert text == ("QueryPool as of fusion_reid: this block lacks key_norm.weight, key_norm.bias")


def test_heads_that_do_not_divide_are_told() -> None:
    text = refusal(lambda: QueryPool.from_official(EACH["acmil"][1](), heads=7))
    assert "heads must divide the projected width" in text
