"""A split of scenes: from files to the tensors that a network takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from zoo.data import ListSplit, fingerprint
from zoo.domains.saliency.rgbd_sod.config import Config
from zoo.domains.saliency.rgbd_sod.depth import DepthMap, DepthRules, Measured, Polarity, canonical
from zoo.domains.saliency.rgbd_sod.images import RawDepth, resized, thumbnail
from zoo.domains.saliency.rgbd_sod.layouts import Pair
from zoo.domains.saliency.rgbd_sod.scenes import Scene, read_scene
from zoo.errors import DataError
from zoo.task import Batch

if TYPE_CHECKING:
    from zoo.domains.saliency.rgbd_sod.augment import Augmentation

# Of ImageNet, which the encoders' weights expect.
MEAN = (0.485, 0.456, 0.406)
DEVIATION = (0.229, 0.224, 0.225)
_PREVIEW = 128


@dataclass(frozen=True)
class Reading:
    """How files become what the network takes.

    Attributes:
        size: Side in pixels of the square input.
        rules: How depth is scaled and its holes filled.
        polarity: Set -> which end of its depth files is near.
        default: The same for every other set.
        depth: `zeros` reads no depth at all.
        mismatch: What sizes that differ mean.
        eval_size: Side in pixels annotations are resized to for scoring; None keeps their own.
    """

    size: int
    rules: DepthRules = field(default_factory=DepthRules)
    polarity: Mapping[str, Polarity] = field(default_factory=dict)
    default: Polarity = "near_dark"
    depth: Literal["files", "zeros"] = "files"
    mismatch: Literal["resize", "error"] = "resize"
    eval_size: int | None = None

    @classmethod
    def of(cls, config: Config, polarity: Mapping[str, Measured], default: Measured) -> Reading:
        """What a configuration asks for, with the polarity that a survey found."""
        data = config.data
        return cls(
            config.model.input_size,
            DepthRules.of(data),
            {name: measured.polarity for name, measured in polarity.items()},
            default.polarity,
            data.depth,
            data.mismatch,
            None if data.eval_size == "native" else int(data.eval_size),
        )

    def depth_of(self, raw: RawDepth | None, name: str, size: tuple[int, int]) -> DepthMap:
        """The depth of a scene of set `name`; zeros and invalid where there is none."""
        if raw is None or self.depth == "zeros":
            return DepthMap(np.zeros(size, np.float32), False, np.ones(size, bool))
        return canonical(raw, self.rules, self.polarity.get(name, self.default))


class RgbdSplit(ListSplit):
    """Scenes of one split.

    Args:
        pairs: The files of each scene.
        digests: Scene id -> hash of the content of its files.
        reading: How files become input.
        role: `train` gives masks (and augments, if asked to), `eval` annotations for scoring as
            well, `predict` neither.
        augment: Augment the training scenes.
        depth_drop: Chance that a training scene's depth is blanked.
        batch_size: Scenes a batch.

    Attributes:
        notes: What the user should be told about the scenes, one line each.

    Raises:
        DataError: There are no scenes.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        digests: Mapping[str, str],
        reading: Reading,
        role: Literal["train", "eval", "predict"],
        *,
        augment: bool = False,
        depth_drop: float = 0.0,
        batch_size: int = 1,
    ) -> None:
        ids = [pair.id for pair in pairs]
        training = role == "train"
        super().__init__(
            ids,
            ids,
            fingerprint((pair.id, digests[pair.id]) for pair in pairs),
            batch_size=batch_size,
            shuffle=training,
            drop_last=training,
        )
        self.pairs = list(pairs)
        self.reading = reading
        self.role = role
        self.augment = augment and training
        self.depth_drop = depth_drop if training else 0.0
        self.notes: list[str] = []
        self._augmentation: Augmentation | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Without the augmentation, which every worker makes for itself."""
        return self.__dict__ | {"_augmentation": None}

    def scene(self, index: int) -> Scene:
        """The files of scene `index`, as stored.

        Raises:
            DataError: A file is missing or broken, or its size does not fit.
        """
        pair = self.pairs[index]
        if self.reading.depth == "zeros":
            pair = replace(pair, depth=None)
        return read_scene(pair, self.reading.mismatch)

    def item(self, index: int, rng: np.random.Generator) -> Batch:
        """Scene `index`, augmented with `rng` in training.

        Returns:
            `id`, `set`; `rgb` (3, S, S) float32, ImageNet-normalised; `depth` (1, S, S) float32 in
            [0, 1], 0 near; `depth_valid`; `size` (H, W) of the image in pixels. In training and
            evaluation `mask` (1, S, S) float32, 0 or 1. In evaluation `truth` uint8, 0 or 255, at
            the annotation's own size or `data.eval_size`. Outside of training `preview_rgb` and
            `preview_depth`, uint8, at most 128 pixels long.

        Raises:
            DataError: As `scene`.
        """
        scene = self.scene(index)
        pair = self.pairs[index]
        size = scene.rgb.shape[0], scene.rgb.shape[1]
        depth = self.reading.depth_of(scene.depth, pair.set, size)
        if self.role == "train":
            if self.depth_drop and rng.random() < self.depth_drop:
                depth = self.reading.depth_of(None, pair.set, size)
            item = self._training(scene, depth, rng)
        else:
            item = self._inference(scene, depth)
        return {
            "id": pair.id,
            "set": pair.set,
            "depth_valid": depth.valid,
            "size": size,
        } | item

    def _training(self, scene: Scene, depth: DepthMap, rng: np.random.Generator) -> Batch:
        rgb, values = scene.rgb, depth.values
        if scene.mask is None:
            msg = "a scene without mask cannot train"
            raise DataError(msg)
        mask = scene.mask.astype(np.uint8)
        if self.augment:
            size = rgb.shape[0], rgb.shape[1]
            values = resized(values, size)
            mask = resized(mask, size, nearest=True)
            rgb, values, mask = self._augmented(rgb, values, mask, rng)
            if not depth.valid:  # nothing is known beyond a rotated image either
                values = np.zeros_like(values)
        return self._tensors(rgb, values) | {"mask": self._mask(mask)}

    def _augmented(
        self, rgb: np.ndarray, depth: np.ndarray, mask: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if self._augmentation is None:
            # Here, since it takes seconds to import and only training needs it.
            from zoo.domains.saliency.rgbd_sod.augment import Augmentation

            self._augmentation = Augmentation()
        return self._augmentation(rgb, depth, mask, rng)

    def _inference(self, scene: Scene, depth: DepthMap) -> Batch:
        item = self._tensors(scene.rgb, depth.values) | {
            "preview_rgb": thumbnail(scene.rgb, _PREVIEW),
            "preview_depth": thumbnail(_bytes(depth.values), _PREVIEW),
        }
        if self.role == "eval" and scene.mask is not None:
            truth = scene.mask.astype(np.uint8) * 255
            side = self.reading.eval_size
            item["mask"] = self._mask(scene.mask.astype(np.uint8))
            item["truth"] = truth if side is None else resized(truth, (side, side), nearest=True)
        return item

    def _tensors(self, rgb: np.ndarray, depth: np.ndarray) -> Batch:
        side = (self.reading.size, self.reading.size)
        return {
            "rgb": normalised(resized(np.ascontiguousarray(rgb), side)),
            "depth": torch.from_numpy(resized(np.ascontiguousarray(depth), side).copy())[None],
        }

    def _mask(self, mask: np.ndarray) -> Tensor:
        side = (self.reading.size, self.reading.size)
        small = resized(np.ascontiguousarray(mask), side, nearest=True)
        return torch.from_numpy(small.astype(np.float32))[None]

    def collate(self, items: list[Batch]) -> Batch:
        """Join B items: tensors are stacked, `depth_valid` becomes one, the rest are lists.

        Returns:
            The keys of an item; `rgb` (B, 3, S, S), `depth` and `mask` (B, 1, S, S), `depth_valid`
            (B,) bool.
        """
        batch: Batch = {}
        for key in items[0]:
            values = [item[key] for item in items]
            if isinstance(values[0], Tensor):
                batch[key] = torch.stack(values)
            else:
                batch[key] = torch.tensor(values) if key == "depth_valid" else values
        return batch


def normalised(rgb: np.ndarray) -> Tensor:
    """(3, H, W) float32, ImageNet mean and deviation taken out, of (H, W, 3) uint8."""
    unit = rgb.astype(np.float32) / 255
    scaled = (unit - np.array(MEAN, np.float32)) / np.array(DEVIATION, np.float32)
    return torch.from_numpy(np.ascontiguousarray(scaled.transpose(2, 0, 1)))


def _bytes(unit: np.ndarray) -> np.ndarray:
    return np.asarray(np.rint(unit * 255), np.uint8)
