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

# editors NAME...: those of them that have a file for the model and, where they are trained, networks; says which are left out.
editors() {
    local name file why
    for name in "$@"; do
        file=$(hparams_of "$name") why="there is no hparams/$name/$file"
        [ ! -f "hparams/$name/$file" ] || why=$(lacking "$name" "$file") || why="it can't be loaded"
        if [ -z "$why" ]; then echo "$name"; else echo "$name is left out: $why" >&2; fi
    done
}

# lacking NAME FILE: what an editor that is trained lacks, in words; nothing if it can edit.
lacking() {
    case $1 in MEND | KE | ENN) ;; *) return 0 ;; esac
    "$PYTHON" - "$1" "$2" "$MODEL" <<'PY'
import contextlib
import sys
from editors import EditingError
from experiments.run.config import RunConfig
from experiments.run.hparams_file import load_editor
name, file, model = sys.argv[1:]
try:
    with contextlib.redirect_stdout(sys.stderr):  # what is printed here is the reason
        load_editor(RunConfig(alg_name=name, hparams_fname=file, model_name=model))[1].identity
except EditingError as error:
    print(error)
PY
}
