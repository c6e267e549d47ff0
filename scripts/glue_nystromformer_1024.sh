#!/usr/bin/env bash
# Table 3, Nyströmformer at 1024: the model of 512 grown, 40,000 steps, then every task; and figure 5.
. "$(dirname "$0")/common.sh"
run pretrain experiment=base_512 "$@"
run pretrain experiment=base_1024 init.path=runs/base_512/model training.validation_examples=1_024 "$@"
finetune glue_paper_nystromformer_1024 runs/base_1024/model model.attention=nystrom model.max_length=1024
run reproduce figure=longer scale=paper
