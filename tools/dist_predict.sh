#!/usr/bin/env bash
# Usage: bash tools/dist_predict.sh MODEL GPUS [options of refseg predict]
# GPUS is the number of processes on this machine (CPU processes where there is no GPU).
# Several machines: set NNODES, NODE_RANK, MASTER_ADDR and PORT on each. --out must be a folder that all of them share.
set -euo pipefail
if [ $# -lt 2 ]; then
  sed -n '2,4s/^# //p' "$0" >&2
  exit 2
fi
source "$(dirname "$0")/_launch.sh"
launch predict "$1" "$2" "${@:3}"
