from __future__ import annotations

import json
import math
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor

from zoo.kernels import RankResult, rank_counts
from zoo.kernels.rank_counts import native

GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "golden" / "reid"
PATHS = ["reference", "torch"]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("ZOO_KERNELS", request.param)
    return str(request.param)


def labels(queries: int, gallery: int, ids: int = 7, cams: int = 3) -> list[Tensor]:
    sizes = ((ids, queries), (ids, gallery), (cams, queries), (cams, gallery))
    return [torch.randint(top, (size,)) for top, size in sizes]


def sorted_metrics(distances: Tensor, marks: list[Tensor]) -> tuple[list[float], list[int]]:
    """AP and first rank by sorting, as the field computes them."""
    q_ids, g_ids, q_cams, g_cams = marks
    aps, firsts = [], []
    for row, q_id, q_cam in zip(distances, q_ids, q_cams, strict=True):
        order = row.argsort(stable=True)
        keep = ~((g_ids[order] == q_id) & (g_cams[order] == q_cam))
        hits = (g_ids[order] == q_id)[keep]
        if not hits.any():
            aps.append(math.nan)
            firsts.append(-1)
            continue
        places = hits.nonzero().squeeze(1) + 1
        precision = torch.arange(1, len(places) + 1).double() / places
        aps.append(float(precision.mean()))
        firsts.append(int(places[0]))
    return aps, firsts


def same(one: RankResult, other: RankResult) -> bool:
    exact = ("first_rank", "last_rank", "matches", "tied")
    torch.testing.assert_close(one.ap, other.ap, equal_nan=True, rtol=1e-12, atol=0)
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in exact)


@pytest.mark.parametrize("name", ["metrics_a", "metrics_b"])
def test_recorded_evaluations(name: str, path: str) -> None:
    if not GOLDEN.is_dir():
        pytest.skip(f"the recorded cases are not at {GOLDEN}")
    from safetensors.torch import load_file

    case = load_file(GOLDEN / f"{name}.safetensors")
    marks = [case[f"input/{key}"] for key in ("q_pids", "g_pids", "q_camids", "g_camids")]
    found = rank_counts(None, None, *marks, distances=case["input/distmat"], chunk=7)
    expected = case["output/ap"]
    torch.testing.assert_close(found.ap, expected, atol=1e-6, rtol=1e-6, equal_nan=True)
    from_zero = torch.where(found.valid, found.first_rank - 1, -1)
    assert torch.equal(from_zero, case["output/first_match_rank"])
    assert found.map == pytest.approx(float(case["output/mAP"]), abs=1e-6)
    cmc = case["output/cmc"]
    torch.testing.assert_close(found.cmc(cmc.numel()), cmc, atol=1e-6, rtol=0)
    assert int(found.valid.sum()) == json.loads((GOLDEN / f"{name}.json").read_text())["num_valid"]


@pytest.mark.parametrize("norm", [0, 1])
def test_recorded_evaluation_from_features(norm: int, path: str) -> None:
    if not GOLDEN.is_dir():
        pytest.skip(f"the recorded cases are not at {GOLDEN}")
    from safetensors.torch import load_file

    case = load_file(GOLDEN / "evaluator_rerank.safetensors")
    query, gallery = case["input/feats"][:20], case["input/feats"][20:]
    ids, cams = case["input/pids"], case["input/camids"]
    found = rank_counts(
        query,
        gallery,
        ids[:20],
        ids[20:],
        cams[:20],
        cams[20:],
        metric="cosine" if norm else "euclidean",
    )
    assert found.map == pytest.approx(float(case[f"output/rerank0_norm{norm}.mAP"]), abs=1e-6)
    torch.testing.assert_close(
        found.cmc(50), case[f"output/rerank0_norm{norm}.cmc"], atol=1e-6, rtol=0
    )


