"""Published weights through the registry and the command line, in a cache of the test's own."""

from __future__ import annotations

import io
import json
import random
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.domains.medusa.bundles import write_bundle
from tests.faulty import Script, server
from tests.running import run_zoo
from zoo import conversion, origins, registry, weights
from zoo.domains.medical.medusa.body import Body
from zoo.domains.medical.medusa.weight_files import read_weights
from zoo.errors import WeightsError
from zoo.files import sha256

BODY = random.Random(3).randbytes(50_000)
OTHER = random.Random(4).randbytes(50_000)


@pytest.fixture
def script() -> Script:
    return Script([BODY, OTHER])


@pytest.fixture
def store(tmp_path: Path, script: Script, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A registry with a file on a server, one without address, and an empty cache."""
    with server(script) as url:
        body = {
            "format": 1,
            "tasks": {},
            "backbones": {
                "net": {
                    "summary": "A net",
                    "urls": [f"{url}/files/net.pth"],
                    "format": "pth",
                    "licence": "MIT",
                    "source": "a server",
                    "use": "model.weights=FILE",
                },
                "gated": {
                    "summary": "A gated net",
                    "by_hand": "ask its authors",
                    "file": "gated.bin",
                    "sha256": "0" * 64,
                    "format": "pth",
                    "licence": "on request",
                    "source": "its authors",
                    "use": "model.weights=FILE",
                },
            },
        }
        (tmp_path / "registry.yaml").write_text(json.dumps(body))
        monkeypatch.setenv("ZOO_REGISTRY", str(tmp_path / "registry.yaml"))
        monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
        yield tmp_path / "cache"


def test_every_entry_of_the_registry_is_complete() -> None:
    known = registry.weights()
    assert {"backbone/resnet50", "backbone/vit_base_16_jx", "backbone/pvt_v2_b2"} <= set(known)
    for name, entry in known.items():
        assert entry.licence, name
        assert entry.source, name
        assert "FILE" in entry.use, name
        assert entry.filename, name
        assert all(url.startswith(("https://", "hf:", "gdrive:")) for url in entry.urls), name


def test_a_name_is_pulled_once(store: Path, script: Script) -> None:
    first = weights.pull("backbone/net")
    assert first.path.read_bytes() == BODY
    assert first.path.name == "net.pth"
    assert weights.pull("backbone/net").path == first.path
    assert len(script.asked) == 1
    assert [i.name for i in weights.everything()] == ["backbone/net"]


def test_a_published_file_that_changed_is_told(store: Path, script: Script) -> None:
    item = weights.pull("backbone/net")
    item.path.unlink()
    script.version = 1
    with pytest.raises(WeightsError, match="the published file changed"):
        weights.pull("backbone/net")
    assert not (store / "weights" / weights.files.sha256(Path(__file__))).exists()
    assert weights.everything() == []
    script.version = 0
    assert weights.pull("backbone/net").sha256 == item.sha256


def test_what_nobody_serves_says_how_to_get_it(store: Path) -> None:
    with pytest.raises(
        WeightsError, match=r"ask its authors; then `zoo weights add backbone/gated"
    ):
        weights.pull("backbone/gated")


def test_a_file_fetched_by_hand_must_be_the_right_one(store: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.pth"
    file.write_bytes(BODY)
    with pytest.raises(WeightsError, match="is not backbone/gated"):
        weights.add("backbone/gated", file)
    with pytest.raises(WeightsError, match="no such file"):
        weights.add("mine", tmp_path / "absent")
    item = weights.add("mine/net", file)
    assert item.path.read_bytes() == BODY
    assert weights.held("mine/net") == item
    with pytest.raises(WeightsError, match="no weights 'backbone/nett'"):
        weights.add("backbone/nett", file)


def test_damage_is_found_by_verify_only_and_by_length_at_once(store: Path) -> None:
    item = weights.pull("backbone/net")
    item.path.write_bytes(OTHER)
    assert [(i.name, sound) for i, sound in weights.verify()] == [("backbone/net", False)]
    item.path.write_bytes(BODY[:-1])
    assert weights.held("backbone/net") is None
    assert weights.pull("backbone/net").path.read_bytes() == BODY
    assert all(sound for _, sound in weights.verify(["backbone/net"]))


def test_drop_keeps_what_another_name_has(store: Path, tmp_path: Path) -> None:
    item = weights.pull("backbone/net")
    copy = tmp_path / "net.pth"
    copy.write_bytes(BODY)
    assert weights.add("mine", copy).path == item.path
    weights.drop("mine")
    assert item.path.exists()
    weights.drop("backbone/net")
    assert not item.path.exists()
    with pytest.raises(WeightsError, match="not in the cache"):
        weights.drop("backbone/net")


def test_a_bundle_moves_files_to_a_place_without_a_network(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    item = weights.pull("backbone/net")
    bundle = tmp_path / "bundle.tar"
    weights.export_bundle([], bundle)
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("ZOO_OFFLINE", "1")
    with pytest.raises(WeightsError, match="ZOO_OFFLINE is set"):
        weights.pull("backbone/net")
    (moved,) = weights.import_bundle(bundle)
    assert moved.path.is_relative_to(tmp_path / "elsewhere")
    assert (moved.name, moved.sha256) == (item.name, item.sha256)
    assert weights.pull("backbone/net").path == moved.path


def _bundle(path: Path, row: dict[str, object], members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        manifest = json.dumps({"format": 1, "weights": [row]}).encode()
        for name, body in {"manifest.json": manifest, **members}.items():
            info = tarfile.TarInfo(name)
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))
    return path


@pytest.mark.parametrize("file", ["../x.pth", "/x.pth", "a/b.pth", "..", ""])
def test_a_bundle_cannot_lead_out_of_the_cache(store: Path, tmp_path: Path, file: str) -> None:
    row = {"name": "n", "file": file, "sha256": "a" * 64}
    bundle = _bundle(tmp_path / "b.tar", row, {f"{'a' * 64}/{file}": b"x"})
    with pytest.raises(WeightsError, match="manifest is missing or wrong"):
        weights.import_bundle(bundle)
    assert not (store / "weights").exists()


def test_a_damaged_bundle_gives_nothing(store: Path, tmp_path: Path) -> None:
    row = {"name": "n", "file": "x.pth", "sha256": "a" * 64}
    bundle = _bundle(tmp_path / "b.tar", row, {f"{'a' * 64}/x.pth": b"x"})
    with pytest.raises(WeightsError, match="is damaged"):
        weights.import_bundle(bundle)
    with pytest.raises(WeightsError, match="listed and not inside"):
        weights.import_bundle(_bundle(tmp_path / "c.tar", row, {}))
    (tmp_path / "d.tar").write_bytes(b"no tar")
    with pytest.raises(WeightsError, match="cannot be read as a bundle"):
        weights.import_bundle(tmp_path / "d.tar")
    assert weights.everything() == []


def test_the_commands(store: Path, tmp_path: Path) -> None:
    pulled = run_zoo("pull", "backbone/net")
    assert pulled.code == 0
    path = Path(pulled.out.strip())
    assert path.read_bytes() == BODY
    assert f"use: model.weights={path}" in pulled.err
    assert sha256(path) in pulled.err
    rows = {r["name"]: r["state"] for r in json.loads(run_zoo("weights", "list", "--json").out)}
    assert rows["backbone/net"] == "in the cache"
    assert rows["backbone/gated"] == "fetch by hand"
    assert rows["backbone/resnet50"] == "can be pulled"
    assert run_zoo("weights", "verify").out.startswith("backbone/net: sound")
    assert run_zoo("weights", "export", tmp_path / "b.tar").code == 0
    assert run_zoo("weights", "drop", "backbone/net").code == 0
    assert run_zoo("weights", "import", tmp_path / "b.tar").code == 0
    path.write_bytes(OTHER)
    damaged = run_zoo("weights", "verify")
    assert damaged.code == 2
    assert "backbone/net: damaged" in damaged.err
    wrong = run_zoo("pull", "backbone/nett")
    assert wrong.code == 2
    assert "did you mean 'backbone/net'?" in wrong.err


@pytest.mark.parametrize(
    "name", ["../evil", "", " ", "..", "a/../b", "/a", "models:/x", "x=1", "a\nb", " a"]
)
def test_a_name_of_the_users_is_told_from_a_path(store: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "own.pth").write_bytes(BODY)
    with pytest.raises(WeightsError, match="is no name for weights"):
        weights.add(name, tmp_path / "own.pth")
    assert weights.everything() == []


def test_a_name_of_the_users_is_pulled_from_the_cache(store: Path, tmp_path: Path) -> None:
    (tmp_path / "own.pth").write_bytes(BODY)
    added = weights.add("mein Netz ü-2.1", tmp_path / "own.pth")
    pulled = run_zoo("pull", "mein Netz ü-2.1")
    assert (pulled.code, pulled.out, pulled.err) == (0, f"{added.path}\n", "")
    dropped = run_zoo("weights", "drop", "mein Netz ü-2.1")
    assert (dropped.code, dropped.out) == (0, "mein Netz ü-2.1: dropped\n")


def test_what_no_program_reads_is_not_added(store: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.pth").touch()
    (tmp_path / "cut.safetensors").write_bytes(b"\xff" * 20)
    for name, line in (
        ("empty.pth", "is empty; fetch it again"),
        ("cut.safetensors", "not a readable safetensors file"),
        ("none.pth", "no such file"),
        (".", "is a folder; name a file"),
    ):
        with pytest.raises(WeightsError, match=line):
            weights.add("own", tmp_path / name)
    assert weights.everything() == []


def test_what_is_no_bundle_is_one_line(store: Path, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"no tar")
    for name, line in (
        ("x.safetensors", "cannot be read as a bundle of `zoo weights export` (file could not"),
        ("none.tar", "no such file; name a bundle"),
        (".", "is a folder; name a bundle"),
    ):
        shown = run_zoo("weights", "import", tmp_path / name)
        assert (shown.code, shown.err.count("\n")) == (2, 1), shown.err
        assert line in shown.err


# -- entries of a task --------------------------------------------------------------------------


def test_every_named_source_is_listed() -> None:
    known = registry.weights()
    assert {"her_seg/sam_pfd_10k", "medusa/covidnet_cxr3", "medusa/lung_segmenter"} <= set(known)
    assert {f"crop_yield/modis_{year}" for year in range(2009, 2016)} <= set(known)
    assert {f"backbone/sam_vit_{size}" for size in "blh"} <= set(known)
    tasks = registry.tasks()
    for name, entry in known.items():
        task = tasks.get(name.partition("/")[0])
        assert task is None or entry.preset in task.presets, name
        assert entry.urls or "\n" not in entry.by_hand, name


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_tensorflow_checkpoint_is_kept_whole_and_moved(
    own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "medusa/covidnet_cxr3"
    values = {k: np.zeros(v, "f4") for k, v in body_shapes().items()}
    index = Path(write_bundle(tmp_path / "model", values))
    item = weights.add(name, index)
    assert sorted(p.name for p in item.path.parent.iterdir() if p.suffix != ".lock") == [
        "model.data-00000-of-00001",
        "model.index",
    ]
    assert item.sha256 == sha256(index)
    assert weights.pull(name).path == item.path
    assert (
        "body.conv1.weight"
        in conversion.renamed(
            conversion.first_task(["task=medusa"]), read_weights(item.path), name
        )[0].state
    )
    weights.export_bundle([name], tmp_path / "b.tar")
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "elsewhere"))
    (moved,) = weights.import_bundle(tmp_path / "b.tar")
    assert moved.beside == item.beside
    assert moved.sound()
    moved.path.with_suffix(".data-00000-of-00001").write_bytes(b"")
    assert [sound for _, sound in weights.verify()] == [False]
    moved.path.with_suffix(".data-00000-of-00001").unlink()
    assert weights.held(name) is None


def body_shapes() -> dict[str, tuple[int, ...]]:
    """Official shapes of a narrow attention body."""
    shapes = {}
    for key, value in Body(2).state_dict().items():
        layer, _, kind = key.partition(".")
        shape = tuple(value.permute(2, 3, 1, 0).shape if value.dim() == 4 else value.shape)
        number = layer.removeprefix("conv")
        shapes[f"sem/{number}/{'kernel' if kind == 'weight' else kind}"] = shape
    return shapes


def test_a_file_that_does_not_convert_is_not_kept(own_cache: Path, tmp_path: Path) -> None:
    torch.save({"model": {"x": torch.ones(2)}}, tmp_path / "2010.pth")
    with pytest.raises(WeightsError, match=r"is not crop_yield/modis_2010: .*not weights of DFYP"):
        weights.add("crop_yield/modis_2010", tmp_path / "2010.pth")
    (tmp_path / "osnet.pth").write_bytes(b"no checkpoint")
    with pytest.raises(WeightsError, match="not a readable checkpoint"):
        weights.add("backbone/osnet_x1_0", tmp_path / "osnet.pth")
    assert weights.everything() == []
    assert not (own_cache / "weights").exists()


def test_a_name_of_the_cache_is_what_weights_takes(own_cache: Path, tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "w.pth")
    weights.add("mine/w", tmp_path / "w.pth")
    found = origins.find("mine/w", tmp_path / "runs", "")
    assert found.plain
    assert found.where == "mine/w"
    assert torch.equal(found.state["a"], torch.ones(2))


def test_a_cached_pull_imports_little(own_cache: Path, tmp_path: Path) -> None:
    """Time is measured by `zoo bench`; here, that what takes it stays away."""
    torch.save({"a": torch.ones(2)}, tmp_path / "w.pth")
    weights.add("backbone/osnet_x1_0", tmp_path / "w.pth")
    code = (
        "import sys; from zoo.cli.main import main; "
        "code = main(['pull', '-q', 'backbone/osnet_x1_0']); "
        "print(code, sorted({'torch', 'mlflow', 'numpy', 'safetensors'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"
