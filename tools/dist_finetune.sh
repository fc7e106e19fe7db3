#!/usr/bin/env bash
# Usage: bash tools/dist_finetune.sh DATA GPUS [options of refseg finetune]
# GPUS is the number of processes on this machine (gloo processes where there is no GPU).
# Several machines: set NNODES, NODE_RANK, MASTER_ADDR and PORT on each.
set -euo pipefail
if [ $# -lt 2 ]; then
  sed -n '2,4s/^# //p' "$0" >&2
  exit 2
fi
source "$(dirname "$0")/_launch.sh"
launch finetune "$1" "$2" "${@:3}"
