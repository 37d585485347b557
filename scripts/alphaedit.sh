#!/usr/bin/env bash
# The main table of AlphaEdit (Fang et al. 2025): 2,000 edits in sequential batches of 100 by AlphaEdit, MEMIT and its variants,
# ROME and FT; every edit is measured again on the final model ("retention" in the summary). Downstream tasks every fifth
# batch. On the built-in world 300 edits in batches of 30, about ten minutes on two cores;
#     MODEL=meta-llama/Meta-Llama-3-8B-Instruct HPARAMS=Llama-3-8B.json bash scripts/alphaedit.sh
#     MODEL=gpt2-xl DATA=zsre bash scripts/alphaedit.sh
# Goes on where it stopped. From the environment: MODEL, DATA, HPARAMS (file in hparams/<ALG>/), ALGS (<ALG>, or <ALG>:<another
# file>), NUM_EDITS (of a batch), EDITS, TASKS, TESTS.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
source scripts/evaluate.sh
if [ "$MODEL" = world ]; then
    NUM_EDITS=${NUM_EDITS:-30} EDITS=${EDITS:-300} TASKS=${TASKS:-nli,sst} TESTS=${TESTS:-20} ft=$HPARAMS
else
    NUM_EDITS=${NUM_EDITS:-100} EDITS=${EDITS:-2000} TASKS=${TASKS:-nli,sst,cola,rte,mmlu,mrpc} TESTS=${TESTS:-100}
    ft=${HPARAMS%.json}_unconstr.json
fi
ALGS=${ALGS:-AlphaEdit MEMIT MEMIT_seq MEMIT_rect MEMIT_prune ROME FT:$ft}
out=alphaedit/${NAME}_$(basename "$DATA" .json)_${NUM_EDITS}_of_$EDITS

runs=()
for algorithm in $ALGS; do
    name=${algorithm%%:*} file=$HPARAMS
    [ "$name" = "$algorithm" ] || file=${algorithm#*:}
    evaluate "$out/$name" --alg_name "$name" --hparams_fname "$file" --sequential --num_edits "$NUM_EDITS" \
        --dataset_size_limit "$EDITS" --history_eval_steps 1000000 --do_downstream_eval --downstream_eval_steps 5 \
        --downstream_tasks "$TASKS" --number_of_tests "$TESTS" --gen_len 5
    runs+=("results/$out/$name/run_000")
done
"$PYTHON" -m figures.sequential "${runs[@]}" --out "results/$out/figure"
"$PYTHON" -m experiments.summarize --dir_name "$(run_dirs "$out")" --out "results/$out"
