# Sourced by the scripts of experiments, after setup.sh.

# The model, its hyper-parameter files and the data: the built-in world unless the environment names another MODEL.
MODEL=${MODEL:-world}
HPARAMS=${HPARAMS:-${MODEL//\//_}.json}
DATA=${DATA:-$([ "$MODEL" = world ] && echo world || echo mcf)}
NAME=$(basename "$MODEL")

# evaluate DIR FLAGS: a run of experiments.evaluate, results/DIR/run_000; goes on with it if it is there. Texts are generated
# only where FLAGS say --generation_test_interval.
evaluate() {
    local dir=$1 continue=() skip=(--skip_generation_tests)
    shift
    [[ " $* " == *" --generation_test_interval "* ]] && skip=()
    [ -d "results/$dir/run_000" ] && continue=(--continue_from_run run_000)
    "$PYTHON" -m experiments.evaluate --model_name "$MODEL" --ds_name "$DATA" --dir_name "$dir" "$@" \
        ${skip[@]+"${skip[@]}"} ${continue[@]+"${continue[@]}"}
}

# run_dirs DIR: the folders in results/DIR that hold a run, comma-separated for experiments.summarize.
run_dirs() {
    (cd results && ls -d "$1"/*/run_000 | sed 's#/run_000$##' | paste -sd,)
}

# hparams_of ALG or ALG:FILE: the editor's file for the model. FT's published files have more to their names.
hparams_of() {
    local name=${1%%:*} stem=${HPARAMS%.json} end
    [ "$name" = "$1" ] || { echo "${1#*:}"; return; }
    if [ "$name" = FT ]; then
        for end in _wd _unconstr; do
            [ -f "hparams/FT/$stem$end.json" ] && { echo "$stem$end.json"; return; }
        done
    fi
    echo "$HPARAMS"
}

# editors NAME...: those of them that are there and have a file for the model.
editors() {
    local name
    for name in "$@"; do
        [ -f "hparams/$name/$(hparams_of "$name")" ] && echo "$name"
    done
    return 0
}
