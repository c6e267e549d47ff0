#!/usr/bin/env bash
# BERT-small beside Nyströmformer-small: 0.1 M steps each on the same batches, then the curves.
. "$(dirname "$0")/common.sh"
run pretrain experiment=bert_small_512 "$@"
run pretrain experiment=small_512 "$@"
run reproduce figure=small scale=paper
