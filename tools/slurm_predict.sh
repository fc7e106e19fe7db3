#!/usr/bin/env bash
# Usage: [GPUS=8] [GPUS_PER_NODE=8] [CPUS_PER_TASK=5] [SRUN_ARGS=...] \
#   bash tools/slurm_predict.sh PARTITION JOB_NAME MODEL [options of refseg predict]
set -euo pipefail
if [ $# -lt 3 ]; then
  sed -n '2,3s/^# //p' "$0" >&2
  exit 2
fi
source "$(dirname "$0")/_slurm.sh"
on_slurm "$1" "$2" predict "$3" "${@:4}"
