"""The data adapter of `fusion_reid`: person crops of the field's data sets and of own folders.

Images are RGB in [0, 1]; the network normalises. Whoever is seen and by which camera is told by
file names or lists; identities of unlike data sets are unlike, and so are their cameras.
"""

from __future__ import annotations

from zoo.data import stop_on_errors
from zoo.domains.reid.fusion_reid import names
from zoo.domains.reid.fusion_reid.config import Config
from zoo.domains.reid.fusion_reid.images import Augmentation
from zoo.domains.reid.fusion_reid.inputs import inputs
from zoo.domains.reid.fusion_reid.split import ReidSplit, embedding_index
from zoo.domains.reid.fusion_reid.survey import Part, Survey, describe, survey
from zoo.errors import DataError
from zoo.surveying import errors_first
from zoo.task import Facts, Finding

__all__ = [
    "ReidSplit",
    "Survey",
    "check",
    "embedding_index",
    "facts_of",
    "inputs",
    "open_splits",
    "survey",
]


def open_splits(config: Config, found: Survey | None = None) -> dict[str, ReidSplit]:
    """`train`, `val` if identities are held out, `test`, and `test_<name>` for each of `data.test`.

    Args:
        config: The configuration with `data.root` settled.
        found: A survey of the same configuration, to spare a second one.

    Raises:
        DataError: The data are not there, an identity is in two splits, or a file is missing, badly
            named or broken and `data.on_error` is not `skip`.
    """
    found = found or survey(config)
    stop_on_errors(found.findings)
    return {name: _split(name, part, config, found) for name, part in found.parts.items()}


def _split(name: str, part: Part, config: Config, found: Survey) -> ReidSplit:
    data, training = config.data, name == "train"
    split = ReidSplit(
        part.entries,
        identities=found.identities,
        cameras=found.cameras,
        domains=part.domain,
        cameras_of=names.domain_of(found.sets[0].layout),
        size=config.model.input_size,
        augmentation=Augmentation(data.flip, data.pad, data.erase) if training else None,
        instances=data.instances,
        resize=data.resize if training else "bilinear",
        # A test is read once; validation again and again.
        in_memory=data.in_memory and not name.startswith("test"),
        batch_size=config.trainer.batch_size,
    )
    if found.skipped:
        split.notes.append(f"{found.skipped} images of the data were skipped")
    return split


def check(config: Config, deep: bool = True, found: Survey | None = None) -> list[Finding]:
    """Everything worth knowing of the data, errors first.

    Args:
        config: The configuration with `data.root` settled.
        deep: Decode every image; otherwise names and sizes.
        found: A survey of the same configuration, to spare a second one.
    """
    try:
        found = found or survey(config, deep)
    except DataError as error:
        return [Finding("error", str(error))]
    return errors_first([*found.findings, *describe(found)])


def facts_of(train: ReidSplit) -> Facts:
    """What travels with a model trained on a split, JSON only.

    Returns:
        `identities` in class order; `cameras` in the order of their embeddings; `domain`, whose
        cameras these are; `input_size` [H, W] in pixels.
    """
    return {
        "identities": list(train.identities),
        "cameras": list(train.cameras),
        "domain": train.cameras_of,
        "input_size": list(train.size),
    }
