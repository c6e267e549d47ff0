# What the recipes beside this file share; sourced by them, not run.
#
#   scripts/glue_bert.sh                          one GPU, or none
#   GPUS=8 scripts/glue_bert.sh                   the GPUs of this machine
#   sbatch scripts/slurm/run.sbatch scripts/glue_bert.sh      under Slurm, requeued until it is done
#   DRY_RUN=1 scripts/glue_bert.sh                print the commands and run none
#
# Words after a recipe's name go to its pretraining, or to its result where it pretrains nothing:
# scripts/glue_bert.sh data.workers=16
# GLUE_ROOT names the folder with GLUE's own files; without it they come from the hub.
# Every command goes on where it was stopped, so a recipe is run again until it ends.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PATH="$PWD/.venv/bin:$PATH"

# run COMMAND WORD…: `nystromformer COMMAND WORD…`, its pretraining on every GPU there is.
run() {
  local launcher=(nystromformer)
  if [[ "$1" == pretrain && -n "${SLURM_JOB_ID:-}" ]]; then
    # One task a GPU, without a launcher between: Slurm's signals reach the training, its exit code Slurm.
    # shellcheck disable=SC2016 # expanded by each task
    launcher=(srun --kill-on-bad-exit=0 --wait=600 bash -c 'RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS LOCAL_RANK=$SLURM_LOCALID exec nystromformer "$@"' task)
  elif [[ -n "${SLURM_JOB_ID:-}" ]]; then
    launcher=(srun --nodes=1 --ntasks=1 --cpu-bind=none nystromformer) # a step, so that signals reach it
  elif [[ "$1" == pretrain && "${GPUS:-1}" -gt 1 ]]; then
    launcher=(accelerate launch --config_file scripts/accelerate/one_machine.yaml --num_processes "$GPUS" -m nystromformer)
  fi
  if [[ -n "${DRY_RUN:-}" ]]; then
    echo "nystromformer $*"
  else
    "${launcher[@]}" "$@"
  fi
}

# finetune NAME CHECKPOINT WORD…: the tasks of the paper's table, 5 seeds each, shared by the GPUs.
finetune() {
  local name=$1 checkpoint=$2 task root
  shift 2
  for task in sst2 mrpc qnli qqp mnli imdb; do
    root=()
    if [[ -n "${GLUE_ROOT:-}" && "$task" != imdb ]]; then root=("data.root=$GLUE_ROOT"); fi
    run finetune "task=$task" "checkpoint=$checkpoint" "name=$name" seeds=5 "${root[@]}" "$@"
  done
}
