"""Methods against each other on several data sets: tables as papers print them, and curves."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.domains.saliency.rgbd_sod.config import Config
from zoo.domains.saliency.rgbd_sod.figures import draw_f, draw_pr, panels
from zoo.domains.saliency.rgbd_sod.metrics import dataset_scores, mean_curves
from zoo.task import Comparison, Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Found = Mapping[str, Mapping[str, Sequence[Record]]]
Cells = Mapping[tuple[str, str], Mapping[str, Any]]  # (method, set) -> row

# Metric -> how a table calls it, and whether more is better.
SHOWN = {
    "sm": ("S", True),
    "max_fm": ("maxF", True),
    "max_em": ("maxE", True),
    "wfm": ("wF", True),
    "mae": ("MAE", False),
}
_DIGITS = 3
_ARROWS = {True: r"\uparrow", False: r"\downarrow"}
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}


def compared(found: Found, config: Config) -> Comparison:
    """Tables, curves and pictures of methods on data sets.

    Args:
        found: Method -> split -> records with the values of `metrics.image_scores`.
        config: `predict.tables` names the formats; comparison.csv is always there.

    Returns:
        Rows with every measure; `comparison.md`, `comparison.tex` and `curves.csv` (256 points of
        precision, recall, F and E a method and set); the pictures `pr` and `f_threshold`.
    """
    rows = table_rows(found)
    texts = {"curves.csv": curves_csv(found)}
    if "md" in config.predict.tables:
        texts["comparison.md"] = markdown(rows, config)
    if "tex" in config.predict.tables:
        texts["comparison.tex"] = latex(rows, config)
    return Comparison(rows, texts, curve_figures(found))


def table_rows(found: Found) -> list[dict[str, Any]]:
    """One row a method and data set: `method`, `split`, `set`, `images`, every measure."""
    rows = []
    for method, splits in found.items():
        for split, records in splits.items():
            scores = dataset_scores([r.values for r in records])
            count = int(scores.pop("images"))
            head = {"method": method, "split": split, "set": set_name(records), "images": count}
            rows.append(head | scores)
    return rows


def set_name(records: Sequence[Record]) -> str:
    """The data set of records, which their ids begin with."""
    return records[0].id.partition("/")[0]


# -- tables -------------------------------------------------------------------------------------


def _arranged(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[str], Cells]:
    methods = list(dict.fromkeys(str(row["method"]) for row in rows))
    sets = list(dict.fromkeys(str(row["set"]) for row in rows))
    return methods, sets, {(str(r["method"]), str(r["set"])): r for r in rows}


def best(rows: Sequence[Mapping[str, Any]]) -> set[tuple[str, str, str]]:
    """(method, set, metric) of every best figure, ties to the printed digit included.

    Only methods with as many images of a set as the one with the most are compared: a figure on
    other images is none to win with. A lone method is not the best of anything.
    """
    methods, sets, cells = _arranged(rows)
    winners = set()
    for name in sets:
        have = [m for m in methods if (m, name) in cells]
        most = max(int(cells[m, name]["images"]) for m in have)
        whole = [m for m in have if int(cells[m, name]["images"]) == most]
        if len(have) < 2:
            continue
        for metric, (_, more) in SHOWN.items():
            values = {m: round(float(cells[m, name][metric]), _DIGITS) for m in whole}
            top = (max if more else min)(values.values())
            winners |= {(m, name, metric) for m, value in values.items() if value == top}
    return winners


def _lines(rows: Sequence[Mapping[str, Any]], bold: str, escape: Any) -> list[list[str]]:
    """Cells of a table with a line a method; `-` where a method has no maps of a set."""
    methods, sets, cells = _arranged(rows)
    winners = best(rows)
    lines = []
    for method in methods:
        line = [escape(method)]
        for name in sets:
            row = cells.get((method, name))
            mark = "" if row is None or not _partial(row, rows) else "*"
            for metric in SHOWN:
                text = "-" if row is None else _figure(float(row[metric]))
                won = (method, name, metric) in winners
                line.append((bold.format(text) if won else text) + mark)
        lines.append(line)
    return lines


def _figure(value: float) -> str:
    """`.931` for 0.931, as the field prints it."""
    text = f"{value:.{_DIGITS}f}"
    return text.removeprefix("0") if value < 1 else text


def _partial(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> bool:
    return int(row["images"]) < max(int(r["images"]) for r in rows if r["set"] == row["set"])


def notes(rows: Sequence[Mapping[str, Any]], config: Config) -> list[str]:
    """What a reader must know to compare the figures with others."""
    side = config.data.eval_size
    size = "the annotation's own size" if side == "native" else f"{side} x {side} pixels"
    _, sets, _ = _arranged(rows)
    counts = {n: max(int(r["images"]) for r in rows if r["set"] == n) for n in sets}
    lines = [
        f"Scored at {size}; each map stretched to 0..1; maxF and maxE are the maximum of the "
        "curve averaged over images; F with beta squared 0.3.",
        "Images: " + ", ".join(f"{name} {count}" for name, count in counts.items()) + ".",
    ]
    if any(_partial(row, rows) for row in rows):
        told = ", ".join(
            f"{r['method']} {r['images']} of {counts[str(r['set'])]} of {r['set']}"
            for r in rows
            if _partial(r, rows)
        )
        lines.append(f"* On fewer images, and not compared: {told}.")
    return lines


def markdown(rows: Sequence[Mapping[str, Any]], config: Config) -> str:
    """The table in Markdown, a line a method, the best figures in bold."""
    _, sets, _ = _arranged(rows)
    heads = ["method"]
    for name in sets:
        words = [f"{word} {'↑' if more else '↓'}" for word, more in SHOWN.values()]
        heads += [f"{_plain_cell(name)} {word}" for word in words]
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *_lines(rows, "**{}**", _plain_cell)]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    told = "\n".join(f"{_plain_cell(note)}  " for note in notes(rows, config))
    return f"{table}\n\n{told}\n"


def _plain_cell(text: str) -> str:
    """Text that Markdown shows as it is."""
    return re.sub(r"([\\|`*_<>\[\]])", r"\\\1", text)


def latex(rows: Sequence[Mapping[str, Any]], config: Config) -> str:
    """The table as a LaTeX `tabular` (package booktabs), the best figures in bold."""
    _, sets, _ = _arranged(rows)
    width = len(SHOWN)
    groups = [f"\\multicolumn{{{width}}}{{c}}{{{tex(name)}}}" for name in sets]
    rules = [f"\\cmidrule(lr){{{2 + width * i}-{1 + width * (i + 1)}}}" for i in range(len(sets))]
    words = [f"{word} ${_ARROWS[more]}$" for word, more in SHOWN.values()]
    body = [" & ".join(line) + r" \\" for line in _lines(rows, r"\textbf{{{}}}", tex)]
    lines = [
        *(f"% {note}" for note in notes(rows, config)),
        f"\\begin{{tabular}}{{l{'c' * (width * len(sets))}}}",
        r"\toprule",
        " & ".join(["", *groups]) + r" \\",
        " ".join(rules),
        " & ".join(["Method", *(words * len(sets))]) + r" \\",
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def tex(text: str) -> str:
    """Text that LaTeX prints as it is."""
    return "".join(_LATEX.get(sign, sign) for sign in text)


# -- curves -------------------------------------------------------------------------------------


def curves_csv(found: Found) -> str:
    """The data behind the pictures: method, set, threshold 0..255, precision, recall, fm, em."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = ("precision", "recall", "fm", "em")
    writer.writerow(["method", "split", "set", "threshold", *names])
    for method, splits in found.items():
        for split, records in splits.items():
            curves = mean_curves([r.values for r in records])
            rising = np.stack([curves[name][::-1] for name in names], axis=1)
            head = [method, split, set_name(records)]
            writer.writerows([*head, k, *point] for k, point in enumerate(rising.tolist()))
    return out.getvalue()


def curve_figures(found: Found) -> dict[str, Figure]:
    """`pr` and `f_threshold`: a panel a data set, a line a method, methods in the order given."""
    parts: dict[str, dict[str, dict[str, np.ndarray]]] = {}
    for method, splits in found.items():
        for records in splits.values():
            title = set_name(records)
            parts.setdefault(title, {})[method] = mean_curves([r.values for r in records])
    return {"pr": panels(parts, draw_pr), "f_threshold": panels(parts, draw_f)}
