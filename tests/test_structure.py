"""The rules of the layout: which part may import which, sizes, doors, what ships."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib import metadata, resources
from pathlib import Path

import pytest

import zoo
from zoo import registry

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "zoo"
SOURCES = sorted(PACKAGE.rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
HEAVY = {"torch", "mlflow", "pandas", "matplotlib", "sklearn", "lightning_fabric", "timm"}
# What a domain may take from outside of itself.
SHARED = {"zoo.task", "zoo.data", "zoo.kernels", "zoo.errors", "zoo.config", "zoo.files"}
SHARED |= {"zoo.privacy", "zoo.intervals", "zoo.augmentation", "zoo.hdf5", "zoo.states"}
SHARED |= {"zoo.extras", "zoo.images", "zoo.matlab", "zoo.drawing", "zoo.progress"}
SHARED |= {"zoo.surveying", "zoo.made_with"}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _typing_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def imports(path: Path, *, top: bool = False) -> set[str]:
    """Modules a file imports, those for type checkers left out; with `top`, at import time only."""
    found: set[str] = set()
    stack: list[ast.AST] = [tree(path)]
    while stack:
        node = stack.pop()
        if _typing_only(node):
            continue
        if top and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found |= {_named(str(node.module), alias.name) for alias in node.names}
        stack += ast.iter_child_nodes(node)
    return found


def _named(package: str, name: str) -> str:
    """`from zoo import files` imports zoo.files, `from zoo.files import x` zoo.files as well."""
    inner = ROOT.joinpath(*package.split("."), name)
    there = inner.with_suffix(".py").is_file() or inner.is_dir()
    return f"{package}.{name}" if there else package


def heads(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


def below(name: str, *packages: str) -> bool:
    return any(name == p or name.startswith(p + ".") for p in packages)


# -- arrows -------------------------------------------------------------------------------------


def test_this_file_sees_imports() -> None:
    """A rule that looks at nothing would always hold."""
    seen = imports(PACKAGE / "cli" / "train.py")
    assert {"zoo.training", "zoo.config", "zoo.errors", "typer"} <= seen
    assert "zoo.training" not in imports(PACKAGE / "cli" / "train.py", top=True)
    assert "zoo.files" in imports(PACKAGE / "runs.py")
    assert len(SOURCES) > 40


def test_kernels_import_torch_alone() -> None:
    for path in (PACKAGE / "kernels").rglob("*.py"):
        for name in imports(path):
            good = below(name, "zoo.kernels", "torch", "triton") or name in sys.stdlib_module_names
            assert good or heads({name}) <= sys.stdlib_module_names, f"{path}: {name}"


def task_folder(path: Path) -> str:
    """`zoo.domains.medical.wsi_mil` for a file of that task; the domain for what tasks share."""
    parts = path.relative_to(PACKAGE / "domains").parts
    return ".".join(("zoo", "domains", *parts[: 2 if len(parts) > 2 else 1]))


def test_domains_import_the_contract_and_no_other_task() -> None:
    tasks = {
        (e.code or "").partition(":")[0].rpartition(".")[0]
        for e in registry.tasks().values()
        if e.built
    }
    assert "zoo.domains.medical.wsi_mil" in tasks
    for path in (PACKAGE / "domains").rglob("*.py"):
        own = task_folder(path)
        domain = own.rpartition(".")[0]
        for name in (n for n in imports(path) if below(n, "zoo")):
            if below(name, own, *SHARED):
                continue
            # What several tasks of a domain need lies beside their folders.
            assert below(name, domain), f"{path}: {name}"
            assert not below(name, *(tasks - {own})), f"{path}: {name} is another task's"


def test_a_domain_is_reached_through_the_registry_alone() -> None:
    for path in SOURCES:
        if (PACKAGE / "domains") in path.parents:
            continue
        reached = [n for n in imports(path) if below(n, "zoo.domains")]
        assert not reached, f"{path}: {reached}"


def test_nothing_imports_the_command_line() -> None:
    for path in SOURCES:
        if (PACKAGE / "cli") not in path.parents:
            assert not [n for n in imports(path) if below(n, "zoo.cli")], path


def test_the_contract_knows_no_engine() -> None:
    allowed = {"zoo", "zoo.task", "zoo.config", "zoo.errors", "zoo.data", "zoo.privacy"}
    allowed |= {"zoo.registry", "zoo.files", "zoo.states"}
    for name in ("task", "data", "config", "registry", "errors", "privacy", "files"):
        found = {n for n in imports(PACKAGE / f"{name}.py") if below(n, "zoo")}
        assert found <= allowed, f"{name}: {found - allowed}"


@pytest.mark.parametrize("name", ["registry", "config", "errors", "privacy", "files", "__init__"])
def test_what_starts_quickly_imports_nothing_heavy(name: str) -> None:
    assert not heads(imports(PACKAGE / f"{name}.py", top=True)) & HEAVY


def test_the_command_line_imports_nothing_heavy_at_module_level() -> None:
    light = {"zoo.cli", "zoo.errors", "zoo._version"}
    for path in (PACKAGE / "cli").glob("*.py"):
        names = imports(path, top=True)
        assert not heads(names) & HEAVY, path
        assert all(below(n, *light) for n in names if below(n, "zoo")), f"{path}: {names}"


def test_configurations_import_pydantic_only() -> None:
    found = list((PACKAGE / "domains").rglob("config.py"))
    assert found
    for path in found:
        foreign = {
            n
            for n in imports(path)
            if heads({n}).isdisjoint({"pydantic", *sys.stdlib_module_names})
        }
        assert all(below(n, "zoo.config", "zoo.domains", "zoo.errors") for n in foreign), path


def test_a_task_has_the_usual_files() -> None:
    names = ("config", "data", "sample", "model", "convert", "task")
    for entry in registry.tasks().values():
        if entry.built:
            folder = ROOT.joinpath(*(entry.code or "").partition(":")[0].split(".")[:-1])
            assert all((folder / f"{name}.py").is_file() for name in names)
            assert (folder / "card.md").is_file()
            assert (ROOT / "tests" / "domains" / folder.name).is_dir()


# -- the doors ----------------------------------------------------------------------------------

DOORS = {"domains": "zoo/domains", "kernels": "zoo/kernels", "cli": "zoo/cli"}
DOORS |= {"registry.yaml": "zoo/registry.yaml"}


@pytest.mark.parametrize(("door", "target"), list(DOORS.items()))
def test_doors_lead_into_the_package(door: str, target: str) -> None:
    path = ROOT / door
    # A clone on a system without symbolic links has text files that hold the target.
    told = path.readlink().as_posix() if path.is_symlink() else path.read_text().strip()
    assert told == target
    assert (ROOT / target).exists()


@pytest.mark.skipif(not (ROOT / "kernels").is_symlink(), reason="this clone has no symbolic links")
def test_packages_refuse_to_be_imported_through_a_door() -> None:
    code = (
        "for door in ('domains', 'kernels', 'cli'):\n"
        "    try: __import__(door)\n"
        "    except ImportError as error: print(error)\n"
        "    else: raise SystemExit(door)\n"
        "import zoo.kernels, zoo.domains, zoo.cli\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [f"import 'zoo.{d}' instead" in t for d, t in zip(DOORS, lines, strict=False)] == [
        True
    ] * 3


# -- sizes and words ----------------------------------------------------------------------------


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree(path)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node


def body_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its docstring."""
    total = (node.end_lineno or node.lineno) - node.lineno + 1
    if ast.get_docstring(node) is not None:
        text = node.body[0]
        total -= (text.end_lineno or text.lineno) - text.lineno + 1
    return total


