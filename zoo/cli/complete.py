"""Completion of commands, tasks and keys in bash.

Bash breaks words at `=`, so the words it hands to a completion are not those of the command line.
The function below sends the line as typed and cuts from each answer what stands before the last
break.
"""

from __future__ import annotations

import shlex
from typing import Annotated

import typer
from typer.models import CommandInfo

_SCRIPT = r"""# eval "$(zoo completion)"  (or put it into ~/.bashrc)
_zoo_complete() {
  local line="${COMP_LINE:0:COMP_POINT}" cur="${COMP_WORDS[COMP_CWORD]}" typed answer
  typed="${line##*[[:space:]]}"
  # What bash takes for the current word may be only the part after '=' or ':'.
  [[ "$cur" == "=" || "$cur" == ":" ]] && cur=""
  local cut=$(( ${#typed} - ${#cur} ))
  COMPREPLY=()
  while IFS= read -r answer; do
    [[ -n "$answer" ]] && COMPREPLY+=("${answer:cut}")
  done < <(zoo complete-line -- "$line" 2>/dev/null)
  [[ ${#COMPREPLY[@]} -eq 1 && "${COMPREPLY[0]}" == *[=.] ]] && compopt -o nospace
  return 0
}
complete -o default -F _zoo_complete zoo"""

_TAKE_KEYS = ("train", "cv", "config", "eval", "predict", "data check", "data prepare")
_TAKE_RUNS = ("compare", "export", "publish", "runs sync", "serve")
_TAKE_TASKS = ("info", "models history", "models rollback", "serve")
_TAKE_WEIGHTS = (
    "export",
    "pull",
    "weights add",
    "weights drop",
    "weights export",
    "weights verify",
)
# Words that are no settings of a task, with the values that can be named.
_WORDS: dict[str, dict[str, tuple[str, ...]]] = {
    "data prepare": {"out": ()},
    "eval": {"weights": ()},
    "export": {"format": ("pt2", "onnx", "safetensors"), "part": ("served", "network"), "to": ()},
    "predict": {"weights": (), "input": ()},
    "weights convert": {"from": (), "to": ()},
}


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.command()(completion)
    app.command("complete-line", hidden=True)(complete_line)


def completion() -> None:
    """Print the completion script for bash: eval "$(zoo completion)"."""
    typer.echo(_SCRIPT)


def complete_line(line: Annotated[str, typer.Argument()]) -> None:
    """Print what may follow a command line, one whole word a line."""
    for word in candidates(line):
        typer.echo(word)


def candidates(line: str) -> list[str]:
    """Words that may stand at the end of `line`, which ends where the cursor is."""
    try:
        words = shlex.split(line)
    except ValueError:  # an open quote
        return []
    current = "" if not line or line[-1].isspace() else words.pop()
    return sorted({w for w in _possible(words[1:], current) if w.startswith(current)})


def _possible(words: list[str], current: str) -> list[str]:
    from zoo.cli.main import app

    commands = {_name(c) for c in app.registered_commands if not c.hidden}
    groups = {str(g.name): g.typer_instance for g in app.registered_groups}
    if not words:
        return [*commands, *groups]
    command = words[0]
    group = groups.get(command)
    if group is not None and len(words) == 1:
        return [_name(c) for c in group.registered_commands]
    path = " ".join(words[:2]) if group is not None else command
    if path == "data sample":
        return [*(f"task={t}" for t in _tasks()), "out=", "defects=true"]
    if path == "bench":
        from zoo.benchmarks import NAMES

        return [*NAMES, "all"]
    key, sign, _ = current.partition("=")
    if sign and key in ("weights", "from"):
        return [f"{key}={name}" for name in (*_runs(), *_weights())]
    found = _tasks() if path in _TAKE_TASKS else []
    found += _runs() if path in _TAKE_RUNS else []
    found += _weights() if path in _TAKE_WEIGHTS else []
    found += _words(_WORDS.get(path, {}), words, key if sign else "")
    if path in _TAKE_KEYS or path == "weights convert":
        found += _settings(words, current)
    return found


def _words(known: dict[str, tuple[str, ...]], words: list[str], key: str) -> list[str]:
    """What may be said beside settings and was not said yet; of `key=` the values."""
    if key:
        return [f"{key}={value}" for value in known.get(key, ())]
    given = {w.partition("=")[0] for w in words if "=" in w}
    return [f"{name}=" for name in known if name not in given]


def _runs() -> list[str]:
    """Runs of the workspace that commands look into when nothing is said."""
    from pathlib import Path

    from zoo import runs

    return [run.name for run in runs.every(Path("runs"))]


def _weights() -> list[str]:
    from zoo import registry, weights

    return [*registry.weights(), *(item.name for item in weights.everything())]


def _name(command: CommandInfo) -> str:
    return str(command.name or getattr(command.callback, "__name__", ""))


def _tasks() -> list[str]:
    from zoo import registry

    return [name for name, entry in registry.tasks().items() if entry.built]


def _settings(words: list[str], current: str) -> list[str]:
    """`task=…` until a task is chosen, then its keys, presets and the values of choices."""
    from zoo import registry
    from zoo.config import choices, keys
    from zoo.errors import ConfigError

    given = dict(w.partition("=")[::2] for w in words if "=" in w)
    if "task" not in given:
        return [f"task={t}" for t in _tasks()]
    try:
        name, entry = registry.built(given["task"])
        kind = registry.load_object(entry.config or "", f"tasks.{name}.config")
    except ConfigError:
        return []
    key, sign, _ = current.partition("=")
    if sign:
        if key == "preset":
            return [f"preset={p}" for p in entry.presets]
        return [f"{key}={value}" for value in choices(kind, key)]
    known = [k.removesuffix("*") for k, _, _ in keys(kind)]
    return [k if k.endswith(".") else f"{k}=" for k in known if k not in given]
