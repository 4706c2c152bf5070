"""Pictures of a split: predicted against observed, errors on the map and by year, what was chosen.

Observed and predicted yields stand in the crop's own unit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from zoo.domains.remote_sensing.crop_yield.baselines import IN_WORDS, NAMES
from zoo.domains.remote_sensing.crop_yield.geojson import Outline
from zoo.domains.remote_sensing.crop_yield.metrics import regression_metrics
from zoo.drawing import COLOURS, blank
from zoo.task import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OPERATORS = ("sobel", "scharr", "learnable")
# MOD09A1's seven bands and MYD11A2's two, in the order of the histograms.
MODIS_BANDS = ("red", "NIR", "blue", "green", "NIR2", "SWIR1", "SWIR2", "LST day", "LST night")
SENTINEL_BANDS = ("first (B11)", "second (B08)", "third (B02)")
_GREYS = dict(zip(NAMES, ("#b9bdc3", "#6b6f76", "#d1661b", "#b59410", "#3a8f4f"), strict=True))
_MODEL = "#1f5fa8"
# The first and last day of the year that 32 steps of eight days see.
_FIRST_DAY, _STEP_DAYS = 49, 8


def column(records: Sequence[Record], name: str) -> NDArray[Any]:
    """A value of every record, NaN where it has none."""
    return np.array([r.values.get(name, np.nan) for r in records])


def all_figures(
    records: Sequence[Record], unit: str, outlines: Mapping[str, Outline]
) -> Iterator[tuple[str, Figure]]:
    """Every picture that the records allow, with its name.

    Args:
        records: With `truth` and `prediction` where there is a truth, `year`, `fips`, `lon`,
            `lat`, `operator`, `attention` and the baselines.
        unit: Of truth and prediction, as text.
        outlines: County -> polygons, for the map.
    """
    scored = [r for r in records if "truth" in r.values]
    if scored:
        yield "predicted_observed", predicted_observed(scored, unit)
        yield "error_map", error_map(scored, unit, outlines)
        if len({int(r.values["year"]) for r in scored}) > 1:
            yield "error_by_year", error_by_year(scored, unit)
        else:
            yield "error_beside_baselines", beside_baselines(scored, unit)
        if season_steps(scored):
            yield "in_season", in_season(scored, unit)
    elif records:
        yield "prediction_map", prediction_map(records, unit, outlines)
    if any("operator" in r.values for r in records):
        yield "operators", operators(records)
    if any("attention" in r.values for r in records):
        yield "channel_attention", channel_attention(records)


# -- errors -------------------------------------------------------------------------------------


def predicted_observed(records: Sequence[Record], unit: str) -> Figure:
    """One point a county and year, states in colours, with the diagonal."""
    truth, guess = (column(records, k).astype(float) for k in ("truth", "prediction"))
    states = np.array([str(r.values["state"]) for r in records])
    figure, axes = blank(5.2, 4.8)
    names, counts = np.unique(states, return_counts=True)
    main = names[np.argsort(-counts, kind="stable")][: len(COLOURS) - 1]
    for name in [*sorted(main), None]:
        mine = ~np.isin(states, main) if name is None else states == name
        if mine.any():
            colour = "#c9ccd1" if name is None else COLOURS[sorted(main).index(name)]
            label = "other states" if name is None else f"state {name} ({mine.sum()})"
            axes.scatter(truth[mine], guess[mine], s=14, alpha=0.65, color=colour, label=label)
    low, high = _limits(np.concatenate([truth, guess]))
    axes.plot([low, high], [low, high], color="#555555", lw=0.9, ls="--")
    axes.set(xlim=(low, high), ylim=(low, high), aspect="equal")
    axes.set(xlabel=f"observed, {unit}", ylabel=f"predicted, {unit}")
    scores = regression_metrics(truth, guess)
    axes.set_title(
        f"{len(truth)} county-years: RMSE {scores['rmse']:.2f}, R2 {scores['r2']:.2f}", fontsize=11
    )
    axes.legend(fontsize=8, frameon=False, loc="upper left")
    return figure


def _limits(values: NDArray[np.float64]) -> tuple[float, float]:
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    room = 0.05 * (high - low) or 1.0
    return low - room, high + room


def _errors(records: Sequence[Record]) -> dict[str, float]:
    """RMSE of the model and of each baseline that has a value for every record."""
    truth = column(records, "truth").astype(float)
    found = {"model": regression_metrics(truth, column(records, "prediction"))["rmse"]}
    for name in NAMES:
        values = column(records, f"baseline_{name}").astype(float)
        if np.isfinite(values).all():
            found[name] = regression_metrics(truth, values)["rmse"]
    return found


def beside_baselines(records: Sequence[Record], unit: str) -> Figure:
    """RMSE of the model beside the baselines', one bar each."""
    errors = _errors(records)
    figure, axes = blank(6.2, 0.9 + 0.42 * len(errors))
    names = list(errors)[::-1]
    colours = [_MODEL if n == "model" else _GREYS[n] for n in names]
    bars = axes.barh([IN_WORDS.get(n, "model") for n in names], [errors[n] for n in names])
    for bar, colour, name in zip(bars, colours, names, strict=True):
        bar.set_color(colour)
        axes.text(
            errors[name],
            bar.get_y() + bar.get_height() / 2,
            f" {errors[name]:.2f}",
            va="center",
            fontsize=9,
        )
    axes.set_xlabel(f"RMSE, {unit}")
    axes.set_xlim(0, 1.14 * max(errors.values()) or 1)
    axes.set_title(f"{int(records[0].values['year'])}, {len(records)} counties", fontsize=11)
    return figure


