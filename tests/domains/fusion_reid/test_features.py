"""Features kept by content, and files of embeddings."""

import json
import multiprocessing
import os
import signal
import sqlite3
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from zoo.domains.reid.fusion_reid.features import (
    Embeddings,
    FeatureCache,
    digest_of,
    key_of,
    read_embeddings,
    write_embeddings,
)
from zoo.errors import DataError

SETTINGS = {"input_size": [256, 128], "half": False}


# -- what a feature depends on ------------------------------------------------------------------


def test_digest_sees_every_number_name_and_dtype() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    before = digest_of(model)
    assert before == digest_of(model)
    assert len(before) == 64
    model(torch.randn(4, 3))  # moves the running statistics
    moved = digest_of(model)
    assert moved != before
    with torch.no_grad():
        model[0].weight[1, 2] += 1e-6
    assert digest_of(model) != moved
    assert digest_of(nn.Sequential(nn.Linear(3, 2)).half()) != digest_of(model)
    assert digest_of(model.bfloat16()) != moved


def test_keys_differ_by_what_the_network_is_told() -> None:
    keys = {key_of("ab"), key_of("ab", 0), key_of("ab", 1), key_of("ab", 1, 1), key_of("ac", 1)}
    assert len(keys) == 5
    assert key_of("ab", -1) == key_of("ab")  # an unknown camera is none


# -- the cache ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_what_was_put_is_got(tmp_path: Path, dtype: torch.dtype) -> None:
    cache = FeatureCache("w", SETTINGS, tmp_path)
    assert cache.get(["a", "b"]) == [None, None]
    assert not list(tmp_path.iterdir())  # looking leaves nothing behind
    features = torch.randn(3, 5).to(dtype)
    cache.put(["a", "b", "c"], features)
    found = FeatureCache("w", SETTINGS, tmp_path).get(["c", "x", "a", "a"])
    assert found[1] is None
    for place, row in ((0, 2), (2, 0), (3, 0)):
        assert torch.equal(found[place], features[row])
        assert found[place].dtype == dtype
    assert "features of 3 images" in cache.note()
    assert cache.trouble == ""


def test_more_keys_than_a_query_takes(tmp_path: Path) -> None:
    cache = FeatureCache("w", SETTINGS, tmp_path)
    keys = [str(i) for i in range(1300)]
    features = torch.arange(1300.0)[:, None].expand(-1, 3)
    cache.put(keys, features)
    assert [int(f[0]) for f in cache.get(keys[::-1])] == list(range(1299, -1, -1))


def test_other_weights_or_settings_do_not_share(tmp_path: Path) -> None:
    FeatureCache("w", SETTINGS, tmp_path).put(["a"], torch.ones(1, 2))
    for weights, settings in (("v", SETTINGS), ("w", SETTINGS | {"half": True})):
        assert FeatureCache(weights, settings, tmp_path).get(["a"]) == [None]


def test_the_folder_is_the_zoos_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    cache = FeatureCache("w", SETTINGS)
    cache.put(["a"], torch.ones(1, 2))
    assert cache.path.parent == tmp_path / "features"
    assert str(cache.path) in cache.note()


def test_features_that_are_not_finite_are_not_kept(tmp_path: Path) -> None:
    cache = FeatureCache("w", SETTINGS, tmp_path)
    cache.put(["a", "b"], torch.tensor([[1.0, float("nan")], [1.0, 2.0]]))
    first, second = cache.get(["a", "b"])
    assert first is None
    assert second is not None


def test_a_second_put_replaces(tmp_path: Path) -> None:
    cache = FeatureCache("w", SETTINGS, tmp_path)
    for value in (1.0, 2.0):
        cache.put(["a"], torch.full((1, 2), value))
    assert cache.get(["a"])[0].tolist() == [2.0, 2.0]


def test_wrong_features_are_refused(tmp_path: Path) -> None:
    cache = FeatureCache("w", SETTINGS, tmp_path)
    for wrong in (torch.ones(2, 3), torch.ones(3), torch.ones(1, 3, dtype=torch.long)):
        with pytest.raises(ValueError, match="1 keys need"):
            cache.put(["a"], wrong)


def _fill(folder: Path, number: int) -> None:
    cache = FeatureCache("w", SETTINGS, folder)
    for batch in range(10):
        keys = [f"{batch}-{i}" for i in range(8)]
        cache.put([f"{number}/{k}" for k in keys] + keys, torch.full((16, 64), float(batch)))
        assert None not in cache.get(keys)
    assert cache.trouble == ""


def test_several_processes_write_one_cache(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_fill, args=(tmp_path, n)) for n in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    cache = FeatureCache("w", SETTINGS, tmp_path)
    for batch in range(10):
        keys = [f"{n}/{batch}-{i}" for n in range(3) for i in range(8)]
        assert all(torch.equal(f, torch.full((64,), float(batch))) for f in cache.get(keys))
    assert "features of 320 images" in cache.note()


def _write_on(folder: Path, told: Path) -> None:
    cache = FeatureCache("w", SETTINGS, folder)
    for number in range(100_000):
        cache.put([str(number)], torch.full((1, 2000), float(number)))
        # Renamed into place: a kill between emptying and writing would leave no number.
        told.with_suffix(".new").write_text(str(number))
        told.with_suffix(".new").replace(told)


