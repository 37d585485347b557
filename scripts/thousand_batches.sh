#!/usr/bin/env bash
# A thousand batches of ten edits into one model, by ROME, MEMIT, EMMET and AlphaEdit: does memory stay level (<out>/figure_cost), and
# what is left of the edits (<out>/figure_retention)? On facts of a larger world, which the model has never read, with the built-in
# model; of each fact one paraphrase and two neighbourhood prompts are measured, and target states are sought in 10 steps, so that a
# run is a matter of minutes. Goes on where it stopped. From the environment: ALGS, BATCHES.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
ALGS=${ALGS:-AlphaEdit MEMIT EMMET ROME} BATCHES=${BATCHES:-1000}
out=thousand_batches/$BATCHES MODEL=world DATA=results/thousand_batches/facts.json
source scripts/evaluate.sh
mkdir -p results/thousand_batches

"$PYTHON" - $ALGS <<'PY'
import json, sys
from data import world
from data.files import write_atomically
from pathlib import Path
out = Path("results/thousand_batches")
def write(name, content):
    write_atomically(out / name, lambda file: file.write(json.dumps(content, ensure_ascii=False).encode()))
few = {"paraphrase_prompts": 1, "neighborhood_prompts": 2, "attribute_prompts": 0, "generation_prompts": 0}
write("facts.json", [record | {key: record[key][:most] for key, most in few.items()} for record in world.load("en", facts=10_000)])
for algorithm in sys.argv[1:]:
    write(f"{algorithm}.json", json.loads(Path(f"hparams/{algorithm}/world.json").read_text()) | {"v_num_grad_steps": 10})
PY
runs=()
for algorithm in $ALGS; do
    evaluate "$out/$algorithm" --alg_name "$algorithm" --hparams_fname "results/thousand_batches/$algorithm.json" --sequential \
        --num_edits 10 --max_edits "$((10 * BATCHES))" --checkpoint_steps 50 --history_eval_steps "$((BATCHES > 10 ? BATCHES / 10 : 1))" \
        --history_sample 200 --perplexity_corpus world
    runs+=("results/$out/$algorithm/run_000")
done
"$PYTHON" -m figures.sequential "${runs[@]}" --out "results/$out/figure"
"$PYTHON" -m experiments.summarize --dir_name "$(run_dirs "$out")" --out "results/$out"
