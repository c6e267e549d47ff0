#!/usr/bin/env bash
# Table 1: time and memory of one attention module from 512 to 8192 tokens, on the GPU at hand.
. "$(dirname "$0")/common.sh"
run reproduce table=efficiency scale=paper "$@"
