"""Damage to tables, lists and JSON: columns, cells, encodings, paths that lead out."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.mutating.place import Damage, Place

Rows = list[list[str]]
_CELLS = (
    *("", " ", "nan", "NaN", "inf", "-inf", "1e400", "-1", "99999999999999999999", "0x1F", "1,5"),
    *("é", "😀", "=cmd()", "'; DROP TABLE", "None", "true", "2,3", '"', "a" * 70_000, "\x00", "%s"),
)
_VALUES: tuple[Any, ...] = (
    *(None, True, 0, -1, 1e308, 10**30, float("nan"), "", "x", [], {}, [[]], {"a": 1}, "\x00"),
    *("..", "é", [None], "9" * 500),
)


def table(place: Place, rng: np.random.Generator) -> Damage | None:
    """A csv with its columns, cells or letters changed."""
    path = place.pick(rng, ".csv")
    if path is None:
        return None
    rows = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8"))))
    names = sorted(_TABLES)
    name = names[rng.integers(len(names))]
    note = _TABLES[name](rows, rng)
    place.write(path, _csv(rows))
    return Damage(f"csv: {name}", [path], note=note)


def _csv(rows: Rows, **form: Any) -> bytes:
    text = io.StringIO()
    csv.writer(text, **{"lineterminator": "\n"} | form).writerows(rows)
    return text.getvalue().encode("utf-8", "surrogateescape")


def _column(rows: Rows, rng: np.random.Generator) -> int:
    return int(rng.integers(max(1, len(rows[0]))))


def _without(rows: Rows, rng: np.random.Generator) -> str:
    k = _column(rows, rng)
    for row in rows:
        del row[k : k + 1]
    return f"column {k}"


def _other_name(rows: Rows, rng: np.random.Generator) -> str:
    k = _column(rows, rng)
    told, rows[0][k] = rows[0][k], "Column X"
    return told


def _twice(rows: Rows, rng: np.random.Generator) -> str:
    k = _column(rows, rng)
    for row in rows:
        row.append(row[k] if k < len(row) else "")
    return rows[0][k]


def _more(rows: Rows, rng: np.random.Generator) -> str:
    for row in rows:
        row.insert(int(_column(rows, rng)), "more")
    return ""


def _cell(rows: Rows, rng: np.random.Generator) -> str:
    i, k = int(rng.integers(1, max(2, len(rows)))) % len(rows), _column(rows, rng)
    value = _CELLS[rng.integers(len(_CELLS))]
    if k < len(rows[i]):
        rows[i][k] = value
    return f"row {i}, {rows[0][k]!r}: {value[:40]!r}"


def _cells(rows: Rows, rng: np.random.Generator) -> str:
    k, value = _column(rows, rng), _CELLS[rng.integers(len(_CELLS) - 2)]
    for row in rows[1:]:
        if k < len(row):
            row[k] = value if len(value) < 100 else "a"
    return f"{rows[0][k]!r}: {value[:40]!r}"


def _ragged(rows: Rows, rng: np.random.Generator) -> str:
    i = int(rng.integers(len(rows)))
    rows[i] = rows[i][:1] if rng.random() < 0.5 else [*rows[i], "x", "y"]
    return f"row {i}"


def _no_head(rows: Rows, rng: np.random.Generator) -> str:
    del rows[0]
    return ""


def _head_alone(rows: Rows, rng: np.random.Generator) -> str:
    del rows[1:]
    return ""


def _row_twice(rows: Rows, rng: np.random.Generator) -> str:
    i = int(rng.integers(1, max(2, len(rows)))) % len(rows)
    rows.append(list(rows[i]))
    return f"row {i}"


def _blank_rows(rows: Rows, rng: np.random.Generator) -> str:
    rows.insert(int(rng.integers(len(rows))), [""] * len(rows[0]))
    rows.append([])
    return ""


def _wide(rows: Rows, rng: np.random.Generator) -> str:
    for row in rows:
        row.extend(["0"] * 3000)
    return ""


_TABLES: dict[str, Callable[[Rows, np.random.Generator], str]] = {
    "column missing": _without,
    "column renamed": _other_name,
    "column twice": _twice,
    "column more": _more,
    "one cell": _cell,
    "another cell": _cell,
    "a third cell": _cell,
    "all cells of a column": _cells,
    "ragged row": _ragged,
    "no header": _no_head,
    "header alone": _head_alone,
    "row twice": _row_twice,
    "blank rows": _blank_rows,
    "3000 columns more": _wide,
}


def encoding(place: Place, rng: np.random.Generator) -> Damage | None:
    """A text as other programs write it: most of it should work."""
    path = place.pick(rng, ".csv", ".txt", ".json", ".lst")
    if path is None:
        return None
    text = path.read_text(encoding="utf-8")
    rows = list(csv.reader(io.StringIO(text)))
    forms: dict[str, bytes] = {
        "BOM": b"\xef\xbb\xbf" + text.encode(),
        "UTF-16": text.encode("utf-16"),
        "CRLF": text.replace("\n", "\r\n").encode(),
        "CR": text.replace("\n", "\r").encode(),
        "semicolons": _csv(rows, delimiter=";"),
        "tabs": _csv(rows, delimiter="\t"),
        "all quoted": _csv(rows, quoting=csv.QUOTE_ALL),
        "open quote": text.encode() + b'"open\n',
        "not UTF-8": text.encode() + b"\xff\xfe\xe9,\xe9\n",
        "NUL bytes": text.encode().replace(b"\n", b"\x00\n"),
        "trailing comma": text.replace("\n", ",\n").encode(),
        "blanks": text.replace(",", " , ").encode(),
        "no newline at the end": text.rstrip("\n").encode(),
    }
    names = sorted(forms)
    name = names[rng.integers(len(names))]
    place.write(path, forms[name])
    return Damage(f"text: {name}", [path])


def lines(place: Place, rng: np.random.Generator) -> Damage | None:
    """A list with a line changed, repeated, out of place or far too long."""
    path = place.pick(rng, ".txt", ".lst")
    if path is None:
        return None
    rows = path.read_text(encoding="utf-8").splitlines()
    i = int(rng.integers(len(rows)))
    changes: dict[str, list[str]] = {
        "line twice": [*rows, rows[i]],
        "line cut": [*rows[:i], rows[i][: len(rows[i]) // 2], *rows[i + 1 :]],
        "words more": [*rows[:i], rows[i] + " x y z", *rows[i + 1 :]],
        "word odd": [*rows[:i], rows[i].replace(" ", " 9" * 40, 1), *rows[i + 1 :]],
        "comment": [*rows, "# a comment", "", "   "],
        "line of a megabyte": [*rows, "x" * 1_000_000],
        "control characters": [*rows, "\x1b[31m a\x07b.png negative"],
        "line missing": [*rows[:i], *rows[i + 1 :]],
    }
    names = sorted(changes)
    name = names[rng.integers(len(names))]
    place.write(path, ("\n".join(changes[name]) + "\n").encode())
    return Damage(f"list: {name}", [path], note=f"line {i + 1}")


# -- JSON ---------------------------------------------------------------------------------------


def json_value(place: Place, rng: np.random.Generator) -> Damage | None:
    """Something in a JSON is of another type, missing or absurd."""
    path = place.pick(rng, ".json")
    if path is None:
        return None
    body = json.loads(path.read_text(encoding="utf-8"))
    holders = _holders(body)
    holder, key = holders[rng.integers(len(holders))] if holders else ([body], 0)
    if rng.random() < 0.25:
        del holder[key]
        told = "deleted"
    else:
        value = _VALUES[rng.integers(len(_VALUES))]
        holder[key], told = value, f"{value!r:.40}"
    place.write(path, json.dumps(body).encode())
    return Damage("JSON value", [path], note=f"{key!r:.60}: {told}")


def json_whole(place: Place, rng: np.random.Generator) -> Damage | None:
    """Another JSON altogether, or one that breaks parsers."""
    path = place.pick(rng, ".json")
    if path is None:
        return None
    bodies: dict[str, bytes] = {
        "nested lists": b"[" * 200_000 + b"]" * 200_000,
        "nested objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        "null": b"null",
        "number": b"3",
        "string": b'"x"',
        "empty list": b"[]",
        "empty object": b"{}",
        "list of numbers": b"[1, 2, 3]",
        "long number": b"[" + b"9" * 10_000 + b"]",
        "trailing comma": b'{"train": [],}',
        "twice": path.read_bytes() * 2,
    }
    names = sorted(bodies)
    name = names[rng.integers(len(names))]
    place.write(path, bodies[name])
    return Damage(f"JSON: {name}", [path], told=name not in ("empty list", "empty object"))


def _holders(node: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of a JSON."""
    found: list[tuple[Any, Any]] = []
    pairs: Any = ()
    if isinstance(node, dict):
        pairs = node.items()
    elif isinstance(node, list):
        pairs = enumerate(node)
    for key, value in pairs:
        found.append((node, key))
        found += _holders(value)
    return found


