#!/usr/bin/env bash
# How many heads MEMAT should correct (Tamayo et al. 2024, figure 9): MEMIT alone and with 8, 16, 32 and 48 heads, every pair of
# languages, measured in both. One edit and one probing of a chunk serve all numbers of heads. Figures and tables at the end.
#     WORLD=1 bash scripts/MEMAT_hyperparam_selection.sh            # the built-in world, under 15 minutes on two cores
#     WORLD=1 PROFILE=paper bash scripts/MEMAT_hyperparam_selection.sh
# The world's model has 48 heads in all; there 8, 16 and 32 are tried. Goes on where it stopped. From the environment, too: HEADS.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
source scripts/memat.sh
sizes 30:150 1000:3000
[ "$MODEL" != world ] || HEADS=${HEADS:-8,16,32}

out=MEMAT/${NAME}_$PROFILE
runs=()
for pair in $PAIRS; do
    in_languages "$pair" "$out/$pair" MEMAT --top_num_heads "${HEADS:-8,16,32,48}" --save_attention_heads "results/$out/heads/$pair" \
        --save_figure "results/$out/head_relevance/$pair.pdf"
    runs+=("results/$out/$pair/run_000")
done
"$PYTHON" -m figures.head_relevance "${runs[@]}" --out "results/$out/head_relevance/all"
"$PYTHON" -m figures.memat_sweep "results/$out" --published --out "results/$out/heads_sweep"
"$PYTHON" -m figures.memat_comparison "results/$out" --out "results/$out/comparison"
"$PYTHON" -m experiments.memat_results "results/$out" --out "results/$out/table"
