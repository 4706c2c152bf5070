"""Configuration of `crop_yield`; pydantic only, so that a wrong key is told before torch loads."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from zoo.config import BaseConfig, DataConfig, PredictConfig, Section

CROPS = ("corn", "cotton", "soybean", "winterwheat")


class CropData(DataConfig):
    """Imagery, yields, counties and the years that train and test."""

    sensor: Literal["modis", "sentinel2"] = Field(
        "modis", description="modis: histograms a county and year; sentinel2: CropNet pictures"
    )
    crop: Literal["corn", "cotton", "soybean", "winterwheat"] = Field(
        "soybean", description="whose yield is predicted"
    )
    yields: Path | None = Field(
        None, description="yield csv (Quick Stats export or headerless); none: found below root"
    )
    counties: Path | None = Field(
        None, description="csv of counties with longitude, latitude, outline; none: found"
    )
    year: int | None = Field(
        None, description="year that is predicted; none: the last one that has yields"
    )
    first_year: int | None = Field(None, description="first year that trains; none: all before")
    protocol: Literal["past", "leave_one_year_out"] = Field(
        "past", description="train on years before data.year, or on all others"
    )
    val_fraction: float = Field(
        0.1, ge=0, lt=1, description="share of the training county-years held out for selection"
    )
    split_seed: int = Field(0, ge=0, description="seeds the held-out share")
    folds_by: Literal["year", "steps", "operator", "crop"] = Field(
        "year",
        description="what `zoo cv` varies: the predicted year, the steps seen (MODIS), the edge "
        "operator, the crop (Sentinel-2)",
    )
    cv_years: list[int] | None = Field(
        None, description="years `zoo cv` predicts; none: of 2009 to 2015 those there are"
    )
    states: list[str] | None = Field(
        None, description="two-digit state FIPS codes to use; none: all that have data"
    )
    steps: int = Field(
        32, ge=4, le=32, description="eight-day steps from day 49 that are seen (MODIS)"
    )
    image_folder: str = Field(
        "crop_yield-data_image", description="folder of reflectance GeoTIFFs below raw or root"
    )
    temperature_folder: str = Field(
        "crop_yield-data_temperature", description="folder of temperature GeoTIFFs"
    )
    mask_folder: str = Field("crop_yield-data_mask", description="folder of land-cover GeoTIFFs")
    land_cover: int = Field(
        12, ge=0, le=255, description="land-cover class whose pixels count (CDL: 5 is soybeans)"
    )
    mask_source: Literal["landcover", "cdl"] = Field(
        "landcover",
        description="land-cover bands a year and county, or Cropland Data Layer maps a year",
    )
    cdl_share: float = Field(
        0.5, gt=0, le=1, description="least share of the class in a pixel (mask_source=cdl)"
    )
    prepare_workers: int | None = Field(
        None, ge=1, description="processes of `zoo data prepare`; none: one a core"
    )
    raw: Path | None = Field(
        None, description="folder of the raw exports for `zoo data prepare`; none: data.root"
    )
    export_start: int = Field(2003, description="year of the first composite in the raw exports")
    index: Path | None = Field(
        None,
        description="folder of CropNet's json index, seen from its root; none: json/, and without "
        "one every county in the folders (Sentinel-2)",
    )
    augment: bool = Field(True, description="crop, flip, colour of training pictures (Sentinel-2)")
    eval_draws: int = Field(
        0,
        ge=0,
        description="random augmentations a county is evaluated on, as the official code does; "
        "0: one centre crop (Sentinel-2)",
    )
    input_scaling: Literal["unit", "official"] = Field(
        "unit", description="pictures to [0, 1], or left at 0..255 as the official code does"
    )
    image_size: int = Field(224, ge=32, description="side in pixels of a picture (Sentinel-2)")
    dates: int | None = Field(
        None,
        ge=1,
        description="dates a season, evenly spread; none: every other, as published (Sentinel-2)",
    )


class CropModel(Section):
    """The network; see the card for what differs from the official code."""

    channels: tuple[int, ...] = Field(
        (128, 256, 256, 512, 512, 512), description="channels of the six blocks (MODIS)"
    )
    dense: int = Field(2048, ge=1, description="width of the first dense layer (MODIS)")
    dim: int | None = Field(
        None, ge=8, description="token width of the ViT; none: 256 MODIS, 128 Sentinel-2"
    )
    depth: int | None = Field(None, ge=1, description="ViT layers; none: 4 or 6")
    heads: int | None = Field(None, ge=1, description="ViT heads; none: 8 or 6")
    head_size: int | None = Field(None, ge=1, description="width of a head; none: 64 or 32")
    mlp: int | None = Field(None, ge=1, description="ViT hidden width; none: 512 or 256")
    patch: int | None = Field(None, ge=1, description="patch side; none: 4 or 16")
    dropout: float = Field(
        0.5,
        ge=0,
        lt=1,
        description="of both branches; Sentinel-2's convolutions have 0.25 unless this is 0",
    )
    embedding_dropout: float | None = Field(
        None, ge=0, lt=1, description="after the ViT's embedding; none: 0.1 or 0"
    )
    pool: Literal["cls", "mean"] = Field("cls", description="what the ViT's head reads")
    rca_hidden: int = Field(1, ge=1, description="hidden units of the channel attention")
    rca_pool: Literal["auto", "max", "mean"] = Field(
        "auto", description="pooling of the channel attention; auto: max MODIS, mean Sentinel-2"
    )
    operator: Literal["auto", "sobel", "scharr", "learnable"] = Field(
        "auto", description="operator of all samples; auto: as model.routing or the crop says"
    )
    routing: Literal["per_sample", "per_prediction_year"] = Field(
        "per_sample",
        description="operator by each sample's own year (released), or by the predicted year",
    )
    unknown_year: Literal["learnable", "sobel", "scharr", "nearest"] = Field(
        "learnable", description="operator of a year the routing table does not have"
    )
    chunk: int = Field(
        8, ge=1, description="pictures a pass through both branches (Sentinel-2; memory only)"
    )
    recompute: bool = Field(
        True,
        description="compute a chunk's first layers and ViT again in the backward pass: a county "
        "of 132 pictures then trains in 1 GB; false is faster where there is memory (Sentinel-2)",
    )


class CropOptim(Section):
    """Adam with steps, loss."""

    lr: float = Field(1e-4, gt=0, description="learning rate at the start")
    weight_decay: float | None = Field(
        None, ge=0, description="coupled L2; none: 1.0 MODIS, 1e-5 Sentinel-2 as released"
    )
    decay_steps: list[int] = Field(
        default_factory=lambda: [4000, 20000],
        description="steps at which the rate is divided by 10",
    )
    l1: bool = Field(False, description="add the mean absolute error to the loss")
    detrend: bool = Field(
        False, description="predict the difference to the county's mean of past years"
    )
    target: Literal["raw", "standardised"] = Field(
        "raw", description="raw as released; standardised by the training mean and deviation"
    )


class CropPredict(PredictConfig):
    """What is written for each county and year."""

    geojson: bool = Field(True, description="write predictions as GeoJSON with county outlines")
    in_season: bool = Field(
        False, description="also score with only the first 12, 16, … 28 steps seen (MODIS)"
    )


class Config(BaseConfig):
    """All settings of `crop_yield`."""

    data: CropData = Field(default_factory=CropData, description="imagery, yields, years")
    model: CropModel = Field(default_factory=CropModel, description="network")
    optim: CropOptim = Field(default_factory=CropOptim, description="optimiser and loss")
    predict: CropPredict = Field(default_factory=CropPredict, description="outputs")
