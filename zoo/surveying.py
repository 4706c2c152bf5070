"""Tasks that look at their data once, by a survey from which check and splits are made."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import Generic, TypeVar

from zoo.errors import DataError
from zoo.task import C, Finding, Task

S = TypeVar("S")
_LEVELS = ("error", "warning", "info")


def errors_first(findings: Iterable[Finding]) -> list[Finding]:
    """Findings by level; those of one level stay in their order."""
    return sorted(findings, key=lambda f: _LEVELS.index(f.level))


class SurveyedTask(Task[C], Generic[C, S]):
    """A task whose files are listed, matched and looked at in one go.

    A survey of a large data set takes minutes, so check, folds and splits share one.
    """

    def __init__(self, config: C) -> None:
        super().__init__(config)
        self._found: S | None = None

    @abstractmethod
    def survey(self, deep: bool) -> S:
        """Look at every file the settled configuration names.

        Args:
            deep: Read the files whole.

        Raises:
            DataError: There is nothing that could be looked at.
        """

    @abstractmethod
    def findings(self, found: S, deep: bool) -> list[Finding]:
        """What there is to say of a survey.

        Args:
            found: The survey.
            deep: Whether the files were read whole.
        """

    def surveyed(self, deep: bool = False) -> S:
        """The survey there is, or a new one; with `deep` always a new one.

        Raises:
            DataError: There is nothing that could be looked at.
        """
        if self._found is None or deep:
            self._found = self.survey(deep)
        return self._found

    def check(self, deep: bool = False) -> list[Finding]:
        """Findings on every file the configuration names.

        Args:
            deep: Read the files whole; otherwise what can be seen quickly.
        """
        try:
            return self.findings(self.surveyed(deep), deep)
        except DataError as error:
            return [Finding("error", str(error))]
