"""Loading a published model by name, without the zoo, and asking it over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from mlflow import MlflowClient
from mlflow.pyfunc.model import PythonModelContext

from tests.running import good, only_run, run_zoo
from tests.servers import (
    Process,
    Tracker,
    elsewhere,
    free_port,
    post,
    run_elsewhere,
    running,
    tracker,
)
from zoo import registry, serving, store
from zoo.errors import ZooError
from zoo.files import cache_dir
from zoo.runs import Run
from zoo.serving_script import serve as script

PAGE = Path(__file__).parents[1] / "docs" / "use-a-model.md"
ADDRESS = "http://tracking.example:5000"

# -- the script: what it takes and refuses ------------------------------------------------------


class _Network(torch.nn.Module):
    def forward(self, image: Any, year: Any) -> Any:
        return image.mean(dim=(1, 2)) + year, image * 2


IO = {
    "inputs": [
        {"name": "image", "dtype": "float32", "shape": [-1, -1, 3], "axes": ["batch", "height",
         None], "about": ""},
        {"name": "year", "dtype": "int64", "shape": [-1], "axes": ["batch"], "about": ""},
    ],
    "outputs": [
        {"name": "score", "dtype": "float32", "shape": [-1], "axes": ["batch"], "about": ""},
        {"name": "map", "dtype": "float32", "shape": [-1, -1, 3], "axes": ["batch", "height",
         None], "about": ""},
    ],
}  # fmt: skip
IMAGE = np.arange(24, dtype=np.float32).reshape(2, 4, 3)
YEAR = np.array([2001, 2002])


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("graph") / "model.pt2"
    dynamic = torch.export.Dim.DYNAMIC
    example = (torch.from_numpy(IMAGE), torch.from_numpy(YEAR))
    shapes = {"image": {0: dynamic, 1: dynamic}, "year": {0: dynamic}}
    program = torch.export.export(_Network(), example, dynamic_shapes=shapes)
    program.example_inputs = None
    torch.export.save(program, path)
    return path


@pytest.fixture
def scorer(graph: Path, tmp_path: Path) -> script.Scorer:
    (tmp_path / "io.json").write_text(json.dumps(IO))
    artifacts = {"io.json": str(tmp_path / "io.json"), "model.pt2": str(graph)}
    made = script.Scorer()
    made.load_context(PythonModelContext(artifacts, None))
    return made


def test_named_arrays_give_named_arrays(scorer: script.Scorer) -> None:
    made = scorer.predict(None, {"year": YEAR, "image": IMAGE})
    assert list(made) == ["score", "map"]
    np.testing.assert_allclose(made["score"], IMAGE.mean((1, 2)) + YEAR)
    as_lists = scorer.predict(None, {"image": IMAGE.tolist(), "year": [2001.0, 2002.0]})
    np.testing.assert_array_equal(as_lists["map"], made["map"])
    as_tensors = {"image": torch.from_numpy(IMAGE).double(), "year": torch.from_numpy(YEAR)}
    np.testing.assert_array_equal(scorer.predict(None, as_tensors)["score"], made["score"])


def test_a_table_gives_a_table_whose_rows_may_differ_in_size(scorer: script.Scorer) -> None:
    rows = [{"image": IMAGE[i % 2, : 1 + i % 3], "year": 2000 + i} for i in range(70)]
    rows[3] = {"image": _nested(rows[3]["image"]), "year": 2003}
    index = [f"r{i}" for i in range(70)]
    made = scorer.predict(None, pd.DataFrame(rows, index=index))
    assert list(made.columns) == ["score", "map"]
    assert list(made.index) == index
    for i in range(70):
        image = IMAGE[i % 2, : 1 + i % 3]
        assert made["score"].iloc[i] == pytest.approx(image.mean() + 2000 + i)
        np.testing.assert_array_equal(made["map"].iloc[i], image * 2)
    listed = scorer.predict(None, rows[:2])
    assert [r["score"] for r in listed] == made["score"].tolist()[:2]
    empty = scorer.predict(None, pd.DataFrame({"image": [], "year": []}))
    assert (len(empty), list(empty.columns)) == (0, ["score", "map"])


def _nested(image: np.ndarray) -> np.ndarray:
    """An array of arrays, as a table read from a Parquet file holds one."""
    made = np.empty(len(image), dtype=object)
    made[:] = list(image)
    return made


def _given(**changed: Any) -> dict[str, Any]:
    return {k: v for k, v in {"image": IMAGE, "year": YEAR, **changed}.items() if v is not None}


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (_given(year=None), "input 'year' is missing; the model takes image (batch, height, 3)"),
        (_given(extra=1), "unknown input 'extra'"),
        (_given(image=IMAGE[0]), r"'image' has 2 axes (4, 3); should be image (batch, height, 3)"),
        (_given(image=IMAGE[..., :2]), r"'image' has the sizes (2, 4, 2)"),
        (_given(image=IMAGE[:, :0]), r"'image' has the sizes (2, 0, 3)"),
        (_given(year=YEAR[:1]), "'year' has 1 for batch, 'image' has 2"),
        (_given(year=[2001.5, 2002]), "'year' holds float64; should be year (batch) int64"),
        (_given(year=[1e300, 2002]), "'year' holds float64"),
        (_given(year=["2001", "2002"]), "'year' holds text"),
        (_given(image=[[[None] * 3]] * 2), "'image' holds mixed values"),
        (_given(image=[[[1, 2, 3]], [[1, 2]]]), "'image' is not one array"),
        (_given(image=IMAGE > 3), "'image' holds bool"),
        (_given(image=IMAGE * 1j), "'image' holds complex64"),
        (_given(image=np.where(IMAGE == 5, np.nan, IMAGE)), "holds NaN, first at (0, 1, 2)"),
        (_given(image=IMAGE.astype(float) * 1e38), "'image' holds an infinite value, first at"),
        (pd.DataFrame([_given(image=IMAGE[0], year=1), _given(image=IMAGE[0, :, :2], year=2)]),
         "row 1: 'image' has the sizes (1, 4, 2)"),
        (pd.DataFrame({"image": [IMAGE[0]]}), "row 0: input 'year' is missing"),
        ([_given(image=IMAGE[0], year=1), _given(image=IMAGE[0])], "row 1: 'year' has 2 axes"),
        (IMAGE, "inputs have names: image (batch, height, 3) float32 and year (batch) int64"),
        ("text", "inputs have names"),
    ],
)  # fmt: skip
def test_whatever_does_not_fit_is_refused_in_one_short_line(
    scorer: script.Scorer, given: Any, line: str
) -> None:
    with pytest.raises(script.Refused) as caught:
        scorer.predict(None, given)
    told = caught.value
    assert line in told.message
    assert "\n" not in told.message
    assert len(told.message) < 250
    assert told.get_http_status_code() == 400
    told.message = "the whole array"  # as MLflow's scoring server does
    assert "whole array" not in told.serialize_as_json()


class _Runs:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path(os.environ["PLANTED"]),))


@pytest.mark.parametrize(
    "name",
    ["sample_inputs/model.pt", "constants/opaque_obj_0", "weights/model_weights_config.json"],
)
def test_a_planted_pickle_in_the_graph_does_not_run(
    graph: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pickle

    monkeypatch.setenv("PLANTED", str(tmp_path / "ran"))
    bad = tmp_path / "model.pt2"
    with zipfile.ZipFile(graph) as old, zipfile.ZipFile(bad, "w") as new:
        for item in old.namelist():
            body = old.read(item)
            if item.endswith(name):
                body = pickle.dumps(_Runs())
                if name.endswith(".json"):
                    told = json.loads(old.read(item))
                    told["config"]["w"] = {"path_name": "w", "use_pickle": True}
                    body = json.dumps(told).encode()
            new.writestr(item, body)
        if name.startswith("constants"):
            new.writestr(f"{item.partition('/')[0]}/data/{name}", pickle.dumps(_Runs()))
    with pytest.raises(Exception, match="holds pickled objects"):
        script.opened(bad)
    assert not (tmp_path / "ran").exists()


# -- the limits around the scoring app ----------------------------------------------------------


def ask(
    app: serving.App, pieces: list[bytes], headers: Mapping[str, str], method: str = "POST"
) -> tuple[int, Any]:
    """One request to an app, whose body comes in pieces."""
    sent: list[Any] = []
    waiting = [
        {"type": "http.request", "body": p, "more_body": i + 1 < len(pieces)}
        for i, p in enumerate(pieces)
    ]

    async def receive() -> Any:
        return waiting.pop(0) if waiting else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": method,
        "headers": [(k.encode(), v.encode()) for k, v in headers.items()],
    }
    asyncio.run(app(scope, receive, send))
    body = b"".join(m.get("body", b"") for m in sent)
    return sent[0]["status"], json.loads(body) if body else None


async def _echo(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the length of the body; a body of `bad` gets a long complaint in pieces."""
    body = (await receive())["body"] if scope["method"] == "POST" else b""
    bad = body == b"bad"
    text = json.dumps({"message": "first line\n" + "x" * 9000}) if bad else str(len(body))
    await send({"type": "http.response.start", "status": 400 if bad else 200, "headers": []})
    half = len(text) // 2
    await send({"type": "http.response.body", "body": text[:half].encode(), "more_body": True})
    await send({"type": "http.response.body", "body": text[half:].encode()})


