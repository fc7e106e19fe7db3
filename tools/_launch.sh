# Sourced by the dist_*.sh scripts: starts tools/VERB.py on torchrun.

# launch VERB CONFIG PROCESSES ARGUMENTS...
launch() {
  local verb=$1 config=$2 processes=$3
  shift 3
  local here
  here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
  if ! [[ $processes =~ ^[1-9][0-9]*$ ]]; then
    echo "the number of GPUs must be a positive number, not '$processes'" >&2
    exit 2
  fi
  local rendezvous=()
  if [ "${NNODES:-1}" -gt 1 ]; then
    rendezvous=(--node_rank="${NODE_RANK:-0}" --master_addr="${MASTER_ADDR:?set MASTER_ADDR to the first machine}"
      --master_port="${PORT:-29500}")
  elif [ -n "${PORT:-}" ]; then
    rendezvous=(--node_rank=0 --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="$PORT")
  else
    rendezvous=(--standalone) # picks a free port, so that two runs on one machine do not meet
  fi
  # The processes share the cores; torchrun would otherwise leave one thread to each.
  local cores
  cores=$(nproc 2>/dev/null || echo 1)
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores / processes > 0 ? cores / processes : 1))}
  exec "${PYTHON:-python}" -c 'from refseg.compat import torchrun; torchrun()' \
    --nnodes="${NNODES:-1}" --nproc_per_node="$processes" \
    "${rendezvous[@]}" "$here/$verb.py" "$config" "$@" --launcher pytorch
}
