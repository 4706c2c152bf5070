from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional

from tests.domains.her_seg.comparing import agree, close, forced, stirred
from zoo.benchmarks import her_seg as benchmark
from zoo.benchmarks.costs import multiply_adds, saved_megabytes
from zoo.domains.medical.her_seg.config import SegModel
from zoo.domains.medical.her_seg.enlarged import low_resolution_loss
from zoo.domains.medical.her_seg.losses import mask_loss
from zoo.domains.medical.her_seg.model import HerSegModel, Normalise, build_model
from zoo.domains.medical.her_seg.plain import plain_her_seg
from zoo.domains.medical.her_seg.prompts import PromptBatch
from zoo.domains.medical.her_seg.sam2_neck import FpnNeck, sine_positions

SMALL: dict[str, Any] = {
    "dim": 24,
    "image_size": 64,
    "depths": (1, 1, 1, 1),
    "decoder_dim": 32,
    "decoder_heads": 2,
    "decoder_mlp": 24,
}


def small(classes: int = 1, **more: Any) -> HerSegModel:
    torch.manual_seed(0)
    return build_model(SegModel(**{**SMALL, **more}), classes)


def prompts(batch: int) -> PromptBatch:
    generator = torch.Generator().manual_seed(0)
    places = torch.rand(batch, 3, 2, generator=generator, dtype=torch.float64) * 64
    labels = torch.tensor([1, 0, -1]).expand(batch, -1)
    boxes = torch.tensor([[[5.0, 6, 40, 50]]], dtype=torch.float64).expand(batch, -1, -1)
    mask = torch.rand(batch, 1, 16, 16, generator=generator, dtype=torch.float64)
    return PromptBatch(places, labels, boxes, mask)


# -- sizes --------------------------------------------------------------------------------------


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_the_published_model_has_the_published_size() -> None:
    with torch.device("meta"):
        model = build_model(SegModel())
    assert count(model) == 3_526_364
    parts = ("image_encoder", "neck", "prompt_encoder", "mask_decoder")
    sizes = [count(model.get_submodule(part)) for part in parts]
    assert sizes == [957_648, 615_424, 6_220, 1_947_072]


@pytest.mark.parametrize(("dim", "size"), [(24, 2_628_992), (48, 2_820_980), (192, 6_222_764)])
def test_other_widths_have_their_published_sizes(dim: int, size: int) -> None:
    with torch.device("meta"):
        assert count(build_model(SegModel(dim=dim))) == size


