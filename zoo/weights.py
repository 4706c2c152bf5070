"""Published weights: what there is, fetched once, verified, moved to places without a network.

The cache is `<ZOO_CACHE>/weights`: a folder a content (`<sha256>/<file>`) and, in `names`, a note a
name that says which content it is. Names are `TASK/NAME` and `backbone/NAME` of the registry, and
whatever a user adds.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import re
import shutil
import tarfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from zoo import files, registry
from zoo.download import fetch, locked
from zoo.errors import ConfigError, WeightsError, first_line
from zoo.files import cache_dir
from zoo.resuming import Patience, Report, Source, offline

_MANIFEST = "manifest.json"
_FORMAT = 1


@dataclass(frozen=True)
class Held:
    """A file in the cache.

    Attributes:
        name: Its name.
        path: Where it is.
        sha256: Its hash.
        size: Bytes.
        when: Time of the download in seconds since 1970.
        beside: Further files in the same folder that belong to it, with their hashes: TensorFlow
            keeps a checkpoint's values apart from its index.
    """

    name: str
    path: Path
    sha256: str
    size: int
    when: float
    beside: Mapping[str, str] = field(default_factory=dict)

    def sound(self) -> bool:
        """Whether every file still has its hash."""
        whole = {self.path.name: self.sha256, **self.beside}
        return all(_hash(self.path.with_name(name)) == told for name, told in whole.items())


def _hash(path: Path) -> str:
    return files.sha256(path) if path.is_file() else ""


def home() -> Path:
    """The folder of all weights."""
    return cache_dir() / "weights"


def find(name: str) -> tuple[str, registry.Weights]:
    """The registry's entry of a name.

    Raises:
        WeightsError: There is none; the message has the nearest.
    """
    known = registry.weights()
    task, _, rest = name.partition("/")
    with contextlib.suppress(ConfigError):  # no such task: the nearest name is told below
        name = f"{registry.find(task)[0]}/{rest}" if rest and task != "backbone" else name
    if name in known:
        return name, known[name]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4) or [
        k for k in known if k.rpartition("/")[2] == name.rpartition("/")[2]
    ]
    hint = f"did you mean '{near[0]}'?" if near else "see `zoo weights list`"
    msg = f"there are no weights '{name}'; {hint}"
    raise WeightsError(msg)


def held(name: str) -> Held | None:
    """What the cache holds under a name, if its file is there in full length."""
    try:
        note = json.loads(_note(name).read_text())
        path = home() / str(note["sha256"]) / str(note["file"])
        size = path.stat().st_size
        beside = {str(k): str(v) for k, v in note.get("beside", {}).items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if size != note.get("size") or not all(path.with_name(n).is_file() for n in beside):
        return None
    return Held(name, path, str(note["sha256"]), size, float(note.get("when", 0)), beside)


def pull(name: str, report: Report | None = None, patience: Patience | None = None) -> Held:
    """The file of a name, from the cache or from where it is published.

    Raises:
        WeightsError: There is no such name, a person has to fetch it, no address gave the right
            file, or the file is not the one that was pulled before.
        ZooError: The disk is full.
    """
    name, entry = find(name)
    have = held(name)
    if have is not None and _fits(entry, have.sha256):
        return have
    if not entry.urls:
        raise WeightsError(_by_hand(name, entry))
    if offline():
        msg = f"{name} is not in the cache and ZOO_OFFLINE is set; `zoo weights import` brings it"
        raise WeightsError(msg)
    source = Source(name, entry.urls, entry.sha256, entry.size, entry.filename)
    path, digest = fetch(source, home(), report=report, patience=patience)
    before = _first_hash(name)
    if before is not None and before != digest:
        shutil.rmtree(path.parent, ignore_errors=True)
        msg = (
            f"{name}: the published file changed: sha256 {digest[:12]}…, when first pulled "
            f"{before[:12]}…; if that is right, remove {_note(name)} and pull again"
        )
        raise WeightsError(msg)
    return _noted(name, path, digest)


def add(name: str, file: Path) -> Held:
    """Take a file the user fetched by hand into the cache.

    What is kept is the file itself; that it converts is tried here, so that a wrong one is told
    when it is added and not when it is needed.

    Args:
        name: A name of the registry, or one of the user's own.
        file: The file; of a TensorFlow checkpoint the `.index`, whose data files come along.

    Raises:
        WeightsError: The name is none, there is no such file, it is empty or broken, not what the
            registry expects, or cannot be read and converted as its entry says.
    """
    known = registry.weights()
    entry = known.get(name)
    if entry is None and name.partition("/")[0] in {*registry.tasks(), "backbone"}:
        name, entry = find(name)
    if entry is None:
        _check_own_name(name)
    _check_readable(file)
    digest, size = files.sha256(file), file.stat().st_size
    if entry and not _fits(entry, digest):
        msg = f"{file} is not {name}: its sha256 is {digest[:12]}…, not {entry.sha256}"
        raise WeightsError(msg)
    if entry and entry.size not in (None, size):
        msg = f"{file} is not {name}: it has {size} bytes, not {entry.size}"
        raise WeightsError(msg)
    if entry:
        from zoo.conversion import check  # torch takes its time, and a pull does without

        check(name, file)
    # The data files of a TensorFlow checkpoint are found by the name of its index.
    parts = sorted(file.parent.glob(f"{file.stem}.data-*")) if file.suffix == ".index" else []
    final = home() / digest / (entry.filename if entry and not parts else file.name)
    final.parent.mkdir(parents=True, exist_ok=True)
    with locked(final.parent / "adding"):
        for path in (final, *(final.with_name(p.name) for p in parts)):
            _copied(file if path == final else file.with_name(path.name), path)
    return _noted(name, final, digest, {p.name: files.sha256(p) for p in parts})


def _check_own_name(name: str) -> None:
    """`weights=` must be able to tell a name of the user's from a path or an address."""
    parts = name.split("/")
    if name != name.strip() or not all(re.fullmatch(r"[\w +-][\w .+-]*", p) for p in parts):
        msg = (
            f"'{name}' is no name for weights: letters, digits, spaces and . _ + - may be in it, "
            "and / between words"
        )
        raise WeightsError(msg)


