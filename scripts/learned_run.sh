# Sourced by scripts that train learned editors. train FOLDER WORDS...: one run of experiments.train into FOLDER, unless it has
# finished with the same words; a run that was killed goes on from its last checkpoint, or begins anew if there is none yet.
train() {
    local folder=$1 archive=()
    shift
    if [[ -f $folder/results.json ]]; then
        "$PYTHON" - "$folder" "$@" <<'PY'
import sys
from pathlib import Path
from experiments.run.cli import run_program
from experiments.train import check_finished
run_program(lambda: check_finished(Path(sys.argv[1]), sys.argv[2:]))
PY
        return
    fi
    if [[ -f $folder/last.safetensors ]]; then
        archive=("archive=$folder")
    else
        rm -f "$folder/best.safetensors"
    fi
    "$PYTHON" -m experiments.train "$@" hydra.run.dir="$folder" ${archive[@]+"${archive[@]}"}
}
