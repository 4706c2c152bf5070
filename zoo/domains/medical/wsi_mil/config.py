"""Configuration of `wsi_mil`; pydantic only, so that a wrong key is told before torch loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from zoo.config import BaseConfig, DataConfig, PredictConfig, Section


class WsiTiles(Section):
    """Which tiles `zoo data prepare` takes from a slide, and how it works."""

    patch_size: int = Field(256, ge=8, description="side of a tile in pixels of the resolution")
    overlap: int = Field(0, ge=0, description="pixels that neighbouring tiles share, likewise")
    magnification: float = Field(20, gt=0, description="resolution of the tiles, 20 for 20x")
    target_mpp: float | None = Field(
        None, gt=0, description="micrometres per pixel of the tiles, in place of magnification"
    )
    level: int | None = Field(
        None, ge=0, description="pyramid level, whatever its resolution, in place of magnification"
    )
    contour_fn: Literal["four_pt", "four_pt_hard", "center", "basic"] = Field(
        "four_pt", description="points of a tile that must lie on tissue, as in CLAM"
    )
    use_padding: bool = Field(True, description="tiles may run past the slide's edge")
    min_patches: int = Field(
        1, ge=1, description="tiles an outline must give to count; ACMIL's script wants 2"
    )
    input_size: int | None = Field(
        None, ge=16, description="side in pixels the encoder is given; none: the encoder's own"
    )
    mean: tuple[float, float, float] | None = Field(
        None, description="RGB mean in [0, 1] of the encoder's input; none: the encoder's own"
    )
    std: tuple[float, float, float] | None = Field(
        None, description="RGB deviation of the encoder's input; none: the encoder's own"
    )
    batch_size: int = Field(64, ge=1, description="tiles encoded at a time")
    workers: int | None = Field(
        None, ge=0, description="reading processes; none: one a core, 8 at most; 0: no extra ones"
    )
    precision: Literal["float16", "float32"] = Field(
        "float32", description="features as stored; float16 halves the files"
    )
    outlines: bool = Field(True, description="write a small picture of tissue and tiles a slide")


class WsiTissue(Section):
    """How tissue is told from background, by CLAM's method; areas in squares of 512 pixels."""

    preset: Literal["acmil", "bwh_biopsy", "bwh_resection", "tcga"] = Field(
        "acmil", description="CLAM's or ACMIL's numbers, which single values below replace"
    )
    sthresh: int | None = Field(
        None, ge=0, le=254, description="saturation of 0 to 255 above which a pixel is tissue"
    )
    mthresh: int | None = Field(None, ge=1, description="side of the median filter, odd, in pixels")
    close: int | None = Field(None, ge=0, description="side of the closing, in pixels; 0: none")
    use_otsu: bool | None = Field(None, description="Otsu's threshold in place of sthresh")
    a_t: float | None = Field(None, ge=0, description="least area of tissue, in squares")
    a_h: float | None = Field(None, ge=0, description="least area of a hole, in squares")
    max_n_holes: int | None = Field(None, ge=0, description="largest holes kept of an outline")
    seg_level: int | None = Field(
        None, ge=-1, description="level that is segmented; -1: the one 64 times smaller"
    )
    fallback: bool = Field(True, description="accept smaller tissue where none is large enough")

    @field_validator("mthresh", mode="after")
    @classmethod
    def _odd(cls, value: int | None) -> int | None:
        if value is not None and value % 2 == 0:
            msg = "should be odd"
            raise ValueError(msg)
        return value


