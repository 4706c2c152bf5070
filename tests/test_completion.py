"""Completion, as words and in a real bash, which breaks words at '='."""

import os
import re
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import zoo
from zoo.cli.complete import candidates

BASH = shutil.which("bash")
TIMEOUT = 30.0
BUILT = [f"task={name}" for name, entry in sorted(zoo.tasks().items()) if entry.built]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("zoo tr", ["train"]),
        ("zoo data ", ["check", "prepare", "sample"]),
        ("zoo info ws", ["wsi_mil"]),
        ("zoo train ta", BUILT),
        ("zoo train task=ws", ["task=wsi_mil"]),
        ("zoo train task=wsi_mil optim.lr_", ["optim.lr_min="]),
        ("zoo train task=wsi_mil optim.lr=1 optim.lr", ["optim.lr_min="]),
        ("zoo train task=acmil preset=a", ["preset=abmil"]),
        ("zoo train task=wsi_mil data.standardise=", None),
        ("zoo train task=wsi_mil data.standardise=t", ["data.standardise=true"]),
        ("zoo cv task=wsi_mil model.arch=acmil_g", ["model.arch=acmil_ga"]),
        ("zoo data check task=wsi_mil data.ro", ["data.root="]),
        ("zoo data sample o", ["out="]),
        ("zoo train task=nothing optim.", []),
        ("zoo train 'task=ws", []),
        ("zoo no_such_command ", []),
        ("zoo train task=wsi_mil tracking.ta", ["tracking.tags."]),
        ("zoo export form", ["format="]),
        ("zoo export format=o", ["format=onnx"]),
        ("zoo export format=onnx part=", ["part=network", "part=served"]),
        ("zoo export format=onnx p", ["part="]),
        ("zoo predict in", ["input="]),
        ("zoo eval weights=medusa/c", ["weights=medusa/covidnet_cxr3"]),
        ("zoo weights convert task=medusa fr", ["from="]),
        ("zoo pull backbone/resnet50_", ["backbone/resnet50_v2"]),
        ("zoo models history med", ["medusa"]),
        ("zoo serve med", ["medusa"]),
        ("zoo bench query", ["query_pool"]),
    ],
)
def test_candidates(line: str, expected: list[str] | None) -> None:
    if expected is None:
        expected = ["data.standardise=false", "data.standardise=true"]
    assert candidates(line) == expected


def test_every_command_is_offered() -> None:
    offered = set(candidates("zoo "))
    assert {"list", "info", "config", "doctor", "data", "train", "cv", "eval"} <= offered
    assert {"predict", "runs", "compare", "completion", "export", "publish"} <= offered
    assert "complete-line" not in offered


def test_every_key_of_a_task_is_offered() -> None:
    offered = candidates("zoo train task=wsi_mil ")
    assert {"seed=", "optim.lr=", "data.root=", "data.merge.", "trainer.epochs="} <= set(offered)
    assert "task=" not in offered


def test_runs_of_the_workspace_are_offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = "stub-20260101-000000-abcdef"
    folder = tmp_path / "runs" / name
    folder.mkdir(parents=True)
    (folder / "run.json").write_text('{"task": "stub", "status": "finished"}')
    for line in ("zoo publish s", "zoo export stub", "zoo compare stub", "zoo runs sync stub"):
        assert candidates(line) == [name], line
    assert candidates("zoo predict weights=stub") == [f"weights={name}"]


class Shell:
    """An interactive bash on a terminal of its own."""

    def __init__(self, home: Path) -> None:
        import pty

        self.master, slave = pty.openpty()
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.process = subprocess.Popen(
            [str(BASH), "--norc", "--noprofile", "-i"],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=home,
            start_new_session=True,
            env={
                "PATH": path,
                "HOME": str(home),
                "TERM": "dumb",
                "PS1": "",
                "INPUTRC": "/dev/null",
            },
        )
        os.close(slave)
        self.count = 0
        os.write(self.master, b'eval "$(zoo completion)"; bind "set bell-style none"; echo O""K\n')
        self.read_to("OK", "\r\n")

    def read_to(self, begin: str, end: str) -> str:
        """What comes between two marks."""
        text, latest = "", time.monotonic() + TIMEOUT
        while not (found := re.search(f"{re.escape(begin)}(.*?){re.escape(end)}", text, re.DOTALL)):
            ready, _, _ = select.select([self.master], [], [], max(0, latest - time.monotonic()))
            assert ready, f"bash said only: {text!r}"
            text += os.read(self.master, 65536).decode()
        return found[1]

    def completed(self, typed: str, back: int = 0) -> str:
        """The line after TAB was pressed behind `typed`, the cursor `back` characters earlier."""
        self.count += 1
        keys = typed + "\x1b[D" * back + "\t"
        # Home, `echo "<`, end, `>"`: bash itself prints the line as it stands now.
        keys += f'\x01echo "END{self.count}"-"<\x05>"\n'
        os.write(self.master, keys.encode())
        # What the terminal echoes still has the quotes in it.
        return self.read_to(f"END{self.count}-<", ">\r\n")

    def close(self) -> None:
        os.close(self.master)
        self.process.kill()
        self.process.wait()


@pytest.mark.skipif(BASH is None or os.name != "posix", reason="there is no bash here")
def test_completion_in_a_real_bash(tmp_path: Path) -> None:
    (tmp_path / "my_bags").mkdir()
    shell = Shell(tmp_path)
    try:
        for typed, expected in (
            ("zoo trai", "zoo train "),
            ("zoo train ta", "zoo train task="),
            ("zoo train task=ws", "zoo train task=wsi_mil "),
            ("zoo train task=wsi_mil optim.lr_", "zoo train task=wsi_mil optim.lr_min="),
            ("zoo train task=wsi_mil model.arch=acmil_m", None),
            ("zoo train task=wsi_mil data.root=my", "zoo train task=wsi_mil data.root=my_bags/"),
            ("zoo data sam", "zoo data sample "),
        ):
            wanted = expected or "zoo train task=wsi_mil model.arch=acmil_mha "
            assert shell.completed(typed) == wanted, typed
        # The cursor may stand inside of the line.
        assert shell.completed("zoo train task=ws seed=3", 7) == "zoo train task=wsi_mil seed=3"
    finally:
        shell.close()
