#!/usr/bin/env bash
# A module of trimvla.launch where nothing is installed: any Python with torch; msgspec may lie as a wheel in .whl/.
# Usage: launch/bare.sh verbs.gpu_bench|training.gpu_train [its arguments]
set -euo pipefail
module=$1
shift
here=$(cd "$(dirname "$0")/.." && pwd)
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
ln -s "$here" "$site/trimvla"
export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
python=${PYTHON:-python3}
if ! "$python" -c "import msgspec" 2>/dev/null; then
	"$python" -m pip install -q --no-index --no-deps --target "$site" "$here"/.whl/msgspec-*.whl 2>/dev/null || {
		echo "error: expected msgspec, or its wheel in .whl/ (pip download --no-deps -d .whl msgspec)" >&2
		exit 1
	}
fi
"$python" -m "trimvla.launch.$module" "$@"
