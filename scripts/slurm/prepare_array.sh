#!/bin/bash
# Prepare a corpus on many machines: an array of jobs that each make a share of the shards, then a job that
# merges them when all are through. Run it on the login node; the words are those of `nystromformer prepare`:
#
#   MACHINES=16 scripts/slurm/prepare_array.sh experiment=base_512 data.folder=/shared/prepared
#
# data.folder must be one that every machine sees. A job that was killed, preempted or out of time is put
# into the queue again and goes on from its last whole shard. SBATCH_PARTITION, SBATCH_ACCOUNT and Slurm's
# other variables apply; CPUS is the number of cores a job takes.
set -eu
MACHINES=${MACHINES:-8}
CPUS=${CPUS:-16}

array=$(sbatch --parsable --job-name=prepare --array="1-$MACHINES" --cpus-per-task="$CPUS" --mem=16G \
  --time=12:00:00 --requeue --open-mode=append --output=prepare-%A-%a.log \
  --wrap="exec nystromformer prepare $(printf '%q ' "$@") shard=\$SLURM_ARRAY_TASK_ID/$MACHINES data.workers=$CPUS")
# A cluster's name may follow the number, after a semicolon.
sbatch --job-name=merge --dependency="afterok:${array%%;*}" --cpus-per-task=2 --mem=16G --time=02:00:00 \
  --output=prepare-merge-%j.log --wrap="exec nystromformer prepare $(printf '%q ' "$@") merge=true"
