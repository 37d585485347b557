#!/usr/bin/env bash
# MEMIT across languages (MEMAT, Tamayo et al. 2024): edits in one language, measured in both; then the same for facts whose
# subjects have other tokens in the other language (files that python -m figures.tokenisation --write_subsets DIR writes).
#     WORLD=1 bash scripts/cross_linguality.sh      # the built-in world, under 15 minutes on two cores
# The world's names are the same in both languages, so it has no facts of the second kind. Goes on where it stopped.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
source scripts/memat.sh
sizes 100:500 1000:7000

all=MEMIT_all/${NAME}_$PROFILE
for pair in $PAIRS; do
    in_languages "$pair" "$all/$pair" MEMAT --top_num_heads 0
done
"$PYTHON" -m experiments.memat_results "results/$all" --out "results/$all/table"

[ "$MODEL" != world ] || exit 0
dif=MEMIT_diff/${NAME}_$PROFILE
for pair in $PAIRS; do
    SUBSET=dif FACTS=1000 in_languages "$pair" "$dif/$pair" MEMAT --top_num_heads 0
done
"$PYTHON" -m experiments.memat_results "results/$dif" --out "results/$dif/table"
