"""A synthetic data set in Market-1501's layout: drawn pedestrians under six cameras.

`market1501/bounding_box_train`, `query`, `bounding_box_test`, with Windows' `Thumbs.db` beside the
images as in the real archive; distractors `0000` and junk `-1` in the gallery; two image sizes.
Every person is seen by three to five cameras; every query has a match under another camera.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from zoo.domains.reid.fusion_reid.pedestrian import CAMERAS, Person, draw, people

# Part of the cache key: raise it whenever what is written changes.
VERSION = 1

TRAIN, QUERY, GALLERY = "bounding_box_train", "query", "bounding_box_test"
_SIZES = ((128, 64),) * 7 + ((160, 80),)
_DISTRACTORS, _JUNK = 60, 40
_QUALITY = 90
# Far beyond the numbers of the people drawn.
_ALONE, _ABSENT, _BOTH = 9001, 9002, 9003


@dataclass(frozen=True)
class Shot:
    """One image to be drawn.

    Attributes:
        folder: One of the three.
        number: Identity as in the name: 0 distractor, -1 junk.
        camera: 1 to 6.
        person: Whom to draw; None draws background alone.
        off: How far the box is off, see `pedestrian.draw`.
    """

    folder: str
    number: int
    camera: int
    person: Person | None
    off: float = 0.0


def write(
    out: Path, seed: int = 0, defects: bool = False, *, train: int = 100, test: int = 52
) -> None:
    """Write the data set.

    Args:
        out: Folder; it is made if need be.
        seed: Seeds everything.
        defects: Add a truncated image, a badly named file, a query whose only matches are of its
            own camera, a query nobody in the gallery matches, a person in training and test.
        train: Training identities, 8 to 12 images each.
        test: Other identities, two queries each.
    """
    root = out / "market1501"
    rng = np.random.default_rng([seed, VERSION])
    who = people(train + test, rng)
    numbers = (1 + rng.permutation(2 * len(who))[: len(who)]).tolist()
    known = list(zip(numbers, who, strict=True))
    shots = [s for number, person in known[:train] for s in _training(rng, number, person)]
    shots += [s for number, person in known[train:] for s in _testing(rng, number, person)]
    shots += _others(rng, scale=min(1.0, test / 52))
    names = _write_shots(root, shots, rng)
    if defects:
        _write_defects(root, names, rng)
    for folder in (TRAIN, QUERY, GALLERY):
        (root / folder / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
    (root / "readme.txt").write_text(
        "Drawn pedestrians in the layout of Market-1501; no image of a real person.\n",
        encoding="utf-8",
    )


def _training(rng: np.random.Generator, number: int, person: Person) -> list[Shot]:
    seen = _cameras(rng)
    extra = rng.choice(seen, size=int(rng.integers(8, 13)) - len(seen)).tolist()
    return [Shot(TRAIN, number, camera, person) for camera in sorted(seen + extra)]


def _testing(rng: np.random.Generator, number: int, person: Person) -> list[Shot]:
    """Two queries under two cameras, and one to three gallery images under each camera."""
    seen = _cameras(rng)
    shots = [Shot(QUERY, number, camera, person) for camera in seen[:2]]
    for camera in seen:
        shots += [Shot(GALLERY, number, camera, person)] * int(rng.integers(1, 4))
    return shots


def _cameras(rng: np.random.Generator) -> list[int]:
    order = 1 + rng.permutation(len(CAMERAS))
    return [int(c) for c in order[: rng.integers(3, 6)]]


def _others(rng: np.random.Generator, scale: float) -> list[Shot]:
    """Distractors and junk: other people, in boxes that are off, and background."""
    shots = []
    for number, count in ((0, _DISTRACTORS), (-1, _JUNK)):
        strangers: Sequence[Person | None] = [*people(count, rng)]
        for i in range(max(1, round(count * scale))):
            camera = int(rng.integers(1, len(CAMERAS) + 1))
            person = None if i % 4 == 3 else strangers[i]
            shots.append(Shot(GALLERY, number, camera, person, off=rng.uniform(0.25, 0.6)))
    return shots


def _write_shots(root: Path, shots: Sequence[Shot], rng: np.random.Generator) -> list[Path]:
    """Draw every image; the files in order."""
    for folder in (TRAIN, QUERY, GALLERY):
        (root / folder).mkdir(parents=True, exist_ok=True)
    # Frames grow with the number, so that no two files share a name.
    frames = np.cumsum(rng.integers(1, 60, size=len(shots)))
    files = []
    for shot, frame in zip(shots, frames, strict=True):
        size = _SIZES[rng.integers(len(_SIZES))]
        picture = draw(rng, shot.person, CAMERAS[shot.camera - 1], size, shot.off)
        path = root / shot.folder / _name(shot, int(frame), rng)
        Image.fromarray(picture).save(path, quality=_QUALITY)
        files.append(path)
    return files


def _name(shot: Shot, frame: int, rng: np.random.Generator) -> str:
    """`PPPP_cCsS_FFFFFF_BB.jpg`; junk has no leading zeros."""
    who = "-1" if shot.number < 0 else f"{shot.number:04d}"
    sequence, box = rng.integers(1, 7), rng.integers(0, 8)
    return f"{who}_c{shot.camera}s{sequence}_{frame:06d}_{box:02d}.jpg"


def _write_defects(root: Path, names: Sequence[Path], rng: np.random.Generator) -> None:
    alone, absent, both = people(3, rng)
    shots = [
        Shot(QUERY, _ALONE, 1, alone),
        *[Shot(GALLERY, _ALONE, 1, alone)] * 2,
        Shot(QUERY, _ABSENT, 2, absent),
        *[Shot(TRAIN, _BOTH, camera, both) for camera in (1, 2, 3, 3)],
        Shot(QUERY, _BOTH, 4, both),
        *[Shot(GALLERY, _BOTH, camera, both) for camera in (4, 5)],
    ]
    _write_shots(root, shots, rng)
    good = names[0].read_bytes()
    (root / TRAIN / "person 7 from the left.jpg").write_bytes(good)
    names[0].write_bytes(good[: len(good) // 2])
