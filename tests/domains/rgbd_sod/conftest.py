from pathlib import Path
from typing import Any

import pytest

from zoo.domains.saliency.rgbd_sod import sample
from zoo.domains.saliency.rgbd_sod.config import Config
from zoo.domains.saliency.rgbd_sod.sample import SampleScene

REAL = Path(__file__).parents[4] / "shared" / "data" / "rgbd_sod"


def configure(root: Path | None, size: int = 64, batch_size: int = 1, **data: Any) -> Config:
    return Config.model_validate(
        {
            "task": "rgbd_sod",
            "preset": "paper",
            "data": {"root": root, **data},
            "model": {"input_size": size},
            "trainer": {"batch_size": batch_size},
        }
    )


@pytest.fixture(scope="session")
def made() -> list[SampleScene]:
    """Scenes to write; the first 12 train, the others test."""
    return sample.scenes(16, 0, "scene")


@pytest.fixture
def real() -> Path:
    """The folder of small real samples."""
    if not REAL.is_dir():
        pytest.skip(f"the real samples are not here ({REAL.name})")
    return REAL
