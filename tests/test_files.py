"""Files appear whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from zoo import files
from zoo.errors import ZooError


def _alone(path: Path) -> bool:
    return [p.name for p in path.parent.iterdir()] == [path.name]


def test_text_bytes_and_json_are_written_with_their_folders(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "x.json"
    files.write_json(path, {"k": [1, 2.5, None, "é"]})
    assert json.loads(path.read_text()) == {"k": [1, 2.5, None, "é"]}
    assert path.read_text().endswith("\n")
    files.write_text(path, "naïve")
    assert path.read_bytes() == "naïve".encode()
    files.write_bytes(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert path.stat().st_mode & 0o777 == 0o644
    assert _alone(path)


@pytest.mark.parametrize("at", ["fsync", "replace"])
def test_a_failure_keeps_the_old_content_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    path = tmp_path / "x.txt"
    files.write_text(path, "old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os if at == "fsync" else Path, at, fail)
        with pytest.raises(OSError, match="No space"):
            files.write_text(path, "new")
        with pytest.raises(OSError, match="No space"):
            files.write_whole(path, lambda p: None)
    assert path.read_text() == "old"
    assert _alone(path)


def test_write_whole_keeps_the_suffix_and_fails_cleanly(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "table.csv"
    seen = []

    def write(p: Path) -> None:
        seen.append(p)
        p.write_text("1,2\n")

    files.write_whole(path, write)
    assert path.read_text() == "1,2\n"
    assert seen[0].suffix == ".csv"
    assert seen[0] != path

    def broken(p: Path) -> None:
        p.write_text("half")
        raise ValueError(p.suffix)

    with pytest.raises(ValueError, match="csv"):
        files.write_whole(path, broken)
    assert path.read_text() == "1,2\n"
    assert _alone(path)


def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    files.write_json(path, 1)
    with pytest.raises(TypeError):
        files.write_json(path, {"x": object()})
    assert json.loads(path.read_text()) == 1
    assert _alone(path)


def test_sha256(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"abc" * 100_000)
    assert files.sha256(path) == hashlib.sha256(b"abc" * 100_000).hexdigest()


def test_need_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, 5_000_000))
    files.need_space(tmp_path, 5_000_000)
    with pytest.raises(ZooError, match=r"6 MB are needed and 5 MB are free"):
        files.need_space(tmp_path, 6_000_000)
