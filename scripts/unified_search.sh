#!/usr/bin/env bash
# The search behind hparams/EMMET/world.json and hparams/AlphaEdit/world.json, on the facts of scripts/world_search.sh (records
# 2000 to 2099 of the world). In a batch EMMET is MEMIT with lambda * epsilon in place of lambda, so its lambda is ten times what
# that search found for MEMIT; the clamp is tried where EMMET differs, on single edits. AlphaEdit: a grid over the
# threshold of the null space and L2, and the published point. Prints the summary of every setting.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
out=results/unified_search MODEL=world DATA=results/unified_search/facts.json
source scripts/evaluate.sh
mkdir -p "$out"

"$PYTHON" - "$out" <<'PY'
import json, sys
from data import world
from pathlib import Path
out = Path(sys.argv[1])
(out / "facts.json").write_text(json.dumps(world.load("en")[2000:2100], ensure_ascii=False))
def write(algorithm, edits, **setting):
    name = f"{algorithm}_{edits}_" + "_".join(f"{key}{value}" for key, value in setting.items())
    base = json.loads(Path(f"hparams/{algorithm}/world.json").read_text())
    (out / f"{name}.json").write_text(json.dumps(base | setting, indent=4) + "\n")
write("EMMET", 100, clamp_norm_factor=0.75)
for clamp in (0.6, 0.75, 1):
    write("EMMET", 1, clamp_norm_factor=clamp)
for threshold in (0.0005, 0.002, 0.02):
    for weight in (0.01, 0.1, 1):
        write("AlphaEdit", 100, nullspace_threshold=threshold, L2=weight)
write("AlphaEdit", 100, nullspace_threshold=0.02, L2=10)  # as published for other models
PY
for hparams in "$out"/*_*.json; do
    name=$(basename "$hparams" .json)
    algorithm=${name%%_*} edits=${name#*_}
    evaluate "unified_search/$name" --alg_name "$algorithm" --hparams_fname "$hparams" --num_edits "${edits%%_*}" --use_cache
done
"$PYTHON" -m experiments.summarize --dir_name "$(run_dirs unified_search)" --out "$out"
