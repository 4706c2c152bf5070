"""The nearest gallery images, exactly, by blocks and by faiss."""

import math
import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from zoo.domains.reid.fusion_reid import search
from zoo.domains.reid.fusion_reid.ranking import Codes
from zoo.domains.reid.fusion_reid.search import Nearest, nearest, nearest_by, same_view
from zoo.errors import ConfigError


@pytest.fixture(params=["one block", "many blocks", "faiss"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param != "one block":
        monkeypatch.setattr(search, "_ITEMS", 11)
        monkeypatch.setattr(search, "_QUERIES", 4)
    if request.param == "faiss":
        pytest.importorskip("faiss", reason="faiss is not installed")
    return "always" if request.param == "faiss" else "never"


def features(queries: int = 9, gallery: int = 70, width: int = 6) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(queries, width), 3 * torch.randn(gallery, width)


def matrix(query: Tensor, gallery: Tensor) -> Tensor:
    unit = torch.nn.functional.normalize
    return torch.cdist(unit(query.double(), dim=1), unit(gallery.double(), dim=1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_equals_a_sort_of_all_distances(engine: str, dtype: torch.dtype) -> None:
    query, gallery = (x.to(dtype) for x in features())
    found = nearest(query, gallery, 7, engine=engine)
    expected = matrix(query, gallery).sort(dim=1)
    assert torch.equal(found.items, expected.indices[:, :7])
    torch.testing.assert_close(found.distances.double(), expected.values[:, :7], atol=1e-5, rtol=0)


def test_distances_are_reported_as_asked(engine: str) -> None:
    query, gallery = features()
    euclidean, cosine, angle = (
        nearest(query, gallery, 5, distance=kind, engine=engine)
        for kind in ("euclidean", "cosine", "angle")
    )
    assert torch.equal(euclidean.items, cosine.items)
    torch.testing.assert_close(cosine.distances, euclidean.distances.square() / 2)
    torch.testing.assert_close(angle.distances.cos(), 1 - cosine.distances)


def test_a_gallery_smaller_than_the_list(engine: str) -> None:
    query, gallery = features(gallery=3)
    assert nearest(query, gallery, 10, engine=engine).items.shape == (9, 3)


def test_what_is_left_out_is_not_listed(engine: str) -> None:
    query, gallery = features()
    marks = Codes(np.arange(9) % 3, np.arange(70) % 3)
    found = nearest(query, gallery, 50, left_out=marks, engine=engine)
    far = matrix(query, gallery)
    for i in range(9):
        kept = [j for j in far[i].argsort().tolist() if j % 3 != i % 3]
        assert found.items[i, : len(kept)].tolist() == kept[:50]
        assert (found.items[i, len(kept) :] == -1).all()
        assert found.distances[i, len(kept) :].isinf().all()


def test_all_left_out_leaves_nothing(engine: str) -> None:
    query, gallery = features(2, 5)
    marks = Codes(np.zeros(2, int), np.zeros(5, int))
    found = nearest(query, gallery, 3, left_out=marks, engine=engine)
    assert (found.items == -1).all()
    assert found.distances.isinf().all()


def test_equal_distances_keep_the_order_of_the_gallery(monkeypatch: pytest.MonkeyPatch) -> None:
    query, gallery = torch.ones(2, 3), torch.ones(40, 3)
    for size in (40, 7):
        monkeypatch.setattr(search, "_ITEMS", size)
        found = nearest(query, gallery, 12, engine="never")
        assert found.items.tolist() == [list(range(12))] * 2


def test_rows_of_any_distances() -> None:
    torch.manual_seed(1)
    far = torch.randint(5, (300, 40)).float()
    marks = Codes(np.zeros(300, int), (np.arange(40) < 4).astype(int) - 1)
    found = nearest_by(lambda a, b: far[a:b], 300, 6, left_out=marks)
    hidden = far.clone()
    hidden[:, :4] = math.inf
    expected = hidden.sort(dim=1, stable=True)
    assert torch.equal(found.items, expected.indices[:, :6])
    assert torch.equal(found.distances, expected.values[:, :6])
    assert far[:, :4].isfinite().all()  # what was handed over stays as it was


def test_same_view_needs_both_names_known_and_equal() -> None:
    people = Codes(np.array([0, 0, 1, -1]), np.array([0, 0, 1, -2]))
    seen = Codes(np.array([0, 1, -1, 0]), np.array([0, 1, -2, 0]))
    found = same_view(people, seen)
    equal = found.query[:, None] == found.gallery[None]
    assert equal.tolist() == [
        [True, False, False, False],
        [False, True, False, False],
        [False] * 4,
        [False] * 4,
    ]


def test_faiss_is_taken_for_very_large_galleries_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def recorded(query: Tensor, gallery: Tensor, top: int, left_out: Codes | None) -> Nearest:
        asked.append(len(gallery))
        return Nearest(torch.zeros(len(query), top).long(), torch.zeros(len(query), top))

    monkeypatch.setattr(search, "_by_faiss", recorded)
    monkeypatch.setattr(search, "LARGE", 50)
    query, gallery = features()
    for there in (False, True):
        monkeypatch.setattr(search, "find_spec", lambda name, there=there: there or None)
        nearest(query, gallery, 2)
        nearest(query, gallery[:50], 2)
        nearest(query, gallery, 2, engine="never")
    assert asked == [70]


def test_missing_faiss_is_told_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install faiss-cpu"):
        nearest(*features(), 3, engine="always")


def test_faiss_is_not_imported_unless_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)  # an import would fail
    nearest(*features(), 3)


def test_wrong_shapes_are_refused() -> None:
    query, gallery = features()
    for wrong in ((query, gallery[:, :3], 3), (query, gallery, 0), (query[0], gallery, 3)):
        with pytest.raises(ValueError, match="nearest"):
            nearest(*wrong)
