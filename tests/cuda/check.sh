#!/usr/bin/env bash
# tests/cuda/check.sh [FOLDER]: on a machine with a GPU, vmap-cuda's tests, all others that need a GPU, and the benchmark.
#
# It tests the wheels in dist/, which ./run build makes on any machine. So it takes a Python with torch, triton, pytest,
# hypothesis, numpy and pluggy, no network, and under 8 minutes. FOLDER (cuda-check) gets versions.txt, tests.txt,
# junit.xml, cuda-benchmarks.md, cuda-benchmarks.json and benchmark.txt, whatever fails; the exit status tells if anything did.
#
# PYTHON: the Python; else .venv/bin/python, else python3.
# VMAP_CHECK_WITHOUT_GPU=1: see how far it goes without a GPU.
set -uo pipefail
cd "$(dirname "$0")/../.."
[ -x .venv/bin/python ] && found=.venv/bin/python || found=python3
python="${PYTHON:-$found}"
without="${VMAP_CHECK_WITHOUT_GPU:-}"
out="${1:-cuda-check}"

stop() {
  echo "check.sh: $*" >&2
  exit 2
}

compgen -G "dist/*.whl" >/dev/null || stop "there are no wheels in dist/; ./run build makes them, on any machine"
"$python" -c 'import torch, pytest, hypothesis, numpy, pluggy' || stop "$python lacks what the tests need"
[ -n "$without" ] || "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' ||
  stop "PyTorch sees no CUDA device here; VMAP_CHECK_WITHOUT_GPU=1 shows how far it goes without"
mkdir -p "$out" && out="$(cd "$out" && pwd)" || stop "cannot write to $out"
rm -f "$out"/{versions.txt,tests.txt,junit.xml,cuda-benchmarks.md,cuda-benchmarks.json,benchmark.txt}
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
trap 'exit 143' INT TERM

"$python" -m pip --disable-pip-version-check install -q --no-index --no-deps --target "$work/site" dist/*.whl ||
  stop "the wheels in dist/ cannot be installed"
for package in packages/*/src/* plugins/*/src/*; do
  diff -rq -x __pycache__ "$package" "$work/site/$(basename "$package")" ||
    stop "the wheels in dist/ are not of these sources; ./run build makes them anew"
done
export PYTHONPATH="$work/site${PYTHONPATH:+:$PYTHONPATH}" PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 OMP_NUM_THREADS=1
export TRITON_CACHE_DIR="$work/triton" TORCHINDUCTOR_CACHE_DIR="$work/inductor"
failed=0

{
  "$python" -m vmap_core doctor || failed=1
  "$python" - <<'END'
import platform, numpy, pytest, torch, triton
print(f"{platform.platform()}, NumPy {numpy.__version__}, Triton {triton.__version__}, pytest {pytest.__version__}")
print(f"torch {torch.__version__}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}")
if torch.cuda.is_available():
    print(torch.cuda.get_device_properties(0))
END
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null || echo "no nvidia-smi"
  git rev-parse HEAD 2>/dev/null
} >"$out/versions.txt" 2>&1
cat "$out/versions.txt"

within() { # SECONDS COMMAND ...: stop it then; without a GPU there is time
  local limit=$(($1 > 0 ? $1 : 1))
  timeout -k 10 "$([ -z "$without" ] && echo "$limit" || echo 1h)" "${@:2}"
}

join() { # logs and results into the folder
  cat "$work"/*.log >"$out/tests.txt"
  "$python" - "$out/junit.xml" "$work"/*.xml <<'END'
import sys
from xml.etree import ElementTree

joined = ElementTree.Element("testsuites")
for path in sys.argv[2:]:
    joined.extend(ElementTree.parse(path).getroot())
ElementTree.ElementTree(joined).write(sys.argv[1], encoding="utf-8", xml_declaration=True)
END
}
trap '[ -e "$out/tests.txt" ] || join; rm -rf "$work"' EXIT # also of a run that is stopped

# A process for each file: a CUDA error that stays takes no other file with it.
check() { # SECONDS FILE [OPTION ...]
  local limit="$1" name status
  name="$work/$(echo "${@:2}" | tr -c '[:alnum:]_.\n' -)"
  within "$limit" "$python" -m pytest -o "addopts=--import-mode=importlib --strict-markers -ra" \
    -p no:cacheprovider -v --tb=short --junit-xml="$name.xml" "${@:2}" >"$name.log" 2>&1
  status=$?
  [ "$status" = 124 ] && printf '\nSTOPPED %s after %s seconds, in the test above\n' "${*:2}" "$limit" >>"$name.log"
  echo "$status" >"$name.status"
  echo "${*:2}: $(tail -n 1 "$name.log")"
}

marked="$(grep -rl --include='test_*.py' 'mark\.cuda' packages plugins tests)"
cores="$(env -u OMP_NUM_THREADS nproc)"
jobs=()
for file in plugins/vmap-cuda/tests/test_*.py; do
  [[ "$marked" != *"$file"* ]] || jobs+=("$file cuda")
  jobs+=("$file not cuda") # by stand-ins, and Triton's on the GPU
done
for job in "${jobs[@]}"; do
  while (($(jobs -rp | wc -l) >= cores)); do wait -n; done
  check $((230 - SECONDS)) "${job%% *}" -m "${job#* }" &
done
wait
for file in $marked; do # one after the other: one fills the GPU's memory
  [[ "$file" = plugins/vmap-cuda/* ]] || check 50 "$file" -m cuda
done

join
grep -hE '^(FAILED|ERROR|STOPPED) ' "$out/tests.txt"
for status in "$work"/*.status; do
  case "$(cat "$status")" in 0 | 5) ;; *) failed=1 ;; esac # 5: no test was chosen
done

[ -z "$without" ] && options=(--device cuda) || options=(--device cpu --quick)
within $((460 - SECONDS)) "$python" -m tests.benchmarks cuda "${options[@]}" --page "$out/cuda-benchmarks.md" \
  --json "$out/cuda-benchmarks.json" 2>&1 | tee "$out/benchmark.txt"
status="${PIPESTATUS[0]}"
[ "$status" = 124 ] && echo "STOPPED after ${SECONDS} seconds: the tables have the rows until then" | tee -a "$out/benchmark.txt"
[ "$status" = 0 ] || failed=1

echo "$SECONDS seconds; see $out"
exit "$failed"