def test_agrees_with_torchreid(path: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rank = pytest.importorskip("torchreid.reid.metrics.rank")
    distances = torch.rand(30, 400)
    marks = labels(30, 400)
    cmc, mean = rank.evaluate_rank(
        distances.numpy(), *(m.numpy() for m in marks), max_rank=50, use_cython=False
    )
    found = rank_counts(None, None, *marks, distances=distances)
    assert found.map == pytest.approx(float(mean), abs=1e-6)
    torch.testing.assert_close(found.cmc(50).float(), torch.from_numpy(cmc), atol=1e-6, rtol=0)


@pytest.mark.parametrize("chunk", [1, 4, 256])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_equals_sorting(metric: str, chunk: int, dtype: torch.dtype, path: str) -> None:
    marks = labels(13, 97)
    query, gallery = torch.randn(13, 24, dtype=dtype), torch.randn(97, 24, dtype=dtype)
    found = rank_counts(query, gallery, *marks, metric=metric, chunk=chunk)
    wide = query.double(), gallery.double()
    distances = torch.cdist(*wide)
    if metric == "cosine":
        distances = (
            -torch.nn.functional.normalize(wide[0]) @ torch.nn.functional.normalize(wide[1]).T
        )
    aps, firsts = sorted_metrics(distances, marks)
    torch.testing.assert_close(found.ap, torch.tensor(aps).double(), equal_nan=True)
    assert found.first_rank.tolist() == firsts


def test_paths_agree_on_random_cases_with_many_ties(monkeypatch: pytest.MonkeyPatch) -> None:
    for case in range(60):
        queries, gallery = int(torch.randint(1, 9, ())), int(torch.randint(1, 40, ()))
        marks: list[Tensor | None] = [
            *labels(queries, gallery, ids=1 + case % 5, cams=1 + case % 3)
        ]
        if case % 4 == 0:
            marks[2] = marks[3] = None
        distances = torch.randint(1 + case % 8, (queries, gallery)).float()
        if case % 3 == 0:
            distances[torch.rand_like(distances) < 0.2] = math.inf
        for ties in ("optimistic", "pessimistic", "stable"):
            results = []
            for path in PATHS:
                monkeypatch.setenv("ZOO_KERNELS", path)
                results.append(
                    rank_counts(
                        None,
                        None,
                        *marks,
                        distances=distances,
                        ties=ties,
                        chunk=3,
                    )
                )
            assert same(*results), case


def test_a_query_without_a_match_counts_in_no_mean(path: str) -> None:
    distances = torch.tensor([[0.1, 0.2, 0.3], [0.1, 0.2, 0.3], [0.3, 0.2, 0.1]])
    found = rank_counts(None, None, [1, 2, 3], [1, 1, 3], [0, 0, 5], [0, 1, 5], distances=distances)
    assert found.ap[0] == 1.0  # its item of the same camera is junk, so the other one leads
    assert found.ap.isnan().tolist() == [False, True, True]
    assert found.first_rank.tolist() == [1, -1, -1]
    assert found.matches.tolist() == [1, 0, 0]
    assert found.map == 1.0
    assert found.minp == 1.0
    assert found.cmc(2).tolist() == [1.0, 1.0]


def test_no_valid_query_gives_nan_means(path: str) -> None:
    found = rank_counts(None, None, [5], [1, 2], distances=torch.rand(1, 2))
    assert math.isnan(found.map)
    assert math.isnan(found.minp)


def test_ties_are_strictly_nearer_whatever_the_order(path: str) -> None:
    distances = torch.zeros(1, 10)
    for place in (0, 9):
        ids = [0] * 10
        ids[place] = 1
        found = rank_counts(None, None, [1], ids, distances=distances)
        assert found.map == 1.0
        assert found.tied.all()
        last = rank_counts(None, None, [1], ids, distances=distances, ties="pessimistic")
        assert last.map == pytest.approx(0.1)
    two = rank_counts(None, None, [1], [1, 1, 0], distances=torch.tensor([[0.5, 0.5, 0.7]]))
    assert two.map == 1.0
    assert not two.tied.any()


@pytest.mark.parametrize("levels", [1, 3, 30])
def test_stable_ties_equal_a_stable_sort(levels: int, path: str) -> None:
    marks, distances = labels(12, 60, ids=4), torch.randint(levels, (12, 60)).float()
    distances[0, 10:] = math.inf
    found = rank_counts(None, None, *marks, distances=distances, ties="stable", chunk=5)
    aps, firsts = sorted_metrics(distances, marks)
    torch.testing.assert_close(found.ap, torch.tensor(aps).double(), equal_nan=True)
    assert found.first_rank.tolist() == firsts
    low, high = (
        rank_counts(None, None, *marks, distances=distances, ties=ties)
        for ties in ("pessimistic", "optimistic")
    )
    assert bool(((low.ap <= found.ap) & (found.ap <= high.ap))[found.valid].all())


def test_stable_ties_of_features_that_collapsed(path: str) -> None:
    marks = labels(6, 30, ids=3)
    found = rank_counts(torch.ones(6, 4), torch.ones(30, 4), *marks, ties="stable")
    aps, firsts = sorted_metrics(torch.zeros(6, 30), marks)
    torch.testing.assert_close(found.ap, torch.tensor(aps).double(), equal_nan=True)
    assert found.first_rank.tolist() == firsts


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_a_gallery_in_half_precision_is_widened_in_blocks(
    metric: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    marks = labels(9, 300)
    query, gallery = torch.randn(9, 8).half(), torch.randn(300, 8).half()
    whole = rank_counts(query.float(), gallery.float(), *marks, metric=metric)
    monkeypatch.setattr(sys.modules["zoo.kernels.rank_counts.op"], "_WIDENED_BYTES", 1)
    parts = rank_counts(query, gallery, *marks, metric=metric)
    torch.testing.assert_close(parts.ap, whole.ap, equal_nan=True)


def test_chunks_are_of_one_size_and_bounded_in_memory() -> None:
    size = sys.modules["zoo.kernels.rank_counts.op"]._chunk
    assert size((3368, 15_913), 4) == 482  # seven chunks; 512 would leave a last one of 296
    assert size((3368, 82_161), 4) * 82_161 * 4 <= 40 * 2**20
    assert size((3, 100), 4) == 3
    assert size((0, 100), 4) == 1
    assert size((1000, 10**8), 4) == 16


def test_mean_inverse_negative_penalty(path: str) -> None:
    distances = torch.tensor([[0.1, 0.2, 0.3, 0.4]])
    found = rank_counts(None, None, [1], [1, 0, 0, 1], distances=distances)
    assert found.last_rank.tolist() == [4]
    assert found.minp == 0.5
    assert found.map == pytest.approx((1 + 2 / 4) / 2)


def test_inputs_stay_as_they_are_and_two_runs_agree(path: str) -> None:
    marks, distances = labels(9, 50), torch.rand(9, 50)
    before = distances.clone()
    one = rank_counts(None, None, *marks, distances=distances)
    assert torch.equal(before, distances)
    assert same(one, rank_counts(None, None, *marks, distances=distances.T.contiguous().T))


def test_without_numpy_rows_are_sorted_by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    marks, distances = labels(9, 50), torch.rand(9, 50)
    one = rank_counts(None, None, *marks, distances=distances)
    module = sys.modules["zoo.kernels.rank_counts.torch_path"]
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    assert same(one, rank_counts(None, None, *marks, distances=distances))


needs_compiler = pytest.mark.skipif(native.compiler() is None, reason="there is no C compiler")


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_compiled_counting_agrees(dtype: torch.dtype) -> None:
    marks = labels(20, 5000, ids=400)
    distances = torch.randint(900, (20, 5000)).to(dtype)
    distances[3, 7], distances[4, 8] = math.inf, -math.inf
    for ties in ("optimistic", "pessimistic", "stable"):
        one, other = (
            rank_counts(None, None, *marks, distances=distances, ties=ties, compiled=compiled)
            for compiled in (False, True)
        )
        assert same(one, other)


@needs_compiler
def test_compiled_counts_are_those_of_comparisons() -> None:
    rows, limits = torch.randint(40, (6, 2500)).float(), torch.randint(40, (6, 11)).float()
    rows[2, 2049] = math.nan
    many = torch.tensor([11, 4, 3, 0, 1, 7])
    wide = torch.cat([rows, torch.full((6, 3), math.nan)], 1)[:, :2500]  # rows further apart
    below, up_to, bad = native.counts(wide, limits, many)
    real = torch.arange(11) < many[:, None]
    assert torch.equal(below, (rows[:, None] < limits[..., None]).sum(2) * real)
    assert torch.equal(up_to, (rows[:, None] <= limits[..., None]).sum(2) * real)
    assert bad.tolist() == [False, False, True, False, False, False]


@needs_compiler
def test_the_compiled_loop_is_taken_where_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    counts = native.counts
    monkeypatch.setattr(native, "counts", lambda *a: calls.append(len(a[0])) or counts(*a))
    monkeypatch.setattr(sys.modules["zoo.kernels.rank_counts.op"], "_WORTH", 1000)
    few, many = torch.rand(4, 300), torch.rand(4, 200)
    for distances, ids in (
        (few, torch.arange(300) % 30),
        (many, torch.zeros(200, dtype=torch.long)),
    ):
        found = rank_counts(None, None, [0] * 4, ids, distances=distances)
        with monkeypatch.context() as patch:
            patch.setenv("ZOO_KERNELS", "torch")
            assert same(found, rank_counts(None, None, [0] * 4, ids, distances=distances))
    assert calls == [4]


def test_without_a_compiler_rows_are_sorted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    marks, distances = labels(9, 50), torch.rand(9, 50)
    monkeypatch.setenv("CC", str(tmp_path / "no-such-compiler"))
    monkeypatch.setattr(sys.modules["zoo.kernels.rank_counts.op"], "_WORTH", 1)
    native.library.cache_clear()
    try:
        found = rank_counts(None, None, *marks, distances=distances)
        with pytest.raises(RuntimeError, match="needs a C compiler"):
            rank_counts(None, None, *marks, distances=distances, compiled=True)
    finally:
        native.library.cache_clear()
    assert same(found, rank_counts(None, None, *marks, distances=distances, compiled=False))


def test_nan_is_refused_by_query(path: str) -> None:
    distances = torch.rand(5, 6)
    distances[3, 2] = math.nan
    with pytest.raises(ValueError, match="query 3 is NaN"):
        rank_counts(None, None, [1] * 5, [1] * 6, distances=distances, chunk=2)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"metric": "manhattan"}, "metric is one of"),
        ({"chunk": 0}, "chunk"),
        ({"query": None}, "needed"),
        ({"query": torch.rand(3, 5)}, r"got \(3, 5\)"),
        ({"query": torch.ones(3, 4, dtype=torch.long)}, "floating point"),
        ({"distances": torch.rand(3, 6)}, "None for both"),
        ({"query_ids": [1, 2]}, "query_ids must be 3 integers"),
        ({"query_ids": [1.0, 2.0, 3.0]}, "float32"),
        ({"gallery_cams": [1] * 6}, "cameras of both"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, object], words: str) -> None:
    arguments: dict[str, object] = {
        "query": torch.rand(3, 4),
        "gallery": torch.rand(6, 4),
        "query_ids": [1, 2, 3],
        "gallery_ids": [1] * 6,
    }
    with pytest.raises(ValueError, match=words):
        rank_counts(**{**arguments, **change})
    with pytest.raises(ValueError, match="top must be"):
        rank_counts(**arguments).cmc(0)
