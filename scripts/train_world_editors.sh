#!/usr/bin/env bash
# Trains MEND, KE and ENN on the built-in world's facts (minutes each on a core), puts them where experiments.evaluate looks first, so
# before the MEND that ships as hparams/MEND/world.safetensors, and draws their training curves. Further words go to every run
# (seed=1, max_iters=1000, ...); for runs with other words choose another OUT.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
source scripts/learned_run.sh
out=${OUT:-outputs/world_editors}
for run in mend:mend ke:efk enn:enn; do
    name=${run%:*}
    train "$out/$name" "+alg=${run#*:}" +experiment=gen +model=world "+preset=world_$name" export=default "$@"
done
"$PYTHON" -m figures.learned "$out/mend" "$out/ke" "$out/enn" --labels MEND,KE,ENN --out "$out/training"
