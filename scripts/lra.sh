#!/usr/bin/env bash
# Long Range Arena: ListOps and byte-level reviews for every attention.
. "$(dirname "$0")/common.sh"
run reproduce table=lra scale=paper "$@"
