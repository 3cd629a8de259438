#!/usr/bin/env bash
# The GPU benchmark where nothing is installed: any Python with torch.
# Usage: launch/gpu_bench.sh [folder of the results] [--seconds 420] [--rounds 100] [--preset cogact-base] ...
exec "$(dirname "$0")/bare.sh" verbs.gpu_bench "$@"
