#!/usr/bin/env bash
# Everything that needs a CUDA device, in one command: kernel tests on the device, then every
# benchmark. Needs torch, triton, numpy and pytest alone; about nine minutes on one H100.
#
#   bash zoo/benchmarks/gpu.sh [FOLDER]     results go to FOLDER (default: gpu-results)
set -uo pipefail
cd "$(dirname "$0")/../.."
out=${1:-gpu-results}
mkdir -p "$out"
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1
python3 - <<'PY'
import torch
assert torch.cuda.is_available(), "no CUDA device"
print(torch.cuda.get_device_name(), "torch", torch.__version__)
PY
[ $? -eq 0 ] || exit 1
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
