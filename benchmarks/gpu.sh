#!/usr/bin/env bash
# Checks and measures on one NVIDIA GPU, in two calls of 9 minutes at most that stop by themselves.
#
#   benchmarks/gpu.sh 1 [--wheels FOLDER] [arguments of benchmarks/gpu.py]
#   benchmarks/gpu.sh 2 [--wheels FOLDER] --data FOLDER [arguments of benchmarks/gpu_real.py]
#
# It runs $PYTHON or python3, 3.11 or newer, which must have torch and torchvision. Other packages that it lacks go into
# build/gpu-packages, from pip's index, or, without a network, all wheels in FOLDER, which then has what they need too.
set -euo pipefail

case "${1:-}" in
  1) module=benchmarks.gpu ;;
  2) module=benchmarks.gpu_real ;;
  *) echo "gpu.sh: 1 (is it right, and how fast are steps?) or 2 (searches and trainings)?" >&2; exit 1 ;;
esac
shift
wheels="" python=${PYTHON:-python3}
if [ "${1:-}" = --wheels ]; then wheels=$(cd "$2" && pwd); shift 2; fi
arguments=()
for word in "$@"; do if [ -e "$word" ]; then word=$(realpath "$word"); fi; arguments+=("$word"); done
cd "$(dirname "$0")/.."
export PYTHONUNBUFFERED=1 PYTHONPATH=$PWD/build/gpu-packages${PYTHONPATH:+:$PYTHONPATH}

lacking=$("$python" - <<'PYTHON'
import importlib.util
packages = {"networkx": "networkx", "numpy": "numpy", "onnx": "onnx", "onnxruntime": "onnxruntime", "PIL": "pillow",
            "pydantic": "pydantic", "rich": "rich", "safetensors": "safetensors", "sklearn": "scikit-learn",
            "tensorboard": "tensorboard", "torch": "torch", "torchvision": "torchvision", "typer": "typer",
            "yaml": "pyyaml"}
print(*(name for module, name in packages.items() if importlib.util.find_spec(module) is None))
PYTHON
)
case " $lacking" in *" torch"*) echo "gpu.sh: $python has no$lacking; try: PYTHON=/path/to/one/that/has" >&2; exit 1 ;; esac
if [ -n "$lacking" ] && [ -n "$wheels" ]; then
  "$python" -m pip install --quiet --no-index --no-deps --upgrade --target build/gpu-packages "$wheels"/*.whl
elif [ -n "$lacking" ]; then
  # shellcheck disable=SC2086
  "$python" -m pip install --quiet --target build/gpu-packages $lacking
fi
exec timeout 535 "$python" -m "$module" "${arguments[@]}"
