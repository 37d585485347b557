#!/usr/bin/env bash
# The search behind hparams/MEMIT/world.json: a grid over layers, lambda and clamp, 100 facts that
# no table uses (records 2000 to 2099 of the world; tables use the first 1000). Prints the summary of every setting.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
out=results/world_search
mkdir -p "$out"

"$PYTHON" - "$out" <<'PY'
import json, sys
from data import world
from pathlib import Path
out = Path(sys.argv[1])
(out / "facts.json").write_text(json.dumps(world.load("en")[2000:2100], ensure_ascii=False))
base = json.loads(Path("hparams/MEMIT/world.json").read_text())
for layers in ([0], [0, 1], [1, 2]):
    for weight in (100, 200, 1000):
        for clamp in (0.6, 0.75, 1):
            name = f"layers{'-'.join(map(str, layers))}_lambda{weight}_clamp{clamp}"
            setting = base | {"layers": layers, "mom2_update_weight": weight, "clamp_norm_factor": clamp}
            (out / f"{name}.json").write_text(json.dumps(setting, indent=4) + "\n")
PY
for hparams in "$out"/layers*.json; do
    name=$(basename "$hparams" .json)
    continue=()
    [ -d "$out/$name/run_000" ] && continue=(--continue_from_run run_000)
    "$PYTHON" -m experiments.evaluate --alg_name MEMIT --model_name world --hparams_fname "$hparams" --ds_name "$out/facts.json" \
        --num_edits 100 --skip_generation_tests --dir_name "world_search/$name" ${continue[@]+"${continue[@]}"}
done
names=$(cd results && ls -d world_search/layers*/ | sed 's#/$##' | paste -sd, -)
"$PYTHON" -m experiments.summarize --dir_name "$names" --out "$out"
