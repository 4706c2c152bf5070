"""Settings of the stub tasks; no torch, like those of the real ones."""

from __future__ import annotations

from pydantic import Field

from zoo.config import BaseConfig, DataConfig, Section


class StubOptim(Section):
    lr: float = Field(0.05, gt=0, description="learning rate")


class BagsData(DataConfig):
    instances: int = Field(60, ge=1, description="most instances a batch")


class BagsModel(Section):
    dropout: float = Field(0.2, ge=0, lt=1, description="share of hidden units left out")


class BagsConfig(BaseConfig):
    data: BagsData = Field(default_factory=BagsData, description="data set")
    model: BagsModel = Field(default_factory=BagsModel, description="network")
    optim: StubOptim = Field(default_factory=StubOptim, description="optimiser")


class VolumesConfig(BaseConfig):
    optim: StubOptim = Field(default_factory=StubOptim, description="optimiser")


class AlternatingConfig(BaseConfig):
    optim: StubOptim = Field(default_factory=StubOptim, description="optimiser")


class YearsData(DataConfig):
    year: int = Field(2004, description="year that is predicted; training takes those before")


class YearsConfig(BaseConfig):
    data: YearsData = Field(default_factory=YearsData, description="data set")
    optim: StubOptim = Field(default_factory=StubOptim, description="optimiser")


class IdentitiesData(DataConfig):
    identities: int = Field(3, ge=2, description="identities a batch (P)")
    instances: int = Field(2, ge=2, description="pictures of an identity in a batch (K)")


class IdentitiesOptim(StubOptim):
    centre_lr: float = Field(0.5, gt=0, description="learning rate of the centres")
    centre_weight: float = Field(0.01, gt=0, description="weight of the centre loss")


class IdentitiesConfig(BaseConfig):
    data: IdentitiesData = Field(default_factory=IdentitiesData, description="data set")
    optim: IdentitiesOptim = Field(default_factory=IdentitiesOptim, description="optimiser")


class TestsetsConfig(BaseConfig):
    optim: StubOptim = Field(default_factory=StubOptim, description="optimiser")
