"""A block's parameters under the names of official checkpoints, and the way back.

Each block with parameters has a table `OFFICIAL`: system -> `Names`. `read` finds a block inside
of a state dict, strictly; `OfficialModule.to_official` writes it as its authors would.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)

_SAVED = re.compile(r"(?::0)?(?:/\.ATTRIBUTES/VARIABLE_VALUE)?$")
"""What TensorFlow's savers put behind a variable's name."""
_TOLD = 3
"""So many keys of a kind are named in an error."""


@dataclass(frozen=True)
class Names:
    """How one system names what a block owns.

    Attributes:
        keys: Official key, from the block on -> ours.
        optional: Official keys that are all there or all absent, such as biases.
        beside: Regular expression of whole keys: what the official module has besides.
        derived: Official key -> whether a stored tensor is what the block computes anyway.
        tensorflow: Whether kernels lie as TensorFlow keeps them, see `from_tensorflow`.
    """

    keys: Mapping[str, str]
    optional: frozenset[str] = frozenset()
    beside: str = ""
    derived: Mapping[str, Callable[[Tensor], bool]] = field(default_factory=dict)
    tensorflow: bool = False

    def ours(self, key: str) -> str | None:
        """Our name of an official key, both from the block on; None if there is none."""
        return self.keys.get(key)

    def renames(self, place: str, ours: str) -> list[tuple[str, str]]:
        """Renames of whole keys, as regular expressions, for the converter of a whole model.

        Args:
            place: Pattern of what stands before the official block's keys.
            ours: What stands before ours; may refer to groups of `place`.
        """
        return [(place + re.escape(key), ours + own) for key, own in self.keys.items()]

    def absent(self, found: Collection[str]) -> list[str]:
        """Official keys that are needed and not among those found."""
        some = any(key in found for key in self.optional)
        needed = (key for key in self.keys if some or key not in self.optional)
        return [key for key in needed if key not in found]

    def unknown(self, found: Collection[str]) -> list[str]:
        """Keys found that are neither the block's nor the official module's around it."""
        known = {*self.keys, *self.derived}
        return [key for key in found if key not in known and not re.fullmatch(self.beside, key)]


def layers(names: Mapping[str, str]) -> dict[str, str]:
    """Keys of layers that have a weight and a bias, from the names of the layers."""
    parts = ("weight", "bias")
    return {f"{theirs}.{p}": f"{own}.{p}" for theirs, own in names.items() for p in parts}


PROJECTIONS = layers({"q_proj": "query", "k_proj": "key", "v_proj": "value", "out_proj": "out"})
"""Names of Segment Anything's attention, which HER-Seg and ACMIL use as well."""


def from_tensorflow(kernel: Tensor) -> Tensor:
    """A kernel (H, W, I, O) as (O, I, H, W), or (I, O) as (O, I); anything else as it is."""
    if kernel.dim() == 4:
        return kernel.permute(3, 2, 0, 1)
    return kernel.mT if kernel.dim() == 2 else kernel


def to_tensorflow(kernel: Tensor) -> Tensor:
    """The inverse of `from_tensorflow`."""
    if kernel.dim() == 4:
        return kernel.permute(2, 3, 1, 0)
    return kernel.mT if kernel.dim() == 2 else kernel


class OfficialModule(nn.Module):
    """A block that knows what official checkpoints call its parameters.

    Attributes:
        OFFICIAL: System -> its names.
    """

    OFFICIAL: ClassVar[Mapping[str, Names]] = {}

    def to_official(self, system: str, prefix: str = "") -> dict[str, Tensor]:
        """Copies of the parameters under official names and in the official layout.

        What the official module computes itself, such as a rotary table, is not written.

        Args:
            system: A key of `OFFICIAL`.
            prefix: Put in front of every key.

        Raises:
            ValueError: The system is unknown, or has other parameters than this block.
        """
        names = _named(type(self), system)
        own = self.state_dict()
        found = [key for key, ours in names.keys.items() if ours in own]
        strange = [key for key in own if key not in names.keys.values()]
        absent = names.absent(found)
        if strange or absent:
            words = [
                _some("no names for", strange),
                _some("this block lacks", [names.keys[key] for key in absent]),
            ]
            msg = f"{type(self).__name__} as of {system}: {'; '.join(filter(None, words))}"
            raise ValueError(msg)
        made = {key: own[names.keys[key]].detach() for key in found}
        if names.tensorflow:
            made = {key: to_tensorflow(value) for key, value in made.items()}
        return {prefix + key: _copy(value) for key, value in made.items()}


