#!/usr/bin/env bash
# Does causal tracing find the blocks where edits work best? A trace of TRACED facts, and single-block edits of every block by
# each editor on 100 other facts (records 2000 to 2099 of the world), in one figure. About ten minutes on two cores;
# MODEL=gpt2-xl FACTS=facts.json EDITS=ROME:1:100 bash scripts/edit_layers.sh does the same on a file of CounterFact's schema.
# Goes on where it stopped. From the environment: MODEL, HPARAMS (file in hparams/<ALG>/), FACTS, TRACED, EDITS (editor:edits in
# a batch:cases), LAYERS.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
MODEL=${MODEL:-world} TRACED=${TRACED:-100} EDITS=${EDITS:-MEMIT:100:100 ROME:1:40}
out=results/edit_layers/$(basename "$MODEL")
mkdir -p "$out/hparams"
if [ "$MODEL" = world ] && [ -z "${FACTS:-}" ]; then
    FACTS=$out/facts.json
    "$PYTHON" -c 'import json, sys
from data import world
from data.files import write_json
write_json(sys.argv[1], world.load("en")[2000:2100])' "$FACTS"
fi
DATA=${FACTS:?name a file of facts}
source scripts/evaluate.sh

"$PYTHON" -m experiments.causal_trace --model_name "$MODEL" --dataset_size_limit "$TRACED" --output_dir "$out/causal_trace"
layers=${LAYERS:-$("$PYTHON" -c 'import json, sys
print(*range(json.load(open(sys.argv[1]))["layers"]))' "$out/causal_trace/run.json")}
for edits in $EDITS; do
    IFS=: read -r algorithm number cases <<<"$edits"
    for layer in $layers; do
        setting=$out/hparams/${algorithm}_$layer.json
        "$PYTHON" -c 'import json, sys
from pathlib import Path
base, layer, setting = sys.argv[1:]
Path(setting).write_text(json.dumps(json.loads(Path(base).read_text()) | {"layers": [int(layer)]}, indent=4) + "\n")' \
            "hparams/$algorithm/$HPARAMS" "$layer" "$setting"
        evaluate "edit_layers/$NAME/${algorithm}_$layer" --alg_name "$algorithm" --hparams_fname "$setting" \
            --num_edits "$number" --dataset_size_limit "$cases"
    done
done
"$PYTHON" -m figures.edit_layers "$out" --out "$out/edit_layers"
