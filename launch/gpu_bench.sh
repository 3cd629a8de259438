#!/usr/bin/env bash
# The GPU benchmark where nothing is installed: any Python with torch; msgspec may lie as a wheel in .whl/.
# Usage: launch/gpu_bench.sh [folder of the results] [--seconds 420] [--rounds 100] [--preset cogact-base] ...
set -euo pipefail
cd "$(dirname "$0")/.."
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
ln -s "$PWD" "$site/trimvla"
export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
python=${PYTHON:-python3}
if ! "$python" -c "import msgspec" 2>/dev/null; then
	"$python" -m pip install -q --no-index --no-deps --target "$site" .whl/msgspec-*.whl 2>/dev/null || {
		echo "error: expected msgspec, or its wheel in .whl/ (pip download --no-deps -d .whl msgspec)" >&2
		exit 1
	}
fi
"$python" -m trimvla.launch.gpu_bench "$@"
