"""What is kept of which item while a split is predicted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from zoo.domains.reid.fusion_reid.split import ReidSplit


@dataclass
class Look:
    """What records carry besides the embedding.

    Attributes:
        files: Path of each item.
        colours: Items of which the baseline's colour histogram is kept.
        pictured: Items of which a small picture and the maps of both branches are kept.
        written: Pictured items whose picture is a file of `zoo predict`.
        widths: Longest text of each column, so that all records of a split store alike.
    """

    files: dict[str, Path] = field(default_factory=dict)
    colours: set[str] = field(default_factory=set)
    pictured: set[str] = field(default_factory=set)
    written: set[str] = field(default_factory=set)
    widths: dict[str, int] = field(default_factory=dict)

    def watch(self, split: ReidSplit) -> None:
        """Know the files of a split and the length of its texts."""
        self.files |= split.files
        columns: dict[str, Sequence[str]] = {
            "person": [e.person for e in split.entries],
            "camera": [e.camera for e in split.entries],
            "path": [e.name for e in split.entries],
            "role": ["gallery"],
        }
        for name, texts in columns.items():
            longest = max(map(len, texts))
            self.widths[name] = max(self.widths.get(name, 1), longest)

    def picture(self, split: ReidSplit, most: int, *, evenly: bool = True) -> list[str]:
        """Choose queries to picture and return their ids.

        Args:
            split: Whose queries.
            most: How many at most.
            evenly: Over the whole split, or the first ones.
        """
        queries = [i for i, e in zip(split.ids, split.entries, strict=True) if e.role == "query"]
        every = -(-len(queries) // most) if most and evenly else 1
        chosen = queries[::every][:most]
        self.pictured |= set(chosen)
        return chosen
