#!/usr/bin/env bash
# zsRE at scale (MEMIT, Meng et al. 2023, table 1): 10,000 edits at once by ROME, MEMIT, EMMET, FT, MEND. On the built-in world
# its 3,240 facts as questions, an hour (EDITS=300: a quarter of an hour); as published (a GPU):
#     MODEL=EleutherAI/gpt-j-6B bash scripts/zsre_evals.sh
# Goes on where it stopped. From the environment: MODEL, DATA, HPARAMS (file in hparams/<ALG>/), ALGS (<ALG>, or <ALG>:<another
# file>), EDITS.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
DATA=${DATA:-$([ "${MODEL:-world}" = world ] && echo world-zsre || echo zsre)}
source scripts/evaluate.sh
EDITS=${EDITS:-$([ "$MODEL" = world ] && echo 3240 || echo 10000)}
ALGS=${ALGS:-$(editors ROME MEMIT EMMET FT MEND)}
out=zsre/${NAME}_$(basename "$DATA" .json)_$EDITS

runs=()
for algorithm in $ALGS; do
    name=${algorithm%%:*}
    evaluate "$out/$name" --alg_name "$name" --hparams_fname "$(hparams_of "$algorithm")" --num_edits "$EDITS" \
        --dataset_size_limit "$EDITS" --use_cache
    runs+=("results/$out/$name/run_000")
done
"$PYTHON" -m figures.summary "${runs[@]}" --out "results/$out/summary"
"$PYTHON" -m experiments.summarize --dir_name "$(run_dirs "$out")" --out "results/$out"
