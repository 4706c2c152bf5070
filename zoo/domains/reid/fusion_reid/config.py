"""Configuration of `fusion_reid`; pydantic only, so that a wrong key is told before torch loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from zoo.config import BaseConfig, DataConfig, PredictConfig, Section

LAYOUTS = ("market1501", "dukemtmc", "msmt17", "occluded_duke", "cuhk03", "folder")
Layout = Literal["auto", "market1501", "dukemtmc", "msmt17", "occluded_duke", "cuhk03", "folder"]


class ReidData(DataConfig):
    """Person crops, their identities and cameras; see the card for the layouts."""

    layout: Layout = Field("auto", description="how the folders are arranged; auto: found")
    pattern: str | None = Field(
        None,
        description="regular expression with groups pid and cam, searched in each path below "
        "train/, query/ or gallery/ (folder layout); none: names pid_cam_anything",
    )
    test: list[str] = Field(
        default_factory=list,
        description="further data sets to test on, PATH or LAYOUT:PATH; each a split of its own",
    )
    msmt17_val: bool = Field(
        True, description="MSMT17: train on its val list as well, as FusionReID does"
    )
    cuhk03: Literal["labeled", "detected"] = Field(
        "detected", description="CUHK03 boxes: drawn by people or by a detector"
    )
    val_fraction: float = Field(
        0.0, ge=0, lt=1, description="share of training identities held out for selection"
    )
    split_seed: int = Field(1, ge=0, description="seeds the held-out identities")
    instances: int = Field(
        16, ge=2, description="images an identity in a training batch (K of P x K)"
    )
    flip: float = Field(0.5, ge=0, le=1, description="chance of a mirrored training image")
    pad: int = Field(10, ge=0, description="black pixels around before the random crop")
    erase: float = Field(0.5, ge=0, le=1, description="chance of an erased box in training")
    resize: Literal["bicubic", "bilinear"] = Field(
        "bicubic", description="resize of training images; test images: bilinear"
    )
    in_memory: bool = Field(True, description="keep decoded images in memory if they fit")


class ReidModel(Section):
    """The network: two branches and their fusion; see the card for what code and paper share."""

    cnn: Literal[
        "resnet50", "resnet101", "resnet152", "small", "osnet_x1_0", "osnet_x0_25", "none"
    ] = Field("resnet50", description="convolutional branch; osnet only without a transformer")
    transformer: Literal[
        "vit_base_patch16_224",
        "deit_base_patch16_224",
        "vit_small_patch16_224",
        "deit_small_patch16_224",
        "t2t_vit_t_14",
        "t2t_vit_t_24",
        "small",
        "none",
    ] = Field("vit_base_patch16_224", description="transformer branch")
    input_size: tuple[PositiveInt, PositiveInt] = Field(
        (256, 128), description="height and width in pixels images are resized to"
    )
    stride: tuple[PositiveInt, PositiveInt] = Field(
        (12, 12), description="stride of the 16 x 16 patches, rows and columns"
    )
    last_stride: Literal[1, 2] = Field(1, description="stride of the ResNet's last stage")
    mix: int = Field(
        768, ge=12, multiple_of=12, description="channels both branches are brought to"
    )
    depth: int = Field(2, ge=0, description="stacked transmission modules; 0: no fusion")
    sharing: Literal[0, 1, 2, 3] = Field(
        0,
        description="0: shared encoding unit (the paper); 1: two of them (the published code); "
        "2: shared fusion unit; 3: both shared",
    )
    htm_mode: Literal[0, 1, 2, 3] = Field(
        0, description="0: encode, then fuse; 1: encode only; 2: fuse only; 3: fuse, then encode"
    )
    lru_kernel: int = Field(1, ge=1, description="depthwise kernel of the refinement units")
    lru_depthwise: bool = Field(True, description="off: pointwise convolution only")
    camera: Literal["camera", "view", "camera+view", "none"] = Field(
        "camera",
        description="side information embedded in the transformer's tokens; the data sets read "
        "here have one view each",
    )
    camera_scale: float = Field(3.0, ge=0, description="factor on that embedding")
    drop_path: float = Field(0.1, ge=0, lt=1, description="stochastic depth of the transformer")
    neck_feature: Literal["before", "after"] = Field(
        "before", description="the embedding is taken before or after the batch norm neck"
    )
    feature: Literal[0, 1, 2, 3, 4, 5, 6] = Field(
        0, description="0: all six heads joined; 1 to 6: one of them, in the paper's order"
    )
    width: int = Field(16, ge=4, description="channels of the first stage (cnn=small)")
    dim: int = Field(96, ge=12, multiple_of=12, description="token width (transformer=small)")
    blocks: int = Field(4, ge=1, description="transformer blocks (transformer=small)")
    cnn_weights: Path | None = Field(
        None, description="torchvision file of the ResNet (or torchreid's of OSNet); none: random"
    )
    transformer_weights: Path | None = Field(
        None, description="timm, DeiT or T2T-ViT file of the transformer; none: random"
    )

    @field_validator("camera", mode="before")
    @classmethod
    def _word(cls, value: Any) -> Any:
        return "none" if value is None or value is False else value

    @model_validator(mode="after")
    def _fits(self) -> ReidModel:
        msg = ""
        if self.cnn == "none" and self.transformer == "none":
            msg = "cnn and transformer cannot both be none"
        elif self.cnn.startswith("osnet") and self.transformer != "none":
            msg = f"cnn={self.cnn} is a baseline of its own: set transformer=none"
        if msg:
            raise ValueError(msg)
        return self


class ReidOptim(Section):
    """SGD, warm-up cosine, losses."""

    lr: float = Field(0.005, gt=0, description="base learning rate; biases take bias_lr times it")
    optimiser: Literal["sgd", "adamw"] = Field("sgd", description="sgd with momentum, or adamw")
    momentum: float = Field(0.9, ge=0, lt=1, description="of sgd")
    weight_decay: float = Field(1e-4, ge=0, description="L2 on every parameter, biases included")
    bias_lr: float = Field(2.0, gt=0, description="factor on the learning rate of biases")
    warmup: int = Field(10, ge=0, description="epochs of linear warm-up from 1 % of lr")
    schedule: Literal["official", "steps"] = Field(
        "official", description="cosine set epoch by epoch as published, or set at every step"
    )
    label_smoothing: float = Field(0.1, ge=0, lt=1, description="of the identity loss")
    id_weight: float = Field(1.0, ge=0, description="weight of the identity loss")
    triplet_weight: float = Field(1.0, ge=0, description="weight of the triplet loss")
    margin: float | None = Field(
        None, ge=0, description="margin of the triplet loss; none: soft margin"
    )
    hard_factor: float = Field(
        0.0, ge=0, lt=1, description="positives 1+h farther, negatives 1-h nearer in the triplets"
    )
    unit_triplet: bool = Field(
        False, description="bring features to unit length before the triplet loss"
    )
    head_weights: Literal["equal", "halves"] = Field(
        "equal",
        description="losses of the heads: their sum, or half the first and half the mean of the "
        "others (as TransReID)",
    )
    centre_weight: float = Field(
        0.0, ge=0, description="weight of the centre loss on the first head's feature; 0: none"
    )
    centre_lr: float = Field(0.5, gt=0, description="learning rate of the centres' own SGD")
    select: Literal["last", "map", "rank1"] = Field(
        "last", description="what picks the epoch; map and rank1 need data.val_fraction"
    )


class ReidPredict(PredictConfig):
    """What is extracted, ranked and written."""

    gallery: Path | None = Field(
        None, description="folder of gallery images that each input is ranked against"
    )
    top: int = Field(10, ge=1, description="gallery images listed for each query")
    features: bool = Field(False, description="write the embeddings as safetensors, with ids")
    same_camera: bool = Field(
        False, description="keep gallery images of the query's identity and camera in rank lists"
    )
    flip_average: bool = Field(False, description="mean of the features of image and mirror image")
    half: bool = Field(False, description="keep features in float16")
    distance: Literal["euclidean", "cosine", "angle"] = Field(
        "euclidean",
        description="written in rank lists, of unit-length features: 0 to 2, 1 - cosine, or the "
        "angle in radians; all rank alike",
    )
    rerank: bool = Field(False, description="k-reciprocal re-ranking as well")
    k1: int = Field(50, ge=1, description="neighbours of the re-ranking; its paper: 20")
    k2: int = Field(15, ge=1, description="neighbours of its query expansion; its paper: 6")
    lam: float = Field(0.3, ge=0, le=1, description="weight of the original distance in it")
    cache: bool = Field(True, description="keep extracted features in the cache by content")
    faiss: Literal["auto", "always", "never"] = Field(
        "auto",
        description="rank lists by faiss: auto, for galleries of more than 200,000 images where "
        "it is installed (pip install faiss-cpu)",
    )
    pictures: int = Field(16, ge=0, description="rank lists drawn as pictures")


class Config(BaseConfig):
    """All settings of `fusion_reid`."""

    data: ReidData = Field(default_factory=ReidData, description="crops, identities, cameras")
    model: ReidModel = Field(default_factory=ReidModel, description="network")
    optim: ReidOptim = Field(default_factory=ReidOptim, description="optimiser and losses")
    predict: ReidPredict = Field(default_factory=ReidPredict, description="outputs")

    @model_validator(mode="after")
    def _selects(self) -> Config:
        if self.optim.select != "last" and not self.data.val_fraction:
            msg = (
                "data.val_fraction=0 leaves no validation identities to pick an epoch by "
                f"(optim.select={self.optim.select}); set it, to 0.1 for instance"
            )
            raise ValueError(msg)
        return self