def test_work_is_counted_as_the_paper_does() -> None:
    """A 1024 pixel image costs 9.392 G; all but the decoder's tokens grow with its pixels."""
    model = build_model(SegModel(depths=(0, 0, 0, 1), drop_path=0.0)).eval()
    work = []
    for side in (32, 64):
        image = torch.zeros(1, 3, side, side)
        run = lambda image=image: plain_her_seg(model, image)  # noqa: E731
        work.append(benchmark.counted_by_modules(model, run) * 1e9)
    cell = (work[1] - work[0]) / 12
    fixed = work[0] - 4 * cell
    # What one more token block and the two MBConv add to each cell, by hand.
    c, h = 96, 192
    block = c * (2 * c + c // 4 + c + c) + c // 4 * c + 9 * c + 2 * c * h + 8 * c
    mbconv = 2 * c * h + 9 * h + 4 * (2 * h + c)
    assert fixed + 4096 * (cell + 9 * block + 2 * mbconv) == pytest.approx(9.392e9, rel=1e-3)


def test_the_whole_does_less_work_than_its_plain_form() -> None:
    model = build_model(SegModel(depths=(0, 1, 0, 0))).eval()
    image = torch.zeros(1, 3, 256, 256)
    with torch.no_grad():
        plain = multiply_adds(lambda: plain_her_seg(model, image))
        assert multiply_adds(lambda: model(image)) < 0.8 * plain


# -- one form against the other -----------------------------------------------------------------


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("classes", [1, 4])
@pytest.mark.parametrize("own", [False, True])
def test_the_model_is_its_plain_form(given: bool, classes: int, own: bool) -> None:
    model = stirred(small(classes, drop_path=0.0)).train()
    image = torch.rand(2, 3, 64, 48, dtype=torch.float64)
    told = PromptBatch(prompts(2).points, prompts(2).labels) if given else None

    def run(part: HerSegModel) -> Callable[[Tensor], Tensor]:
        return lambda x: part(x, told)

    def plain(part: HerSegModel) -> Callable[[Tensor], Tensor]:
        return lambda x: plain_her_seg(part, x, told)

    if own:
        with forced(fold=True):
            agree(run, plain, model, [image], 1e-8)
    else:
        agree(run, plain, model, [image], 1e-8)


@pytest.mark.parametrize("options", [{"meta_pooling": True}, {"task_queries": True}])
def test_the_papers_variants_load_the_same_weights(options: dict[str, bool]) -> None:
    model, other = small().double().eval(), small(**options).double().eval()
    other.load_state_dict(model.state_dict(), strict=True)
    image = torch.rand(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        made = other(image)
        assert float((made - model(image)).abs().max()) > 1e-4
        close(made, plain_her_seg(other, image))


def test_a_training_pass_keeps_less_than_half() -> None:
    model = build_model(SegModel(depths=(1, 1, 1, 1)))
    image, target = torch.rand(1, 3, 256, 256), torch.ones(1, 256, 256, dtype=torch.long)
    with forced(fold=True):
        own = saved_megabytes(
            lambda: low_resolution_loss(model.low_resolution(image), target).total, model
        )
    plain = saved_megabytes(lambda: mask_loss(plain_her_seg(model, image), target).total, model)
    assert own < 0.55 * plain  # both have the image and the target


def test_small_inputs_take_plain_operators_and_agree() -> None:
    model = small().eval()
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        alone = model(image)
        with forced(fold=True):
            close(model(image), alone, 1e-4)


# -- use ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("classes", "outputs"), [(1, 1), (2, 3), (5, 6)])
def test_more_classes_are_more_masks(classes: int, outputs: int) -> None:
    model = small(classes)
    made = model(torch.rand(2, 3, 64, 64), prompts(2).to("cpu"))
    assert made.shape == (2, outputs, 64, 64)
    made.square().mean().backward()
    hypers = model.mask_decoder.output_hypernetworks_mlps
    assert len(hypers) == max(3, outputs)
    asked = [next(h.parameters()).grad is not None for h in hypers]
    assert asked == [i < outputs for i in range(len(hypers))]


def test_no_class_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one class"):
        small(0)


@pytest.mark.parametrize("size", [(32, 32), (96, 96), (48, 80)])
def test_weights_of_one_size_serve_another(size: tuple[int, int]) -> None:
    model = small()
    assert model(torch.rand(1, 3, *size)).shape == (1, 1, *size)
    assert set(model.state_dict()) == set(small(image_size=1024).state_dict())


def test_logits_are_those_of_low_resolution_enlarged() -> None:
    model, image = small().eval(), torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        low = model.low_resolution(image)
        assert low.shape == (2, 1, 16, 16)
        large = functional.interpolate(low, (64, 64), mode="bilinear", align_corners=False)
        assert torch.equal(model(image), large)


def test_prompts_change_the_answer_where_they_are() -> None:
    model, image = small().eval(), torch.rand(2, 3, 64, 64)
    told = prompts(2)
    with torch.no_grad():
        without = model(image)
        for name in ("points", "boxes", "mask"):
            part = {name: getattr(told, name).float()}
            if name == "points":
                part["labels"] = told.labels
            assert float((model(image, PromptBatch(**part)) - without).abs().max()) > 1e-4
        nothing = model(image, PromptBatch())
    assert torch.equal(nothing, without)


@pytest.mark.parametrize("scaling", ["imagenet", "official_eval"])
def test_images_are_normalised_inside(scaling: Any) -> None:
    mean = torch.tensor([0.485, 0.456, 0.406])
    spread = torch.tensor([0.229, 0.224, 0.225]) if scaling == "imagenet" else mean
    image = torch.rand(2, 3, 4, 5)
    expected = (image - mean.view(3, 1, 1)) / spread.view(3, 1, 1)
    part = Normalise(scaling)
    close(part(image), expected, 1e-6)
    assert set(part.state_dict()) == {"pixel_mean", "pixel_scale"}
    assert not list(part.parameters())


def test_parts_can_be_frozen_by_their_names() -> None:
    names = {name for name, _ in small().named_children()}
    assert names == {"normalise", "image_encoder", "neck", "prompt_encoder", "mask_decoder"}


@pytest.mark.slow
def test_the_model_exports_as_plain_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_KERNELS", "reference")
    model, image = small().eval(), torch.rand(2, 3, 64, 64)
    batch = {0: torch.export.Dim("batch", min=1, max=64)}
    made = torch.export.export(model, (image,), dynamic_shapes=(batch,))
    targets = {str(node.target) for node in made.graph.nodes if node.op == "call_function"}
    assert not any(target.startswith("zoo") for target in targets)
    more = torch.rand(3, 3, 64, 64)
    with torch.no_grad():
        close(made.module()(more), model(more), 1e-5)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"heads": (3, 5, 12, 24)}, "5 does not divide model.dim=24"),
        ({"heads": (3, 0, 12, 24)}, "0 does not divide"),
        ({"decoder_heads": 3}, "3 does not divide half of model.decoder_dim=32"),
        ({"depths": (0, 0, 0, 0)}, "at least one block"),
        ({"depths": (1, -1, 1, 1)}, "at least one block"),
    ],
)
def test_sizes_that_contradict_each_other_are_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        SegModel(**{**SMALL, **wrong})


