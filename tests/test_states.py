"""Other people's weight files: tensors come out, code does not run."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from zoo.errors import WeightsError
from zoo.states import read_state, unpickled

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2)}


def same(found: dict[str, Any]) -> bool:
    return found.keys() == STATE.keys() and all(torch.equal(found[k], STATE[k]) for k in STATE)


@pytest.mark.parametrize(
    "wrapped",
    [
        STATE,
        {"state_dict": STATE, "epoch": 3},
        {"model": {"state_dict": STATE}, "optimizer": {"lr": 0.1}},
        {"student": {"x": torch.ones(1)}, "teacher": STATE},
        {f"module.{k}": v for k, v in STATE.items()},
    ],
    ids=["plain", "state_dict", "twice", "teacher", "parallel"],
)
def test_tensors_come_out_of_their_wrappers(tmp_path: Path, wrapped: Any) -> None:
    torch.save(wrapped, tmp_path / "x.pth")
    assert same(read_state(tmp_path / "x.pth"))


def test_safetensors_are_read_by_their_suffix(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "x.safetensors")
    assert same(read_state(tmp_path / "x.safetensors"))
    (tmp_path / "y.safetensors").write_bytes((tmp_path / "x.safetensors").read_bytes()[:30])
    with pytest.raises(WeightsError, match=r"y\.safetensors: not a readable safetensors file"):
        read_state(tmp_path / "y.safetensors")


class Payload:
    """A pickle that makes a folder when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("suffix", [".pth", ".ckpt", ".pth.tar", ".bin"])
def test_a_planted_payload_does_not_run(tmp_path: Path, suffix: str) -> None:
    mark = tmp_path / "ran"
    for protocol, name in ((2, "new"), (4, "newest")):
        path = tmp_path / f"{name}{suffix}"
        torch.save({"state_dict": STATE, "x": Payload(mark)}, path, pickle_protocol=protocol)
        with pytest.raises(WeightsError, match=r"refused, the pickle|not a readable"):
            read_state(path)
    old = tmp_path / f"old{suffix}"
    torch.save({"state_dict": STATE, "x": Payload(mark)}, old, _use_new_zipfile_serialization=False)
    bare = tmp_path / f"bare{suffix}"
    bare.write_bytes(pickle.dumps(Payload(mark)))
    for path in (old, bare):
        with pytest.raises(WeightsError):
            read_state(path)
    assert not mark.exists()


def test_the_refusal_names_what_was_wanted(tmp_path: Path) -> None:
    torch.save({"x": Payload(tmp_path / "ran")}, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=r"'posix\.mkdir'; only tensors and plain containers"):
        unpickled(tmp_path / "x.pth")


def test_an_exported_model_is_told_from_weights(tmp_path: Path) -> None:
    program = torch.export.export(torch.nn.Linear(2, 2), (torch.ones(1, 2),))
    torch.export.save(program, tmp_path / "model.pt2")
    with pytest.raises(WeightsError, match=r"model\.pt2: .*an exported model cannot be read back$"):
        unpickled(tmp_path / "model.pt2")


def test_broken_and_empty_files_are_one_line(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "x.pth")
    whole = (tmp_path / "x.pth").read_bytes()
    with zipfile.ZipFile(tmp_path / "zip.pth", "w") as archive:
        archive.writestr("a", "b")
    for name, body in (("cut", whole[:-200]), ("none", b""), ("text", b"hello"), ("flip", b"\x80")):
        (tmp_path / f"{name}.pth").write_bytes(body)
    torch.save({"epoch": 3}, tmp_path / "odd.pth")
    torch.save({}, tmp_path / "empty.pth")
    for name in ("cut", "none", "text", "flip", "zip", "odd", "empty", "absent"):
        with pytest.raises(WeightsError) as caught:
            read_state(tmp_path / f"{name}.pth")
        assert "\n" not in str(caught.value)
        assert f"{name}.pth" in str(caught.value)