def error_by_year(records: Sequence[Record], unit: str) -> Figure:
    """RMSE of the model and the baselines in each year."""
    years = sorted({int(r.values["year"]) for r in records})
    each = [_errors([r for r in records if int(r.values["year"]) == y]) for y in years]
    names = [n for n in ("model", *NAMES) if all(n in e for e in each)]
    figure, axes = blank(4.4 + 0.75 * len(years), 3.8)
    for name in names:
        mine = name == "model"
        axes.plot(
            years,
            [e[name] for e in each],
            marker="o",
            ms=5 if mine else 3,
            lw=2.2 if mine else 1.2,
            color=_MODEL if mine else _GREYS[name],
            label=IN_WORDS.get(name, "model"),
            zorder=3 if mine else 2,
        )
    axes.set_xticks(years)
    axes.set_ylim(bottom=0)
    axes.set(xlabel="year", ylabel=f"RMSE, {unit}")
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def season_steps(records: Sequence[Record]) -> list[int]:
    """Numbers of steps after which the records have a prediction of their own."""
    names = {k for r in records for k in r.values if k.startswith("season_")}
    return sorted(int(k.removeprefix("season_")) for k in names)


def in_season(records: Sequence[Record], unit: str) -> Figure:
    """RMSE when the season is seen up to a day only, beside the best baseline's."""
    truth = column(records, "truth").astype(float)
    steps = season_steps(records)
    errors = [regression_metrics(truth, column(records, f"season_{t}"))["rmse"] for t in steps]
    days = [_FIRST_DAY + _STEP_DAYS * t - 1 for t in steps]
    figure, axes = blank(5.4, 3.6)
    axes.plot(days, errors, marker="o", color=_MODEL, label="model, later steps unseen")
    rivals = {n: e for n, e in _errors(records).items() if n in NAMES and n != "ridge"}
    if rivals:
        best = min(rivals, key=lambda n: rivals[n])
        axes.axhline(rivals[best], color=_GREYS[best], ls="--", label=IN_WORDS[best])
    axes.set_xticks(days, [f"{d}\n({t})" for d, t in zip(days, steps, strict=True)], fontsize=8)
    axes.set_ylim(bottom=0)
    axes.set(xlabel="last day of the year that is seen (steps)", ylabel=f"RMSE, {unit}")
    axes.legend(fontsize=8, frameon=False)
    return figure


# -- maps ---------------------------------------------------------------------------------------


def error_map(records: Sequence[Record], unit: str, outlines: Mapping[str, Outline]) -> Figure:
    """Mean of predicted - observed in each county."""
    values = _by_county(records, lambda r: float(r.values["prediction"] - r.values["truth"]))
    reach = float(np.quantile(np.abs(list(values.values())), 0.98)) or 1.0
    title = f"predicted - observed, {len(values)} counties"
    return _map(records, values, outlines, ("RdBu", -reach, reach), (title, unit))


def prediction_map(records: Sequence[Record], unit: str, outlines: Mapping[str, Outline]) -> Figure:
    """Mean predicted yield of each county."""
    values = _by_county(records, lambda r: float(r.values["prediction"]))
    low, high = _limits(np.array(list(values.values())))
    return _map(records, values, outlines, ("YlGn", low, high), ("predicted yield", unit))