# -- the loss from small logits -----------------------------------------------------------------


@pytest.mark.parametrize("kind", ["logits", "probabilities", "classes"])
@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_the_loss_of_small_logits_is_that_of_large_ones(
    kind: str, per_image: bool, masked: bool
) -> None:
    generator = torch.Generator().manual_seed(2)
    maps = 4 if kind == "classes" else 1
    low = torch.randn(3, maps, 4, 5, generator=generator, dtype=torch.float64) * 3
    target = torch.randint(0, 4, (3, 16, 20), generator=generator)
    valid = torch.rand(3, 16, 20, generator=generator) > 0.3 if masked else None
    options: dict[str, Any] = {"per_image": per_image, "valid": valid, "weight": 0.7}
    options["probability_form"] = kind == "probabilities"
    found = []
    for form in ("small", "large"):
        x = low.clone().requires_grad_()
        if form == "small":
            loss = low_resolution_loss(x, target, **options)
        else:
            large = functional.interpolate(x, (16, 20), mode="bilinear", align_corners=False)
            loss = mask_loss(large, target, **options)
        (loss.total + 0.3 * loss.focal + 0.1 * loss.dice).backward()
        found.append((*loss, x.grad))
    for a, b in zip(*found, strict=True):
        assert a is not None
        assert b is not None
        close(a, b, 1e-12)


def test_the_loss_of_small_logits_keeps_nothing_large() -> None:
    low = torch.randn(2, 1, 16, 16, requires_grad=True)
    target = torch.ones(2, 64, 64, dtype=torch.long)
    kept = saved_megabytes(lambda: low_resolution_loss(low * 1, target).total, torch.nn.Identity())
    assert kept < (target.numel() * 8 + low.numel() * 4 + 200) / 1e6


# -- the neck of the announced variant ----------------------------------------------------------


def test_a_pyramid_adds_coarse_maps_to_fine_ones() -> None:
    torch.manual_seed(0)
    neck = FpnNeck(8, (6, 4), top_down=(0,), interpolation="nearest")
    fine, coarse = torch.randn(1, 4, 6, 8), torch.randn(1, 6, 3, 4)
    (a, b), places = neck([fine, coarse])
    convs = [neck.convs[i].conv for i in (0, 1)]
    deep, shallow = (
        torch.einsum("oc,bchw->bohw", conv.weight.flatten(1), x) + conv.bias.view(-1, 1, 1)
        for conv, x in zip(convs, (coarse, fine), strict=True)
    )
    close(b, deep, 1e-5)
    close(a, shallow + deep.repeat_interleave(2, 2).repeat_interleave(2, 3), 1e-5)
    mean = FpnNeck(8, (6, 4), top_down=(0,), interpolation="nearest", fuse="avg")
    mean.load_state_dict(neck.state_dict())
    close(mean([fine, coarse])[0][0], a / 2, 1e-5)
    assert [tuple(p.shape) for p in places] == [(1, 8, 6, 8), (1, 8, 3, 4)]


def test_positions_of_the_pyramid_tell_rows_then_columns() -> None:
    made = sine_positions((3, 5), 8, normalise=False)
    assert torch.equal(made[:4, :, 0], made[:4, :, 4])
    assert torch.equal(made[4:, 0], made[4:, 2])
    close(made[0, :, 0], torch.arange(1.0, 4).sin(), 1e-6)
    close(made[7, 0], (torch.arange(1.0, 6) / 100).cos(), 1e-6)
