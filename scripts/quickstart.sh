#!/usr/bin/env bash
# Everything a newcomer needs: set up, edit 100 facts of the built-in world with MEMIT, evaluate, summarise, draw one figure.
# No download beyond the Python packages. Run again, it continues where it stopped and does nothing twice.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

run=run_000
continue=() # used as ${continue[@]+...}, since bash 3 takes an empty array for an unset one
[ -f "results/quickstart/$run/run.json" ] && continue=(--continue_from_run "$run")
"$PYTHON" -m experiments.evaluate --alg_name MEMIT --model_name world --hparams_fname world.json --ds_name world \
    --num_edits 100 --dataset_size_limit 100 --dir_name quickstart ${continue[@]+"${continue[@]}"}
"$PYTHON" -m experiments.summarize --dir_name quickstart --runs "$run"
"$PYTHON" -m figures.summary "results/quickstart/$run" --out results/quickstart/summary
echo "cases: results/quickstart/$run/*.json   figure: results/quickstart/summary.png"
echo "to go on with python: source $VENV/bin/activate"
