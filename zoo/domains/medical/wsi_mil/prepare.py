"""`zoo data prepare task=wsi_mil`: a folder of slides to a folder of features that trains.

    OUT/features_<encoder>/<slide>.h5    features (N, F), coords (N, 2) with all settings
    OUT/status_<encoder>/<slide>.json    what became of each slide
    OUT/status_<encoder>/settings.json   what they all were made with
    OUT/outlines/<slide>.jpg             tissue and tiles on a thumbnail
    OUT/process_list_<encoder>.csv       one row a slide
    OUT/labels.csv                       the labels of the slides that have features

Every file appears whole. A slide that is done is not done again, so a run that was stopped goes on
where it was, and several processes share the work by taking every n-th slide.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch

from zoo import files
from zoo.data import plain_name, read_csv
from zoo.domains.medical.wsi_mil.config import Config
from zoo.domains.medical.wsi_mil.encoders import Encoder, build_encoder
from zoo.domains.medical.wsi_mil.extract import extract, write_features
from zoo.domains.medical.wsi_mil.layouts import ID_COLUMNS, LABEL_COLUMNS, column, slide_name
from zoo.domains.medical.wsi_mil.outlines import draw_outlines
from zoo.domains.medical.wsi_mil.reading import Readers, default_workers
from zoo.domains.medical.wsi_mil.settings import TileSettings, setting_attributes, settings_of
from zoo.domains.medical.wsi_mil.slides import PLAIN, SCANNED, is_slide
from zoo.domains.medical.wsi_mil.tiling import Plan
from zoo.domains.medical.wsi_mil.watching import Watch
from zoo.errors import ConfigError, DataError
from zoo.made_with import other_settings
from zoo.progress import clock

# Their image tiles lie beside them as plain JPEG or DICOM files.
_WITH_PARTS = (".vms", ".vmu")
_LONGEST = 200  # bytes of a slide's name: what is made of it is called longer than it
_OFTEN_PARTS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True)
class Status:
    """What became of a slide.

    Attributes:
        slide: Its name.
        status: `ok`, `no tissue`, `failed`, or `waiting` for its turn.
        tiles: Tiles with features.
        seconds: Time it took.
        fallback: Fallbacks of the segmentation, 0 for none.
        reason: Why it failed.
    """

    slide: str
    status: Literal["ok", "no tissue", "failed", "waiting"]
    tiles: int = 0
    seconds: float = 0.0
    fallback: int = 0
    reason: str = ""


class Preparation:
    """One set of features in the making.

    Args:
        out: Folder of the results.
        config: The configuration; `data`, `trainer.accelerator` and `trainer.precision` are used.
        slides: Slide name -> file.
        encoder: In place of the configured one, for tests.

    Raises:
        ConfigError: The settings make no grid, or `out` holds features made with others.
    """

    def __init__(
        self, out: Path, config: Config, slides: Mapping[str, Path], encoder: Encoder | None = None
    ) -> None:
        self.out, self.config, self.slides = out, config, dict(slides)
        self.settings: TileSettings = settings_of(config.data)
        name = config.data.encoder.removeprefix("timm:")
        self.key = re.sub(r"[^\w.-]+", "_", name)
        self._features = out / f"features_{self.key}"
        self._states = out / f"status_{self.key}"
        self._encoder = encoder
        self._claim()

    def run(self, shard: int = 0, shards: int = 1) -> list[Status]:
        """Treat every `shards`-th slide that is not done yet, and write table and labels.

        Returns:
            The status of every slide of this shard.

        Raises:
            ConfigError: There is no such encoder, or the settings fit no slide.
            WeightsError: Its weights cannot be had.
            ZooError: A reading process died, or the disk is full.
        """
        mine = sorted(self.slides)[shard::shards]
        done = {s: v for s in mine if (v := self.status(s)) is not None and v.status != "failed"}
        todo = [s for s in mine if s not in done]
        watch = Watch(len(todo), f"process {shard + 1} of {shards}, " if shards > 1 else "")
        if done:
            watch.say(f"{len(done)} of {len(mine)} slides are done already")
        if todo:
            encoder = self._encoder or self._build(shard)
            tiles = self.config.data.tiles
            workers = default_workers() if tiles.workers is None else tiles.workers
            with watch, Readers(workers) as readers:
                for slide, plan in self._planned(todo, readers):
                    done[slide] = self._one(slide, plan, encoder, readers, watch)
        self._conclude()
        return [done[s] for s in mine]

    def status(self, slide: str) -> Status | None:
        """What became of a slide, None if it was not treated or its features are gone."""
        try:
            body = json.loads((self._states / f"{slide}.json").read_text(encoding="utf-8"))
            found = Status(**body)
        except (OSError, ValueError, TypeError):
            return None
        there = found.status != "ok" or (self._features / f"{slide}.h5").is_file()
        return found if there else None

    def _claim(self) -> None:
        """Write down the settings, or compare them with those that made what is there."""
        wanted = setting_attributes(self.settings) | {"precision": self.config.data.tiles.precision}
        place = self._states / "settings.json"
        if not any(self._features.glob("*.h5")):
            if not place.is_file() or place.read_text(encoding="utf-8") != _json(wanted):
                # Nothing was made with other settings, so what they led to is no longer so.
                for old in self._states.glob("*.json"):
                    old.unlink(missing_ok=True)
                files.write_text(place, _json(wanted))
            return
        other = other_settings(place, wanted, "features")
        if other:
            msg = (
                f"{self.out}: holds '{self.key}' features made with {', '.join(other[:4])}; "
                "features of different settings do not mix: name another out"
            )
            raise ConfigError(msg)

    def _build(self, shard: int) -> Encoder:
        trainer = self.config.trainer
        kind = trainer.accelerator
        if kind == "auto":
            kind = "cuda" if torch.cuda.is_available() else "cpu"
        if kind == "cuda" and not torch.cuda.is_available():
            msg = "trainer.accelerator=cuda: there is no CUDA device here; use cpu"
            raise ConfigError(msg)
        device = torch.device("cuda", shard % torch.cuda.device_count()) if kind == "cuda" else kind
        return build_encoder(self.settings.encoder, device=device, precision=trainer.precision)

    def _planned(self, todo: Sequence[str], readers: Readers) -> Any:
        """Slides and their plans to wait for; the next slide is planned while one is encoded."""
        waiting = None
        for number, slide in enumerate(todo):
            plan = waiting or readers.plan(self.slides[slide], self.settings)
            follows = todo[number + 1] if number + 1 < len(todo) else None
            waiting = readers.plan(self.slides[follows], self.settings) if follows else None
            yield slide, plan

    def _one(
        self, slide: str, planned: Any, encoder: Encoder, readers: Readers, watch: Watch
    ) -> Status:
        """Treat one slide; what is wrong with it is written down, not raised."""
        begun = time.perf_counter()
        watch.begin(slide)
        for partial in self._features.glob(f".{slide}-*.h5"):
            if files.is_temporary(partial):
                partial.unlink(missing_ok=True)  # of a run that was killed while it wrote
        try:
            plan: Plan = planned()
            found = self._extracted(slide, plan, encoder, readers, watch)
        except DataError as error:
            found = Status(slide, "failed", reason=str(error))
        seconds = round(time.perf_counter() - begun, 3)
        status = Status(**asdict(found) | {"seconds": seconds})
        files.write_json(self._states / f"{slide}.json", asdict(status))
        watch.end(_line(status), status.tiles)
        return status

    def _extracted(
        self, slide: str, plan: Plan, encoder: Encoder, readers: Readers, watch: Watch
    ) -> Status:
        data, path = self.config.data, self.slides[slide]
        picture = None
        if data.tiles.outlines:
            place = self.out / "outlines" / f"{slide}.jpg"
            picture = readers.start(draw_outlines, path, plan, place)
        if not len(plan.coords):
            if picture is not None:
                picture()
            return Status(slide, "no tissue", fallback=plan.tissue.fallback)
        found = extract(
            path,
            self.settings,
            encoder=encoder,
            readers=readers,
            plan=plan,
            batch_size=data.tiles.batch_size,
            tell=watch.step,
        )
        if picture is not None:
            picture()
        write_features(self._features / f"{slide}.h5", found, data.tiles.precision)
        return Status(slide, "ok", len(found.coords), fallback=plan.tissue.fallback)

    def _conclude(self) -> None:
        """Write the table of all slides, and the labels of those that have features."""
        states = {slide: self.status(slide) for slide in sorted(self.slides)}
        rows = [
            {"file": self.slides[slide].name} | asdict(s or Status(slide, "waiting"))
            for slide, s in states.items()
        ]
        table = pd.DataFrame(rows)
        files.write_whole(
            self.out / f"process_list_{self.key}.csv", lambda p: table.to_csv(p, index=False)
        )
        found = label_table(self.config)
        if found is None:
            return
        path, names = found
        labels = read_csv(path)
        ok = {slide for slide, s in states.items() if s and s.status == "ok"}
        kept = labels[[slide_name(text) in ok for text in labels[names]]]
        if len(kept):
            files.write_whole(self.out / "labels.csv", lambda p: kept.to_csv(p, index=False))


def prepare(
    out: Path, config: Config, shard: int, shards: int, encoder: Encoder | None = None
) -> None:
    """Extract the features of `data.slides` into `out`; see the head of this module.

    Args:
        out: Folder of the results; it is made if need be.
        config: The configuration.
        shard: This process among several.
        shards: How many there are.
        encoder: In place of the configured one, for tests.

    Raises:
        DataError: There are no slides, or some failed and `data.on_error` is not `skip`.
        ConfigError: The settings are wrong, or `out` holds features made with others.
        WeightsError: The encoder's weights cannot be had.
    """
    data = config.data
    if data.slides is None:
        msg = "data.slides is not set; name a slide or a folder of slides"
        raise ConfigError(msg)
    begun = time.perf_counter()
    work = Preparation(out, config, list_slides(data.slides), encoder)
    done = work.run(shard, shards)
    failed = [s for s in done if s.status == "failed"]
    empty = [s for s in done if s.status == "no tissue"]
    tiles = sum(s.tiles for s in done)
    seconds = time.perf_counter() - begun
    told = f"process {shard + 1} of {shards}: " if shards > 1 else ""
    print(
        f"{told}{len(done)} slides: {len(done) - len(failed) - len(empty)} ok, "
        f"{len(empty)} without tissue, {len(failed)} failed; {tiles} tiles, {clock(round(seconds))}"
    )
    for path in passed_over(data.slides):
        print(f"{path}: passed over, its first bytes are no slide's, or it is a link to nowhere")
    if shards > 1:
        print(f"every process must run; {out}/process_list_{work.key}.csv says what is waiting")
    small = [s for s in done if s.status == "ok" and s.fallback]
    if small:
        names = ", ".join(s.slide for s in small[:3]) + (" …" if len(small) > 3 else "")
        print(f"{len(small)} slides have little tissue, found with smaller areas: {names}")
    if failed and data.on_error != "skip":
        more = f" and {len(failed) - 1} more" if len(failed) > 1 else ""
        msg = (
            f"{failed[0].reason}{more}; the other slides are done, see "
            f"{out}/process_list_{work.key}.csv, or set data.on_error=skip"
        )
        raise DataError(msg)
    print(f"zoo data check task={config.task} data.root={out}")


def list_slides(place: Path) -> dict[str, Path]:
    """Slides at a place: a file, or everything that opens as a slide in a folder and below.

    Returns:
        Slide name -> file, sorted.

    Raises:
        DataError: There is no such place, no slide in it, or two slides have one name.
    """
    place = place.expanduser()
    if not place.exists():
        msg = f"data.slides={place}: no such file or folder"
        raise DataError(msg)
    if place.is_file():
        return {plain_name(slide_name(place.name), place): place}
    every = sorted(p for p in place.rglob("*") if p.is_file() and not _hidden(p, place))
    parted = {p.parent for p in every if p.suffix.lower() in _WITH_PARTS}
    found: dict[str, Path] = {}
    for path in every:
        if path.parent in parted and path.suffix.lower() in _OFTEN_PARTS:
            continue
        if path.suffix.lower() == ".dcm" or not is_slide(path):
            continue  # a DICOM slide is many files: one of them is named on its own
        name = plain_name(slide_name(path.name), path)
        if len(name.encode()) > _LONGEST:
            msg = f"{path}: its name is too long for the files made of it; shorten it"
            raise DataError(msg)
        if name in found:
            msg = f"{path}: slide '{name}' is also in {found[name]}; rename one of them"
            raise DataError(msg)
        found[name] = path
    if not found:
        msg = f"data.slides={place}: no slide found in the folder and below"
        raise DataError(msg)
    return dict(sorted(found.items()))


def passed_over(place: Path) -> list[Path]:
    """What is called like slides in a folder and is none: by first bytes, or a broken link."""
    place = place.expanduser()
    every = sorted(p for p in place.rglob("*") if not _hidden(p, place)) if place.is_dir() else []
    named = [p for p in every if p.suffix.lower() in (*PLAIN, *SCANNED) and not p.is_dir()]
    return [p for p in named if p.suffix.lower() != ".dcm" and not is_slide(p)]


def label_table(config: Config) -> tuple[Path, str] | None:
    """The table of labels beside the slides and its column of slide names, None without one.

    Raises:
        DataError: `data.labels` is no such table.
    """
    data = config.data
    if data.slides is None:
        return None
    folder = data.slides.expanduser()
    folder = folder if folder.is_dir() else folder.parent
    if data.labels is not None:
        near = folder / data.labels.expanduser()
        path = near if near.is_file() else data.labels.expanduser()
        names = column(read_csv(path), data.id_column, ID_COLUMNS, path, "id_column")
        if names is None:
            msg = f"{path}: no column of slide names; set data.id_column"
            raise DataError(msg)
        return path, names
    found = []
    for path in sorted(folder.glob("*.csv")):
        try:
            table = read_csv(path)
        except DataError:
            continue
        names = column(table, None, ID_COLUMNS, path, "")
        if names is not None and column(table, None, LABEL_COLUMNS, path, "") is not None:
            found.append((path, names))
    return found[0] if len(found) == 1 else None


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=2) + "\n"


def _hidden(path: Path, below: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(below).parts)


def _line(status: Status) -> str:
    if status.status == "ok":
        return f"{status.slide}: {status.tiles} tiles in {status.seconds:.1f} s"
    return f"{status.slide}: {status.status}" + (f", {status.reason}" if status.reason else "")
