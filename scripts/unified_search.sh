#!/usr/bin/env bash
# The search behind hparams/EMMET/world.json and hparams/AlphaEdit/world.json, on facts that no table uses (from record 2000 of the
# world on). In a batch EMMET is MEMIT with lambda * epsilon in place of lambda, so its lambda is ten times what
# scripts/world_search.sh found for MEMIT; the clamp is tried where EMMET differs, on single edits. AlphaEdit is made for sequences,
# and a setting that is good for one batch may let the weights grow without end: so it is judged by what 40 batches of 10 leave of
# 400 edits (retention) and by the growth of the weights (figure_norms), with MEMIT beside it; a grid over the threshold of the null
# space and L2, and the published point. Prints the summary of every setting.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
out=results/unified_search MODEL=world DATA=results/unified_search/facts.json
source scripts/evaluate.sh
mkdir -p "$out"

"$PYTHON" - "$out" <<'PY'
import json, sys
from data import world
from pathlib import Path
out = Path(sys.argv[1])
(out / "facts.json").write_text(json.dumps(world.load("en")[2000:2400], ensure_ascii=False))
def write(algorithm, edits, **setting):
    name = f"{algorithm}_{edits}_" + "_".join(f"{key}{value}" for key, value in setting.items())
    base = json.loads(Path(f"hparams/{algorithm}/world.json").read_text())
    (out / f"{name}.json").write_text(json.dumps(base | setting, indent=4) + "\n")
write("EMMET", 100, clamp_norm_factor=0.75)
for clamp in (0.6, 0.75, 1):
    write("EMMET", 1, clamp_norm_factor=clamp)
steps = {"v_num_grad_steps": 10}  # as good for comparing settings, and faster
write("MEMIT", 10, **steps)
for threshold in (0.002, 0.01, 0.02):
    for weight in (0.1, 0.2, 0.3, 1):
        write("AlphaEdit", 10, nullspace_threshold=threshold, L2=weight, **steps)
write("AlphaEdit", 10, nullspace_threshold=0.02, L2=10, **steps)  # as published for other models
PY
sequences=()
for hparams in "$out"/*_*.json; do
    name=$(basename "$hparams" .json)
    algorithm=${name%%_*} edits=${name#*_}
    if [ "${edits%%_*}" = 10 ]; then
        evaluate "unified_search/$name" --alg_name "$algorithm" --hparams_fname "$hparams" --num_edits 10 --sequential \
            --history_eval_steps 20
        sequences+=("results/unified_search/$name/run_000")
    else
        evaluate "unified_search/$name" --alg_name "$algorithm" --hparams_fname "$hparams" --num_edits "${edits%%_*}" \
            --dataset_size_limit 100 --use_cache
    fi
done
"$PYTHON" -m figures.sequential "${sequences[@]}" --out "$out/figure"
"$PYTHON" -m experiments.summarize --dir_name "$(run_dirs unified_search)" --out "$out"
