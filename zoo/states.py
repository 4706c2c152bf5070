"""Other people's weight files: tensors by name, and nothing in them is run.

A file written by `torch.save` is a pickle, which may run code when it is loaded. Only what torch's
own restricted unpickler accepts is read: tensors, plain containers and what the caller allows.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.errors import WeightsError

WRAPPERS = ("state_dict", "model", "model_state_dict", "state_dict_ema", "teacher", "net")
"""What authors put around a state dict, outermost name first."""

Allowed = Sequence[Callable[..., Any] | tuple[Callable[..., Any], str]]


def unpickled(path: Path | str, allowed: Allowed = (), also: str = "") -> Any:
    """The content of a file written by `torch.save`, read by the restricted unpickler.

    Args:
        path: The file.
        allowed: Further types, or (stand-in, dotted name) pairs, that may be loaded.
        also: What those are, for the message.

    Raises:
        WeightsError: The file is missing or broken, or holds something else; the message names
            what was refused.
    """
    try:
        with torch.serialization.safe_globals(list(allowed)):
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        msg = f"{path}: no such file"
        raise WeightsError(msg) from error
    except Exception as error:  # broken and hostile pickles fail in any way
        msg = f"{path}: {_why(error, also)}"
        raise WeightsError(msg) from error


def _why(error: Exception, also: str) -> str:
    refused = re.search(r"GLOBAL ([\w.]+)", str(error))
    if refused:
        only = f"tensors, plain containers and {also}" if also else "tensors and plain containers"
        return f"refused, the pickle wants to load '{refused[1]}'; only {only} are read"
    text = str(error).strip()
    if "data.pkl" in text:  # a zip that torch.save did not write, such as a .pt2
        return "holds no weights as torch.save writes them; an exported model cannot be read back"
    if not text or isinstance(error, pickle.UnpicklingError):  # torch's advice here is unsafe
        return "not a readable checkpoint (broken, or not written by torch.save)"
    return f"not a readable checkpoint ({text.splitlines()[0][:200]})"


def unwrapped(content: object) -> Mapping[Any, Any]:
    """The state dict inside of what authors wrapped around it; empty if there is none."""
    while isinstance(content, Mapping):
        inner = next((content[k] for k in WRAPPERS if isinstance(content.get(k), Mapping)), None)
        if inner is None:
            return content
        content = inner
    return {}


def read_state(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file or of one written by `torch.save`.

    Wrappers and a prefix `module.` (left by several processes) are taken off.

    Args:
        path: The file; `.safetensors` by its suffix, anything else as `torch.save` writes it.

    Returns:
        Tensors on the CPU by key.

    Raises:
        WeightsError: The file is missing, broken, or holds anything but tensors.
    """
    if path.suffix == ".safetensors":
        state = unwrapped(_safetensors(path))
    else:
        state = unwrapped(unpickled(path))
    if not state:
        msg = f"{path}: holds no state dict"
        raise WeightsError(msg)
    odd = [str(key) for key, value in state.items() if not isinstance(value, Tensor)]
    if odd:
        msg = f"{path}: not tensors in the state dict: {', '.join(odd[:5])}"
        raise WeightsError(msg)
    return {str(key).removeprefix("module."): value for key, value in state.items()}


def _safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    if not path.is_file():
        msg = f"{path}: no such file"
        raise WeightsError(msg)
    try:
        return load_file(path)
    except Exception as error:  # a damaged header fails in any way
        msg = f"{path}: not a readable safetensors file"
        raise WeightsError(msg) from error
