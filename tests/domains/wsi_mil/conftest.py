from pathlib import Path
from typing import Any

import pytest

from zoo.domains.medical.wsi_mil import sample
from zoo.domains.medical.wsi_mil.config import Config
from zoo.domains.medical.wsi_mil.sample import Slide

PARTS = {"train": 8, "val": 4, "test": 6}


def configure(root: Path, batch_size: int = 1, **data: Any) -> Config:
    return Config.model_validate(
        {
            "task": "wsi_mil",
            "preset": "paper",
            "data": {"root": root, **data},
            "trainer": {"batch_size": batch_size},
        }
    )


@pytest.fixture(scope="session")
def slides() -> list[Slide]:
    return sample.slides(0, PARTS)


@pytest.fixture
def clam(tmp_path: Path, slides: list[Slide]) -> Path:
    """A small data set in CLAM's layout that a test may damage."""
    root = tmp_path / "clam"
    sample.write_clam(root, slides)
    return root
