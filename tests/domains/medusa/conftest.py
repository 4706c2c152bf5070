from pathlib import Path
from typing import Any

import pytest

from zoo.domains.medical.medusa import sample
from zoo.domains.medical.medusa.config import Config

DATA = Path(__file__).parents[4] / "shared" / "data" / "medusa"
PARTS = {"train": 24, "val": 8, "test": 12}


def configure(
    root: Path, *, batch_size: int = 4, objective: str = "classify", **data: Any
) -> Config:
    """Small sizes; `root` is the data set."""
    return Config.model_validate(
        {
            "task": "medusa",
            "preset": "paper",
            "data": {"root": root, **data},
            "model": {"image_size": 48, "body_size": 32, "global_pool": True},
            "optim": {
                "objective": objective,
                "select": "dice" if objective == "body" else "auc",
            },
            "trainer": {"batch_size": batch_size},
        }
    )


@pytest.fixture(scope="session")
def drawn() -> list[sample.Image]:
    return sample.images(0, PARTS)


@pytest.fixture
def covidx(tmp_path: Path, drawn: list[sample.Image]) -> Path:
    """A small sample data set that a test may damage."""
    root = tmp_path / "covidx"
    sample.write_covidx(root, drawn)
    return root
