"""Which optional parts work on this machine."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

from zoo._version import __version__
from zoo.errors import ConfigError
from zoo.files import cache_dir

# What each extra is probed by: the module that fails when something below it is missing.
_EXTRAS = {
    "OpenSlide (slides)": ("openslide", "pathology"),
    "tifffile (pyramidal TIFF)": ("tifffile", "pathology"),
    "MONAI (volumes)": ("monai", "medical"),
    "pydicom (DICOM)": ("pydicom", "medical"),
    "JPEG 2000 in DICOM": ("openjpeg", "medical"),
    "nibabel (NIfTI)": ("nibabel", "medical"),
    "PyAV (video)": ("av", "medical"),
    "albumentations (augmentation)": ("albumentations", "saliency"),
    "rasterio (GeoTIFF, JP2)": ("rasterio", "remote"),
    "torchreid (re-identification)": ("torchreid", "reid"),
    "ONNX Runtime (export)": ("onnxruntime", "export"),
    "captum (attributions)": ("captum", "explain"),
}


def _row(part: str, ok: bool | None, detail: str = "") -> dict[str, Any]:
    return {"part": part, "ok": ok, "detail": detail}


def _module(part: str, module: str, extra: str) -> dict[str, Any]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # packages advertise their own options on import
            found = importlib.import_module(module)
    except Exception as error:  # a broken shared library raises anything it likes
        reason = " ".join(str(error).split()).replace("'", "")
        return _row(part, False, f"{reason}; pip install '.[{extra}]'")
    return _row(part, True, str(getattr(found, "__version__", "")))


def _torch() -> list[dict[str, Any]]:
    import torch

    rows = [_row("torch", True, f"{torch.__version__}, {torch.get_num_threads()} threads")]
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            memory = torch.cuda.get_device_properties(i).total_memory / 2**30
            rows.append(
                _row(f"CUDA {i}", True, f"{torch.cuda.get_device_name(i)}, {memory:.0f} GB")
            )
    else:
        rows.append(_row("CUDA", False, "no device; training runs on the CPU"))
    return rows


def _triton() -> dict[str, Any]:
    try:
        import triton
    except ImportError as error:
        return _row("Triton", False, f"{error}; the torch path is used")
    import torch

    if not torch.cuda.is_available():
        return _row("Triton", False, f"{triton.__version__} is installed; it needs a CUDA device")
    return _row("Triton", True, str(triton.__version__))


def _blocks() -> list[dict[str, Any]]:
    """Which form of each shared block runs here, by the dispatch rule of the kernels."""
    import pkgutil

    import torch

    from zoo import kernels
    from zoo.kernels._dispatch import choice, triton_there

    try:
        chosen = choice()
    except ValueError as error:
        return [_row("blocks", False, str(error))]
    on_cuda = torch.cuda.is_available() and triton_there()
    rows = []
    for found in pkgutil.iter_modules(kernels.__path__):
        if not found.ispkg:
            continue
        forms = {m.name for m in pkgutil.iter_modules([f"{kernels.__path__[0]}/{found.name}"])}
        if chosen == "reference":
            form = "definition"
        elif on_cuda and "triton_path" in forms and chosen != "torch":
            form = "Triton kernel"
        else:
            form = "fast PyTorch form" if "torch_path" in forms else "definition"
        rows.append(_row(f"block {found.name}", None, f"{form} (ZOO_KERNELS={chosen})"))
    return rows


def _place(part: str, path: Path) -> dict[str, Any]:
    there = path
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free / 2**30
    ok = os.access(there, os.W_OK)
    return _row(part, ok, f"{path}, {free:.1f} GB free" + ("" if ok else ", not writable"))


def _cache() -> dict[str, Any]:
    try:
        return _place("cache", cache_dir())
    except ConfigError as error:
        return _row("cache", False, str(error))


def _tracking() -> dict[str, Any]:
    from zoo.privacy import without_credentials
    from zoo.tracking import network_warning

    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if uri:
        told = f"MLFLOW_TRACKING_URI is {without_credentials(uri)}, which was not asked"
        return _row("MLflow", None, told)
    local = f"sqlite:///{Path('runs/mlflow.db').resolve()}"
    warning = network_warning(local)
    return _row("MLflow", not warning, warning or "runs/mlflow.db in the workspace")


def examine() -> list[dict[str, Any]]:
    """One row a part: its name, whether it works (None: neither), and a remark."""
    import psutil

    from zoo.machine import cores

    memory = psutil.virtual_memory()
    rows = [
        _row("zoo", True, f"{__version__}, Python {platform.python_version()}"),
        _row("cores", None, str(cores())),
        _row(
            "memory",
            None,
            f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GB available",
        ),
        *_torch(),
        _triton(),
        *_blocks(),
        *(_module(part, *spec) for part, spec in _EXTRAS.items()),
        _cache(),
        _place("workspace", Path("runs").resolve()),
        _tracking(),
    ]
    if sys.platform.startswith("linux"):
        shared = shutil.disk_usage("/dev/shm").total / 2**30 if Path("/dev/shm").exists() else 0
        rows.append(_row("shared memory", shared > 0.5, f"{shared:.1f} GB for loading processes"))
    return rows
