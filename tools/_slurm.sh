# Sourced by the slurm_*.sh scripts: starts tools/VERB.py on srun, one task per GPU.

# on_slurm PARTITION JOB_NAME VERB ARGUMENTS...
on_slurm() {
  local partition=$1 job=$2 verb=$3
  shift 3
  local here gpus=${GPUS:-8} per_node=${GPUS_PER_NODE:-8}
  here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
  [ "$per_node" -le "$gpus" ] || per_node=$gpus
  export MASTER_PORT=${PORT:-29500}
  # shellcheck disable=SC2086  # SRUN_ARGS is a list of options
  exec srun -p "$partition" --job-name="$job" --gres="gpu:$per_node" --ntasks="$gpus" --ntasks-per-node="$per_node" \
    --cpus-per-task="${CPUS_PER_TASK:-5}" --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
    "${PYTHON:-python}" -u "$here/$verb.py" "$@" --launcher slurm
}
