#!/usr/bin/env bash
# Sequential editing (Model Editing at Scale leads to Gradual and Catastrophic Forgetting, Gupta et al. 2024, and A Unified
# Framework for Model Editing): one edit order, batch after batch into the same model; efficacy right after each batch,
# what is left of earlier edits, distance of the weights, perplexity and downstream tasks, and figures of all runs together.
# On the built-in world, whose model cannot do the tasks (they only exercise the pipeline), about 15 minutes on two cores;
#     MODEL=gpt2-xl NUM_EDITS=1 EDITS=1000 STEPS=100 ALGS="ROME MEMIT" bash scripts/unified_sequential.sh
# Goes on where it stopped. From the environment: MODEL, DATA, HPARAMS (file in hparams/<ALG>/), ALGS, NUM_EDITS (of a batch),
# EDITS, STEPS (batches between the measurements), TASKS, TESTS, SAMPLE (of the ten edit orders).
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
source scripts/evaluate.sh
if [ "$MODEL" = world ]; then
    NUM_EDITS=${NUM_EDITS:-10} EDITS=${EDITS:-200} STEPS=${STEPS:-5} TASKS=${TASKS:-nli,sst} TESTS=${TESTS:-20} corpus=world
else
    NUM_EDITS=${NUM_EDITS:-100} EDITS=${EDITS:-5000} STEPS=${STEPS:-5} TASKS=${TASKS:-sst,mrpc,cola,rte,nli} TESTS=${TESTS:-100}
    corpus=wikitext
fi
ALGS=${ALGS:-ROME MEMIT EMMET AlphaEdit MEMIT_seq MEMIT_rect MEMIT_prune} SAMPLE=${SAMPLE:-0}
out=unified_sequential/${NAME}_${NUM_EDITS}_of_${EDITS}_order_$SAMPLE

runs=()
for algorithm in $ALGS; do
    evaluate "$out/$algorithm" --alg_name "$algorithm" --hparams_fname "$HPARAMS" --sequential --num_edits "$NUM_EDITS" \
        --max_edits "$EDITS" --sample_num "$SAMPLE" --history_eval_steps "$STEPS" --perplexity_corpus "$corpus" \
        --do_downstream_eval --downstream_eval_steps "$STEPS" --downstream_tasks "$TASKS" --number_of_tests "$TESTS"
    runs+=("results/$out/$algorithm/run_000")
done
"$PYTHON" -m figures.sequential "${runs[@]}" --out "results/$out/figure"
"$PYTHON" -m experiments.summarize --dir_name "$(run_dirs "$out")" --out "results/$out"