# -- paths that lead out ------------------------------------------------------------------------


def traversal(place: Place, rng: np.random.Generator) -> Damage | None:
    """A name in a table, list or JSON becomes the way to a file outside of the data set."""
    path = place.pick(rng, ".csv", ".txt", ".json", ".lst")
    if path is None:
        return None
    text = path.read_text(encoding="utf-8")
    known = [p for p in place.files if p.suffix not in (".csv", ".txt", ".json", ".lst")]
    rng.shuffle(known)  # type: ignore[arg-type]
    for file in known:
        for word in (_relative(file, place.root), file.name, file.stem):
            if word and word in text:
                out = _out(place, file, rng)
                ending = out if word != file.stem else os.path.splitext(out)[0]
                escaped = json.dumps(ending)[1:-1] if path.suffix == ".json" else ending
                place.write(path, text.replace(word, escaped, 1).encode())
                return Damage("path that leads out", [path, file], sealed=True, note=ending)
    return None


def _relative(file: Path, root: Path) -> str:
    return file.relative_to(root).as_posix()


def _out(place: Place, file: Path, rng: np.random.Generator) -> str:
    target = place.secret(file)
    away = os.path.relpath(target, file.parent)
    below = os.path.relpath(target, place.root)
    ways = (away, below, str(target), away.replace("/", "\\"), f"./{away}", f"x/../{away}")
    return ways[rng.integers(len(ways))]


TABLES = (table, table, table, encoding, lines, json_value, json_value, json_whole, traversal)
