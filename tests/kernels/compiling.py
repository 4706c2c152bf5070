"""Compiles a Triton kernel for a GPU that is not there, and reads what it would use."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple


class Compiled(NamedTuple):
    shared: int  # bytes of shared memory a block
    registers: int
    spilled: int  # bytes of local memory a thread
    ptx: str


def compile_for(
    kernel: Any,
    types: dict[str, str],
    constants: dict[str, Any],
    capability: int,
    warps: int,
    stages: int,
) -> Compiled:
    """Types: argument -> `*bf16`, `i32` ...; pointers and strides divide by 16, as torch's do."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature = {n: "constexpr" if n in constants else types[n] for n in kernel.arg_names}
    divisible = {
        (i,): [["tt.divisibility", 16]]
        for i, n in enumerate(kernel.arg_names)
        if n not in constants and (types[n].startswith("*") or n.endswith("stride"))
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=divisible)
    options = {"num_warps": warps, "num_stages": stages}
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    registers, spilled = _resources(made.asm["cubin"])
    ptx = made.asm["ptx"]
    # Sums by atomics would come out in another order every time.
    assert not re.search(r"^\s*(@\S+\s+)?(atom|red)\.", ptx, re.MULTILINE)
    return Compiled(made.metadata.shared, registers, spilled, ptx)


def _resources(cubin: bytes) -> tuple[int, int]:
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        said = subprocess.run(
            [str(tool), "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", said)
    assert found is not None, said
    return int(found[1]), int(found[2])
