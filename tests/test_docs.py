"""What the documents show is run: every `zoo …` line in a bash block, in order, one place a page.

A block marked `bash no-test` is left out, and so are lines of other programs. `$RUN` is the newest
run of the page's workspace and `$RUN2` the one before it.
"""

import re
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.running import run_zoo
from zoo import registry
from zoo.config import keys
from zoo.runs import every

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_FENCE = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<body>.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    tested: bool
    lines: list[str]


def blocks(page: Path) -> list[Block]:
    found = []
    for match in _FENCE.finditer(page.read_text(encoding="utf-8")):
        language, *marks = match["info"].split() or [""]
        joined = match["body"].replace("\\\n", " ")
        found.append(Block(language, "no-test" not in marks, joined.splitlines()))
    return found


def commands(page: Path) -> list[str]:
    return [
        line
        for block in blocks(page)
        if block.language == "bash" and block.tested
        for line in block.lines
        if line.startswith("zoo ")
    ]


def filled(line: str, workspace: Path) -> list[str]:
    """The words of a line, comments left out and runs put in."""
    names = [run.name for run in every(workspace)]
    newest = {"$RUN": names[-1:], "$RUN2": names[-2:-1]}
    words = []
    for word in shlex.split(line, comments=True):
        for mark in ("$RUN2", "$RUN"):
            if mark in word:
                assert newest[mark], f"{line}: no run was trained before"
                word = word.replace(mark, newest[mark][0])
        words.append(word)
    return words


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_work(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_store: Path
) -> None:
    lines = commands(page)
    if not lines:
        pytest.skip("the page shows no command that is run")
    monkeypatch.chdir(tmp_path)
    runs = tmp_path / "runs"
    runs.mkdir()
    shutil.copy(empty_store, runs / "mlflow.db")
    for line in lines:
        program, *words = filled(line, runs)
        assert program == "zoo"
        result = run_zoo(*words)
        assert result.code == 0, f"{page.name}: {line}\n{result.err or result.out}"
        assert "Traceback" not in result.err
    for block in blocks(page):
        if block.language == "python" and block.tested:
            exec(compile("\n".join(block.lines), str(page), "exec"), {"__name__": "page"})


def test_the_readme_shows_the_way() -> None:
    shown = "\n".join(commands(ROOT / "README.md"))
    for command in ("list", "info", "config", "data sample", "data check", "train", "runs"):
        assert f"zoo {command}" in shown
    for command in ("eval", "predict", "doctor"):
        assert f"zoo {command}" in shown


def test_the_readme_has_every_task_in_its_state() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name, entry in registry.tasks().items():
        (row,) = re.findall(rf"^\| `{name}` \|.*$", text, re.MULTILINE)
        assert ("coming" if not entry.built else "works") in row.rpartition("|")[0].rpartition("|")[
            2
        ]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if not re.match(r"[a-z]+:", target):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_settings_named_in_the_text_exist(page: Path) -> None:
    """`section.key` and `section.key=value` in prose and in blocks that are not run."""
    known = {"config"}
    for name, entry in registry.tasks().items():
        if entry.built:
            known |= {k for k, _, _ in keys(registry.load_object(entry.config or "", name))}
    text = page.read_text(encoding="utf-8")
    for found in re.findall(r"\b((?:data|model|optim|trainer|tracking|predict)\.\w+)=", text):
        assert found in known or f"{found}.*" in known, found


def test_fences_are_closed_and_named() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert text.count("\n```") % 2 == 0, page
        for block in blocks(page):
            assert block.language in ("", "bash", "python", "yaml", "text"), page
