#!/usr/bin/env bash
# Usage: [GPUS=8] [GPUS_PER_NODE=8] [CPUS_PER_TASK=5] [SRUN_ARGS=...] \
#   bash tools/slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [options of tools/train.py]
set -euo pipefail
if [ $# -lt 4 ]; then
  sed -n '2,3s/^# //p' "$0" >&2
  exit 2
fi
source "$(dirname "$0")/_slurm.sh"
on_slurm "$1" "$2" train "$3" --work-dir "$4" "${@:5}"
