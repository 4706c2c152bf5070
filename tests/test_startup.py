"""What a start costs: imports that nobody asked for, and where the seconds went."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.running import good, only_run, values
from zoo.fabric import versions_alone
from zoo.startup import Startup

HEAVY = ("torchmetrics", "torchvision", "mlflow", "monai", "sklearn", "timm", "matplotlib.pyplot")


def test_the_engine_imports_nothing_that_only_some_tasks_need() -> None:
    code = f"import sys, zoo.training; print([n for n in {HEAVY} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_stand_in_has_the_version_and_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    import yaml

    real = yaml.__version__
    monkeypatch.delitem(sys.modules, "yaml")
    monkeypatch.setattr("zoo.fabric.metadata.version", lambda name: real)
    with versions_alone("yaml"):
        stand_in = sys.modules["yaml"]
        assert stand_in.__version__ == real
        assert not hasattr(stand_in, "safe_load")
    assert "yaml" not in sys.modules


def test_what_is_imported_or_missing_is_left_as_it_is() -> None:
    before = sys.modules["pytest"]
    with versions_alone("pytest"), versions_alone("no_such_package"):
        assert sys.modules["pytest"] is before
        assert "no_such_package" not in sys.modules


def test_phases_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 11.5, 11.5, 13.0])
    monkeypatch.setattr("zoo.startup._used", True)
    monkeypatch.setattr("zoo.startup.time.time", lambda: next(clock))
    startup = Startup()
    for phase in ("imports", "data", "imports"):
        startup.mark(phase)
    assert startup.seconds == {"imports": 3.0, "data": 0.0}
    assert startup.line() == "first step after 3.0 s (imports 3.0, data 0.0)"


def test_a_training_tells_and_records_its_start(stubs: None, out: Path) -> None:
    told = good(
        "train", "task=stub_bags", "trainer.max_steps=1", f"out={out}", "tracking.enabled=false"
    )
    assert "first step after" in told.out
    recorded = {name for name, _ in values(only_run(out), timed=True)}
    phases = ("imports", "data", "model", "tracking", "step")
    assert {f"time/start_{phase}" for phase in phases} <= recorded
