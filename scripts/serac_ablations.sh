#!/usr/bin/env bash
# SERAC's ablations: kind and size of the scope classifier, on fnli and qa-hard.
#   bash scripts/serac_ablations.sh [KEY=VALUE ...]; MODEL=world ENCODERS=world for the built-in world
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

TASKS=${TASKS:-fnli qa-hard}
ENCODERS=${ENCODERS:-distilbert-base-cased bert-base-cased}
declare -A MODELS=([fnli]=bert-base [qa-hard]=t5large)

for task in $TASKS; do
    for cross in True False; do
        for encoder in $ENCODERS; do
            words=(+alg=rep "+experiment=${task%-hard}" "+model=${MODEL:-${MODELS[$task]}}" batch_size=10 val_batch_size=10
                "rep.cross_attend=$cross" "rep.cls_name=$encoder" "results_dir=results/serac_ablations/$task/$encoder-cross_$cross")
            [ "$task" = qa-hard ] && words+=(data.zsre_impl=true data.zsre_yn=true data.hard_neg=true)
            [ "$encoder" = bert-base-cased ] && words+=(rep.checkpoint_grad=True)
            echo "$task cross_attend=$cross $encoder"
            "$PYTHON" -m experiments.train "${words[@]}" "$@"
        done
    done
done