JSON = {"content-type": "application/json; charset=utf-8"}


@pytest.mark.parametrize(
    ("pieces", "headers", "status", "told"),
    [
        ([b"12345"], JSON, 200, 5),
        ([b"123", b"45", b""], JSON, 200, 5),
        ([b"x" * 100], JSON, 200, 100),
        ([b"x" * 101], JSON | {"content-length": "101"}, 413, "larger than 0.0001 MB"),
        ([b"x" * 60] * 2, JSON, 413, "larger than"),
        ([b"x" * 60] * 2, JSON | {"content-length": "9"}, 413, "larger than"),
        ([b"1"], JSON | {"content-length": "-1"}, 413, "larger than"),
        ([b"1"], {"content-type": "text/csv"}, 415, "send JSON"),
        ([b"1"], {}, 415, "send JSON"),
        ([b"bad"], JSON, 400, "first line"),
    ],
)
def test_requests_are_bounded_and_complaints_are_short(
    pieces: list[bytes], headers: dict[str, str], status: int, told: Any
) -> None:
    got, answer = ask(serving.Guarded(_echo, 100), pieces, headers)
    assert got == status
    if status == 200:
        assert answer == told
    else:
        assert told in answer["message"]
        assert len(json.dumps(answer)) < 200


def test_other_methods_pass() -> None:
    assert ask(serving.Guarded(_echo, 1), [], {}, "GET")[0] == 200


