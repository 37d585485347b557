# Sourced by scripts that train learned editors. train FOLDER WORDS...: one run of experiments.train into FOLDER, unless it has
# finished; a run that was killed goes on from its last checkpoint.
train() {
    local folder=$1 archive=()
    shift
    [[ -f $folder/results.json ]] && return
    [[ -f $folder/last.safetensors ]] && archive=("archive=$folder")
    "$PYTHON" -m experiments.train "$@" hydra.run.dir="$folder" "${archive[@]}"
}
