"""Slides to features: tiles a second of `zoo data prepare`, beside a plain OpenSlide loop.

The plain loop reads tile after tile with OpenSlide, drops the alpha channel and, where the case
says so, encodes them in the same process; it is given the coordinates. Ours segments the tissue,
lays the grid, reads and encodes, without processes of its own and with two. Processes are started
before the clock, as they are once for a whole folder of slides.

The slide is generated (deflate-compressed tiles); `ZOO_BENCH_SLIDE=FILE` names another. ResNet-50
has random weights, which cost the same time.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

from zoo.benchmarks.harness import (
    Form,
    Row,
    device_name,
    interleaved,
    quantile,
    ratios,
    versions,
)
from zoo.benchmarks.whole import part_of

TASK = "wsi_mil"
WORKERS = (0, 2)
_BATCH = 32
_PLAIN = "OpenSlide loop"

part = partial(part_of, TASK)


def plain_loop(path: Path, plan: Any, encode: Callable[[np.ndarray], Any] | None) -> Form:
    """Read every tile with OpenSlide alone, and encode batches of them."""
    openslide: Any = import_module("openslide")
    scale = plan.scale

    def run() -> None:
        with openslide.OpenSlide(str(path)) as slide:
            size = (scale.size, scale.size)
            batch = []
            for x, y in plan.coords.tolist():
                region = slide.read_region((x, y), scale.level, size).convert("RGB")
                if scale.size != scale.patch_size:
                    region = region.resize((scale.patch_size, scale.patch_size))
                batch.append(np.asarray(region))
                if len(batch) == _BATCH:
                    _flush(batch, encode)
            _flush(batch, encode)

    return run


def _flush(batch: list[np.ndarray], encode: Callable[[np.ndarray], Any] | None) -> None:
    if batch and encode is not None:
        encode(np.stack(batch))
    batch.clear()


def read_only(readers: Any, path: Path, settings: Any) -> Form:
    """Segment, lay the grid and read every tile."""

    def run() -> None:
        plan = readers.plan(path, settings)()
        for _ in readers.tiles(path, None, plan.scale, plan.coords, batch_size=_BATCH):
            pass

    return run


def whole(readers: Any, path: Path, settings: Any, encoder: Any) -> Form:
    """Everything that `zoo data prepare` does with a slide, the files left out."""
    extract = part("extract").extract

    def run() -> None:
        extract(path, settings, encoder=encoder, readers=readers, batch_size=_BATCH)

    return run


def _timed(
    case: str, tiles: int, forms: Mapping[str, Form], device: torch.device, rounds: int
) -> list[Row]:
    # Wall clock everywhere: reading is on the CPU whatever the encoder runs on.
    times = interleaved(forms, torch.device("cpu"), rounds, warmups=1)
    speed = ratios(times)
    return [
        Row(
            "wsi_mil prepare",
            f"{case}, {tiles} tiles",
            f"{name}: {1e3 * tiles / statistics.median(own):.0f} tiles/s",
            "fwd",
            device_name(device),
            statistics.median(own),
            quantile(own, 0.1),
            quantile(own, 0.9),
            speed[name],
            versions=versions(),
        )
        for name, own in times.items()
    ]


def _slide(folder: Path, quick: bool) -> Path:
    named = os.environ.get("ZOO_BENCH_SLIDE")
    if named:
        return Path(named)
    made = part("sample_slides")
    image = made.draw(np.random.default_rng(0), True, side=1024 if quick else 4096)
    path = folder / "slide.tif"
    made.write_pyramid(path, image.pixels, mpp=0.5)
    return path


def run(device: str | torch.device, quick: bool = False) -> list[Row]:
    """Times reading alone, `stats` and ResNet-50.

    Args:
        device: Where ResNet-50 runs.
        quick: A sixteenth of the tiles, and a small ResNet-18 in place of ResNet-50.
    """
    where = torch.device(device)
    settings_of = part("settings")
    build = part("encoders").build_encoder
    settings = settings_of.TileSettings(encoder=settings_of.EncoderSettings("stats"))
    net = settings_of.EncoderSettings(*(("resnet18", None, None, 64) if quick else ("resnet50",)))
    stats = build(settings.encoder)
    resnet = build(net, device=where, random_weights=True)
    found: list[Row] = []
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        path = _slide(Path(folder), quick)
        pools = {n: stack.enter_context(part("reading").Readers(n)) for n in WORKERS}
        plan = pools[0].plan(path, settings)()
        tiles, rounds = len(plan.coords), 2 if quick else 5
        forms: dict[str, Form] = {_PLAIN: plain_loop(path, plan, None)}
        forms |= {f"{n} workers": read_only(pools[n], path, settings) for n in WORKERS}
        found += _timed("reading", tiles, forms, where, rounds)
        for name, encoder in (("stats", stats), (net.name, resnet)):
            forms = {_PLAIN: plain_loop(path, plan, encoder)}
            forms |= {f"{n} workers": whole(pools[n], path, settings, encoder) for n in WORKERS}
            found += _timed(name, tiles, forms, where, rounds if name == "stats" else 2)
    return found
