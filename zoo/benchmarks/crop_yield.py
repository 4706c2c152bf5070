"""DFYP: routed operators, a MODIS batch and a county of Sentinel-2, beside the plain form.

The plain form is the released one on the same weights (`plain.py` of the task): all operators on
all samples, PyTorch's own dropout, attention matrices and every token in every layer, nothing
computed again. Peak memory is that of forward and backward above model and inputs, on the CPU in
fresh processes. A case names parameters and multiply-adds of one county-year or picture.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from zoo.benchmarks.costs import multiply_adds
from zoo.benchmarks.harness import Form, Row, peak_cpu, peak_cuda, rows
from zoo.benchmarks.whole import Run, both, forward, part_of

TASK = "crop_yield"
BATCH = 64
DATES, GRIDS = 6, 22
QUICK_MODEL = {"channels": (8, 8, 16, 16, 16, 16), "dense": 32, "dim": 32, "depth": 2}
QUICK_DATA = {"image_size": 64}
QUICK_PICTURES = 12

part = partial(part_of, TASK)


def network(sensor: str, quick: bool, device: torch.device) -> Any:
    """The released network of a sensor in training mode, or a small one."""
    config = part("config").Config(
        task=TASK,
        preset="paper",
        data={"sensor": sensor} | (QUICK_DATA if quick else {}),
        model=QUICK_MODEL if quick else {},
    )
    torch.manual_seed(0)
    return part("model").build_model(config, {}).to(device).train()


def histograms(count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """A batch as training on the years before 2013 sees it: most years take one operator."""
    torch.manual_seed(1)
    years = torch.arange(count, device=device) % 10 + 2003
    return torch.rand(count, 9, 32, 32, device=device) / 32, years


def county(pictures: int, side: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """One county's pictures, normalised, and its boundaries."""
    torch.manual_seed(1)
    made = torch.randn(pictures, 3, side, side, device=device)
    return made, torch.tensor([0, pictures], device=device)


def sentinel_form(model: Any, form: str, packed: tuple[Tensor, Tensor]) -> Run:
    """The run of a form: `plain`, `zoo`, or `zoo, stored`, which computes nothing again."""
    if form == "plain":
        return partial(part("plain").plain_sentinel, model, *packed)

    def run() -> Tensor:
        model.recompute = form == "zoo"
        made: Tensor = model(*packed)
        return made

    return run


def prepared(form: str, quick: bool, device: str, pictures: int) -> Form:
    """Forward and backward of a county in a process of its own, for its peak of memory.

    A small county goes through once before: libraries load and gradients are there then.
    """
    place = torch.device(device)
    model = network("sentinel2", quick, place)
    side = QUICK_DATA["image_size"] if quick else 224
    both(sentinel_form(model, form, county(1, side, place)))
    return partial(both, sentinel_form(model, form, county(pictures, side, place)))


def operators(model: Any, device: torch.device, rounds: int) -> list[Row]:
    """Rows of the router and its blend on a batch."""
    x, years = histograms(BATCH, device)
    x = x.requires_grad_()
    router = model.cnn.router
    runs: dict[str, Run] = {
        "plain": partial(part("plain").plain_router, router, x, years),
        "zoo": partial(router, x, years),
    }
    case = f"operators by year, {BATCH} x 9 x 32 x 32"
    found = []
    for mode, how in (("fwd", forward), ("fwd+bwd", both)):
        forms = {name: partial(how, run) for name, run in runs.items()}
        found += rows(TASK, case, mode, forms, device, rounds=rounds)
    return found


def modis(model: Any, device: torch.device, rounds: int) -> list[Row]:
    """Rows of a training batch, and of predicting one."""
    x, years = histograms(BATCH, device)
    plain = part("plain").plain_modis
    runs: dict[str, Run] = {
        "plain": partial(plain, model, x, years),
        "zoo": partial(model, x, years),
    }
    model.eval()
    work = [multiply_adds(partial(f, x[:1], years[:1])) for f in (partial(plain, model), model)]
    size = sum(p.numel() for p in model.parameters()) / 1e6
    told = f"{size:.2f} M parameters, {work[0]:.3f} GMAC plain, {work[1]:.3f} ours"
    case = f"MODIS, {BATCH} x 9 x 32 x 32; {told}"
    forms: dict[str, Form] = {name: partial(forward, run) for name, run in runs.items()}
    found = rows(TASK, f"{case}; evaluation", "fwd", forms, device, rounds=rounds)
    model.train()
    forms = {name: partial(both, run) for name, run in runs.items()}
    return found + rows(TASK, f"{case}; training", "fwd+bwd", forms, device, rounds=rounds)


def sentinel(quick: bool, device: torch.device, rounds: int) -> list[Row]:
    """Rows of a county's forward and backward, with the peak of memory of each form."""
    model = network("sentinel2", quick, device)
    side = QUICK_DATA["image_size"] if quick else 224
    pictures = QUICK_PICTURES if quick else DATES * GRIDS
    packed = county(pictures, side, device)
    names = ("plain", "zoo", "zoo, stored")
    forms: dict[str, Form] = {
        name: partial(both, sentinel_form(model, name, packed)) for name in names
    }
    one = county(1, side, device)
    model.eval()
    work = [multiply_adds(sentinel_form(model, name, one)) for name in names[:2]]
    model.train()
    if device.type == "cuda":
        forms["plain"]()
        memory = {name: peak_cuda(form) for name, form in forms.items()}
    else:
        memory = {name: peak_cpu(prepared, name, quick, str(device), pictures) for name in names}
    size = sum(p.numel() for p in model.parameters()) / 1e6
    case = (
        f"Sentinel-2, {pictures} x 3 x {side} x {side}; {size:.2f} M parameters, "
        f"{work[0]:.3f} GMAC a picture plain, {work[1]:.3f} ours; training"
    )
    return rows(TASK, case, "fwd+bwd", forms, device, rounds=rounds, memory=memory)


def run(device: torch.device, quick: bool = False) -> list[Row]:
    """Times both forms.

    Args:
        device: Where to run.
        quick: Small networks, pictures and counts, and fewer rounds.
    """
    cuda = device.type == "cuda"
    rounds = 20 if cuda else 3 if quick else 5
    model = network("modis", quick, device)
    found = operators(model, device, rounds * 3) + modis(model, device, rounds)
    return found + sentinel(quick, device, rounds if cuda or quick else 3)
