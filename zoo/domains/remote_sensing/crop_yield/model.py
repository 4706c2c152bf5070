"""The network that a configuration asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from zoo.domains.remote_sensing.crop_yield.config import Config, CropModel
from zoo.domains.remote_sensing.crop_yield.modis import BANDS, BINS, DFYPNet, ModisConvNet
from zoo.domains.remote_sensing.crop_yield.operators import (
    CROP_OPERATORS,
    STENCILS,
    YEAR_OPERATORS,
    Operator,
    OperatorRouter,
)
from zoo.domains.remote_sensing.crop_yield.sentinel import (
    COLOURS,
    OUTPUTS,
    SentinelConvNet,
    SentinelDFYPNet,
)
from zoo.domains.remote_sensing.crop_yield.vit import ViT
from zoo.errors import ConfigError

SIZES: dict[str, dict[str, int]] = {
    "modis": {"dim": 256, "depth": 4, "heads": 8, "head_size": 64, "mlp": 512, "patch": 4},
    "sentinel2": {"dim": 128, "depth": 6, "heads": 6, "head_size": 32, "mlp": 256, "patch": 16},
}
"""The released transformers."""
EMBEDDING_DROPOUT = {"modis": 0.1, "sentinel2": 0.0}
FULL_SEASON = 32  # steps whose patches the released table of positions is for


def build_model(config: Config, facts: Mapping[str, Any]) -> DFYPNet | SentinelDFYPNet:
    """The network with random weights.

    Args:
        config: Its sections `data` and `model` are read.
        facts: From training data, all optional: `band_mean` (nine numbers, MODIS), `year` (the
            predicted one, for `model.routing=per_prediction_year` where `data.year` is not set),
            `target_mean` and `target_deviation` (of what the network is to give: a number each,
            two for Sentinel-2; none: 0 and 1).

    Raises:
        ConfigError: Sizes or choices do not go together.
    """
    return _modis(config, facts) if config.data.sensor == "modis" else _sentinel(config, facts)


def _vit(settings: CropModel, sensor: str, channels: int, sides: tuple[int, int], out: int) -> ViT:
    """The transformer for pictures up to a size."""
    sizes = {
        name: int(getattr(settings, name) or released) for name, released in SIZES[sensor].items()
    }
    patch, embedding_p = sizes["patch"], settings.embedding_dropout
    if any(side % patch for side in sides):
        key = "data.steps" if sensor == "modis" else "data.image_size"
        msg = f"{key}={sides[0]}: no multiple of model.patch={patch}"
        raise ConfigError(msg)
    return ViT(
        channels,
        (sides[0] // patch) * (sides[1] // patch),
        **sizes,
        outputs=out,
        p=settings.dropout,
        embedding_p=EMBEDDING_DROPOUT[sensor] if embedding_p is None else embedding_p,
        pool=settings.pool,
    )


def _router(config: Config, facts: Mapping[str, Any]) -> OperatorRouter:
    settings = config.model
    always: Operator | None = None
    if settings.operator != "auto":
        always = settings.operator
    elif settings.routing == "per_prediction_year":
        # The year trained for: data.year of a later evaluation must not change the network.
        year = facts.get("year") or config.data.year
        if year is None:
            msg = "model.routing=per_prediction_year needs the predicted year; set data.year"
            raise ConfigError(msg)
        always = OperatorRouter(unknown=settings.unknown_year).operator_of(int(year))
    return OperatorRouter(YEAR_OPERATORS, settings.unknown_year, always)


def _modis(config: Config, facts: Mapping[str, Any]) -> DFYPNet:
    settings, steps = config.model, config.data.steps
    # Shorter seasons keep the full table of positions, as released: they use its front.
    table = (max(steps, FULL_SEASON), BINS)
    patch = settings.patch or SIZES["modis"]["patch"]
    if steps % patch:
        msg = f"data.steps={steps}: no multiple of model.patch={patch}"
        raise ConfigError(msg)
    channels = settings.channels
    cnn = ModisConvNet(
        _router(config, facts),
        steps,
        channels,
        (settings.dense,),
        settings.dropout,
        strides=[2 if number % 2 else 1 for number in range(len(channels))],
    )
    pool = settings.rca_pool
    mean, deviation = facts.get("target_mean", 0.0), facts.get("target_deviation", 1.0)
    return DFYPNet(
        cnn,
        _vit(settings, "modis", BANDS, table, 1),
        rca_hidden=settings.rca_hidden,
        rca_pool="max" if pool == "auto" else pool,
        band_mean=facts.get("band_mean"),
        target=(float(mean), float(deviation)),
    )


def _sentinel(config: Config, facts: Mapping[str, Any]) -> SentinelDFYPNet:
    settings, side = config.model, config.data.image_size
    operator = CROP_OPERATORS[config.data.crop]
    if settings.operator != "auto":
        operator = settings.operator
    if operator not in STENCILS:
        msg = (
            f"model.operator={operator}: the Sentinel-2 network knows {' and '.join(STENCILS)}; "
            "choose one, or auto for the crop's"
        )
        raise ConfigError(msg)
    pool = settings.rca_pool
    target = None
    if "target_mean" in facts:
        pairs = (tuple(map(float, facts[k])) for k in ("target_mean", "target_deviation"))
        target = cast("tuple[tuple[float, float], tuple[float, float]]", tuple(pairs))
    return SentinelDFYPNet(
        SentinelConvNet(operator, settings.dropout),
        _vit(settings, "sentinel2", COLOURS, (side, side), OUTPUTS),
        chunk=settings.chunk,
        recompute=settings.recompute,
        rca_hidden=settings.rca_hidden,
        rca_pool="mean" if pool == "auto" else pool,
        target=target,
    )
