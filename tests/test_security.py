"""What must never happen: code from data, files from elsewhere, secrets or names that leak."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.running import good, only_run, run_zoo
from zoo import checkpoint, files, runs, tracking
from zoo import errors as kinds
from zoo.cli import main as program
from zoo.config import resolve
from zoo.errors import DataError, TrackingError, ZooError
from zoo.privacy import scrubbed, without_credentials
from zoo.runs import Run

ROOT = Path(__file__).resolve().parents[1]
SECRET = "hunter2"
TOKEN = "ghp_" + "hunter2" * 4
BAGS = ["task=stub_bags", "preset=sample", "trainer.max_steps=1"]


def _texts(*places: Path) -> str:
    """Everything below folders and in files, as text."""
    paths = [p for place in places for p in (place.rglob("*") if place.is_dir() else [place])]
    return "".join(p.read_bytes().decode(errors="replace") for p in paths if p.is_file())


# -- secrets ------------------------------------------------------------------------------------

ADDRESSES = [
    f"https://user:{SECRET}@host/x",
    f"https://{TOKEN}@host/x.git",
    f"https://oauth2:{TOKEN}@host:8443/x.git",
    f"postgresql://user:{SECRET}@host:5432/mlflow",
    f"postgresql+psycopg2://user:{SECRET}/with@slash@host/mlflow?sslmode=require",
    f"mysql://user:a/{SECRET}@host/db",
    f"http://user:{SECRET}/x@host:5000",
    f"http://user:{SECRET}?x@host:5000",
    f"https://host/x?private_token={SECRET}&page=2",
    f"https://host/x?page=2&X-Amz-Signature={SECRET}#part",
    f"https://host/x?sv=1&sig={SECRET}",
    f"https://host/{TOKEN}/x",
    f"{SECRET}@host:group/repo",
    f"ssh://{SECRET}@host/repo",
    f"sqlite:////data/mlflow.db?password={SECRET}",
]


@pytest.mark.parametrize("address", ADDRESSES)
def test_no_address_keeps_a_secret(address: str) -> None:
    assert SECRET not in without_credentials(address)
    assert "host" in without_credentials(address) or address.startswith("sqlite")
    if "://" in address:
        sentence = f"Max retries with url: {address} (caused by …); see '{address}'"
        assert SECRET not in scrubbed(sentence)
        assert sentence.partition(":")[0] in scrubbed(sentence)


@pytest.mark.parametrize(
    "harmless",
    [
        "https://host:8080/a/b?page=2&sort=up",
        "sqlite:////data/at@home/mlflow.db",
        "file:///data/at@home/mlflow.db",
        "models:/zoo-wsi_mil@champion",
        "https://host:5000/path@v1",
        "epoch 1: hf_hub_download_something and keys=3",
        "host:group/repo",
    ],
)
def test_what_is_no_secret_stays(harmless: str) -> None:
    assert scrubbed(harmless) == harmless
    if "://" in harmless or (" " not in harmless and "@" not in harmless):
        assert without_credentials(harmless) == harmless


def test_headers_and_tokens_known_by_their_form_are_taken_out() -> None:
    text = f"401 for Authorization: Bearer {SECRET}{SECRET} with {TOKEN}"
    assert SECRET not in scrubbed(text)


@pytest.mark.parametrize(
    "words",
    [
        [f"tracking.uri=ftp://user:{SECRET}@host"],
        [f"tracking.uri=[http://user:{SECRET}@host"],
        [f"tracking.url=http://user:{SECRET}@host"],
        [f"http://user:{SECRET}@host"],
        [f"seed=http://user:{SECRET}@host/x?token={SECRET}"],
        [f"weights=https://user:{SECRET}@host/x.pth"],
        [f"resume=https://user:{SECRET}@host/x"],
        [f"data.root=https://user:{SECRET}@host/x"],
        ["config=settings.yaml"],
    ],
    ids=lambda w: w[0].partition("=")[0],
)
def test_error_lines_hold_no_secret(
    stubs: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "settings.yaml").write_text(f"tracking: {{uri: http://user:{SECRET}@host, x\n")
    result = run_zoo("train", *BAGS, *words)
    assert result.code == 2
    assert result.err.startswith("error: ")
    assert SECRET not in result.out + result.err
    assert not (tmp_path / "runs").exists()
    with pytest.raises(ZooError) as caught:  # who uses the library sees the exception itself
        resolve([*BAGS, *words]) if words[0][:6] in ("tracki", "seed=h") else _begun(words)
    assert SECRET not in scrubbed(str(caught.value))


def _begun(words: list[str]) -> None:
    from zoo.progress import Reporter
    from zoo.training import begin, train

    train(begin([*BAGS, *words]), Reporter(quiet=True))


def test_a_traceback_on_demand_holds_no_secret(
    stubs: None, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    good("train", *BAGS, f"out={out}", "tracking.enabled=false")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    uri = f"http://user:{SECRET}@127.0.0.1:9/ml?token={SECRET}"
    words = ["zoo", "--debug", "runs", "sync", only_run(out).name, "--out", str(out), "--uri", uri]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as caught:
        program.run()
    assert caught.value.code == TrackingError.exit_code
    shown = capsys.readouterr()
    assert "Traceback (most recent call last)" in shown.err
    assert "TrackingError" in shown.err
    assert "127.0.0.1" in shown.err
    assert SECRET not in shown.err + shown.out


def test_what_libraries_log_holds_no_secret(capsys: Any) -> None:
    tracking._quieten()
    handler = logging.StreamHandler(sys.stderr)
    logger = logging.getLogger("mlflow")
    logger.addHandler(handler)
    try:
        tracking._quieten()
        logger = logging.getLogger("mlflow.tracking")
        try:
            msg = f"no answer from http://user:{SECRET}@host"
            raise OSError(errno.EPIPE, msg)
        except OSError:
            logger.warning("Failed at %s", f"http://user:{SECRET}@host", exc_info=True)
    finally:
        logging.getLogger("mlflow").removeHandler(handler)
    shown = capsys.readouterr().err
    assert "Failed at http://host" in shown
    assert "OSError" in shown
    assert SECRET not in shown


REMOTES = [
    f"https://user:{SECRET}@host/x.git",
    f"https://{TOKEN}@host/x.git",
    f"https://host/x.git?private_token={SECRET}",
    f"{SECRET}@host:x.git",
]


@pytest.mark.parametrize("remote", REMOTES)
def test_a_git_remote_is_read_without_its_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, remote: str
) -> None:
    """A real repository with a real remote, around a copy of the file that asks git."""
    package = tmp_path / "zoo"
    package.mkdir()
    for words in (["init", "-q"], ["remote", "add", "origin", remote]):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True, capture_output=True)
    monkeypatch.setattr(runs, "__file__", str(package / "runs.py"))
    git = runs.environment()["git"]
    assert git["remote"].endswith(("host/x.git", "host:x.git", "private_token=***"))
    assert SECRET not in json.dumps(git)


def test_no_secret_is_stored_or_shown_by_a_tracked_training(
    stubs: None, tracked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run folder, report, checkpoints, MLflow's database and artifacts, and what is printed."""
    inner = runs._git

    def git(*words: str) -> str:
        return REMOTES[0] if words[:1] == ("remote",) else inner(*words) or "abc"

    monkeypatch.setattr(runs, "_git", lambda *w: str(ROOT) if w[0] == "rev-parse" and
                        w[1] == "--show-toplevel" else git(*w))  # fmt: skip
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", SECRET)
    uri = f"sqlite:///{tracked / 'mlflow.db'}?timeout=5&password={SECRET}"
    monkeypatch.setattr(tracking, "uri_for", lambda config, out: uri.partition("?")[0])
    monkeypatch.setattr("zoo.training.uri_for", lambda config, out: uri.partition("?")[0])
    shown = good("train", *BAGS, f"out={tracked}", f"tracking.uri={uri}",
                 "tracking.checkpoints=true")  # fmt: skip
    run = only_run(tracked)
    assert run.mlflow_id is not None
    assert run.info["environment"]["git"]["remote"] == "https://host/x.git"
    found = _texts(tracked)
    assert "https://host/x.git" in found  # it was there to be seen
    assert SECRET not in found
    assert SECRET not in shown.out + shown.err


