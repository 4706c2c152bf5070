"""The counting loop in C, compiled once by the machine's own compiler and kept in the cache.

A few limits a query want no sorted row: comparing all of its values with each of them is one pass
of vector instructions. There is nothing to build beforehand; without a compiler the other path is
taken. The library is kept under the hash of its source, compiler and processor.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

_SOURCE = Path(__file__).with_name("native.c")
# AMD's AVX-512 gains nothing over AVX2 here and loses where it is half as wide inside.
_FLAGS = (("-march=native", "-mno-avx512f"), ("-march=native",), ())
_NAMES = {torch.float32: "count_float", torch.float64: "count_double"}


def compiler() -> str | None:
    """The C compiler: `CC`, else `cc`; None if there is none."""
    return shutil.which(os.environ.get("CC") or "cc")


def _folder() -> Path:
    root = os.environ.get("ZOO_CACHE") or Path.home() / ".cache" / "zoo"
    return Path(root) / "kernels"


def _processor() -> str:
    """What the compiler's `native` depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return f"{platform.machine()} {platform.processor()} {flags}"


def _built(tool: str, path: Path) -> bool:
    """Compile to `path`, by a rename; false if no set of flags is understood."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        fresh = Path(folder) / "library.so"
        for flags in _FLAGS:
            words = [tool, "-O3", *flags, "-fPIC", "-shared", "-o", str(fresh), str(_SOURCE)]
            done = subprocess.run(words, capture_output=True, check=False, timeout=120)
            if done.returncode == 0:
                fresh.replace(path)
                return True
    return False


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """The compiled loop, or None where it cannot be had."""
    tool = compiler()
    if tool is None:
        return None
    key = hashlib.sha256(_SOURCE.read_bytes() + f"{tool}{_processor()}{_FLAGS}".encode())
    path = _folder() / f"rank_counts-{key.hexdigest()[:16]}.so"
    try:
        return ctypes.CDLL(str(path)) if path.is_file() or _built(tool, path) else None
    except (OSError, subprocess.SubprocessError):  # a cache that cannot be written, say
        return None


def fits(distances: Tensor) -> bool:
    """Whether the loop takes these: on the CPU, float32 or float64, rows in one piece."""
    plain = distances.dim() == 2 and distances.stride(1) == 1
    return distances.device.type == "cpu" and distances.dtype in _NAMES and plain


def counts(distances: Tensor, limits: Tensor, many: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Counts below and up to each limit.

    Args:
        distances: (n, G) on the CPU, float32 or float64.
        limits: (n, M) of the same dtype.
        many: (n,) int64, how many limits of each row count; the others' results are 0.

    Returns:
        (n, M) int64 below, (n, M) int64 below or equal, (n,) bool whether the row has a NaN.

    Raises:
        RuntimeError: There is no compiler, or the tensors do not fit.
    """
    loaded = library()
    if loaded is None or not fits(distances):
        msg = "rank_counts: the compiled loop needs a C compiler and float32 or float64 on the CPU"
        raise RuntimeError(msg)
    limits, many = limits.contiguous(), many.contiguous()
    below, up_to = (torch.empty(limits.shape, dtype=torch.int64) for _ in range(2))
    bad = torch.empty(len(distances), dtype=torch.bool)
    whole = [len(distances), distances.shape[1], distances.stride(0)]
    loaded[_NAMES[distances.dtype]](
        ctypes.c_void_p(distances.data_ptr()),
        *(ctypes.c_int64(n) for n in whole),
        ctypes.c_void_p(limits.data_ptr()),
        ctypes.c_void_p(many.data_ptr()),
        ctypes.c_int64(limits.shape[1]),
        *(ctypes.c_void_p(t.data_ptr()) for t in (below, up_to, bad)),
    )
    return below, up_to, bad
