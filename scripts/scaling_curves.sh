#!/usr/bin/env bash
# Scaling curves (MEMIT, Meng et al. 2023, figure 5): 1 to 10,000 edits at once, log-spaced as published, by ROME, MEMIT, EMMET,
# FT and MEND. On the built-in world up to 3,162 edits are of the facts that its model knows; more than that come from the world
# of 10,000 facts, which the model does not know, so that there efficacy and paraphrase count and the figure marks the rest.
# Hours on two cores in full, half an hour with
#     POINTS="1:50 100:100 1000:1000" bash scripts/scaling_curves.sh
# and as published (a GPU)
#     MODEL=EleutherAI/gpt-j-6B bash scripts/scaling_curves.sh
# Goes on where it stopped. From the environment: MODEL, DATA, HPARAMS (file in hparams/<ALG>/), ALGS (<ALG>, or <ALG>:<another
# file>), POINTS (edits in a batch:cases), INTERVAL (texts are generated for cases whose id is a multiple; -1: never).
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
source scripts/evaluate.sh
if [ "$MODEL" = world ]; then
    POINTS=${POINTS:-1:100 56:112 100:200 316:632 562:1124 1000:1000 1778:1778 3162:3162 5623:5623 10000:10000}
    INTERVAL=${INTERVAL:--1}
else
    POINTS=${POINTS:-$(for n in 1 56 100 316 562 1000 1778 3162 5623 10000; do echo "$n:10000"; done)} INTERVAL=${INTERVAL:-10}
fi
ALGS=${ALGS:-$(editors ROME MEMIT EMMET FT MEND)}
out=scaling/${NAME}_$(basename "$DATA" .json)

for algorithm in $ALGS; do
    name=${algorithm%%:*} file=$(hparams_of "$algorithm")
    for point in $POINTS; do
        number=${point%:*} data=$DATA
        [ "$DATA" = world ] && [ "$number" -gt 3240 ] && data=world:10000
        DATA=$data evaluate "$out/${name}_$number" --alg_name "$name" --hparams_fname "$file" --num_edits "$number" \
            --dataset_size_limit "${point#*:}" --generation_test_interval "$INTERVAL" --use_cache
    done
done
"$PYTHON" -m figures.scaling "results/$out" --out "results/$out/scaling"
"$PYTHON" -m experiments.summarize --dir_name "$(run_dirs "$out")" --out "results/$out"
