#!/usr/bin/env bash
# The table of docs/world.md: MEMIT at 1, 10, 100 and 1,000 edits, ROME and FT at 1, on the built-in world. Goes on where it stopped.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

evaluate() { # algorithm, hparams, edits a batch, cases
    local dir="world_table/$1_${2%.json}_$3"
    local continue=()
    [ -d "results/$dir/run_000" ] && continue=(--continue_from_run run_000)
    "$PYTHON" -m experiments.evaluate --alg_name "$1" --model_name world --hparams_fname "$2" --ds_name world \
        --num_edits "$3" --dataset_size_limit "$4" --skip_generation_tests --dir_name "$dir" ${continue[@]+"${continue[@]}"}
}
evaluate MEMIT world.json 1 100
evaluate MEMIT world.json 10 100
evaluate MEMIT world.json 100 500
evaluate MEMIT world.json 1000 1000
evaluate ROME world.json 1 100
evaluate FT world.json 1 100
evaluate FT world_constr.json 1 100
"$PYTHON" -m experiments.summarize --out results/world_table --dir_name "$(cd results &&
    ls -d world_table/MEMIT_world_{1,10,100,1000} world_table/ROME_world_1 world_table/FT_world{,_constr}_1 | paste -sd, -)"