class WsiData(DataConfig):
    """Where bags, labels and splits are, and how they are divided when no split is given."""

    slides: Path | None = Field(
        None, description="slide file or folder for zoo data prepare; none: the sample slides"
    )
    mpp: float | None = Field(
        None, gt=0, description="micrometres per level-0 pixel of slides that do not state them"
    )
    encoder: str = Field(
        "resnet50", description="tile encoder: resnet50 (CLAM's), stats, or a timm model's name"
    )
    encoder_weights: Path | None = Field(
        None, description="file of the encoder's weights; none: the published ones, downloaded"
    )
    encoder_options: dict[str, Any] = Field(
        default_factory=dict, description="further arguments of a timm model, as init_values"
    )
    tiles: WsiTiles = Field(default_factory=WsiTiles, description="tiles of a slide")
    tissue: WsiTissue = Field(default_factory=WsiTissue, description="tissue on a slide")
    layout: Literal["auto", "acmil", "clam", "trident", "tensors", "table"] = Field(
        "auto", description="file layout; auto: recognised from what is in data.root"
    )
    features: Path | None = Field(
        None, description="feature folder or file below data.root; none: found, if there is one"
    )
    width: int | None = Field(
        None, ge=1, description="features an instance must have; none: what the files have"
    )
    labels: Path | None = Field(
        None, description="csv of slide_id, label and optionally case_id; none: found"
    )
    splits: Path | None = Field(
        None, description="split file or folder of split files; none: found, else drawn by seed"
    )
    fold: int | None = Field(
        None, ge=0, description="which split file of a folder, or which of data.folds"
    )
    folds: int = Field(0, ge=0, description="folds by patient of zoo cv; 0: as the splits say")
    leave_one_group_out: bool = Field(
        False, description="one fold of zoo cv a patient (data.patient_column), in sorted order"
    )
    val_fraction: float = Field(
        0.15, ge=0, lt=1, description="share of patients held out for selection; 0: none"
    )
    test_fraction: float = Field(
        0.2, gt=0, lt=1, description="share of patients held out for test when no split is given"
    )
    split_seed: int = Field(1, ge=0, description="seeds drawn splits and folds")
    classes: list[str] | None = Field(
        None, description="class names in index order; none: sorted names found in the labels"
    )
    merge: dict[str, str] = Field(
        default_factory=dict, description="label -> class it counts as, before data.classes"
    )
    id_column: str | None = Field(
        None, description="column of slide names; none: slide_id, slide, bag_id …"
    )
    label_column: str | None = Field(
        None, description="column of labels; none: label, class or target"
    )
    patient_column: str | None = Field(
        None, description="column of patients; none: case_id or patient, else the slide itself"
    )
    annotations: Path | None = Field(
        None, description="folder of outlines, <slide>.xml (ASAP) or <slide>.geojson (QuPath)"
    )
    annotation_rule: Literal["centre", "share"] = Field(
        "centre",
        description="a patch is lesion if its centre is inside an outline, or half of its area",
    )
    lesion_classes: list[str] | None = Field(
        None, description="classes or groups of outlines that are lesion; none: all but holes"
    )
    hole_classes: list[str] | None = Field(
        None, description="classes or groups that cut out; none: _2, exclusion, normal, hole …"
    )
    patch_size_level0: int | None = Field(
        None,
        ge=1,
        description="edge of a patch in level-0 pixels where features do not say; none: grid step",
    )
    standardise: bool = Field(
        False, description="subtract mean and divide by deviation of the training instances"
    )
    shots: int | None = Field(None, ge=1, description="training slides a class; none: all")
    in_memory: bool = Field(True, description="keep bags in memory after the first reading")

    @field_validator("encoder_options", mode="after")
    @classmethod
    def _numbers(cls, value: dict[str, Any]) -> dict[str, Any]:
        return {k: _number(v) for k, v in value.items()}

    @field_validator("classes", "lesion_classes", "hole_classes", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        return [_text(v) for v in value] if isinstance(value, list) else value

    @field_validator("merge", mode="before")
    @classmethod
    def _pairs(cls, value: Any) -> Any:
        return {_text(k): _text(v) for k, v in value.items()} if isinstance(value, dict) else value


def _number(value: Any) -> Any:
    """`1e-5`, which YAML reads as text, as the number that is meant."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _text(value: Any) -> Any:
    """A label that YAML read as a whole number, as the text that tables hold."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


class WsiModel(Section):
    """The network; see the card for what differs from the paper."""

    arch: Literal["acmil_ga", "acmil_mha", "abmil", "mha"] = Field(
        "acmil_ga", description="gated or multi-head attention, with branches or the plain baseline"
    )
    inner: int | None = Field(
        None,
        ge=8,
        description="width after the dimension reduction; none: the published one for the "
        "feature width, else half of it",
    )
    attention: int = Field(128, ge=1, description="width of the gated scorer")
    branches: int = Field(5, ge=1, description="attention branches K")
    masked: int = Field(10, ge=0, description="STKIM: instances with the largest attention")
    mask_drop: float = Field(0.6, ge=0, le=1, description="STKIM: share of them masked a step")
    dropout: float = Field(0.1, ge=0, lt=1, description="after attention heads (mha archs only)")
    classifier_dropout: float = Field(0.0, ge=0, lt=1, description="before the classifiers")


class WsiOptim(Section):
    """AdamW with a half-cosine schedule."""

    lr: float = Field(1e-4, gt=0, description="learning rate at the start of the cosine")
    lr_min: float = Field(0.0, ge=0, description="learning rate at its end")
    warmup_epochs: float = Field(0.0, ge=0, description="epochs of linear warm-up")
    weight_decay: float = Field(1e-5, ge=0, description="decoupled, on every parameter")
    diversity: float = Field(1.0, ge=0, description="weight of the diversity loss")
    branch: float = Field(1.0, ge=0, description="weight of the branch loss")
    select: Literal["f1_micro+auc", "f1_macro+auc", "auc", "loss"] = Field(
        "f1_micro+auc",
        description="validation figure that picks the epoch; f1_micro+auc as the official script",
    )


class WsiPredict(PredictConfig):
    """What is written for each slide."""

    format: Literal["h5", "csv", "both"] = Field(
        "both", description="format of the per-instance attention files"
    )
    slides: Path | None = Field(
        None, description="folder of the slides that feature files were made of, for pictures"
    )
    encoder: str | None = Field(
        None, description="tile encoder of slides; none: the one the training features name"
    )
    features: Path | None = Field(
        None, description="folder that keeps the features made of slides; none: not kept"
    )
    annotations: Path | None = Field(
        None, description="folder of outlines to draw, <slide>.xml (ASAP) or .geojson (QuPath)"
    )
    heatmap: Literal["percentile", "official", "none"] = Field(
        "percentile",
        description="colours: rank within the slide, or attention times N clipped at 1 as in ACMIL",
    )
    heatmap_zoom: float = Field(
        1.0, gt=0, le=1, description="factor on official colours; smaller shows more above average"
    )
    heatmap_branches: Literal["all", "mean"] = Field(
        "all", description="draw every branch beside their mean, or the mean alone"
    )
    heatmap_size: int = Field(
        700, ge=64, le=8000, description="longest side of the slide on the heat map, in pixels"
    )
    heatmap_alpha: float = Field(0.4, gt=0, le=1, description="weight of the colour on the slide")
    colours: Literal["jet", "turbo", "viridis", "magma", "coolwarm"] = Field(
        "jet", description="colour map of heat maps"
    )
    top_patches: int = Field(16, ge=0, le=100, description="patches on the contact sheet; 0: none")
    geojson: Literal["detection", "annotation", "none"] = Field(
        "detection", description="patches for QuPath as this kind of object; none: no file"
    )
    detection_radius: float = Field(
        1.5,
        gt=0,
        description="FROC: a detection replaces weaker ones within this many patch edges",
    )


class Config(BaseConfig):
    """All settings of `wsi_mil`."""

    data: WsiData = Field(default_factory=WsiData, description="bags, labels, splits")
    model: WsiModel = Field(default_factory=WsiModel, description="network")
    optim: WsiOptim = Field(default_factory=WsiOptim, description="optimiser and losses")
    predict: WsiPredict = Field(default_factory=WsiPredict, description="outputs")