# -- code in data -------------------------------------------------------------------------------


class _Evil:
    """Makes a folder when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (os.environ["EVIL"],)


def test_a_pickle_planted_in_a_run_is_not_run_by_a_resume(
    stubs: None, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVIL", str(tmp_path / "evil"))
    good("train", *BAGS, f"out={out}", "tracking.enabled=false")
    run = only_run(out)
    run.update(status="interrupted")
    for path in run.checkpoints.glob("step-*"):
        torch.save({"x": _Evil()}, path / "state.pt")
        meta = json.loads((path / "meta.json").read_text())
        meta["sha256"]["state.pt"] = files.sha256(path / "state.pt")
        (path / "meta.json").write_text(json.dumps(meta))
        assert checkpoint.load(path, weights_only=True).model
    shown = good("train", f"resume={run.path}")
    assert "state" in shown.out or "cannot be read" in shown.out
    assert "it starts from the beginning" in shown.out
    assert not (tmp_path / "evil").exists()


def test_yaml_builds_no_objects(
    stubs: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evil = tmp_path / "evil"
    text = f"!!python/object/apply:os.mkdir ['{evil}']"
    (tmp_path / "c.yaml").write_text(f"task: stub_bags\nseed: {text}\n")
    for words in ([*BAGS, f"seed={text}"], [f"config={tmp_path / 'c.yaml'}"]):
        result = run_zoo("train", *words)
        assert result.code == 2
        assert "is not valid YAML" in result.err
    registry = tmp_path / "registry.yaml"
    registry.write_text(f"format: 1\ntasks: {text}\n")
    monkeypatch.setenv("ZOO_REGISTRY", str(registry))
    assert run_zoo("list").code == 2
    assert not evil.exists()


def test_a_damaged_run_yaml_builds_no_objects(stubs: None, out: Path, tmp_path: Path) -> None:
    good("train", *BAGS, f"out={out}", "tracking.enabled=false")
    run = only_run(out)
    (run.path / "config.yaml").write_text(f"!!python/object/apply:os.mkdir ['{tmp_path / 'e'}']")
    result = run_zoo("train", f"resume={run.path}")
    assert result.code == 2
    assert "config.yaml: cannot be read" in result.err
    assert not (tmp_path / "e").exists()


_LAUGHS = (
    '<?xml version="1.0"?><!DOCTYPE l [<!ENTITY a "ha"><!ENTITY b "'
    + "&a;" * 10
    + '">]><ASAP_Annotations>&b;</ASAP_Annotations>'
)
_OUTSIDE = (
    '<?xml version="1.0"?><!DOCTYPE l [<!ENTITY a SYSTEM "file://{}">]>'
    "<ASAP_Annotations>&a;</ASAP_Annotations>"
)


@pytest.mark.parametrize("body", [_LAUGHS, _OUTSIDE], ids=["bomb", "outside"])
def test_xml_expands_nothing(tmp_path: Path, body: str) -> None:
    pytest.importorskip("defusedxml")
    from zoo.domains.medical.wsi_mil.annotations import read_annotation
    from zoo.domains.remote_sensing.crop_yield.counties import parse_outline

    secret = tmp_path / "secret"
    secret.write_text(SECRET)
    text = body.replace("{}", str(secret))
    path = tmp_path / "slide.xml"
    path.write_text(text)
    for read in (lambda: read_annotation(path), lambda: parse_outline(text, "row 1")):
        with pytest.raises(DataError) as caught:
            read()
        assert "Entit" in str(caught.value)
        assert SECRET not in str(caught.value)


def test_no_reader_that_runs_or_expands_is_imported() -> None:
    """xml, marshal, shelve and friends are not there; of pickle, the names of its errors alone."""
    # Escaping text for a file we write (saxutils) reads nothing.
    bad = re.compile(
        r"^\s*(?:import|from) (?:marshal|shelve|dill|cloudpickle|joblib|xmlrpc|code|lxml"
        r"|xml(?!\.sax\.saxutils))\b",
        re.MULTILINE,
    )
    paths = list((ROOT / "zoo").rglob("*.py"))
    assert len(paths) > 100
    assert bad.search("    import xml.etree.ElementTree")
    assert bad.search("from shelve import open")
    for path in paths:
        text = path.read_text(encoding="utf-8")
        assert not bad.search(text), path
        used = set(re.findall(r"\bpickle\.(\w+)", text))
        assert all(name.endswith("Error") for name in used), f"{path}: {used}"


# -- what others read ---------------------------------------------------------------------------


def test_a_report_escapes_names_of_the_user(stubs: None, tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    data = tmp_path / "a<img src=x onerror=alert(1)>"
    good("data", "sample", "task=stub_bags", f"out={data}")
    good("train", *BAGS, f"data.root={data}", f"out={tmp_path / 'runs'}",
         "tracking.enabled=false", f"tracking.name='{evil}'",
         f"tracking.tags.site='{evil}'")  # fmt: skip
    page = (only_run(tmp_path / "runs").path / "report.html").read_text()
    assert "alert(1)" in page
    assert "<script" not in page
    assert not re.search(r"""<[^>]*\b(?:src|href)=(?!"data:)""", page)


