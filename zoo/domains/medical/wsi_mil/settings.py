"""Which tiles a slide gives and what is made of them: settings, and settings as attributes.

What was chosen is stored with the features, and is enough to treat another slide alike.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

from zoo import files
from zoo.domains.medical.wsi_mil.grid import Check
from zoo.domains.medical.wsi_mil.tissue import PRESETS, TissueSettings, as_attributes
from zoo.errors import ConfigError

if TYPE_CHECKING:
    from zoo.domains.medical.wsi_mil.config import WsiData


@dataclass(frozen=True)
class EncoderSettings:
    """Which encoder turns a tile into a vector, and how a tile is made ready for it.

    Attributes:
        name: `resnet50`, `stats`, or a timm model, with or without `timm:` in front.
        weights: File of its weights; None: the published ones.
        sha256: Of that file, where it is known.
        size: Side in pixels that tiles are resized to; None: the encoder's own.
        mean: RGB mean in [0, 1] that is subtracted; None: the encoder's own.
        std: RGB deviation that is divided by; None: the encoder's own.
        options: Further arguments of the timm model, such as `init_values`.
    """

    name: str = "resnet50"
    weights: Path | None = None
    sha256: str | None = None
    size: int | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TileSettings:
    """Everything that decides which tiles a slide gives and what is made of them.

    One of `magnification`, `target_mpp` and `patch_level` is set.

    Attributes:
        patch_size: Side of a tile in pixels at the wanted resolution.
        overlap: Pixels that neighbours share, likewise.
        magnification: Wanted magnification, such as 20.
        target_mpp: Wanted micrometres per pixel.
        patch_level: Pyramid level, whatever its resolution.
        contour_fn: Which points of a tile must lie on tissue, see `grid.passes`.
        use_padding: Whether tiles may run past the slide's edge.
        min_patches: Tiles an outline must give to count; ACMIL's copy of CLAM wants 2.
        mpp: Micrometres per level-0 pixel of slides that state none.
        tissue: Settings of the segmentation.
        encoder: Settings of the encoder.
    """

    patch_size: int = 256
    overlap: int = 0
    magnification: float | None = 20.0
    target_mpp: float | None = None
    patch_level: int | None = None
    contour_fn: Check = "four_pt"
    use_padding: bool = True
    min_patches: int = 1
    mpp: float | None = None
    tissue: TissueSettings = field(default_factory=TissueSettings)
    encoder: EncoderSettings = field(default_factory=EncoderSettings)

    def __post_init__(self) -> None:
        """Refuse what makes no grid."""
        chosen = (self.magnification, self.target_mpp, self.patch_level)
        if sum(c is not None for c in chosen) != 1:
            msg = "set one of data.tiles.magnification, data.tiles.target_mpp, data.tiles.level"
            raise ConfigError(msg)
        if not 0 <= self.overlap < self.patch_size:
            msg = (
                f"data.tiles.overlap={self.overlap}: should be less than data.tiles.patch_size="
                f"{self.patch_size}"
            )
            raise ConfigError(msg)


def settings_of(data: WsiData) -> TileSettings:
    """The settings of a configuration's data section.

    Raises:
        ConfigError: They make no grid, or the file of weights is missing.
    """
    tiles = data.tiles
    resolution: dict[str, Any] = {"magnification": tiles.magnification}
    if tiles.target_mpp is not None or tiles.level is not None:
        # The magnification has a default; a choice of something else replaces it.
        resolution = {
            "magnification": None,
            "target_mpp": tiles.target_mpp,
            "patch_level": tiles.level,
        }
    own = data.tissue.model_dump(exclude={"preset"}, exclude_none=True)
    return TileSettings(
        patch_size=tiles.patch_size,
        overlap=tiles.overlap,
        contour_fn=tiles.contour_fn,
        use_padding=tiles.use_padding,
        min_patches=tiles.min_patches,
        mpp=data.mpp,
        tissue=TissueSettings(**(vars(PRESETS[data.tissue.preset]) | own)),
        encoder=encoder_of(data),
        **resolution,
    )


def encoder_of(data: WsiData) -> EncoderSettings:
    """The encoder of a configuration's data section.

    Raises:
        ConfigError: The file of weights is missing.
    """
    weights = None if data.encoder_weights is None else data.encoder_weights.expanduser()
    if weights is not None and not weights.is_file():
        msg = f"data.encoder_weights={weights}: no such file"
        raise ConfigError(msg)
    tiles = data.tiles
    return EncoderSettings(
        name=data.encoder,
        weights=weights,
        sha256=None if weights is None else files.sha256(weights),
        size=tiles.input_size,
        mean=tiles.mean,
        std=tiles.std,
        options=dict(data.encoder_options),
    )


_NAMES = {"magnification": "target_magnification", "mpp": "given_mpp"}
_SEGMENTATION = {f"seg_{f.name.removeprefix('seg_')}": f for f in fields(TissueSettings)}


def setting_attributes(settings: TileSettings) -> dict[str, Any]:
    """The settings as flat attributes: numbers, text and truth values; what is None is left out.

    A file of weights is told by name and hash, never by its place on this machine.
    """
    encoder = settings.encoder
    found: dict[str, Any] = {
        _NAMES.get(f.name, f.name): getattr(settings, f.name)
        for f in fields(settings)
        if f.name not in ("tissue", "encoder")
    }
    found |= {
        "step_size": settings.patch_size - settings.overlap,
        "encoder": encoder.name,
        "encoder_weights": encoder.weights.name if encoder.weights else None,
        "encoder_sha256": encoder.sha256,
        "encoder_size": encoder.size,
        "encoder_mean": _text(encoder.mean),
        "encoder_std": _text(encoder.std),
        "encoder_options": json.dumps(dict(encoder.options), sort_keys=True)
        if encoder.options
        else None,
    }
    found |= as_attributes(settings.tissue)
    return {k: v for k, v in found.items() if v is not None}


def settings_from(
    attributes: Mapping[str, Any],
    *,
    encoder: EncoderSettings | None = None,
    mpp: float | None = None,
) -> TileSettings:
    """The settings that features were made with, from the attributes stored beside them.

    Args:
        attributes: As stored, or `facts["extraction"]` of a trained model.
        encoder: In place of the encoder the attributes name, for instance with the weights' file.
        mpp: Micrometres per pixel of slides that state none, in place of the stored figure.

    Raises:
        ConfigError: The attributes do not say how large a tile is, at what resolution, or which
            encoder it was.
    """
    # A level may be told beside the magnification; what was asked for is the magnification.
    resolution = next(
        (
            (field_name, attributes[key])
            for key, field_name in (
                ("target_magnification", "magnification"),
                ("target_mpp", "target_mpp"),
                ("patch_level", "patch_level"),
            )
            if attributes.get(key) is not None
        ),
        None,
    )
    needed = {
        "tile size": attributes.get("patch_size"),
        "magnification": resolution,
        "encoder (give it with data.encoder)": encoder or attributes.get("encoder"),
    }
    missing = [what for what, value in needed.items() if value is None]
    if missing or resolution is None:
        msg = (
            f"the training features do not tell their {' and '.join(missing)}, so slides cannot be "
            "treated alike; extract the slides with the same tool and predict on the features"
        )
        raise ConfigError(msg)
    plain: dict[str, Any] = {"magnification": None, resolution[0]: resolution[1]}
    for name in ("patch_size", "overlap", "min_patches"):
        if name in attributes:
            plain[name] = int(attributes[name])
    if "use_padding" in attributes:
        plain["use_padding"] = bool(attributes["use_padding"])
    if attributes.get("contour_fn") in get_args(Check):
        plain["contour_fn"] = cast("Check", attributes["contour_fn"])
    if "overlap" not in plain and "step_size" in attributes:
        plain["overlap"] = max(0, plain["patch_size"] - int(attributes["step_size"]))
    tissue = {f.name: attributes[key] for key, f in _SEGMENTATION.items() if key in attributes}
    return TileSettings(
        **plain,
        mpp=mpp if mpp is not None else attributes.get("given_mpp"),
        tissue=TissueSettings(**tissue),
        encoder=encoder or _encoder_from(attributes),
    )


def _encoder_from(attributes: Mapping[str, Any]) -> EncoderSettings:
    return EncoderSettings(
        name=str(attributes["encoder"]),
        sha256=attributes.get("encoder_sha256"),
        size=attributes.get("encoder_size"),
        mean=_three(attributes.get("encoder_mean")),
        std=_three(attributes.get("encoder_std")),
        options=json.loads(attributes.get("encoder_options", "{}")),
    )


def _text(values: Sequence[float] | None) -> str | None:
    """Three numbers as text: as an array, three equal ones would be stored as one."""
    return None if values is None else " ".join(repr(float(v)) for v in values)


def _three(text: str | None) -> tuple[float, float, float] | None:
    if text is None:
        return None
    red, green, blue = (float(word) for word in str(text).split())
    return red, green, blue
