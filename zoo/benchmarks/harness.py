"""Times forms of one computation against each other, interleaved, in one process.

Times on a shared machine wander, so a figure is never a time alone: every form is run in turn,
round after round, and what is reported is the median of its ratio to the plain form. Peak memory on
the CPU is taken in fresh processes, because a process never gives back what it once had.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import platform
import resource
import shutil
import statistics
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

Form = Callable[[], Any]
_FLUSH_BYTES = 256 * 2**20


@dataclass
class Row:
    """One form of one case.

    Attributes:
        block: Name of the block.
        case: Shape and dtype in words.
        form: `eager`, `torch`, `triton`, `compile` …
        mode: `fwd`, `bwd` or `fwd+bwd`.
        device: Name of the device.
        median_ms: Median time of a run, wall clock on the CPU, events on a GPU.
        p10_ms: Tenth percentile.
        p90_ms: Ninetieth percentile.
        speed: Median over rounds of (time of the first form) / (time of this one).
        peak_mb: Memory above the inputs at the highest point.
        memory: Peak of this form / peak of the first one.
        error: Largest relative error against float64, if measured.
        roofline: Share of the memory or arithmetic bound, if it is known.
        versions: Versions of what ran.
    """

    block: str
    case: str
    form: str
    mode: str
    device: str
    median_ms: float
    p10_ms: float
    p90_ms: float
    speed: float
    peak_mb: float | None = None
    memory: float | None = None
    error: float | None = None
    roofline: float | None = None
    versions: dict[str, str] = field(default_factory=dict)


def versions() -> dict[str, str]:
    """Versions that matter to a figure."""
    found = {"python": platform.python_version(), "torch": torch.__version__}
    if "triton" in sys.modules:
        found["triton"] = sys.modules["triton"].__version__
    return found


def device_name(device: torch.device) -> str:
    """What the device calls itself."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    model = platform.processor() or platform.machine()
    with Path("/proc/cpuinfo").open() as file:
        for line in file:
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    return f"{model}, {torch.get_num_threads()} thread(s)"


def interleaved(
    forms: Mapping[str, Form], device: torch.device, rounds: int = 15, warmups: int = 2
) -> dict[str, list[float]]:
    """Milliseconds of every run of every form, taken in turn.

    Args:
        forms: Name -> a function without arguments; the first is the plain form.
        device: CUDA devices are timed by events, with the L2 cache flushed between runs.
        rounds: How often each form is timed.
        warmups: Runs before timing.
    """
    for form in forms.values():
        for _ in range(warmups):
            form()
    times: dict[str, list[float]] = {name: [] for name in forms}
    timed = _timed_cuda if device.type == "cuda" else _timed_cpu
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            for name, form in forms.items():
                times[name].append(timed(form))
    finally:
        gc.enable()
    return times


def _timed_cpu(form: Form) -> float:
    begun = time.perf_counter()
    form()
    return (time.perf_counter() - begun) * 1e3


def _timed_cuda(form: Form) -> float:
    torch.empty(_FLUSH_BYTES, dtype=torch.int8, device="cuda").zero_()
    make: Any = torch.cuda.Event  # untyped upstream
    begin, end = make(enable_timing=True), make(enable_timing=True)
    begin.record()
    form()
    end.record()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end))


def on_path(path: str, form: Form) -> Form:
    """The form with `ZOO_KERNELS` set to a path while it runs."""

    def run() -> Any:
        before = os.environ.get("ZOO_KERNELS")
        os.environ["ZOO_KERNELS"] = path
        try:
            return form()
        finally:
            if before is None:
                del os.environ["ZOO_KERNELS"]
            else:
                os.environ["ZOO_KERNELS"] = before

    return run


def can_compile(device: torch.device) -> bool:
    """Whether torch.compile has what it needs for the device: Triton, or a C++ compiler."""
    return device.type == "cuda" or shutil.which(os.environ.get("CXX") or "g++") is not None


