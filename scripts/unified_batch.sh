#!/usr/bin/env bash
# Batched editing (A Unified Framework for Model Editing, Gupta et al. 2024): EMMET and MEMIT at growing batch sizes, each batch
# edited into the unmodified model. On the built-in world about ten minutes on two cores; there both edit the same layers, with
# lambda * epsilon of EMMET equal to lambda of MEMIT, so that above one edit they come out equal, as theory has it;
#     MODEL=gpt2-xl POINTS="1:256 16:256 64:256 256:256 1024:1024 4096:4096" bash scripts/unified_batch.sh
# Goes on where it stopped. From the environment: MODEL, DATA, HPARAMS (file in hparams/<ALG>/), ALGS, POINTS (edits in a
# batch:cases).
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
source scripts/evaluate.sh
ALGS=${ALGS:-EMMET MEMIT} POINTS=${POINTS:-1:64 4:64 16:128 64:256 256:256 1024:1024}
out=unified_batch/$NAME

for algorithm in $ALGS; do
    runs=()
    for point in $POINTS; do
        dir=$out/${algorithm}_${point%:*}
        evaluate "$dir" --alg_name "$algorithm" --hparams_fname "$HPARAMS" --num_edits "${point%:*}" \
            --dataset_size_limit "${point#*:}" --use_cache
        runs+=("results/$dir/run_000")
    done
    "$PYTHON" -m figures.summary "${runs[@]}" --out "results/$out/$algorithm"
done
"$PYTHON" -m experiments.summarize --dir_name "$(run_dirs "$out")" --out "results/$out"