def test_names_of_patients_of_segmentation_stay_in_the_run_folder(tracked: Path) -> None:
    from tests.domains.her_seg.fakes import write_folders

    root = write_folders(tracked.parent / "set")
    private = re.compile(rb"JANE|DOE_")
    renamed: dict[str, str] = {}
    for path in sorted(p for p in root.rglob("*") if p.is_file() and p.suffix != ".json"):
        stem = re.sub(r"^(?=\w)", "JANE_DOE_", path.name)
        renamed[path.stem] = Path(stem).stem
        path.rename(path.with_name(stem))
    for listing in root.rglob("*.json"):
        text = listing.read_text()
        for old, new in sorted(renamed.items(), key=lambda kv: -len(kv[0])):
            text = re.sub(rf'"{re.escape(old)}(\.\w+)?"', rf'"{new}\1"', text)
        listing.write_text(text)
    words = ["task=her_seg", "preset=sample", "model.image_size=48", "model.dim=24",
             "model.decoder_dim=32", "model.decoder_mlp=16", "model.depths=[1,1,1,1]",
             "trainer.max_steps=1", f"data.root={root}", f"out={tracked}"]  # fmt: skip
    said = good("train", *words)
    run = only_run(tracked)
    assert private.search(_texts(run.path / "predictions").encode())  # the user's own files
    page = (run.path / "report.html").read_bytes()
    assert b"Not for diagnosis" in page
    sent = [p for p in (tracked / "artifacts").rglob("*") if p.is_file()]
    assert {"report.html", "config.yaml", "metrics.jsonl"} <= {p.name for p in sent}
    for path in [*sent, tracked / "mlflow.db", run.path / "run.json", run.metrics_file]:
        assert not private.search(path.read_bytes()), path
    assert not private.search((said.out + said.err).encode())


