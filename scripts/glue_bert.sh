#!/usr/bin/env bash
# Table 3, BERT-base: 0.5 M steps from scratch, then every task. All rows together:
#   nystromformer reproduce table=glue scale=paper
. "$(dirname "$0")/common.sh"
run pretrain experiment=bert_base_512 "$@"
finetune glue_paper_bert runs/bert_base_512/model model.attention=softmax model.max_length=512
