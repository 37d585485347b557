#!/usr/bin/env bash
# The search behind hparams/*/smollm2.json, on records 0 to 99 of DATA, which no table uses. One setting after another is varied and
# the best kept for the next, in the order below; the best is the highest score (of unequal neighbourhood, the harmonic mean tells).
# Prints the summary of every setting. Target states are kept, so a setting that they don't follow from costs only its metrics.
# From the environment: DATA, CORPUS (scripts/real_setup.sh), ONLY (names of settings to run, all by default). Goes on where it
# stopped.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
source scripts/real_setup.sh
out=results/real_search
mkdir -p "$out"

"$PYTHON" - "$out" "$CORPUS" <<'PY'
import json, sys
from pathlib import Path
out, corpus = Path(sys.argv[1]), sys.argv[2]
def write(algorithm, edits, name="smollm2", **setting):
    base = json.loads(Path(f"hparams/{algorithm}/{name}.json").read_text())
    if "mom2_dataset" in base:
        base["mom2_dataset"] = corpus
    words = "_".join(f"{key}{value}".replace(" ", "").replace("[", "").replace("]", "") for key, value in setting.items())
    (out / f"{algorithm}_{edits}_{words}.json").write_text(json.dumps(base | setting, indent=4) + "\n")
first = {"mom2_update_weight": 1400, "clamp_norm_factor": 0.75, "v_weight_decay": 0.5}
for layers in ([2, 3, 4, 5, 6], [4, 5, 6, 7, 8], [6, 7, 8, 9, 10], [8, 9, 10, 11, 12]):
    write("MEMIT", 100, layers=layers, **first)
for weight in (400, 5000):
    write("MEMIT", 100, layers=[4, 5, 6, 7, 8], **first | {"mom2_update_weight": weight})
write("MEMIT", 100, layers=[4, 5, 6, 7, 8], **first | {"clamp_norm_factor": 1.5, "v_weight_decay": 0.1})
for layer in (4, 8):
    for clamp in (1, 4):
        write("ROME", 1, layers=[layer], clamp_norm_factor=clamp)
for layer in (4, 8, 20):
    for lr in (0.0005, 0.002):
        write("FT", 1, layers=[layer], lr=lr)
for layer in (8, 20):
    for constraint in (0.0005, 0.002, 0.01):
        write("FT", 1, "smollm2_constr", layers=[layer], norm_constraint=constraint)
for threshold in (0.02, 0.1, 0.5):
    for weight in (1, 10):
        write("AlphaEdit", 100, nullspace_threshold=threshold, L2=weight)
PY
for hparams in "$out"/*_*.json; do
    name=$(basename "$hparams" .json)
    [ -z "${ONLY:-}" ] || [[ " $ONLY " == *" $name "* ]] || continue
    edits=${name#*_}
    evaluate "real_search/$name" --alg_name "${name%%_*}" --hparams_fname "$hparams" --num_edits "${edits%%_*}" \
        --dataset_size_limit 100 --use_cache
done
"$PYTHON" -m experiments.summarize --dir_name "$(run_dirs real_search)" --out "$out"
