from __future__ import annotations

import pytest

from tests.parity.golden import find_cases, find_folders


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for name, find in (("case_file", find_cases), ("case_folder", find_folders)):
        if name in metafunc.fixturenames:
            found = find()
            metafunc.parametrize(name, list(found.values()), ids=list(found))
