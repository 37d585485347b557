#!/usr/bin/env bash
# Heads and corrections of the first chunk of facts, used on others (Tamayo et al. 2024): only MEMIT runs again.
#     WORLD=1 bash scripts/portability.sh    # the built-in world, under 15 minutes on two cores
# Goes on where it stopped. From the environment, too: HEADS (one number).
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
source scripts/memat.sh
sizes 60:300 1000:3000
HEADS=${HEADS:-16}
[[ $HEADS =~ ^[1-9][0-9]*$ ]] || { echo "error: HEADS=$HEADS: give one number of heads, from 1" >&2; exit 2; }

out=portability/${NAME}_$PROFILE
for pair in $PAIRS; do
    saved=results/$out/heads/$pair
    FACTS=$NUM_EDITS in_languages "$pair" "$out/first/$pair" MEMAT --top_num_heads "$HEADS" --save_attention_heads "$saved"
    file=${saved}_$(language "${pair:0:1}")-$(language "${pair:1:1}")_${HEADS}heads_chunk0_${NUM_EDITS}edits
    in_languages "$pair" "$out/others/$pair" MEMAT --top_num_heads "$HEADS" --eval_on_others --head_ind "$file.npy" \
        --load_attention "$file.safetensors"
done
"$PYTHON" -m experiments.memat_results "results/$out/others" --out "results/$out/table"
