#!/usr/bin/env bash
# Does causal tracing find the blocks where edits work best? A trace of TRACED facts, and single-block edits of every block by
# each editor on 100 other facts (records 2000 to 2099 of the world), in one figure. About ten minutes on two cores. Of another
# model, on a file of CounterFact's schema; and ROME's figure of blocks and tokens:
#     MODEL=gpt2-xl FACTS=facts.json EDITS=ROME:1:100 bash scripts/edit_layers.sh
#     EDITS="ROME:1:40 ROME:1:40:subject_first ROME:1:40:subject_first_after_last ROME:1:40:last" bash scripts/edit_layers.sh
# Goes on where it stopped. From the environment: MODEL, HPARAMS (file in hparams/<ALG>/), FACTS, TRACED, EDITS (editor:edits in
# a batch:cases, and :fact_token if that is not subject_last), LAYERS.
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
    IFS=: read -r algorithm number cases token <<<"$edits"
    for layer in $layers; do
        setting=${algorithm}_$layer${token:+_$token}
        "$PYTHON" -c 'import json, sys
from pathlib import Path
base, layer, token, setting = sys.argv[1:]
values = json.loads(Path(base).read_text()) | {"layers": [int(layer)]} | ({"fact_token": token} if token else {})
Path(setting).write_text(json.dumps(values, indent=4) + "\n")' \
            "hparams/$algorithm/$HPARAMS" "$layer" "$token" "$out/hparams/$setting.json"
        evaluate "edit_layers/$NAME/$setting" --alg_name "$algorithm" --hparams_fname "$out/hparams/$setting.json" \
            --num_edits "$number" --dataset_size_limit "$cases"
    done
done
"$PYTHON" -m figures.edit_layers "$out" --out "$out/edit_layers"
