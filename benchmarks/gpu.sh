#!/usr/bin/env bash
# Checks and measures on one NVIDIA GPU, in 15 minutes at most.
#
#   benchmarks/gpu.sh [--wheels FOLDER] [arguments of benchmarks/gpu.py]
#
# It runs $PYTHON or python3, 3.11 or newer, which must have torch and torchvision. Other packages that it lacks go into
# build/gpu-packages, from the wheels in FOLDER or else from pip's index.
set -euo pipefail

wheels="" python=${PYTHON:-python3}
if [ "${1:-}" = --wheels ]; then wheels=$(cd "$2" && pwd); shift 2; fi
cd "$(dirname "$0")/.."
export PYTHONUNBUFFERED=1 PYTHONPATH=$PWD/build/gpu-packages${PYTHONPATH:+:$PYTHONPATH}

lacking=$("$python" - <<'PYTHON'
import importlib.util
packages = {"networkx": "networkx", "numpy": "numpy", "PIL": "pillow", "pydantic": "pydantic", "rich": "rich",
            "safetensors": "safetensors", "sklearn": "scikit-learn", "tensorboard": "tensorboard", "torch": "torch",
            "torchvision": "torchvision", "typer": "typer", "yaml": "pyyaml"}
print(*(name for module, name in packages.items() if importlib.util.find_spec(module) is None))
PYTHON
)
case " $lacking" in *" torch"*) echo "gpu.sh: $python has no$lacking; try: PYTHON=/path/to/one/that/has" >&2; exit 1 ;; esac
if [ -n "$lacking" ]; then
  # shellcheck disable=SC2086
  "$python" -m pip install --quiet --target build/gpu-packages ${wheels:+--no-index --find-links "$wheels"} $lacking
fi
exec timeout 880 "$python" -m benchmarks.gpu "$@"
