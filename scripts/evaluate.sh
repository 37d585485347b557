# Sourced by the scripts of experiments, after setup.sh.

# The model, its hyper-parameter files and the data: the built-in world unless the environment names another MODEL.
MODEL=${MODEL:-world}
HPARAMS=${HPARAMS:-${MODEL//\//_}.json}
DATA=${DATA:-$([ "$MODEL" = world ] && echo world || echo mcf)}
NAME=$(basename "$MODEL")

# evaluate DIR FLAGS: a run of experiments.evaluate, results/DIR/run_000; goes on with it if it is there.
evaluate() {
    local dir=$1 continue=()
    shift
    [ -d "results/$dir/run_000" ] && continue=(--continue_from_run run_000)
    "$PYTHON" -m experiments.evaluate --model_name "$MODEL" --ds_name "$DATA" --skip_generation_tests --dir_name "$dir" "$@" \
        "${continue[@]}"
}

# run_dirs DIR: the folders in results/DIR that hold a run, comma-separated for experiments.summarize.
run_dirs() {
    (cd results && ls -d "$1"/*/run_000 | sed 's#/run_000$##' | paste -sd,)
}
