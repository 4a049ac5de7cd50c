#!/usr/bin/env bash
# Builds what is missing, checks and measures on one NVIDIA GPU, within 8 minutes. Needs Python 3.11 or newer with torch.
#
#   benchmarks/gpu.sh [--wheels FOLDER] [--python PROGRAM] [arguments of benchmarks/gpu.py]
#
# Packages that the Python lacks go into an environment in build/gpu-env, from the wheels in FOLDER or else from pip's
# index. Exit status 1: a result is wrong or something is missing.
set -euo pipefail

fail() { echo "gpu.sh: $1" >&2; exit 1; }
usage() { sed -n '2,7s/^# \{0,1\}//p' "$0"; exit 0; }

wheels="" python=python3 arguments=()
while [ $# -gt 0 ]; do
  case "$1" in
    --wheels) [ -d "${2:-}" ] || fail "--wheels needs a folder with .whl files"; wheels=$(cd "$2" && pwd); shift 2 ;;
    --python) [ -n "${2:-}" ] || fail "--python needs a program"; python=$2; shift 2 ;;
    -h|--help) usage ;;
    *) arguments+=("$1"); shift ;;
  esac
done
budget=445 started=$SECONDS
cd "$(dirname "$0")/.."

command -v "$python" >/dev/null || fail "there is no $python; try: --python /path/to/python3"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || fail "$("$python" --version) is too old: 3.11 or newer is needed"
said=$("$python" -c 'import importlib.metadata, torch
version = importlib.metadata.version("torch")  # as pip knows it; torch itself may add the build to it
new = tuple(map(int, version.split(".")[:2])) >= (2, 11)
print(version, new, torch.cuda.is_available())' 2>&1) \
  || fail "$python has no torch that works (${said##*$'\n'}); try: --python with the one that has it"
read -r version new seen <<<"${said##*$'\n'}"
[ "$new" = True ] || fail "torch $version is too old: 2.11 or newer is needed"
case "$seen ${arguments[*]-} " in
  True*|*" --device cpu "*) ;;
  *) fail "torch $version sees no NVIDIA GPU; to try the program out: --device cpu --tiny" ;;
esac

missing() {  # the packages that the benchmark imports and this Python does not have
  "$1" - <<'PYTHON'
import importlib.util
needed = {"jinja2": "jinja2", "networkx": "networkx", "numpy": "numpy", "onnx": "onnx", "onnxruntime": "onnxruntime",
          "PIL": "pillow", "pydantic": "pydantic", "yaml": "pyyaml", "rich": "rich", "safetensors": "safetensors",
          "sklearn": "scikit-learn", "tensorboard": "tensorboard", "torch": "torch", "torchvision": "torchvision",
          "typer": "typer"}
print(*(name for module, name in needed.items() if importlib.util.find_spec(module) is None))
PYTHON
}

lacking=$(missing "$python")
if [ -n "$lacking" ]; then
  echo "gpu.sh: installing $lacking" >&2
  target=$PWD/build/gpu-env
  rm -rf "$target"
  "$python" -m venv --without-pip "$target" || fail "$python cannot make a virtual environment"
  # The environment sees all that the Python has, a virtual environment too, and leaves it as it is.
  "$python" -c 'import sys; print(*(path for path in sys.path if path.endswith("-packages")), sep="\n")' \
    >"$("$target/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/parent.pth"
  echo "torch==$version" >"$target/constraints.txt"  # whatever needs torch has to take the one that is there
  from=(--constraint "$target/constraints.txt")
  [ -z "$wheels" ] || from+=(--no-index --find-links "$wheels")
  # shellcheck disable=SC2086
  "$python" -m pip --python "$target/bin/python" install --quiet "${from[@]}" $lacking \
    || fail "pip cannot install $lacking; try: --wheels FOLDER with their wheels and those of what they need"
  python=$target/bin/python
  lacking=$(missing "$python")
  [ -z "$lacking" ] || fail "still missing: $lacking"
fi

export PYTHONUNBUFFERED=1
exec "$python" -m benchmarks.gpu --budget-seconds $((budget - (SECONDS - started))) ${arguments[@]+"${arguments[@]}"}
