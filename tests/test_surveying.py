"""Tasks with a survey: made once, made again to look deeper, a failure is a finding."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.toys import Toy
from zoo.config import BaseConfig
from zoo.errors import DataError
from zoo.surveying import SurveyedTask, errors_first
from zoo.task import Finding


class Surveyed(SurveyedTask[BaseConfig, list[str]], Toy):
    """A toy whose survey lists what a test puts in."""

    def __init__(self, config: BaseConfig) -> None:
        super().__init__(config)
        self.files = ["a", "b"]
        self.looked: list[tuple[Path | None, bool]] = []

    def survey(self, deep: bool) -> list[str]:
        """What is listed now."""
        self.looked.append((self.settled().data.root, deep))
        if not self.files:
            msg = "nothing is there"
            raise DataError(msg)
        return list(self.files)

    def findings(self, found: list[str], deep: bool) -> list[Finding]:
        """One a file."""
        if "torn" in found:
            msg = "a list is torn"
            raise DataError(msg)
        return [Finding("info", f"{name}, {'deep' if deep else 'quick'}") for name in found]


@pytest.fixture
def task(tmp_path: Path) -> Surveyed:
    return Surveyed(BaseConfig(task="toy", preset="paper", data={"root": tmp_path}))


def test_check_and_splits_share_one_survey(task: Surveyed, tmp_path: Path) -> None:
    assert [f.what for f in task.check()] == ["a, quick", "b, quick"]
    task.files.append("c")
    assert task.surveyed() == ["a", "b"]
    assert task.looked == [(tmp_path, False)]


def test_a_deep_check_looks_again_and_is_kept(task: Surveyed) -> None:
    task.surveyed()
    task.files.append("c")
    assert [f.what for f in task.check(deep=True)] == ["a, deep", "b, deep", "c, deep"]
    assert task.surveyed() == ["a", "b", "c"]
    assert [deep for _, deep in task.looked] == [False, True]


@pytest.mark.parametrize(
    ("files", "what"), [([], "nothing is there"), (["torn"], "a list is torn")]
)
def test_data_that_cannot_be_surveyed_are_a_finding(
    task: Surveyed, files: list[str], what: str
) -> None:
    task.files = files
    assert task.check() == [Finding("error", what)]


def test_a_failed_survey_is_not_kept(task: Surveyed) -> None:
    task.files = []
    with pytest.raises(DataError, match="nothing is there"):
        task.surveyed()
    task.files = ["a"]
    assert task.surveyed() == ["a"]


def test_settled_changes_the_root_and_nothing_else(task: Surveyed, tmp_path: Path) -> None:
    settled = task.settled()
    assert settled.data.root == tmp_path
    assert settled == task.config


def test_the_sample_is_where_no_root_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    task = Surveyed(BaseConfig(task="toy", preset="paper"))
    root = task.settled().data.root
    assert root is not None
    assert tmp_path in root.parents
    assert task.config.data.root is None


def test_errors_come_first_and_each_level_keeps_its_order() -> None:
    levels = ["info", "error", "warning", "info", "error"]
    findings = [Finding(level, str(i)) for i, level in enumerate(levels)]  # type: ignore[arg-type]
    assert [f.what for f in errors_first(findings)] == ["1", "4", "2", "0", "3"]