@dataclass(frozen=True)
class Part:
    """What a state dict holds of one block.

    Attributes:
        tensors: Under our names and in our layout.
        official: Our name -> the key in the state dict.
        tensorflow: Whether the state dict's layout is TensorFlow's.
    """

    tensors: dict[str, Tensor]
    official: dict[str, str]
    tensorflow: bool = False

    def shape(self, key: str, axes: int) -> tuple[int, ...]:
        """Shape of one of our tensors, which tells sizes of the block.

        Raises:
            ValueError: It has another number of axes.
        """
        value = self.tensors[key]
        if value.dim() != axes:
            msg = f"{self.official[key]} is {self._told(value)}, where {axes} axes are expected"
            raise ValueError(msg)
        return tuple(value.shape)

    def fill(self, build: Callable[[], M]) -> M:
        """A block that holds copies of the tensors, in their dtype and on their device.

        Args:
            build: Makes the block of the right size.

        Raises:
            ValueError: A tensor has another shape than in the block, or is of integers.
        """
        with torch.device("meta"):
            block = build()
        wrong = []
        for key, needed in block.state_dict().items():
            value = self.tensors[key]
            if value.shape != needed.shape:
                shapes = f"{self._told(value)}, not {self._told(needed)}"
                wrong.append(f"{self.official[key]} is {shapes}")
            elif not value.is_floating_point():
                wrong.append(f"{self.official[key]} is of {value.dtype}")
        if wrong:
            msg = _some(f"{type(block).__name__}:", wrong)
            raise ValueError(msg)
        block.load_state_dict({k: _copy(v) for k, v in self.tensors.items()}, assign=True)
        return block

    def _told(self, value: Tensor) -> tuple[int, ...]:
        """The shape of one of our tensors as the state dict has it."""
        return tuple((to_tensorflow(value) if self.tensorflow else value).shape)


def read(
    block: type[OfficialModule],
    state: Mapping[str, Tensor],
    prefix: str = "",
    system: str | None = None,
) -> Part:
    """The tensors of a block inside of an official state dict.

    Args:
        block: Its class.
        state: Official keys, with or without `module.` in front.
        prefix: What stands before the block's keys, with its last `.` or `/`. Keys elsewhere are
            not looked at.
        system: A key of the block's `OFFICIAL`; None: the one whose names are there.

    Raises:
        ValueError: The system is unknown; a key below the prefix is missing, unknown, there twice
            or no tensor; a stored table is not the one that the block computes.
    """
    bare = _bare(state)
    inside = _inside(bare, prefix.removeprefix("module."))
    chosen = _chosen(block, inside) if system is None else system
    names = _named(block, chosen)
    absent, unknown = names.absent(inside), names.unknown(inside)
    if absent or unknown:
        words = [_some("missing", [prefix + key for key in absent])]
        if any(key in inside for key in names.keys):
            words.append(_some("unknown", [inside[key] for key in unknown]))
        else:  # all is unknown there: the prefix is wrong
            systems = block.OFFICIAL if system is None else {system: names}
            words.append(_some("there is one at prefix", _places(systems, bare)))
        told = "; ".join(filter(None, words))
        msg = f"not a {block.__name__} of {chosen} at prefix '{prefix}': {told}"
        raise ValueError(msg)
    odd = [key for key in inside.values() if not isinstance(state[key], Tensor)]
    if odd:
        msg = _some("no tensors:", odd)
        raise ValueError(msg)
    for key, same in names.derived.items():
        if key in inside and not same(state[inside[key]]):
            msg = f"{inside[key]} is not the table that {block.__name__} computes"
            raise ValueError(msg)
    official = {ours: inside[key] for key, ours in names.keys.items() if key in inside}
    tensors = {ours: state[key] for ours, key in official.items()}
    if names.tensorflow:
        tensors = {key: from_tensorflow(value) for key, value in tensors.items()}
    return Part(tensors, official, names.tensorflow)


def _bare(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Keys without what wrappers and savers put around them -> keys of the state."""
    made: dict[str, str] = {}
    for key in state:
        bare = _SAVED.sub("", key.removeprefix("module."))
        if bare in made:
            msg = f"{made[bare]} and {key} are two tensors of one name"
            raise ValueError(msg)
        made[bare] = key
    return made


def _inside(bare: Mapping[str, str], prefix: str) -> dict[str, str]:
    """Keys from the prefix on -> keys of the state, of those below the prefix."""
    return {k.removeprefix(prefix): key for k, key in bare.items() if k.startswith(prefix)}


def _named(block: type[OfficialModule], system: str) -> Names:
    if system not in block.OFFICIAL:
        msg = f"{block.__name__} has no names of '{system}', only of {', '.join(block.OFFICIAL)}"
        raise ValueError(msg)
    return block.OFFICIAL[system]


def _fits(names: Names, found: Collection[str]) -> bool:
    return not names.absent(found) and not names.unknown(found)


def _chosen(block: type[OfficialModule], found: Collection[str]) -> str:
    """The system whose names are found; if none's are, the nearest, for the message."""
    systems = block.OFFICIAL
    near = max(systems, key=lambda s: sum(key in found for key in systems[s].keys))
    return next((s for s, names in systems.items() if _fits(names, found)), near)


def _places(systems: Mapping[str, Names], bare: Mapping[str, str]) -> list[str]:
    """The prefixes, in quotes, at which such a block is."""
    places: dict[str, None] = {}
    for names in systems.values():
        telling = next(iter(names.keys))
        for key in bare:
            place = key.removesuffix(telling)
            ends = key.endswith(telling) and (not place or place[-1] in "./")
            if ends and _fits(names, _inside(bare, place)):
                places[f"'{place}'"] = None
    return list(places)


def _some(what: str, words: list[str]) -> str:
    """`what` and the first of the words; nothing if there are none."""
    more = f" and {len(words) - _TOLD} more" if len(words) > _TOLD else ""
    return f"{what} {', '.join(words[:_TOLD])}{more}" if words else ""


def _copy(value: Tensor) -> Tensor:
    return value.detach().clone(memory_format=torch.contiguous_format)
