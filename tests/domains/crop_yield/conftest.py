"""The sample data set of the MODIS world, written once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.domains.crop_yield.writers import write_exports


@pytest.fixture(scope="session")
def small_exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exports of three counties over two years; read only."""
    root = tmp_path_factory.mktemp("exports")
    write_exports(root)
    return root
