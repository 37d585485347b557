#!/usr/bin/env bash
# Facts edited in both languages (Tamayo et al. 2024): the sum of two separate edits, that with 16 heads corrected, and one edit
# that is sought for both languages together.
#     WORLD=1 bash scripts/bilingual_approach_section.sh    # the built-in world, under 15 minutes on two cores
# Goes on where it stopped. From the environment, too: HEADS.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
source scripts/memat.sh
sizes 60:300 1000:3000

out=bilingual/${NAME}_$PROFILE
in_languages CE "$out/Bilingual_Attention" MEMAT --bilingual sum --top_num_heads "${HEADS:-16}" # its first stage is Loss_Separated
in_languages CE "$out/Combined_loss" MEMAT --bilingual joint --top_num_heads 0
"$PYTHON" -m experiments.memat_results "results/$out" --out "results/$out/table"
