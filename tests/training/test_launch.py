"""The Slurm recipe with stand-ins for Slurm: what it starts, when it requeues. Accelerate's files."""

import os
import subprocess
from pathlib import Path

import pytest

RECIPE = Path(__file__).parents[2] / "scripts/slurm/pretrain.sbatch"

STANDINS = {
    "srun": """#!/bin/bash
[[ $1 == --kill-on-bad-exit=0 && $2 == --wait=600 ]] && shift 2
for task in 0 1; do
  SLURM_PROCID=$task SLURM_LOCALID=$task SLURM_NTASKS=2 "$@" || code=$?
done
exit ${code:-0}
""",
    "scontrol": """#!/bin/bash
if [ "$1" = show ]; then printf 'first\\nsecond\\n'; else echo "scontrol $*" >> "$CALLS"; fi
""",
    "nystromformer": """#!/bin/bash
echo "$RANK/$WORLD_SIZE on $LOCAL_RANK, $MASTER_ADDR:$MASTER_PORT: $*" >> "$CALLS"
exit "$CODE"
""",
}


@pytest.mark.parametrize(("code", "requeued"), [(0, False), (2, False), (138, True), (143, False)])
def test_it_requeues_on_the_exit_code_of_the_signal_alone(tmp_path, code, requeued):
    for name, content in STANDINS.items():
        (tmp_path / name).write_text(content)
        (tmp_path / name).chmod(0o755)
    calls = tmp_path / "calls"
    environment = {
        **os.environ,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "CALLS": str(calls),
        "CODE": str(code),
        "SLURM_JOB_ID": "123456",
        "SLURM_JOB_NODELIST": "first,second",
    }
    done = subprocess.run(["bash", str(RECIPE), "name=a b", "model=small"], env=environment)
    assert done.returncode == code
    lines = calls.read_text().splitlines()
    assert lines[:2] == [
        "0/2 on 0, first:23456: pretrain name=a b model=small",
        "1/2 on 1, first:23456: pretrain name=a b model=small",
    ]
    assert lines[2:] == (["scontrol requeue 123456"] if requeued else [])


@pytest.mark.parametrize("name", ["one_machine", "many_machines"])
def test_accelerate_reads_its_configuration(name):
    from accelerate.commands.config.config_args import load_config_from_file

    loaded = load_config_from_file(str(RECIPE.parents[1] / f"accelerate/{name}.yaml"))
    assert loaded.distributed_type == "MULTI_GPU"
    assert loaded.num_processes == 8 * loaded.num_machines
    assert loaded.mixed_precision == "no"  # the loop's own, training.precision
