#!/usr/bin/env bash
# Figures 1 to 4 of the supplement, from the heads of a trained BERT, and the linear-kernel experiment.
. "$(dirname "$0")/common.sh"
for figure in landmarks num_landmarks pseudoinverse nystrom_tutorial; do
  run reproduce "figure=$figure" scale=paper "$@"
done