def copy_bandwidth(device: torch.device, megabytes: int = 512) -> float:
    """Bytes a second of a copy on the device, reading and writing counted."""
    source = torch.empty(megabytes * 2**20, dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    own = interleaved({"copy": lambda: target.copy_(source)}, device, rounds=5)["copy"]
    return 2 * source.numel() / (min(own) * 1e-3)


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of the values lie, by the nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def ratios(times: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Median over rounds of the first form's time over each form's."""
    first = next(iter(times.values()))
    return {
        name: statistics.median(a / b for a, b in zip(first, own, strict=True))
        for name, own in times.items()
    }


def rows(
    block: str,
    case: str,
    mode: str,
    forms: Mapping[str, Form],
    device: torch.device,
    *,
    rounds: int = 15,
    memory: Mapping[str, float] | None = None,
    errors: Mapping[str, float] | None = None,
    bound_ms: float | None = None,
) -> list[Row]:
    """Time forms and make a row of each.

    Args:
        block: Name of the block.
        case: Shape and dtype in words.
        mode: `fwd`, `bwd` or `fwd+bwd`.
        forms: Name -> run; the first is the plain form.
        device: Where they run.
        rounds: How often each is timed.
        memory: Peak memory above the inputs in MB by form, if it was measured.
        errors: Error against float64 by form, if it was measured.
        bound_ms: The memory or arithmetic bound in milliseconds, if known.
    """
    times = interleaved(forms, device, rounds)
    speed = ratios(times)
    plain = next(iter(forms))
    peaks = memory or {}
    made = []
    for name, own in times.items():
        median = statistics.median(own)
        peak = peaks.get(name)
        made.append(
            Row(
                block,
                case,
                name,
                mode,
                device_name(device),
                median,
                quantile(own, 0.1),
                quantile(own, 0.9),
                speed[name],
                peak,
                peak / peaks[plain] if peak is not None and peaks.get(plain) else None,
                (errors or {}).get(name),
                bound_ms / median if bound_ms else None,
                versions(),
            )
        )
    return made


# -- memory -------------------------------------------------------------------------------------


def peak_cuda(form: Form) -> float:
    """Peak megabytes above what was allocated before, on the current CUDA device."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    form()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def _resident() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


def _measure(make: Callable[..., Form], arguments: Sequence[Any], pipe: Any) -> None:
    torch.set_num_threads(1)
    form = make(*arguments)
    gc.collect()
    before, peak = _resident(), 0.0
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, _resident())
            time.sleep(0.001)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    form()
    done.set()
    watcher.join()
    pipe.send(max(peak, _resident()) - before)


def peak_cpu(make: Callable[..., Form], *arguments: Any) -> float:
    """Peak resident megabytes above the inputs, in a fresh process with one thread.

    Args:
        make: Module-level function that builds the inputs and returns the run.
        arguments: What it is called with; they must be picklable.
    """
    # Freed memory must go back to the system, or a later peak hides behind an earlier one.
    os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", "65536")
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", "65536")
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(make, arguments, there))
    process.start()
    there.close()
    try:
        return float(here.recv())
    finally:
        process.join()


# -- output -------------------------------------------------------------------------------------


def table(found: Sequence[Row]) -> str:
    """Rows as a Markdown table for people."""
    heads = "block case mode form ms,_p10-p90 speed peak_MB memory error roofline"
    names = [word.replace("_", " ") for word in heads.split()]
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]

    def shown(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    lines += [
        f"| {r.block} | {r.case} | {r.mode} | {r.form} "
        f"| {r.median_ms:.3g} ({r.p10_ms:.3g}-{r.p90_ms:.3g}) | {r.speed:.2f}x "
        f"| {shown(r.peak_mb, '.3g')} | {shown(r.memory, '.3f')} | {shown(r.error, '.1e')} "
        f"| {shown(r.roofline, '.0%')} |"
        for r in found
    ]
    return "\n".join(lines)


def json_lines(found: Sequence[Row]) -> str:
    """Rows as one JSON object a line, for machines."""
    return "".join(json.dumps(asdict(row)) + "\n" for row in found)