def test_a_kill_loses_at_most_what_was_being_written(tmp_path: Path) -> None:
    told = tmp_path / "told"
    worker = multiprocessing.get_context("fork").Process(target=_write_on, args=(tmp_path, told))
    worker.start()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (told.exists() and len(told.read_text()) > 1):
        time.sleep(0.005)
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    done = int(told.read_text() or 0)
    assert done >= 10
    cache = FeatureCache("w", SETTINGS, tmp_path)
    found = cache.get([str(n) for n in range(done)])
    assert all(torch.equal(f, torch.full((2000,), float(n))) for n, f in enumerate(found))
    cache.put(["more"], torch.ones(1, 2))
    assert cache.trouble == ""


def test_a_damaged_cache_begins_anew(tmp_path: Path) -> None:
    cache = FeatureCache("w", SETTINGS, tmp_path)
    cache.path.write_bytes(b"no database at all, but long enough to be taken for one" * 20)
    assert cache.get(["a"]) == [None]
    assert "damaged" in cache.trouble
    cache.put(["a"], torch.ones(1, 2))
    assert cache.get(["a"])[0] is not None


def test_a_locked_cache_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from zoo.domains.reid.fusion_reid import features

    monkeypatch.setattr(features, "_WAIT", 0.05)
    cache = FeatureCache("w", SETTINGS, tmp_path)
    cache.put(["a"], torch.ones(1, 2))
    holder = sqlite3.connect(cache.path)
    holder.execute("BEGIN EXCLUSIVE")
    cache.put(["b"], torch.ones(1, 2))
    assert cache.get(["a"]) == [None]
    assert "locked" in cache.trouble
    holder.close()
    assert cache.get(["a", "b"])[0] is not None


def test_a_shortened_feature_is_none(tmp_path: Path) -> None:
    cache = FeatureCache("w", SETTINGS, tmp_path)
    cache.put(["a"], torch.ones(1, 4))
    with sqlite3.connect(cache.path) as database:
        database.execute("UPDATE features SET body = ?", (b"123",))
    database.close()
    assert cache.get(["a"]) == [None]


# -- files of embeddings ------------------------------------------------------------------------


def embeddings(number: int = 3) -> Embeddings:
    names = [f"query/{i:04d}_c1.jpg" for i in range(number)]
    return Embeddings(
        torch.randn(number, 4).half(),
        names,
        ["0001", "", "ä"][:number],
        ["c1"] * number,
        ["query"] * number,
        names,
        {"weights": "abc"},
    )


def test_embeddings_come_back(tmp_path: Path) -> None:
    path, written = tmp_path / "deep" / "embeddings.safetensors", embeddings()
    write_embeddings(path, written)
    found = read_embeddings(path)
    assert torch.equal(found.features, written.features)
    assert found.features.dtype == torch.float16
    for name in ("ids", "persons", "cameras", "roles", "paths", "info"):
        assert getattr(found, name) == getattr(written, name)
    # Other programs read it without the zoo.
    assert torch.equal(load_file(path)["features"], written.features)
    assert [p.name for p in path.parent.iterdir()] == ["embeddings.safetensors"]


def test_columns_of_another_length_are_not_written(tmp_path: Path) -> None:
    found = embeddings()
    with pytest.raises(ValueError, match="columns of N names"):
        write_embeddings(tmp_path / "a.safetensors", Embeddings(found.features[:2], *(["x"],) * 5))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "other"}, "holds no embeddings"),
        ({"ids": json.dumps(["a", "b"])}, "3 embeddings, but 2 names in its ids"),
        ({"ids": json.dumps(["a", "b", "b"])}, "same id"),
        ({"persons": "[1"}, "no readable persons"),
        ({"cameras": json.dumps([1, 2, 3])}, "names in its cameras"),
        ({"info": "[]"}, "no readable info"),
    ],
)
def test_files_that_do_not_fit_together_are_told(
    change: dict[str, str], words: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.safetensors"
    write_embeddings(path, embeddings())
    from safetensors import safe_open

    with safe_open(path, framework="pt") as opened:
        metadata = dict(opened.metadata())
    save_file({"features": torch.ones(3, 4)}, path, metadata | change)
    with pytest.raises(DataError, match=words):
        read_embeddings(path)


def test_broken_and_missing_files_are_told(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with pytest.raises(DataError, match="no such file"):
        read_embeddings(path)
    path.write_bytes(b"\x10\x00")
    with pytest.raises(DataError, match="cannot be read as safetensors"):
        read_embeddings(path)
    write_embeddings(path, embeddings())
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(DataError, match="cannot be read as safetensors"):
        read_embeddings(path)


def test_embeddings_that_are_not_finite_are_told(tmp_path: Path) -> None:
    found = embeddings()
    found.features[1, 1] = float("inf")
    write_embeddings(tmp_path / "a.safetensors", found)
    with pytest.raises(DataError, match="finite"):
        read_embeddings(tmp_path / "a.safetensors")
