#!/usr/bin/env bash
# MEMAT's study of the learning rate: MEMIT in Catalan, 1,000 facts, v_lr 0.05, 0.1, 0.2 and 0.5. Published (Aguila-7b): scores of
# 64.7, 79.3, 84.5 and 83.8. Of the published files aguila.json and aguila1.json are hparams/MEMAT/Aguila-7b.json (0.2); aguila3
# (0.05) and aguila4 (0.1) stand for two of the rates, but aguila4 also has clamp_norm_factor 0.5, aguila2 (0.5) 15 steps and
# aguila5 (0.1) kl_factor 0.1: the runs of the study kept 0.75, 20 and 0.0625, as here.
#     WORLD=1 bash scripts/tuning_LR.sh    # the built-in world
# Goes on where it stopped. From the environment, too: RATES.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
source scripts/memat.sh
sizes 100:100 1000:1000

out=Tuning_LR/${NAME}_$PROFILE
mkdir -p "results/$out/hparams"
for rate in ${RATES:-0.05 0.1 0.2 0.5}; do
    setting=results/$out/hparams/v_lr_$rate.json
    "$PYTHON" - "hparams/MEMAT/$HPARAMS" "$rate" "$setting" <<'PY'
import json, sys
from pathlib import Path
base, rate, setting = sys.argv[1:]
part = Path(f"{setting}.part")
part.write_text(json.dumps(json.loads(Path(base).read_text()) | {"v_lr": float(rate)}, indent=4) + "\n")
part.replace(setting)
PY
    HPARAMS=$PWD/$setting in_languages CC "$out/v_lr_$rate" MEMAT --top_num_heads 0
done
"$PYTHON" -m experiments.summarize --dir_name "$(run_dirs "$out")" --out "results/$out"
