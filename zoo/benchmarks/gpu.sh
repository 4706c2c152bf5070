#!/usr/bin/env bash
# Everything that needs a CUDA device, in one command: kernel tests on the device, then every
# benchmark. Needs torch, triton, numpy and pytest alone; about nine minutes on one H100.
#
#   bash zoo/benchmarks/gpu.sh [FOLDER]     results go to FOLDER (default: gpu-results)
#   bash zoo/benchmarks/gpu.sh --memcheck   the tests alone under compute-sanitizer; slow, its own run
set -uo pipefail
cd "$(dirname "$0")/../.."
memcheck=
if [ "${1:-}" = --memcheck ]; then
  memcheck=yes
  shift
fi
out=${1:-gpu-results}
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1
python3 - <<'PY' || exit 1
import sys
try:
    import torch
except ImportError as error:
    sys.exit(f"{sys.executable}: {error}; torch, triton, numpy and pytest are needed")
if not torch.cuda.is_available():
    sys.exit(f"{sys.executable}: torch {torch.__version__} finds no CUDA device")
print(torch.cuda.get_device_name(), "torch", torch.__version__)
PY
mkdir -p "$out"
if [ -n "$memcheck" ]; then
  command -v compute-sanitizer >/dev/null || {
    echo "compute-sanitizer is not in PATH; it comes with the CUDA toolkit"
    exit 1
  }
  # PyTorch's cache would hide a read beyond the end of a tensor inside of a larger block.
  export PYTORCH_NO_CUDA_MEMORY_CACHING=1 ZOO_TEST_DEVICE=cuda ZOO_KERNELS=triton
  timeout 560 compute-sanitizer --tool memcheck --error-exitcode 9 \
    --target-processes all python3 -m pytest -q -x -p no:cacheprovider \
    --confcutdir=tests/kernels/interpreted tests/kernels/interpreted/*.py 2>&1 |
    tee "$out/memcheck.log" | tail -n 30
  exit "${PIPESTATUS[0]}"
fi
timeout 240 python3 -m pytest -q -m gpu -p no:cacheprovider --confcutdir=tests/kernels tests/kernels/test_on_gpu.py 2>&1 | tee "$out/tests.log" | tail -n 30
tests=${PIPESTATUS[0]}
if [ "$tests" -ne 0 ]; then
  # No speed is reported for code whose tests fail.
  echo "kernel tests failed (exit $tests): no benchmark is run; see $out/tests.log"
  exit "$tests"
fi
rm -f "$out/results.jsonl"
timeout 280 python3 -m zoo.benchmarks all --device cuda --json "$out/results.jsonl" 2>&1 | tee "$out/table.md"
exit "${PIPESTATUS[0]}"
