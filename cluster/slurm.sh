#!/usr/bin/env bash
#SBATCH --job-name=fusion-ray
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=96
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=B:TERM@180
#SBATCH --output=%x-%j.log
#
# A Ray cluster for the length of one Slurm job, and a recipe on it:  sbatch cluster/slurm.sh mine.yaml --set ...
# Reads:  a recipe whose paths every node sees (a shared file system); .venv in the working folder (`make setup`).
# Time's up or preempted: the run is told to stop, Slurm queues the job again, and it goes on from there.
set -euo pipefail

recipe=${1:?usage: sbatch cluster/slurm.sh RECIPE [--set KEY=VALUE ...]}
shift
python=${FUSION_RAY_PYTHON:-$PWD/.venv/bin/python}
ray=$(dirname "$python")/ray

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
head_ip=$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | awk '{print $1}')
port=$((20000 + SLURM_JOB_ID % 20000)) # Two jobs on one node do not meet.

# A token of its own for this job, in the environment alone: never on a command line, where `ps` shows it.
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
export RAY_ADDRESS=$head_ip:$port
cpus=${SLURM_CPUS_PER_TASK:-1}
gpus=${SLURM_GPUS_ON_NODE:-0}

started=()
trap 'kill -TERM "${started[@]}" 2>/dev/null || true' EXIT

srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" \
    "$ray" start --head --block --node-ip-address="$head_ip" --port="$port" --dashboard-host=127.0.0.1 \
    --num-cpus="$cpus" --num-gpus="$gpus" &
started+=($!)
for _ in $(seq 60); do
    "$ray" health-check --address "$RAY_ADDRESS" && break
    sleep 2
done
for node in "${nodes[@]:1}"; do
    srun --overlap --nodes=1 --ntasks=1 --nodelist="$node" \
        "$ray" start --block --address="$RAY_ADDRESS" --num-cpus="$cpus" --num-gpus="$gpus" &
    started+=($!)
done

"$python" jobs/fuse.py "$recipe" "$@" &
run=$!
trap 'kill -TERM "$run"' TERM
# The signal interrupts the first wait; the second gives the run's own exit code.
code=0
wait "$run" || code=$?
if kill -0 "$run" 2>/dev/null; then
    code=0
    wait "$run" || code=$?
fi
if [ "$code" -eq 143 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
