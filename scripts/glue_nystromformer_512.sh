#!/usr/bin/env bash
# Table 3, Nyströmformer at 512: 0.25 M steps from BERT-base's weights, then every task.
. "$(dirname "$0")/common.sh"
run pretrain experiment=base_512 "$@"
finetune glue_paper_nystromformer_512 runs/base_512/model model.attention=nystrom model.max_length=512
