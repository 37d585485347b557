#!/usr/bin/env bash
# Inference-time intervention (Li et al. 2023) in MEMAT's place, as its paper's appendix tries it (Tamayo et al. 2024): MEMIT in
# Catalan, heads chosen in English; alpha 1 to 15, 1 to 10 heads. One edit and one probing of a chunk serve the whole sweep.
#     WORLD=1 bash scripts/evaluate_ITI_fails.sh    # the built-in world, under 15 minutes on two cores
# Goes on where it stopped. From the environment, too: ALPHAS, HEADS.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
source scripts/memat.sh
sizes 40:200 1000:1000

out=MEMIT_ITI/${NAME}_$PROFILE
in_languages CE "$out/CE" ITI --alpha "${ALPHAS:-1,5,10,12,15}" --top_num_heads "${HEADS:-1,2,5,10}"
"$PYTHON" -m figures.memat_sweep "results/$out" --over alpha --published --out "results/$out/iti"
"$PYTHON" -m experiments.memat_results "results/$out" --out "results/$out/table"
