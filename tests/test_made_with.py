"""Settings beside what they made: what differs is told, what is damaged is not guessed."""

from pathlib import Path

import pytest

from zoo import files
from zoo.errors import DataError
from zoo.made_with import other_settings

WANTED = {"tile": 224, "overlap": 0, "encoder": "stats"}


def test_the_same_settings_differ_in_nothing(tmp_path: Path) -> None:
    place = tmp_path / "settings.json"
    files.write_json(place, WANTED)
    assert other_settings(place, dict(reversed(WANTED.items())), "features") == []


def test_what_differs_is_told_by_key(tmp_path: Path) -> None:
    place = tmp_path / "settings.json"
    files.write_json(place, {"tile": 256, "overlap": 0, "level": 1})
    assert other_settings(place, WANTED, "features") == [
        "encoder=None (now stats)",
        "level=1 (now None)",
        "tile=256 (now 224)",
    ]


@pytest.mark.parametrize("body", [None, "", "{", "[1, 2]", "\udcff"])
def test_settings_that_cannot_be_read_are_told(tmp_path: Path, body: str | None) -> None:
    place = tmp_path / "settings.json"
    if body is not None:
        place.write_bytes(body.encode(errors="surrogateescape"))
    with pytest.raises(DataError, match=r"settings\.json: is missing or damaged, .* histograms"):
        other_settings(place, WANTED, "histograms")
