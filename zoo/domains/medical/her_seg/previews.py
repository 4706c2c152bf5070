"""Small pictures that a record keeps of an image, volume or clip, for the report.

A preview is a row of panels: the image; a volume's three planes through where most is to be seen;
a few frames of a clip. Panel i is `picture_<i>` (h, w, 3), `labels_<i>` and, where it is known,
`truth_<i>` (h, w), all uint8, with its entry in `panel_titles` and its height over width of a
pixel in `panel_aspect`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from zoo.domains.medical.her_seg.geometry import resized
from zoo.domains.medical.her_seg.stacks import Stack

_SIDE = {"image": 256, "volume": 192, "clip": 144}
_FRAMES = 5
# Frames of which a clip keeps small pictures until it is known which are shown.
_KEPT_FRAMES = 40
_PLANES = {"axial": ("axial", "coronal", "sagittal"), "coronal": ("coronal", "axial", "sagittal")}
_PLANES["sagittal"] = ("sagittal", "axial", "coronal")


@dataclass(frozen=True)
class Panel:
    """One picture of a preview.

    Attributes:
        title: What it shows; empty for an image.
        picture: (h, w, 3) uint8.
        labels: (h, w) uint8 predicted class indices.
        truth: Likewise, or None.
        aspect: Height over width of a pixel.
    """

    title: str
    picture: np.ndarray
    labels: np.ndarray
    truth: np.ndarray | None
    aspect: float = 1.0


def panels_of(values: Mapping[str, np.ndarray]) -> list[Panel]:
    """The panels a record keeps; none where it has no preview."""
    titles = [str(t) for t in values.get("panel_titles", ())]
    return [
        Panel(
            title,
            values[f"picture_{i}"],
            values[f"labels_{i}"],
            values.get(f"truth_{i}"),
            float(values["panel_aspect"][i]),
        )
        for i, title in enumerate(titles)
    ]


def as_values(panels: Sequence[Panel]) -> dict[str, np.ndarray]:
    """Panels as arrays of a record."""
    made: dict[str, np.ndarray] = {
        "panel_titles": np.array([p.title for p in panels], np.str_),
        "panel_aspect": np.array([p.aspect for p in panels], np.float64),
    }
    for i, panel in enumerate(panels):
        made |= {f"picture_{i}": panel.picture, f"labels_{i}": panel.labels}
        if panel.truth is not None:
            made[f"truth_{i}"] = panel.truth
    return made


def _small(size: tuple[int, int], side: int) -> tuple[int, int]:
    share = min(1.0, side / max(size))
    return max(1, round(size[0] * share)), max(1, round(size[1] * share))


def _bytes(picture: np.ndarray) -> np.ndarray:
    found: np.ndarray = np.clip(np.rint(picture * 255), 0, 255).astype(np.uint8)
    return found


@dataclass
class Previewer:
    """Collects small pictures while a stack is segmented, and chooses at the end.

    Attributes:
        stack: What is segmented.
        axis: Slicing plane of volumes, for the titles.
        neighbours: The channels of a volume's pictures are slices, of which the middle one is
            shown.
    """

    stack: Stack
    axis: str = "axial"
    neighbours: bool = False
    _kept: dict[int, Panel] = field(default_factory=dict)

    def add(
        self, index: int, picture: np.ndarray, labels: np.ndarray, truth: np.ndarray | None
    ) -> None:
        """Look at the next picture.

        Args:
            index: Its place in the stack.
            picture: (H, W, 3) float32 in [0, 1].
            labels: (H, W) uint8 predicted class indices.
            truth: Likewise, or None.
        """
        if not self.wants(index):
            return
        if self.neighbours and self.stack.kind == "volume":
            picture = np.repeat(picture[..., 1:2], 3, axis=2)
        size = _small((picture.shape[0], picture.shape[1]), _SIDE[self.stack.kind])
        masks = [None if m is None else resized(m, size, nearest=True) for m in (labels, truth)]
        assert masks[0] is not None
        title = f"frame {index}" if self.stack.kind == "clip" else ""
        self._kept[index] = Panel(title, resized(_bytes(picture), size), masks[0], masks[1])

    def wants(self, index: int) -> bool:
        """Whether a picture may be shown: of a long clip, not every frame is."""
        return self.stack.kind != "clip" or not index % -(-len(self.stack) // _KEPT_FRAMES)

    def panels(self) -> list[Panel]:
        """What is shown."""
        if self.stack.kind == "volume":
            return self._planes()
        if self.stack.kind == "clip":
            return self._frames()
        return [
            Panel(p.title, p.picture, p.labels, p.truth, self._ratio(0, 1))
            for p in self._kept.values()
        ]

    def _frames(self) -> list[Panel]:
        known = [i for i, p in self._kept.items() if p.truth is not None]
        pool = known if len(known) >= 2 else list(self._kept)
        places = np.linspace(0, len(pool) - 1, min(_FRAMES, len(pool))).round().astype(int)
        return [self._kept[pool[p]] for p in places]

    def _ratio(self, first: int, second: int) -> float:
        """Size of a pixel along one axis over that along another."""
        spacing = self.stack.spacing
        return float(spacing[first] / spacing[second]) if spacing else 1.0

    def _planes(self) -> list[Panel]:
        panels = list(self._kept.values())
        pictures = np.stack([p.picture for p in panels])
        labels = np.stack([p.labels for p in panels])
        truths = [p.truth for p in panels if p.truth is not None]
        truth = np.stack(truths) if len(truths) == len(panels) else None
        # Where the truth is largest, or the prediction if there is no truth or it is empty.
        shown = labels if truth is None or not truth.any() else truth
        names = _PLANES[self.axis]
        ratios = (self._ratio(1, 2), self._ratio(0, 2), self._ratio(0, 1))
        made = []
        for axis, name, ratio in zip(range(3), names, ratios, strict=True):
            others = tuple(a for a in range(3) if a != axis)
            share = (shown > 0).sum(axis=others)
            at = int(share.argmax()) if share.any() else shown.shape[axis] // 2
            full = at if axis == 0 else round(at * self._size[axis] / shown.shape[axis])
            cut = [np.take(v, at, axis=axis) for v in (pictures, labels)]
            own = None if truth is None else np.take(truth, at, axis=axis)
            # The first axis of RAS+ volumes grows upwards in the body; pictures are drawn down.
            turned = [x if axis == 0 or x is None else x[::-1] for x in (*cut, own)]
            assert turned[0] is not None
            assert turned[1] is not None
            made.append(Panel(f"{name} {full}", turned[0], turned[1], turned[2], ratio))
        return made

    @property
    def _size(self) -> tuple[int, int, int]:
        first = self.stack.picture(0).shape
        return len(self.stack), first[0], first[1]


def spread(count: int, most: int) -> set[int]:
    """At most `most` of `count` places, evenly spread."""
    every = max(1, -(-count // most))
    return set(itertools.islice(range(0, count, every), most))
