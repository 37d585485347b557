#!/usr/bin/env bash
# The table of docs/real.md: every editor on records 100 to 299 of CounterFact in SmolLM2-135M-Instruct, at the numbers of edits it
# is for, and sequences of 20 batches of 10. Goes on where it stopped. From the environment: DATA, CORPUS (scripts/real_setup.sh),
# TEXT (of perplexity: its first 16,384 tokens; by default CORPUS), POINTS and SEQUENCES (by default all).
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
source scripts/real_setup.sh
text=(--perplexity_corpus "${TEXT:-$CORPUS}" --perplexity_tokens 16384)
POINTS=${POINTS-MEMIT:1 MEMIT:10 MEMIT:100 MEMIT:200 MEMIT_eot:100 ROME:1 EMMET:1 EMMET:100 EMMET:200 AlphaEdit:10 AlphaEdit:100
    AlphaEdit:200 FT:1 FT:100 FT_constr:1 FT_wd:1}
SEQUENCES=${SEQUENCES-MEMIT MEMIT_seq MEMIT_rect MEMIT_prune AlphaEdit EMMET FT}

for point in $POINTS; do
    edit "real_table/${point/:/_}" "${point%:*}" --num_edits "${point#*:}" "${text[@]}"
done
for name in $SEQUENCES; do
    edit "real_table/sequence_$name" "$name" --num_edits 10 --sequential --history_eval_steps 20 "${text[@]}"
done
"$PYTHON" -m experiments.summarize --dir_name "$(run_dirs real_table)" --out results/real_table
