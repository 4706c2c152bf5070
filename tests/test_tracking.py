"""What MLflow gets of a run, what it never gets, and what happens when it is away."""

from __future__ import annotations

import json
import re
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from tests.running import good, histories, only_run, run_zoo, series, values
from zoo import checkpoint, tracking
from zoo.config import resolve
from zoo.privacy import scrubbed, without_credentials
from zoo.runs import Run
from zoo.tracking import Metrics

AWAY = "http://127.0.0.1:9"
SECRET = "hunter2"


@pytest.fixture(autouse=True)
def _impatient(stubs: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is away is given up at once."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")


def _uri(out: Path) -> str:
    return f"sqlite:///{out / 'mlflow.db'}"


def _texts(folder: Path) -> str:
    """Everything readable below a folder."""
    return "".join(
        p.read_bytes().decode(errors="replace") for p in folder.rglob("*") if p.is_file()
    )


# -- a run in MLflow ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Run:
    from tests.running import STUBS

    out = tmp_path_factory.mktemp("recorded")
    (out / "mlflow.db").write_bytes(empty_store.read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZOO_REGISTRY", str(STUBS))
        good(
            "train", "task=stub_bags", "preset=sample", f"out={out}", "tracking.tags.site=north",
            "tracking.name=first", "tracking.experiment=bags", "tracking.checkpoints=true",
        )  # fmt: skip
    return only_run(out)


def test_params_are_the_flat_configuration(recorded: Run) -> None:
    found = MlflowClient(_uri(recorded.path.parent)).get_run(recorded.mlflow_id)
    flat = resolve([], recorded.config()).config.flat()
    assert found.data.params == {k: str(v) for k, v in flat.items()}
    assert found.data.params["optim.lr"] == "0.05"


def test_every_metric_of_every_step_is_there_once(recorded: Run) -> None:
    known = histories(_uri(recorded.path.parent), str(recorded.mlflow_id))
    assert known == {k: {v} for k, v in values(recorded, timed=True).items()}
    epochs = [step for name, step in sorted(known) if name == "val/loss"]
    assert len(epochs) == 3
    assert ("test/accuracy", recorded.info["steps"]) in known


def test_data_inputs_have_digest_and_context(recorded: Run) -> None:
    found = MlflowClient(_uri(recorded.path.parent)).get_run(recorded.mlflow_id)
    shown = {
        i.dataset.name: (i.dataset.digest, i.tags[0].value) for i in found.inputs.dataset_inputs
    }
    assert shown == {d["name"]: (d["digest"], d["context"]) for d in recorded.info["inputs"]}
    assert {c for _, c in shown.values()} == {"training", "validation", "evaluation"}


def test_tags_status_name_and_artifacts(recorded: Run) -> None:
    client = MlflowClient(_uri(recorded.path.parent))
    found = client.get_run(recorded.mlflow_id)
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "first"
    assert client.get_experiment(found.info.experiment_id).name == "bags"
    tags = found.data.tags
    expected = {"zoo.task": "stub_bags", "zoo.preset": "sample", "zoo.sample_data": "true"}
    assert expected.items() <= tags.items()
    assert tags["zoo.run"] == recorded.name
    assert tags["site"] == "north"
    assert "zoo.version.torch" in tags
    top = {a.path for a in client.list_artifacts(recorded.mlflow_id)}
    assert {"config.yaml", "report.html", "metrics.jsonl", "figures", "checkpoints"} <= top
    figures = [a.path for a in client.list_artifacts(recorded.mlflow_id, "figures")]
    assert figures == ["figures/test_probabilities.png"]
    best = checkpoint.marked(recorded.checkpoints)["best"]
    files = {a.path for a in client.list_artifacts(recorded.mlflow_id, f"checkpoints/{best}")}
    assert f"checkpoints/{best}/model.safetensors" in files


def test_a_run_is_found_by_its_mlflow_id(recorded: Run) -> None:
    shown = good("runs", "--out", recorded.path.parent, "--json").out
    assert json.loads(shown)[0]["mlflow"] == recorded.mlflow_id
    out = recorded.path.parent
    good("eval", f"weights={recorded.mlflow_id}", f"out={out}", f"predict.out={out / 'e'}")


def test_syncing_again_changes_nothing(recorded: Run) -> None:
    out = recorded.path.parent
    before = histories(_uri(out), str(recorded.mlflow_id))
    assert "is complete in MLflow" in good("runs", "sync", recorded.name, "--out", out).out
    assert histories(_uri(out), str(recorded.mlflow_id)) == before
    assert len(MlflowClient(_uri(out)).search_runs(["1"])) == 1


def test_a_run_tracked_in_one_store_can_be_replayed_into_another(
    recorded: Run, tmp_path: Path, empty_store: Path
) -> None:
    (tmp_path / "mlflow.db").write_bytes(empty_store.read_bytes())
    own = (recorded.path / "tracking.json").read_bytes()
    words = ["runs", "sync", recorded.name, "--out", recorded.path.parent]
    good(*words, "--uri", _uri(tmp_path))
    try:
        there = str(recorded.mlflow_id)
        expected = {k: {v} for k, v in values(recorded, timed=True).items()}
        assert histories(_uri(tmp_path), there) == expected
        assert MlflowClient(_uri(tmp_path)).get_run(there).info.status == "FINISHED"
    finally:
        (recorded.path / "tracking.json").write_bytes(own)


# -- a store that is away -----------------------------------------------------------------------


def test_a_server_that_is_away_stops_nothing_and_sync_replays_it_all(
    tracked: Path,
) -> None:
    shown = good("train", "task=stub_bags", "preset=sample", f"out={tracked}",
                 f"tracking.uri={AWAY}")  # fmt: skip
    run = only_run(tracked)
    assert run.status == "finished"
    assert run.mlflow_id in (None, "None")
    assert "warning: not all was tracked" in shown.out
    assert f"zoo runs sync {run.name}" in shown.out
    still = run_zoo("runs", "sync", run.name, "--out", tracked)
    assert still.code == 1
    assert "try `zoo runs sync` later" in still.err
    good("runs", "sync", run.name, "--out", tracked, "--uri", _uri(tracked))
    run = only_run(tracked)
    known = histories(_uri(tracked), str(run.mlflow_id))
    assert known == {k: {v} for k, v in values(run, timed=True).items()}
    found = MlflowClient(_uri(tracked)).get_run(run.mlflow_id)
    assert found.info.status == "FINISHED"
    assert len(found.inputs.dataset_inputs) == 3


def test_a_store_that_fails_now_and_then_gets_every_value_once(
    tracked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner, calls = MlflowClient.log_batch, []

    def shaky(self: MlflowClient, *args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) % 2:
            msg = "the server is restarting"
            raise ConnectionError(msg)
        result = inner(self, *args, **options)
        if len(calls) % 4 == 0:  # it took the values and the answer got lost
            msg = "broken pipe"
            raise ConnectionError(msg)
        return result

    monkeypatch.setattr(MlflowClient, "log_batch", shaky)
    monkeypatch.setattr(tracking, "_RETRY_SECONDS", 0.01)
    good("train", "task=stub_bags", "preset=sample", f"out={tracked}")
    monkeypatch.setattr(MlflowClient, "log_batch", inner)
    run = only_run(tracked)
    good("runs", "sync", run.name, "--out", tracked)
    known = histories(_uri(tracked), str(run.mlflow_id))
    assert known == {k: {v} for k, v in values(run, timed=True).items()}
    assert len(MlflowClient(_uri(tracked)).search_runs(["1"])) == 1


def test_more_metrics_than_one_request_takes(
    tracked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good("train", "task=stub_bags", "preset=sample", f"out={tracked}", "tracking.enabled=false")
    run = only_run(tracked)
    metrics = Metrics(run)
    metrics.log(99, {f"test/class_{i}": float(i) for i in range(2500)})
    metrics.close()
    sizes: list[int] = []
    inner = MlflowClient.log_batch

    def watched(self: MlflowClient, run_id: str, metrics: Any = (), **options: Any) -> Any:
        sizes.append(len(metrics))
        return inner(self, run_id, metrics=metrics, **options)

    monkeypatch.setattr(MlflowClient, "log_batch", watched)
    good("runs", "sync", run.name, "--out", tracked, "--uri", _uri(tracked))
    assert max(sizes) <= 1000
    found = MlflowClient(_uri(tracked)).get_run(str(run.mlflow_id)).data.metrics
    assert sum(1 for name in found if name.startswith("test/class_")) == 2500


# -- credentials --------------------------------------------------------------------------------


class _Refuses(BaseHTTPRequestHandler):
    """A tracking server that wants other credentials."""

    def do_GET(self) -> None:
        self.send_response(401)
        self.end_headers()

    do_POST = do_GET

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def refusing() -> Any:
    server = HTTPServer(("127.0.0.1", 0), _Refuses)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("away", [True, False], ids=["away", "refusing"])
def test_credentials_in_the_address_are_nowhere(tracked: Path, refusing: str, away: bool) -> None:
    host = "127.0.0.1:9" if away else refusing
    uri = f"http://someone:{SECRET}@{host}/ml?token={SECRET}"
    shown = good("train", "task=stub_bags", "trainer.max_steps=1", f"out={tracked}",
                 f"tracking.uri={uri}", "tracking.checkpoints=true")  # fmt: skip
    run = only_run(tracked)
    assert "not all was tracked" in shown.out
    failed = run_zoo("runs", "sync", run.name, "--out", tracked, "--uri", uri)
    assert failed.code == 1
    assert SECRET not in shown.out + shown.err + failed.out + failed.err
    good("runs", "sync", run.name, "--out", tracked, "--uri", _uri(tracked))
    assert SECRET not in _texts(tracked)  # configuration, report, checkpoints, database
    assert host in (run.path / "config.yaml").read_text()


def test_credentials_are_taken_out_of_addresses_and_messages() -> None:
    assert without_credentials("https://u:p@h:5000/x?a=1&api_key=k") == (
        "https://h:5000/x?a=1&api_key=***"
    )
    assert without_credentials("git@host:group/repo") == "host:group/repo"
    assert without_credentials("sqlite:////data/mlflow.db") == "sqlite:////data/mlflow.db"
    text = "request to http://u:p@h/a?token=t failed (https://u2:p2@h2), see 'http://h3/x'"
    clean = scrubbed(text)
    assert not re.search(r"u:p|u2|=t\b", clean)
    assert "request to http://h/a?token=*** failed" in clean
    assert "'http://h3/x'" in clean


# -- metrics.jsonl ------------------------------------------------------------------------------


@pytest.fixture
def bare(tmp_path: Path) -> Run:
    (tmp_path / "run.json").write_text('{"status": "running"}')
    return Run(tmp_path)


def test_a_name_and_step_keep_their_first_value(bare: Run) -> None:
    metrics = Metrics(bare)
    metrics.log(1, {"train/loss": 0.5, "train/lr": 0.1})
    metrics.log(1, {"train/loss": 0.7})
    metrics.close()
    again = Metrics(bare)
    again.log(1, {"train/loss": 0.9, "val/auc": 0.6})
    again.log(2, {"train/loss": 0.4})
    again.close()
    assert values(bare) == {
        ("train/loss", 1): 0.5, ("train/lr", 1): 0.1, ("val/auc", 1): 0.6, ("train/loss", 2): 0.4,
    }  # fmt: skip
    assert len(bare.metrics()) == 3


def test_numbers_that_are_none_stay_valid_json(bare: Run) -> None:
    metrics = Metrics(bare)
    metrics.log(1, {"a": float("nan"), "b": float("inf"), "c": 1})
    metrics.close()
    text = bare.metrics_file.read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    assert values(bare) == {("a", 1): None, ("b", 1): None, ("c", 1): 1.0}


def test_a_torn_last_line_is_left_out_and_mended(bare: Run) -> None:
    metrics = Metrics(bare)
    metrics.log(1, {"a": 1.0})
    metrics.close()
    with bare.metrics_file.open("a") as file:
        file.write('{"step": 2, "time": 1, "valu')
    assert len(bare.metrics()) == 1
    again = Metrics(bare)
    again.log(2, {"a": 2.0})
    again.close()
    assert series(bare, "a") == [1.0, 2.0]
    assert all(json.loads(line) for line in bare.metrics_file.read_text().splitlines())


# -- where it goes ------------------------------------------------------------------------------


def test_the_store_is_the_setting_then_the_environment_then_the_workspace(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = resolve(["task=stub_bags", f"out={out}"]).config
    named = resolve(["task=stub_bags", f"out={out}", "tracking.uri=http://h"]).config
    assert tracking.uri_for(plain, out) == f"sqlite:///{out / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://env")
    assert tracking.uri_for(plain, out) == "http://env"
    assert tracking.uri_for(named, out) == "http://h"


def test_sqlite_on_a_network_file_system_is_warned_about(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import psutil

    class Part:
        mountpoint, fstype = str(tmp_path), "nfs4"

    assert tracking.network_warning(f"sqlite:///{tmp_path}/mlflow.db") == ""
    assert tracking.network_warning("http://server") == ""
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: [Part])
    assert "network file system (nfs4)" in tracking.network_warning(f"sqlite:///{tmp_path}/m.db")


def test_the_default_training_opens_no_socket(
    tracked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Any] = []

    def refuse(*args: Any, **_: Any) -> Any:
        opened.append(args)
        msg = "a socket was opened"
        raise OSError(msg)

    for owner, name in (
        (socket.socket, "connect"), (socket.socket, "connect_ex"), (socket.socket, "sendto"),
        (socket, "create_connection"), (socket, "getaddrinfo"), (socket, "gethostbyname"),
    ):  # fmt: skip
        monkeypatch.setattr(owner, name, refuse)
    good("train", "task=wsi_mil", "trainer.epochs=1", f"out={tracked}")
    assert opened == []
    run = only_run(tracked)
    found = MlflowClient(_uri(tracked)).get_run(str(run.mlflow_id))
    assert found.info.status == "FINISHED"
    assert "test/auc" in found.data.metrics
    assert sorted(p.name for p in tracked.iterdir()) == ["artifacts", "mlflow.db", run.name]


def test_a_deleted_experiment_is_named(tracked: Path) -> None:
    client = MlflowClient(_uri(tracked))
    client.delete_experiment(client.create_experiment("gone"))
    shown = good("train", "task=stub_bags", "trainer.max_steps=1", f"out={tracked}",
                 "tracking.experiment=gone")  # fmt: skip
    assert "MLflow experiment 'gone' is deleted" in shown.out
