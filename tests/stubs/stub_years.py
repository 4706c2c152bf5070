"""Yields of counties: one training a year, facts from the rows of earlier years alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from stub_common import array, stacked
from stub_config import YearsConfig
from torch import Tensor, nn
from torch.nn import functional

from zoo.data import ListSplit, fingerprint, read_csv, split_rng
from zoo.errors import DataError
from zoo.task import Batch, Facts, Finding, Metrics, Optim, Record, Split, Task

BANDS = ["b0", "b1", "b2"]
YEARS = (2001, 2002, 2003, 2004)


def read(path: Path) -> pd.DataFrame:
    table = read_csv(path)
    for name in (*BANDS, "year", "yield"):
        try:
            table[name] = pd.to_numeric(table[name])
        except ValueError as error:
            msg = f"{path}: column '{name}': {error}"
            raise DataError(msg) from None
    return table


class Rows(ListSplit):
    def __init__(self, table: pd.DataFrame, *, batch_size: int, shuffle: bool = False) -> None:
        self.table = table.reset_index(drop=True)
        ids = [f"{c}-{y}" for c, y in zip(table["county"], table["year"], strict=True)]
        content = fingerprint(self.table.to_dict("records"))
        # The same county comes back every year, so what must not leak is the county-year.
        super().__init__(ids, ids, content, batch_size=batch_size, shuffle=shuffle)

    def item(self, index: int, rng: np.random.Generator) -> Batch:
        row = self.table.iloc[index]
        return {
            "id": self.ids[index],
            "county": row["county"],
            "bands": row[BANDS].to_numpy(np.float32),
            "yield": np.float32(row["yield"]).reshape(()),
        }

    def collate(self, items: list[Batch]) -> Batch:
        return stacked([i | {"yield": np.asarray(i["yield"])} for i in items])


class Forecast(nn.Module):
    """Past mean of the county plus a linear correction of the centred bands."""

    mean: Tensor

    def __init__(self, facts: Facts) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(facts["mean"], dtype=torch.float32))
        self.history: dict[str, float] = facts["history"]
        self.overall: float = facts["overall"]
        self.net = nn.Linear(len(BANDS), 1)

    def forward(self, bands: Tensor, counties: Sequence[str]) -> Tensor:
        past = torch.tensor([self.history.get(c, self.overall) for c in counties])
        return past.to(bands) + self.net(bands - self.mean).squeeze(-1)


class Years(Task[YearsConfig]):
    monitor = ("rmse", "min")

    @classmethod
    def write_sample(cls, out: Path, defects: bool = False) -> None:
        rng = np.random.default_rng(0)
        rows = []
        for year in YEARS:
            for i in range(8):
                bands = rng.normal(loc=(year - 2000, 5, -3), size=3).round(4)
                grown = 40 + i + 2 * (bands[1] - 5) + rng.normal(0, 0.1)
                rows.append([f"c{i}", year, *bands, round(float(grown), 4)])
        table = pd.DataFrame(rows, columns=["county", "year", *BANDS, "yield"])
        if defects:
            table["yield"] = table["yield"].astype(object)
            table.loc[3, "yield"] = "lots"
        table.to_csv(out / "yields.csv", index=False)

    def check(self, deep: bool = False) -> list[Finding]:
        try:
            table = read(self.root() / "yields.csv")
        except DataError as error:
            return [Finding("error", str(error))]
        return [Finding("info", f"{len(table)} county-years")]

    def folds(self) -> list[dict[str, str]]:
        return [{"data.year": str(year)} for year in YEARS[2:]]

    def splits(self) -> dict[str, Split]:
        table = read(self.root() / "yields.csv")
        size = self.config.trainer.batch_size
        before = table[table["year"] < self.config.data.year]
        held = split_rng(0).permutation(len(before)) < max(1, len(before) // 5)
        return {
            "train": Rows(before[~held], batch_size=size, shuffle=True),
            "val": Rows(before[held], batch_size=size),
            "test": Rows(table[table["year"] == self.config.data.year], batch_size=size),
        }

    def fit(self, train: Split) -> Facts:
        assert isinstance(train, Rows)
        table = train.table
        return {
            "mean": table[BANDS].mean().tolist(),
            "history": table.groupby("county")["yield"].mean().to_dict(),
            "overall": float(table["yield"].mean()),
        }

    def model(self, facts: Facts) -> nn.Module:
        return Forecast(facts)

    def optimisers(self, model: nn.Module) -> dict[str, Optim]:
        return {"adam": Optim(torch.optim.Adam(model.parameters(), lr=self.config.optim.lr))}

    def loss(self, model: nn.Module, batch: Batch, rng: torch.Generator) -> dict[str, Tensor]:
        return {"loss": functional.mse_loss(model(batch["bands"], batch["county"]), batch["yield"])}

    def records(self, model: nn.Module, batch: Batch) -> list[Record]:
        found = array(model(batch["bands"], batch["county"]))
        truth = array(batch["yield"])
        return [
            Record(name, batch["county"][i], {"predicted": found[i], "yield": truth[i]})
            for i, name in enumerate(batch["id"])
        ]

    def score(self, records: Sequence[Record], facts: Facts) -> Metrics:
        off = np.array([r.values["predicted"] - r.values["yield"] for r in records], float)
        return {"rmse": float(np.sqrt((off**2).mean())), "mae": float(np.abs(off).mean())}

    def inputs(self, paths: Sequence[Path], facts: Facts) -> Split:
        return Rows(pd.concat([read(p) for p in paths]), batch_size=4)