# -- kinds of errors ----------------------------------------------------------------------------


def test_every_error_is_a_builtin_too_and_has_its_exit_code() -> None:
    children = {
        "ConfigError": (ValueError, 2),
        "DataError": (ValueError, 2),
        "WeightsError": (ValueError, 2),
        "TrackingError": (RuntimeError, 1),
        "ResumeError": (RuntimeError, 2),
        "TrainingError": (ArithmeticError, 1),
    }
    for name, (builtin, code) in children.items():
        kind = getattr(kinds, name)
        assert issubclass(kind, ZooError)
        assert issubclass(kind, builtin)
        assert kind("x").exit_code == code
    found = {k.__name__ for k in ZooError.__subclasses__() if k.__module__ == kinds.__name__}
    assert found == set(children)


def test_outputs_appear_whole_or_not_at_all(
    stubs: None, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a run writes goes through a temporary name: no final name is opened for writing."""
    opened: list[str] = []

    def audit(event: str, given: tuple[Any, ...]) -> None:
        if event == "open" and _listening and isinstance(given[0], (str, Path)):
            mode, flags = given[1], given[2]
            writes = isinstance(mode, str) and any(c in mode for c in "wx+")
            if writes or (mode is None and flags & (os.O_WRONLY | os.O_RDWR)):
                opened.append(str(given[0]))

    _listening = True
    sys.addaudithook(audit)
    good("train", *BAGS, f"out={out}", "tracking.enabled=false")
    _listening = False
    run = only_run(out)
    inside = [Path(p).relative_to(run.path) for p in opened if p.startswith(f"{run.path}/")]
    assert len(inside) > 5
    final = [
        p for p in inside if not any(part.startswith(".") for part in p.parts)
    ]  # .writing-…, .name-xxxxxxxx, .lock
    assert final == []
    assert Run(run.path).status == "finished"
