"""Maps of a body at rest, each computed once.

In two of three epochs of the alternating recipe body and heads are fixed. Where the body's input
is not augmented either, its map of an image is the same each time, and the body is two thirds of
the model's work.
"""

from __future__ import annotations

import contextlib
import hashlib
import weakref

import psutil
import torch
from torch import Tensor, nn

_AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


class RestingMaps:
    """Remembers a body's maps by the exact content of its input.

    Every map is computed from its image alone, whether or not it was remembered, so that its
    value depends neither on the batch it came in nor on what was computed before: a training
    that was interrupted goes on with the same bits.

    Args:
        precision: The trainer's arithmetic; maps are computed in it and kept in float32.
        share: Part of the memory available at the first map that all of them may take; further
            ones are computed each time.

    Attributes:
        hits: Maps that were remembered so far.
        misses: Maps that had to be computed.
    """

    def __init__(self, precision: str = "32-true", share: float = 0.5) -> None:
        self.precision, self.share = precision, share
        self.hits = self.misses = 0
        self._maps: dict[bytes, Tensor] = {}
        self._room: int | None = None
        self._of: weakref.ref[nn.Module] | None = None
        self._version: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self._maps)

    def __call__(self, body: nn.Module, semantic: Tensor) -> Tensor:
        """Maps (B, 1, T, T) of `semantic: (B, 1, T, T)`, without gradient."""
        self._forget_if_changed(body)
        content = semantic.detach().cpu().contiguous()
        made = []
        for i, one in enumerate(content):
            key = hashlib.blake2b(one.numpy().tobytes(), digest_size=16).digest()
            known = self._maps.get(key)
            if known is None:
                self.misses += 1
                known = self._computed(body, semantic[i : i + 1])
                self._keep(key, known)
            else:
                self.hits += 1
            made.append(known)
        return torch.cat(made).to(semantic.device)

    def _forget_if_changed(self, body: nn.Module) -> None:
        # Every change in place, an optimiser's step or loaded weights, raises a tensor's version.
        # PyTorch's fused optimisers do not; the task's is none.
        version = tuple(t._version for t in (*body.parameters(), *body.buffers()))
        if self._of is None or self._of() is not body or self._version != version:
            self._maps.clear()
            self._of, self._version = weakref.ref(body), version

    def _computed(self, body: nn.Module, semantic: Tensor) -> Tensor:
        kind = _AUTOCAST.get(self.precision)
        mixed: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
        if kind is not None:
            mixed = torch.autocast(semantic.device.type, dtype=kind)
        wanted = next(body.parameters()).dtype
        with torch.no_grad(), mixed:
            made: Tensor = body(semantic.to(wanted).contiguous())
        return made if made.dtype == torch.float64 else made.float()

    def _keep(self, key: bytes, made: Tensor) -> None:
        if self._room is None:
            self._room = int(psutil.virtual_memory().available * self.share)
        size = made.numel() * made.element_size()
        if (len(self._maps) + 1) * size <= self._room:
            self._maps[key] = made.cpu()
