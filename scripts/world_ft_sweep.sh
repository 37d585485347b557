#!/usr/bin/env bash
# What fine-tuning at the time of the edit reaches on the test edits and unrelated inputs of scripts/train_world_editors.sh: its rate,
# with and without the divergence on unrelated inputs in its loss. Prints success and drawdown of each.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
source scripts/learned_run.sh
out=${OUT:-outputs/world_ft}
data=(+experiment=gen +model=world data.same_relation=0.5)
for rate in 3e-5 5e-5 7e-5 1e-4 3e-4; do
    train "$out/plain_$rate" +alg=ft "${data[@]}" edit_lr=$rate "$@"
    train "$out/locality_$rate" +alg=ft "${data[@]}" edit_lr=$rate ft.locality.enabled=True ft.locality.batch_size=4 \
        ft.locality.cedit=0.1 "$@"
done
"$PYTHON" - "$out" <<'PY'
import json, sys
from pathlib import Path
for path in sorted(Path(sys.argv[1]).glob("*/results.json")):
    results = json.loads(path.read_text())["results"]
    print(f"{path.parent.name:20s} success {100 * results['edit_success']:6.1f} %   drawdown {100 * results['drawdown_acc']:6.1f} points")
PY
