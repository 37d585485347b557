#!/usr/bin/env bash
# The FastMEMIT experiment (Gupta et al. 2025, figures 3 and 4): MEMIT and EMMET with second moments of m times the keys' width,
# m = 1, 2, 4 and 10, against the full ones, at batches of 1 to 256 edits. On the built-in world about 15 minutes on two cores;
#     MODEL=gpt2-xl bash scripts/fastmemit.sh
# does the same with multi-CounterFact, and
#     ALGS="ROME AlphaEdit" MULTIPLIERS=10 POINTS=1:64 bash scripts/fastmemit.sh
# shows ROME and AlphaEdit. Goes on where it stopped. From the environment: MODEL, DATA, HPARAMS (file in
# hparams/<ALG>/), ALGS, MULTIPLIERS, POINTS (edits in a batch:cases). Target states do not depend on the statistics, so they
# are computed once (--use_cache).
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
source scripts/evaluate.sh
ALGS=${ALGS:-MEMIT EMMET} MULTIPLIERS=${MULTIPLIERS:-1 2 4 10} POINTS=${POINTS:-1:64 16:128 64:256 256:256}
out=fastmemit/$NAME
mkdir -p "results/$out/hparams"

for algorithm in $ALGS; do
    for m in $MULTIPLIERS full; do
        setting=results/$out/hparams/${algorithm}_m$m.json
        # The ridge is added only where the keys do not span their width; AlphaEdit inverts no moment and knows none.
        "$PYTHON" - "hparams/$algorithm/$HPARAMS" "$m" "$setting" <<'PY'
import json, sys
from pathlib import Path
base, m, setting = sys.argv[1:]
values = {key: value for key, value in json.loads(Path(base).read_text()).items() if key not in ("dynamic", "dynamic_multiplier")}
few = {} if m == "full" else {"dynamic_multiplier": float(m)} | ({} if "L2" in values else {"relative_ridge": 1e-3})
Path(setting).write_text(json.dumps(values | few, indent=4) + "\n")
PY
        for point in $POINTS; do
            evaluate "$out/${algorithm}_m${m}_${point%:*}" --alg_name "$algorithm" --hparams_fname "$setting" \
                --num_edits "${point%:*}" --dataset_size_limit "${point#*:}" --use_cache
        done
    done
done
"$PYTHON" -m figures.fastmemit "results/$out" --out "results/$out/fastmemit"
