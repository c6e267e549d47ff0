#!/usr/bin/env bash
# Long Range Arena: ListOps and byte-level reviews for every attention; pretrain=true adds self-pretraining,
# lra_root=FOLDER Retrieval, Image and Pathfinder from their files.
. "$(dirname "$0")/common.sh"
run reproduce table=lra scale=paper "$@"