def test_names_of_models() -> None:
    assert store.registered("acmil") == "zoo-wsi_mil"
    assert store.registered("zoo-wsi_mil") == "zoo-wsi_mil"
    assert store.address_of("wsi_mil") == "models:/zoo-wsi_mil@champion"
    assert store.address_of("zoo-wsi_mil@beta") == "models:/zoo-wsi_mil@beta"
    assert store.address_of("models:/x/3") == "models:/x/3"
    assert store.address_of("wsi_mil-20260101-000000-abcdef") is None


def test_what_cannot_be_served_is_told_at_once(tracked: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        failed = run_zoo("serve", "wsi_mil", "--port", port, "--out", tracked)
    assert (failed.code, f"port {port}" in failed.err) == (2, True)
    assert "--port 0 takes a free one" in failed.err
    (tmp_path / "m.pt2").touch()
    for words, line in (
        (["wsi_mil", "--out", tracked], "zoo-wsi_mil not found"),
        (["models:/zoo-wsi_mil", "--out", tracked], "write models:/NAME@ALIAS"),
        (["wsi_mil", "--out", tmp_path], "has no mlflow.db; name the store"),
        (["wsi_mil", "--max-mb", "0"], "should be above 0"),
        (["nothing", "--out", tracked], "no run 'nothing'"),
        ([tmp_path / "m.pt2"], "serve takes a task, a registered model, a run or a model's folder"),
        (["wsi_mil", "--host", "203.0.113.1"], "--host names an address of this machine"),
    ):
        failed = run_zoo("serve", "--port", "0", *words)
        assert line in failed.err
        assert len(failed.err.splitlines()) == 1
        assert failed.code in (1, 2)
    (tmp_path / "MLmodel").write_text("flavors: {}\n")
    with pytest.raises(ZooError, match="not a model that `zoo publish` made"):
        serving.scoring_app(tmp_path, 1)


# -- a real tracking server and a Python without the zoo ----------------------------------------


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Iterator[Tracker]:
    """`mlflow server` with SQLite and artifacts through it; starts while others are busy."""
    folder = tmp_path_factory.mktemp("shop")
    shutil.copy(empty_store, folder / "server.db")
    server = tracker(folder, folder / "server.db")
    try:
        server.launch()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def published(shop: Tracker, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A short run of wsi_mil, published at the server."""
    out = tmp_path_factory.mktemp("published")
    good("train", "task=wsi_mil", "trainer.max_steps=3", f"out={out}", "tracking.enabled=false")
    shop.wait()
    run = only_run(out)
    shown = good("publish", run.name, "--out", out, "--uri", shop.uri).out
    # Nothing else is said: MLflow advertises its pages when a run ends.
    packing, registered, promoted = shown.splitlines()
    assert packing == f"packing {run.name}"
    assert registered == f"{run.name} registered as zoo-wsi_mil version 1"
    assert promoted == "promoted to zoo-wsi_mil@champion: it is the first"
    return run


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return elsewhere(tmp_path_factory.mktemp("elsewhere") / "venv")


def _bag_file() -> Path:
    return sorted((cache_dir() / "samples").glob("wsi_mil-v*/**/*.h5"))[0]


@pytest.fixture(scope="module")
def bag(published: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[np.ndarray, float]:
    """A bag of the sample data set, and the probability `zoo predict` gives it."""
    import h5py

    path = _bag_file()
    with h5py.File(path) as file:
        features = file["features"][:].astype(np.float32).reshape(-1, 32)
    out = tmp_path_factory.mktemp("predicted")
    good("predict", f"weights={published.path}", f"input={path}", f"predict.out={out}")
    (row,) = json.loads((out / "predictions.json").read_text())
    (probability,) = [v for k, v in row.items() if k.endswith("tumor_tissue")]
    return features, float(probability)


_ELSEWHERE = """
import importlib.util, json, sys, threading, time, urllib.error, urllib.request
assert importlib.util.find_spec("zoo") is None
import mlflow, uvicorn
from mlflow.pyfunc import scoring_server
features = json.load(open(sys.argv[2]))
{page}
import socket
listening = socket.socket(); listening.bind(("127.0.0.1", 0)); listening.listen()
server = uvicorn.Server(uvicorn.Config(scoring_server.init(model), log_level="error"))
threading.Thread(target=server.run, kwargs={{"sockets": [listening]}}, daemon=True).start()
url = f"http://127.0.0.1:{{listening.getsockname()[1]}}/invocations"
def ask(body):
    request = urllib.request.Request(url, json.dumps(body).encode(),
                                     {{"Content-Type": "application/json"}})
    try:
        return [200, urllib.request.urlopen(request, timeout=60).read().decode()]
    except urllib.error.HTTPError as error:
        return [error.code, error.read().decode()]
print(json.dumps([ask({{"inputs": {{"features": features}}}}),
                  ask({{"inputs": {{"features": [row[:9] for row in features]}}}}),
                  [sys.modules.get("zoo") is None, ""]]))
"""


def test_a_model_is_loaded_by_name_and_asked_without_the_zoo(
    shop: Tracker, published: Run, python: Path, bag: tuple[np.ndarray, float]
) -> None:
    """The page's own five lines, then a request and a wrong one, where the zoo is not installed."""
    features, expected = bag
    np.save(python.parent / "bag.npy", features)
    (python.parent / "bag.json").write_text(json.dumps(features.tolist()))
    page = _blocks("python")[0].replace(ADDRESS, shop.uri)
    told = run_elsewhere(
        python, _ELSEWHERE.format(page=page), shop.uri, "bag.json",
        MLFLOW_ALLOW_PICKLE_DESERIALIZATION="false",
    )  # fmt: skip
    first, *_, last = told.splitlines()
    shown = [float(x) for x in re.findall(r"[\d.]+(?:e-?\d+)?", first)]
    assert shown[1] == pytest.approx(expected, abs=1e-5)
    right, wrong, alone = json.loads(last)
    assert right[0] == 200
    answer = json.loads(right[1])["predictions"]
    assert answer["probabilities"][0][1] == pytest.approx(expected, abs=1e-5)
    assert len(answer["attention"]) == len(features)
    assert sum(answer["attention"]) == pytest.approx(1, abs=1e-4)
    assert wrong[0] == 400
    assert f"'features' has the sizes ({len(features)}, 9)" in wrong[1]
    assert len(wrong[1]) < 300
    assert alone[0]


def test_what_travels_with_a_version(shop: Tracker, published: Run, tmp_path: Path) -> None:
    client = MlflowClient(shop.uri)
    version = client.get_model_version_by_alias("zoo-wsi_mil", "champion")
    assert version.tags["zoo.not_for_diagnosis"] == "true"
    assert version.tags["zoo.metric"] == "f1_micro_plus_auc"
    with serving.fetched("wsi_mil", tmp_path, shop.uri) as (folder, name):
        assert name == "zoo-wsi_mil@champion"
        inside = folder / "artifacts"
        there = {p.name for p in inside.iterdir()}
        assert there == {
            "model.pt2", "io.json", "weights.safetensors", "card.md", "metrics.json", "report.html",
            "LICENSE",
        }  # fmt: skip
        assert json.loads((inside / "metrics.json").read_text())["results"] == published.results()
        card = (inside / "card.md").read_text()
        assert "Not for diagnosis" in card
        assert "synthetic sample data set" in card
        assert "| `features` | float32 | (instances, 32) |" in card
        assert "MIT License" in (inside / "LICENSE").read_text()
        pins = (folder / "requirements.txt").read_text().split()
        assert [p.partition("==")[0] for p in pins] == ["torch", "numpy", "mlflow"]
        assert all("==" in p and "+" not in p for p in pins)
        told = (folder / "MLmodel").read_text()
        assert "/tmp" not in told
        assert str(Path(__file__).parents[1]) not in told
        assert '"shape": [-1, 32]' in told
        assert (folder / "serving_input_example.json").is_file()
    assert not folder.exists()


def test_a_version_is_what_a_prediction_starts_from(
    shop: Tracker, published: Run, bag: tuple[np.ndarray, float], tmp_path: Path
) -> None:
    path = _bag_file()
    good("predict", "weights=models:/zoo-wsi_mil@champion", f"tracking.uri={shop.uri}",
         f"input={path}", f"predict.out={tmp_path}")  # fmt: skip
    (row,) = json.loads((tmp_path / "predictions.json").read_text())
    assert bag[1] in [pytest.approx(v, abs=1e-6) for v in row.values() if isinstance(v, float)]


# -- slow: programs as people start them --------------------------------------------------------


@pytest.mark.slow
def test_mlflow_serves_it_and_wrong_shapes_get_a_short_400(
    shop: Tracker, published: Run, python: Path, tmp_path: Path
) -> None:
    port = free_port()
    words = ["mlflow", "models", "serve", "-m", "models:/zoo-wsi_mil@champion", "--env-manager",
             "local", "--host", "127.0.0.1", "--port", str(port)]  # fmt: skip
    environment = {
        "MLFLOW_TRACKING_URI": shop.uri,
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "PATH": f"{python.parent}:{os.environ['PATH']}",
    }
    words[0] = str(python.parent / "mlflow")
    place = f"http://127.0.0.1:{port}"
    with running(Process(words, tmp_path / "serve.log", f"{place}/ping", environment)):
        features = np.random.default_rng(0).normal(size=(300, 32)).round(3)
        status, text = post(f"{place}/invocations", {"inputs": {"features": features.tolist()}})
        assert status == 200
        assert len(json.loads(text)["predictions"]["attention"]) == 300
        items = [{"features": features[:n].tolist()} for n in (1, 7)]
        status, text = post(f"{place}/invocations", {"inputs": items})
        assert [len(i["attention"]) for i in json.loads(text)["predictions"]] == [1, 7]
        for wrong in (
            {"features": features[:, :5].tolist()}, {"features": features[0].tolist()},
            {"feature": features.tolist()}, {"features": [["a"] * 32] * 300},
            {"features": [[float("nan")] * 32] * 300}, features[:, :3].tolist(), [], {},
        ):  # fmt: skip
            status, text = post(f"{place}/invocations", {"inputs": wrong})
            assert status == 400, text
            assert len(text) < 300, text


@pytest.mark.slow
def test_zoo_serves_it_with_limits(shop: Tracker, published: Run, tmp_path: Path) -> None:
    log = tmp_path / "log"
    words = [sys.executable, "-u", "-c", "from zoo.cli.main import run; run()", "serve", "wsi_mil",
             "--uri", shop.uri, "--port", "0", "--max-mb", "0.1"]  # fmt: skip
    with log.open("wb") as file:
        program = subprocess.Popen(words, stdout=file, stderr=file, cwd=tmp_path)
    try:
        until = time.monotonic() + 120
        while "curl " not in log.read_text():
            assert program.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.2)
        url = re.findall(r"(http://127\.0\.0\.1:\d+/invocations)", log.read_text())[0]
        (line,) = [x for x in log.read_text().splitlines() if x.startswith("curl ")]
        done = subprocess.run(["bash", "-c", f"{line} --fail -s"], capture_output=True, check=True)
        assert "probabilities" in json.loads(done.stdout)["predictions"]
        bags = {"inputs": {"features": [[1.0] * 32] * 1000}}
        status, text = post(url, bags)
        assert (status, len(text) < 200) == (413, True)
        assert post(url, b"a,b\n1,2\n", "text/csv")[0] == 415
        status, text = post(url, b"{" + b"x" * 5000)
        assert (status, len(text) < 600) == (400, True)
        status, text = post(url, {"inputs": {"features": [[1.0] * 31]}})
        assert (status, "(1, 31)" in text) == (400, True)
        assert _listens_only_on_loopback(int(url.split(":")[2].split("/")[0]))
        program.send_signal(signal.SIGINT)
        assert program.wait(30) == 0
        assert "Traceback" not in log.read_text()
    finally:
        program.kill()
        program.wait()


def _listens_only_on_loopback(port: int) -> bool:
    import psutil

    found = [c.laddr.ip for c in psutil.net_connections("tcp") if c.laddr and c.laddr.port == port]
    return bool(found) and set(found) == {"127.0.0.1"}


@pytest.mark.slow
def test_a_registered_pickle_is_refused(shop: Tracker, published: Run, tmp_path: Path) -> None:
    """Somebody registers a cloudpickled model under the alias of ours."""
    code = (
        "import sys, mlflow\n"
        "class Planted(mlflow.pyfunc.PythonModel):\n"
        "    def __reduce__(self): return (open, (sys.argv[2], 'w'))\n"
        "    def predict(self, context, model_input, params=None): return model_input\n"
        "mlflow.set_tracking_uri(sys.argv[1])\n"
        "with mlflow.start_run():\n"
        "    mlflow.pyfunc.log_model(name='m', python_model=Planted(),\n"
        "        registered_model_name='zoo-planted', pip_requirements=['mlflow'])\n"
    )
    environment = os.environ | {"ZOO_X": "1"}
    ran = tmp_path / "ran"
    subprocess.run([sys.executable, "-c", code, shop.uri, str(ran)], env=environment, check=True)
    ran.unlink(missing_ok=True)  # MLflow itself opened it while it was saved
    failed = run_zoo("serve", "models:/zoo-planted/1", "--uri", shop.uri, "--port", "0")
    assert failed.code == 2
    assert "not a model that `zoo publish` made" in failed.err
    for command in ("eval", "predict"):
        words = ["input=x"] if command == "predict" else []
        with contextlib.suppress(OSError):
            failed = run_zoo(command, "weights=models:/zoo-planted/1", f"tracking.uri={shop.uri}",
                             *words)  # fmt: skip
        assert failed.code in (1, 2)
    assert not ran.exists()


TASKS = [name for name, entry in registry.tasks().items() if entry.built]

_SIZES = """
import importlib.util, json, sys
assert importlib.util.find_spec("zoo") is None
import mlflow, numpy as np
model = mlflow.pyfunc.load_model(sys.argv[1])
scorer = model.unwrap_python_model()
example = model.input_example
made = model.predict(example)
sizes = {}
for entry in scorer.inputs:
    for axis, size in zip(entry["axes"], example[entry["name"]].shape):
        if axis: sizes[axis] = size
told = {"outputs": {k: list(v.shape) for k, v in made.items()}, "finite": bool(all(
    np.isfinite(v).all() for v in made.values())), "taken": [], "refused": []}
for axis in sizes:
    new = sizes | {axis: 2 * sizes[axis] + 1}
    other = {e["name"]: np.resize(example[e["name"]], [new[a] if a else n for a, n in
             zip(e["axes"], example[e["name"]].shape)]).astype(e["dtype"]) for e in scorer.inputs}
    model.predict(other)
    told["taken"].append(axis)
for bad in ({k: v[None] for k, v in example.items()}, {}, {k: v * np.nan for k, v in
            example.items()}, {k: v.astype(str) for k, v in example.items()}):
    try: model.predict(bad)
    except Exception as error: told["refused"].append(str(error))
print(json.dumps(told))
"""


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_each_task_is_published_and_used_without_the_zoo(
    task: str, tracked: Path, python: Path
) -> None:
    good("train", f"task={task}", "trainer.max_steps=3", f"out={tracked}")
    good("publish", only_run(tracked).name, "--out", tracked)
    told = run_elsewhere(
        python, _SIZES, f"models:/zoo-{task}@champion",
        MLFLOW_TRACKING_URI=f"sqlite:///{tracked / 'mlflow.db'}",
        MLFLOW_ALLOW_PICKLE_DESERIALIZATION="false",
    )  # fmt: skip
    found = json.loads(told.splitlines()[-1])
    assert found["finite"]
    assert found["outputs"]
    assert found["taken"]  # at least one size is free
    assert len(found["refused"]) == 4
    assert all(len(line) < 300 for line in found["refused"])


# -- the page -----------------------------------------------------------------------------------


def _blocks(language: str) -> list[str]:
    text = PAGE.read_text(encoding="utf-8")
    return re.findall(rf"^```{language} no-test\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


@pytest.mark.slow
def test_every_block_of_the_page_works(
    shop: Tracker, published: Run, python: Path, bag: tuple[np.ndarray, float], tmp_path: Path
) -> None:
    """In order, in one folder: `zoo` from here, `mlflow` and `python` from where it is not."""
    worse = published.path.parent.parent / "second"
    good("train", "task=wsi_mil", "trainer.max_steps=2", "seed=2", f"out={worse}",
         "tracking.enabled=false")  # fmt: skip
    good("publish", only_run(worse).name, "--out", worse, "--uri", shop.uri, "--force")
    np.save(tmp_path / "bag.npy", bag[0])
    (tmp_path / "slides.csv").write_text("slide,file\na,bag.npy\nb,bag.npy\n")
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "zoo").write_text(f"#!{sys.executable}\nfrom zoo.cli.main import run\nrun()\n")
    (tools / "zoo").chmod(0o755)
    ports = {"5001": str(free_port()), "5002": str(free_port())}
    served: list[Process] = []
    environment = {
        "PATH": f"{tools}:{python.parent}:{os.environ['PATH']}",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    }
    text = PAGE.read_text(encoding="utf-8")
    found = re.findall(r"^```(bash|python) no-test\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert len(found) >= 9
    try:
        for language, body in found:
            code = body.replace(ADDRESS, shop.uri)
            for old, new in ports.items():
                code = code.replace(old, new)
            newest = sorted((tmp_path / "runs").glob("wsi_mil-*"))
            code = code.replace("$RUN", newest[-1].name if newest else "$RUN")
            if language == "python":
                print(run_elsewhere_in(python, code, tmp_path))
            elif re.search(r"^(zoo|mlflow models) serve", code, re.MULTILINE):
                port = ports["5001" if "mlflow models" in code else "5002"]
                log = tmp_path / f"serve-{port}.log"
                served.append(Process(["bash", "-ec", code], log, f"http://127.0.0.1:{port}/ping",
                                      environment))  # fmt: skip
                served[-1].start()
            else:
                # A block that trains names its run, which the next line publishes.
                first, _, rest = code.partition("zoo publish")
                _bash(first, tmp_path, environment)
                if rest:
                    run = sorted((tmp_path / "runs").glob("wsi_mil-*"))[-1].name
                    _bash(f"zoo publish{rest}".replace("$RUN", run), tmp_path, environment)
    finally:
        for process in served:
            process.stop()
    scored = pd.read_csv(tmp_path / "scored.csv")
    assert len(scored) == 2
    place = MlflowClient(shop.uri)
    assert str(place.get_model_version_by_alias("zoo-wsi_mil", "champion").version) == "1"


def run_elsewhere_in(python: Path, code: str, folder: Path) -> str:
    return run_elsewhere(python, f"import os; os.chdir({str(folder)!r})\n{code}")


def _bash(code: str, folder: Path, environment: Mapping[str, str]) -> None:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
    done = subprocess.run(
        ["bash", "-ec", code], cwd=folder, env=kept | dict(environment), capture_output=True,
        text=True, check=False, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, f"{code}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