def test_files_and_functions_stay_readable() -> None:
    for path in SOURCES:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 520, path
        for node in functions(path):
            # A kernel's body is one launch: cutting it up costs a pass over memory.
            limit = 90 if path.name == "triton_path.py" else 55
            lines = body_lines(node)
            assert lines <= limit, f"{path}:{node.lineno} {node.name} has {lines} lines"


def test_user_input_never_meets_assert() -> None:
    for path in SOURCES:
        found = [n for n in ast.walk(tree(path)) if isinstance(n, ast.Assert)]
        # `assert x is not None` tells the type checker what the callers already hold to.
        lines = [n.lineno for n in found if not ast.unparse(n.test).endswith(" is not None")]
        assert not lines, f"{path}: assert in lines {lines}"


def test_nothing_dangerous_is_called() -> None:
    bad = {
        "eval",
        "exec",
        "pickle.load",
        "pickle.loads",
        "yaml.load",
        "os.system",
        "yaml.unsafe_load",
    }
    for path in SOURCES:
        for node in ast.walk(tree(path)):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            assert name not in bad, f"{path}:{node.lineno} {name}"
            told = {k.arg: ast.unparse(k.value) for k in node.keywords}
            assert told.get("shell", "False") == "False", f"{path}:{node.lineno}"
            assert told.get("allow_pickle", "False") == "False", f"{path}:{node.lineno}"
            if name == "torch.load":
                assert told.get("weights_only") == "True", f"{path}:{node.lineno}"
            if name in ("np.load", "numpy.load"):
                assert "allow_pickle" in told, f"{path}:{node.lineno}"


