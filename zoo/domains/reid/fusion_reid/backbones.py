"""ImageNet's weights for the branches: torchvision, timm, DeiT, T2T-ViT, torchreid.

Files are those the official code starts from: torchvision's ResNet, timm's
`jx_vit_base_p16_224-80ecf9dd.pth`, facebook's DeiT (distilled or not), yitu's T2T-ViT release;
for the light baseline torchreid's OSNet. All keep their own key names, which are ours as well,
apart from what stands in front of the tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from zoo.domains.reid.fusion_reid.config import ReidModel
from zoo.domains.reid.fusion_reid.model import FusionReID
from zoo.domains.reid.fusion_reid.vit import TokenEncoder, resize_positions
from zoo.errors import WeightsError
from zoo.states import read_state

TOLD_NAMES = 3
COUNTER = "num_batches_tracked"  # old files have none, and nothing reads it


def load_backbones(model: FusionReID, settings: ReidModel) -> list[str]:
    """Loads the files that `model.cnn_weights` and `model.transformer_weights` name, if any.

    Args:
        model: Changed in place.
        settings: The configuration's section `model`.

    Returns:
        A line for each branch: what was loaded, or that it starts from random numbers.

    Raises:
        WeightsError: A file is missing, cannot be read, or is of another network.
    """
    lines = []
    for branch, kind in (("cnn", settings.cnn), ("transformer", settings.transformer)):
        option = f"model.{branch}_weights"
        path: Path | None = getattr(settings, f"{branch}_weights")
        if path is None:
            if kind not in ("none", "small"):
                lines.append(f"{kind} starts from random numbers; ImageNet's file: {option}")
            continue
        if kind == "none":
            msg = f"{option}={path}: the model has no such branch (model.{branch}=none)"
            raise WeightsError(msg)
        try:
            lines.append(f"{kind}: {_load(model, branch, read_state(path))} from {path.name}")
        except WeightsError as error:
            msg = f"{option}={path}: {str(error).removeprefix(f'{path}: ')}"
            raise WeightsError(msg) from error
    return lines


def _load(model: FusionReID, branch: str, state: Mapping[str, Tensor]) -> str:
    """Puts tensors into a branch; returns words about them."""
    encoder = getattr(model, branch)
    words = ""
    if isinstance(encoder, TokenEncoder):
        state, words = fitted(state, encoder)
    else:
        state = {key.removeprefix("base."): value for key, value in state.items()}
    parts: dict[str, nn.Module] = {branch: encoder}
    if branch == "cnn" and hasattr(model.pool_cnn, "fc"):  # OSNet's own last layer
        parts["pool_cnn"] = model.pool_cnn
    there = {
        name: f"{part}.{name}" for part, module in parts.items() for name in module.state_dict()
    }
    ours = model.state_dict()
    wrong = [
        f"{key} is {tuple(value.shape)}, here {tuple(ours[there[key]].shape)}"
        for key, value in state.items()
        if key in there and value.shape != ours[there[key]].shape
    ]
    needed = [k for k in there if not k.endswith(COUNTER) and k != "sie_embed"]
    missing = [key for key in needed if key not in state]
    if missing or wrong:
        shown = wrong[:TOLD_NAMES] or [f"'{key}' is missing" for key in missing[:TOLD_NAMES]]
        msg = (
            f"weights of another network than model.{branch}: {'; '.join(shown)} "
            f"({len(missing)} keys missing, {len(wrong)} of other sizes)"
        )
        raise WeightsError(msg)
    found = {there[key]: value for key, value in state.items() if key in there}
    model.load_state_dict(found, strict=False)
    rest = [key for key in state if key not in there]
    told = f"{len(found)} tensors loaded{words}"
    return told + (f", {len(rest)} have no place here ({rest[0]} …)" if rest else "")


def fitted(state: Mapping[str, Tensor], encoder: TokenEncoder) -> tuple[dict[str, Tensor], str]:
    """ImageNet's transformer weights for the grid of ours.

    Patch weights stored as a matrix become a kernel, positions are resized to our grid, DeiT's
    distillation token and all classifiers are left out.

    Args:
        state: Tensors under the names of timm, DeiT or T2T-ViT.
        encoder: What they are for.

    Returns:
        The tensors and, where positions were resized, words about it.

    Raises:
        WeightsError: The positions are no square.
    """
    distilled = "dist_token" in state
    made = {k: v for k, v in state.items() if "head" not in k and "dist" not in k}
    ours = encoder.state_dict()
    kernel = "patch_embed.proj.weight"
    if kernel in made and kernel in ours and made[kernel].dim() == 2:
        made[kernel] = made[kernel].reshape(made[kernel].shape[0], *ours[kernel].shape[1:])
    words = ""
    positions = made.get("pos_embed")
    if positions is not None and (distilled or positions.shape[1] != ours["pos_embed"].shape[1]):
        try:
            made["pos_embed"] = resize_positions(positions, encoder.grid, distilled)
        except ValueError as error:
            raise WeightsError(str(error)) from error
        words = f", positions resized to {encoder.grid[0]} x {encoder.grid[1]}"
    return made, words