def _check_readable(file: Path) -> None:
    """What can be told of any file; a registry's entry says more."""
    if not file.is_file():
        msg = f"{file}: is a folder; name a file" if file.is_dir() else f"{file}: no such file"
        raise WeightsError(msg)
    if not file.stat().st_size:
        msg = f"{file}: is empty; fetch it again"
        raise WeightsError(msg)
    if file.suffix != ".safetensors":
        return
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy"):
            pass
    except (SafetensorError, OSError) as error:
        msg = f"{file}: not a readable safetensors file ({first_line(error)}); fetch it again"
        raise WeightsError(msg) from error


def _copied(file: Path, final: Path) -> None:
    if not final.is_file():
        files.need_space(final.parent, file.stat().st_size)
        files.write_whole(final, lambda place: _copy(file, place))


def _copy(file: Path, place: Path) -> None:
    shutil.copyfile(file, place)


def verify(names: Iterable[str] = ()) -> list[tuple[Held, bool]]:
    """Hash files of the cache again; all of them if none is named.

    Raises:
        WeightsError: A name is not in the cache.
    """
    wanted = [_required(name) for name in names] or everything()
    return [(item, item.sound()) for item in wanted]


def everything() -> list[Held]:
    """All files of the cache by name."""
    notes = sorted((home() / "names").glob("*.json"))
    names = [_name(path) for path in notes]
    return [item for name in names if name and (item := held(name))]


def drop(name: str) -> None:
    """Forget a name, and its file if no other name has it.

    Raises:
        WeightsError: The cache does not hold it.
    """
    item = _required(name)
    _note(name).unlink()
    if not any(other.sha256 == item.sha256 for other in everything()):
        shutil.rmtree(item.path.parent, ignore_errors=True)


# -- bundles ------------------------------------------------------------------------------------


def export_bundle(names: Sequence[str], out: Path) -> list[Held]:
    """Write files of the cache as one tar for a place without a network.

    Raises:
        ConfigError: `out` is no place for a file.
        WeightsError: A name is not in the cache, or its file is damaged.
    """
    files.check_place(out, str(out))
    chosen = [_required(name) for name in names] or everything()
    if not chosen:
        msg = "the cache holds no weights to export; `zoo pull NAME` first"
        raise WeightsError(msg)
    for item, sound in verify([item.name for item in chosen]):
        if not sound:
            msg = f"{item.name}: the cached file is damaged; drop it and pull it again"
            raise WeightsError(msg)
    rows = [
        {
            "name": i.name,
            "file": i.path.name,
            "sha256": i.sha256,
            "size": i.size,
            "beside": dict(i.beside),
        }
        for i in chosen
    ]

    def write(place: Path) -> None:
        manifest = place.with_suffix(".manifest")
        manifest.write_text(json.dumps({"format": _FORMAT, "weights": rows}, indent=2) + "\n")
        try:
            with tarfile.open(place, "w") as tar:
                tar.add(manifest, _MANIFEST)
                for item in {i.sha256: i for i in chosen}.values():
                    for name in (item.path.name, *item.beside):
                        tar.add(item.path.with_name(name), f"{item.sha256}/{name}")
        finally:
            manifest.unlink()

    files.write_whole(out, write)
    return chosen