def tracked() -> list[Path]:
    """Files that are or would be committed."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return [*SOURCES, *TESTS]  # an unpacked archive has no git
    files = [ROOT / name for name in done.stdout.split("\0") if name]
    return [f for f in files if f.is_file() and not f.is_symlink()]


def test_no_path_of_a_machine_is_written_down() -> None:
    # Put together here so that this file does not hold them itself.
    places = [f"/{top}/" for top in ("wor" + "k", "ro" + "ot")]
    pattern = re.compile(r"(?<![\w.~}\-])(?:" + "|".join(places) + r")\w")
    binary = {".png", ".safetensors", ".npz", ".pt"}
    seen = 0
    for path in tracked():
        if path.suffix in binary:
            continue
        seen += 1
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            assert not pattern.search(line), f"{path}:{number}: {line.strip()}"
    assert seen > 60


# -- what ships ---------------------------------------------------------------------------------


def project() -> dict[str, object]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_every_dependency_has_its_reason() -> None:
    lines = (ROOT / "pyproject.toml").read_text(encoding="utf-8").splitlines()
    begin, end = lines.index("dependencies = ["), lines.index("[project.scripts]")
    named: set[str] = set()
    told: set[str] = set()
    for line in lines[begin:end]:
        code, _, reason = line.partition(" # ")
        found = re.findall(r'"(?!zoo-)([A-Za-z][\w.-]*)(?:\[\w+\])?[^"]*"', code)
        named |= set(found)
        told |= set(found) if len(reason.strip()) > 3 else set()
    assert len(named) > 35
    assert named == told


def test_base_dependencies_are_installed_as_declared() -> None:
    from packaging.requirements import Requirement

    body = project()["project"]
    assert isinstance(body, dict)
    for text in body["dependencies"]:
        wanted = Requirement(text)
        assert wanted.specifier.contains(metadata.version(wanted.name), prereleases=True), text


def test_every_third_party_import_is_declared() -> None:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    body = project()["project"]
    assert isinstance(body, dict)
    groups = [body["dependencies"], *body["optional-dependencies"].values()]
    declared = {canonicalize_name(Requirement(t).name) for group in groups for t in group}
    by_module = metadata.packages_distributions()
    # torch brings Triton where there is one; click is inside Typer.
    free = {"zoo", "triton"} | sys.stdlib_module_names
    for path in SOURCES:
        for name in heads(imports(path)) - free:
            owners = {canonicalize_name(d) for d in by_module.get(name, [name])}
            owners |= {"mlflow"} if "mlflow-skinny" in owners else set()
            assert owners & declared, f"{path}: {name}"


def test_package_data_is_inside_the_package() -> None:
    inside = resources.files("zoo")
    for name in ("registry.yaml", "py.typed", "templates/report.html.j2"):
        assert inside.joinpath(name).is_file(), name
    # Every file that is not Python matches a pattern of the wheel.
    body = project()["tool"]
    assert isinstance(body, dict)
    patterns = body["setuptools"]["package-data"]["zoo"]
    for path in tracked():
        if PACKAGE in path.parents and path.suffix != ".py":
            inner = path.relative_to(PACKAGE)
            assert any(_matches(inner, pattern) for pattern in patterns), inner


def _matches(path: Path, pattern: str) -> bool:
    name = pattern.removeprefix("**/")
    return path.match(name) if pattern.startswith("**/") else path.as_posix() == pattern


def test_every_package_has_an_init() -> None:
    for folder in {p.parent for p in SOURCES}:
        assert (folder / "__init__.py").is_file(), folder


def test_version_stands_in_one_place() -> None:
    assert metadata.version("zoo-medical-remote-reid") == zoo.__version__
    body = project()["project"]
    assert isinstance(body, dict)
    assert "version" not in body
    assert "version" in body["dynamic"]
    # Numbers in prose (CHANGELOG) and in citation files are history, not code.
    for path in SOURCES:
        if path.name != "_version.py":
            assert zoo.__version__ not in path.read_text(encoding="utf-8"), path


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = (
        "import sys, zoo, zoo.config, zoo.registry, zoo.cli.main\n"
        f"print(*sorted(set({sorted(HEAVY)!r}) & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=dict(os.environ, PYTHONPATH=""),
    )
    assert done.stdout.strip() == ""


def test_public_names_exist() -> None:
    for name in zoo.__all__:
        assert getattr(zoo, name)
    # A module of the same name would take a function's place as soon as it is imported.
    for name in zoo.__all__:
        assert not (PACKAGE / f"{name}.py").exists(), name
        assert not (PACKAGE / name).exists(), name
