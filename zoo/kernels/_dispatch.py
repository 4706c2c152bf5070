"""Which form of a block runs: one rule, decided by the tensors' device and `ZOO_KERNELS`.

| ZOO_KERNELS | CUDA tensors | CPU tensors |
|---|---|---|
| `auto` (default) | Triton kernel where there is one for the shape, else torch | torch |
| `triton` | Triton kernel, or an error | Triton's interpreter if `TRITON_INTERPRET=1`, or error |
| `torch` | the fast form in PyTorch operators | the same |
| `reference` | the definition, aten operators only | the same |

A block without a fast form of a kind falls to the next one, except where a form was forced.
"""

from __future__ import annotations

import os
from functools import lru_cache
from importlib.util import find_spec
from typing import Literal

from torch import Tensor

Path = Literal["triton", "torch", "reference"]
_CHOICES = ("auto", "triton", "torch", "reference")


@lru_cache(maxsize=1)
def triton_there() -> bool:
    """Whether Triton can be imported; it is not imported for that."""
    return find_spec("triton") is not None


def interpreting() -> bool:
    """Whether Triton kernels run in its interpreter, on CPU tensors (tests)."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def choice() -> str:
    """What `ZOO_KERNELS` says.

    Raises:
        ValueError: It is none of auto, triton, torch, reference.
    """
    chosen = os.environ.get("ZOO_KERNELS", "auto") or "auto"
    if chosen not in _CHOICES:
        msg = f"ZOO_KERNELS={chosen}: should be one of {', '.join(_CHOICES)}"
        raise ValueError(msg)
    return chosen


def path_for(x: Tensor, supported: bool = True, why_not: str = "") -> Path:
    """The form that runs on `x`.

    Args:
        x: A tensor on the device in question.
        supported: Whether the block's Triton kernel takes these shapes and dtypes.
        why_not: Why it doesn't, for the error of a forced choice.

    Raises:
        ValueError: `ZOO_KERNELS` is none of its values.
        RuntimeError: `ZOO_KERNELS=triton`, and Triton cannot run here.
    """
    chosen = choice()
    if chosen in ("torch", "reference"):
        return "reference" if chosen == "reference" else "torch"
    on_device = x.is_cuda or (x.device.type == "cpu" and interpreting())
    if chosen == "triton":
        if not triton_there():
            msg = "ZOO_KERNELS=triton: the package triton is not installed"
        elif not on_device:
            msg = f"ZOO_KERNELS=triton: no kernel runs on {x.device}; use a CUDA device"
        elif not supported:
            msg = f"ZOO_KERNELS=triton: {why_not or 'these shapes are not supported'}"
        else:
            return "triton"
        raise RuntimeError(msg)
    return "triton" if x.is_cuda and triton_there() and supported else "torch"