def import_bundle(bundle: Path) -> list[Held]:
    """Take the files of a bundle into the cache; nothing enters whose hash differs.

    Raises:
        WeightsError: The bundle cannot be read, leads out of the cache, or is damaged.
    """
    if not bundle.is_file():
        told = "is a folder" if bundle.is_dir() else "no such file"
        msg = f"{bundle}: {told}; name a bundle that `zoo weights export` wrote"
        raise WeightsError(msg)
    try:
        with tarfile.open(bundle) as tar:
            rows = _rows(bundle, tar)
            return [_imported(bundle, tar, row) for row in rows]
    except (OSError, tarfile.TarError, EOFError) as error:
        reason = first_line(error).rstrip(":")
        msg = f"{bundle}: cannot be read as a bundle of `zoo weights export` ({reason})"
        raise WeightsError(msg) from error


def _rows(bundle: Path, tar: tarfile.TarFile) -> list[dict[str, Any]]:
    try:
        member = tar.getmember(_MANIFEST)
        reader = tar.extractfile(member) if member.isreg() and member.size < 1 << 24 else None
        body = json.loads(reader.read()) if reader else None
        if not isinstance(body, dict) or body.get("format") != _FORMAT:
            raise ValueError  # one message for every kind of wrong manifest
        rows = [dict(row) for row in body["weights"]]
        for row in rows:
            hashes = {row["file"]: row["sha256"], **row.get("beside", {})}
            if not all(_plain(str(n), str(h)) for n, h in hashes.items()):
                raise ValueError
    except (KeyError, TypeError, ValueError, AttributeError):
        msg = f"{bundle}: is no bundle of `zoo weights export` (its manifest is missing or wrong)"
        raise WeightsError(msg) from None
    return rows


def _plain(name: str, digest: str) -> bool:
    """A file name that leads nowhere else, and a whole hash."""
    path = PurePosixPath(name)
    alone = len(path.parts) == 1 and path.name not in ("", "..", ".")
    return alone and len(digest) == 64 and digest.isalnum()


def _imported(bundle: Path, tar: tarfile.TarFile, row: dict[str, Any]) -> Held:
    name, file, digest = str(row["name"]), str(row["file"]), str(row["sha256"])
    beside = {str(k): str(v) for k, v in row.get("beside", {}).items()}
    folder = home() / digest
    for part, expected in {file: digest, **beside}.items():
        if _hash(folder / part) != expected:
            _unpacked(bundle, tar, f"{digest}/{part}", folder / part, expected)
    return _noted(name, folder / file, digest, beside)


def _unpacked(bundle: Path, tar: tarfile.TarFile, inside: str, final: Path, expected: str) -> None:
    """Write one file of a bundle to its place, if its hash is right."""
    try:
        member = tar.getmember(inside)
    except KeyError:
        msg = f"{bundle}: {final.name} is listed and not inside"
        raise WeightsError(msg) from None
    reader = tar.extractfile(member) if member.isreg() else None
    if reader is None:
        msg = f"{bundle}: {final.name} is no plain file"
        raise WeightsError(msg)
    home().mkdir(parents=True, exist_ok=True)
    files.need_space(home(), member.size)

    def write(place: Path) -> None:
        with place.open("wb") as out:
            shutil.copyfileobj(reader, out, 1 << 20)
        if files.sha256(place) != expected:
            msg = f"{bundle}: {final.name} is damaged (its hash differs); nothing of it was taken"
            raise WeightsError(msg)

    files.write_whole(final, write)


# -- notes --------------------------------------------------------------------------------------


def _note(name: str) -> Path:
    return home() / "names" / (name.replace("/", "--") + ".json")


def _name(path: Path) -> str | None:
    try:
        return str(json.loads(path.read_text())["name"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _noted(name: str, path: Path, digest: str, beside: Mapping[str, str] | None = None) -> Held:
    size, now = path.stat().st_size, time.time()
    body = {"name": name, "file": path.name, "sha256": digest, "size": size, "when": now}
    files.write_json(_note(name), body | ({"beside": dict(beside)} if beside else {}))
    return Held(name, path, digest, size, now, beside or {})


def _first_hash(name: str) -> str | None:
    """The hash recorded when the name was first pulled."""
    try:
        return str(json.loads(_note(name).read_text())["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _fits(entry: registry.Weights, digest: str) -> bool:
    return entry.sha256 is None or digest.startswith(entry.sha256)


def _required(name: str) -> Held:
    item = held(name) or held(find(name)[0])
    if item is None:
        msg = f"{name} is not in the cache; `zoo pull {name}` first"
        raise WeightsError(msg)
    return item


def _by_hand(name: str, entry: registry.Weights) -> str:
    then = f"zoo weights add {name} {entry.filename}"
    return f"{name} cannot be pulled: {entry.by_hand}; then `{then}`"
