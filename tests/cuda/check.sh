#!/usr/bin/env bash
# On a machine with a GPU: the tests that need one, Triton's tests on compiled kernels, and the benchmark, whose tables
# go to docs/cuda-benchmarks.md. Uses .venv, which ./run makes, or the Python in PYTHON that has the packages installed.
set -euo pipefail
cd "$(dirname "$0")/../.."
python="${PYTHON:-.venv/bin/python}"
"$python" -c 'import sys, torch; sys.exit(0 if torch.cuda.is_available() else "check.sh: PyTorch sees no CUDA device here")'
"$python" -m pytest -n0 -m cuda packages plugins tests/test_benchmarks.py
"$python" -m pytest -n0 plugins/vmap-cuda
"$python" -m tests.benchmarks cuda --page docs/cuda-benchmarks.md "$@"
echo "docs/cuda-benchmarks.md: name it in the nav of mkdocs.yml to show it"