def _by_county(records: Sequence[Record], value: Any) -> dict[str, float]:
    every: dict[str, list[float]] = {}
    for record in records:
        every.setdefault(str(record.values["fips"]), []).append(value(record))
    return {fips: float(np.mean(v)) for fips, v in every.items()}


def _map(
    records: Sequence[Record],
    values: Mapping[str, float],
    outlines: Mapping[str, Outline],
    scale: tuple[str, float, float],
    words: tuple[str, str],
) -> Figure:
    """Counties filled by value; those without an outline are dots at their centre."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.collections import PolyCollection
    from matplotlib.colors import Normalize

    colours = ScalarMappable(Normalize(scale[1], scale[2]), scale[0])
    centres = {
        str(r.values["fips"]): tuple(float(r.values.get(k, np.nan)) for k in ("lon", "lat"))
        for r in records
    }
    figure, axes = blank(6.4, 4.8)
    drawn = [f for f in values if f in outlines]
    rings = [(polygon[0], values[f]) for f in drawn for polygon in outlines[f]]
    if rings:
        fills = colours.to_rgba(np.array([v for _, v in rings]))
        axes.add_collection(
            PolyCollection([r for r, _ in rings], facecolors=fills, edgecolors="#777", lw=0.3)
        )
    dots = [(*centres[f], values[f]) for f in values if f not in outlines]
    known = [d for d in dots if np.isfinite(d[0]) and np.isfinite(d[1])]
    if known:
        lon, lat, value = (np.array(c, dtype=float) for c in zip(*known, strict=True))
        fill = colours.to_rgba(value)
        axes.scatter(lon, lat, c=fill, s=26, edgecolors="#777", linewidths=0.3)
    axes.autoscale_view()
    lost = len(dots) - len(known)
    title = words[0] + (f", {lost} without a known place" if lost else "")
    axes.set_title(title, fontsize=11)
    middle = float(np.mean(axes.get_ylim()))
    # A degree of longitude is shorter away from the equator.
    axes.set_aspect(1 / max(np.cos(np.radians(min(abs(middle), 80))), 0.1))
    axes.set(xlabel="longitude, degrees", ylabel="latitude, degrees")
    figure.colorbar(colours, ax=axes, label=words[1], shrink=0.8)
    return figure


# -- what the network chose ---------------------------------------------------------------------


def operators(records: Sequence[Record]) -> Figure:
    """How many county-years each operator saw, by year."""
    years = sorted({int(r.values["year"]) for r in records})
    chosen = [(int(r.values["year"]), str(r.values.get("operator", ""))) for r in records]
    figure, axes = blank(max(3.8, 1.6 + 0.6 * len(years)), 3.0)
    bottom = np.zeros(len(years))
    for name, colour in zip(OPERATORS, COLOURS, strict=False):
        counts = np.array([sum(c == (y, name) for c in chosen) for y in years])
        if counts.any():
            axes.bar([str(y) for y in years], counts, 0.7, bottom=bottom, color=colour, label=name)
            bottom += counts
    axes.set(xlabel="year", ylabel="county-years")
    axes.set_title("edge operator the router chose", fontsize=11)
    axes.set_ylim(0, 1.3 * max(bottom.max(), 1))
    axes.legend(fontsize=9, frameon=False, ncols=3, loc="upper center")
    return figure


def channel_attention(records: Sequence[Record]) -> Figure:
    """Weight of each band, as the channel attention gives it: median, quartiles and range."""
    weights = np.stack([r.values["attention"] for r in records if "attention" in r.values])
    names: tuple[str, ...] = SENTINEL_BANDS
    if weights.shape[1] == len(MODIS_BANDS):
        names = MODIS_BANDS
    if len(names) != weights.shape[1]:
        names = tuple(str(i + 1) for i in range(weights.shape[1]))
    figure, axes = blank(max(3.8, 1.2 + 0.6 * len(names)), 3.2)
    box = axes.boxplot(weights, whis=(0, 100), patch_artist=True, widths=0.55)
    for patch in box["boxes"]:
        patch.set_facecolor("#cfdcec")
    for line in box["medians"]:
        line.set_color(_MODEL)
    axes.axhline(0.5, color="#999999", lw=0.8, ls="--")
    axes.set_xticks(range(1, len(names) + 1), names, rotation=30, ha="right", fontsize=9)
    axes.set(ylim=(0, 1), ylabel="weight")
    axes.set_title("channel attention; dashed: no preference", fontsize=11)
    return figure
