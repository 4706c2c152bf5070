from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.domains.her_seg.comparing import close
from zoo.domains.medical.her_seg.prompts import PositionEncoding, PromptBatch, PromptEncoder

SIZE, GRID = (96, 64), (6, 4)


def encoder() -> PromptEncoder:
    torch.manual_seed(0)
    return PromptEncoder(32)


def points(*rows: tuple[float, float, int]) -> dict[str, Tensor]:
    table = torch.tensor(rows, dtype=torch.float32)
    return {"points": table[None, :, :2], "labels": table[None, :, 2].long()}


def encoded(part: PromptEncoder, x: float, y: float) -> Tensor:
    """The features of a place by their formula."""
    place = torch.tensor([(x + 0.5) / SIZE[1], (y + 0.5) / SIZE[0]])
    angle = 2 * math.pi * (2 * place - 1) @ part.pe_layer.positional_encoding_gaussian_matrix
    return torch.cat([angle.sin(), angle.cos()])


def weight(part: Any) -> Tensor:
    made: Tensor = part.weight[0]
    return made


def test_points_are_places_and_kinds_with_a_padding_point_behind() -> None:
    part = encoder()
    sparse, dense = part(PromptBatch(**points((10, 20, 1), (63, 3, 0), (5, 5, -1))), SIZE, GRID)
    assert sparse.shape == (1, 4, 32)
    close(sparse[0, 0], encoded(part, 10, 20) + weight(part.point_embeddings[1]), 1e-5)
    close(sparse[0, 1], encoded(part, 63, 3) + weight(part.point_embeddings[0]), 1e-5)
    for padding in (2, 3):
        close(sparse[0, padding], weight(part.not_a_point_embed), 1e-6)
    assert dense.shape == (1, 32, *GRID)
    assert torch.equal(dense[0, :, 3, 2], weight(part.no_mask_embed))


def test_boxes_are_two_corners_and_take_the_padding_point_away() -> None:
    part = encoder()
    boxes = torch.tensor([[[4.0, 8.0, 40.0, 60.0]]])
    sparse, _ = part(PromptBatch(boxes=boxes), SIZE, GRID)
    assert sparse.shape == (1, 2, 32)
    close(sparse[0, 0], encoded(part, 4, 8) + weight(part.point_embeddings[2]), 1e-5)
    close(sparse[0, 1], encoded(part, 40, 60) + weight(part.point_embeddings[3]), 1e-5)
    both, _ = part(PromptBatch(**points((10, 20, 1)), boxes=boxes), SIZE, GRID)
    assert both.shape == (1, 3, 32)
    close(both[:, 1:], sparse, 1e-6)


def test_a_row_of_nan_is_no_box() -> None:
    part = encoder()
    boxes = torch.tensor([[[4.0, 8.0, 40.0, 60.0]], [[math.nan] * 4]], requires_grad=True)
    sparse, _ = part(PromptBatch(boxes=boxes), SIZE, GRID)
    close(sparse[1], weight(part.not_a_point_embed).expand(2, -1), 1e-6)
    sparse.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in part.parameters())


def test_masks_become_a_map() -> None:
    part, mask = encoder(), torch.rand(2, 1, 24, 16)
    sparse, dense = part(PromptBatch(mask=mask), SIZE, GRID)
    assert sparse.shape == (2, 0, 32)
    assert dense.shape == (2, 32, *GRID)
    other = mask.clone()
    other[0, 0, :4, :4] += 1  # the first cell of the first image
    _, changed = part(PromptBatch(mask=other), SIZE, GRID)
    moved = (changed != dense).any(1)
    assert moved.nonzero().tolist() == [[0, 0, 0]]


def test_nothing_is_one_map_for_all() -> None:
    sparse, dense = encoder()(None, SIZE, GRID)
    assert sparse.shape == (1, 0, 32)
    assert dense.shape == (1, 32, *GRID)
    with torch.no_grad():
        assert not any(x.requires_grad for x in encoder()(None, SIZE, GRID))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"points": torch.zeros(1, 2, 2)}, "points come with labels"),
        ({"labels": torch.zeros(1, 2)}, "points come with labels"),
        ({"points": torch.zeros(1, 2, 3), "labels": torch.zeros(1, 2)}, r"\(B, N, 2\)"),
        ({"points": torch.zeros(1, 2, 2), "labels": torch.zeros(1, 3)}, r"\(1, 3\)"),
        ({"boxes": torch.zeros(1, 4)}, r"boxes should be \(B, M, 4\), got \(1, 4\)"),
        ({"mask": torch.zeros(1, 24, 16)}, "mask prompts"),
        ({"boxes": torch.zeros(2, 1, 4), "mask": torch.zeros(1, 1, 8, 8)}, r"sizes \[1, 2\]"),
    ],
)
def test_prompts_that_do_not_fit_together_are_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        PromptBatch(**wrong)


def test_a_mask_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"should be 24 x 16 here, .* got 96 x 64"):
        encoder()(PromptBatch(mask=torch.zeros(1, 1, *SIZE)), SIZE, GRID)


def test_prompts_move_to_a_device() -> None:
    batch = PromptBatch(**points((1, 2, 1))).to("meta")
    assert batch.points is not None
    assert batch.points.device.type == "meta"
    assert batch.boxes is None


# -- positions ----------------------------------------------------------------------------------


def test_positions_are_those_of_the_middles_of_cells() -> None:
    part = encoder()
    pe = part.dense_pe(GRID)
    assert pe.shape == (1, 32, *GRID)
    # The middle of cell (4, 1) of 16 pixels is between pixels: 72 down, 24 to the right.
    close(pe[0, :, 4, 1], encoded(part, 23.5, 71.5), 1e-5)


def test_positions_are_kept_until_matrix_or_grid_change() -> None:
    layer = PositionEncoding(8)
    first = layer.dense((3, 4))
    assert layer.dense((3, 4)) is first
    assert layer.dense((4, 3)) is not first
    before = layer.dense((3, 4)).clone()
    layer.load_state_dict({"positional_encoding_gaussian_matrix": torch.randn(2, 8)})
    assert not torch.equal(layer.dense((3, 4)), before)
    assert layer.double().dense((3, 4)).dtype == torch.float64
    assert "dense" not in "".join(layer.state_dict())
    copied = copy.deepcopy(layer)
    assert torch.equal(copied.dense((3, 4)), layer.dense((3, 4)))


def test_positions_made_in_inference_mode_serve_a_training() -> None:
    layer = PositionEncoding(8)
    with torch.inference_mode():
        layer.dense((3, 4))
    scores = layer.dense((3, 4)) @ torch.randn(16, 2, requires_grad=True)
    scores.sum().backward()
