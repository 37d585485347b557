#!/usr/bin/env bash
# SERAC's main comparison (Mitchell et al. 2022b): ENN, MEND with descent, SERAC, FT and the lookup cache on fnli, qa, qa-hard, sent.
#   bash scripts/serac_main.sh                     # all, with the published models and data files
#   TASKS="qa qa-hard" ALGS="rep lu" MODEL=world bash scripts/serac_main.sh max_iters=500
# Further words are keys of the configuration. With a Slurm cluster: LAUNCHER=slurm bash scripts/serac_main.sh hydra.launcher.partition=gpu
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

TASKS=${TASKS:-fnli qa qa-hard sent}
ALGS=${ALGS:-enn gtn rep ft lu}
declare -A MODELS=([fnli]=bert-base [qa]=t5large [qa-hard]=t5large [sent]=blender-small)
declare -A BATCH=([fnli]=10 [qa]=10 [qa-hard]=10 [sent]=5)
launcher=()
[ -n "${LAUNCHER:-}" ] && launcher=(--multirun "hydra/launcher=$LAUNCHER")

for task in $TASKS; do
    hard=false
    [ "$task" = qa-hard ] && hard=true
    for alg in $ALGS; do
        words=("+alg=$alg" "+experiment=${task%-hard}" "+model=${MODEL:-${MODELS[$task]}}" recipe=serac
            "batch_size=${BATCH[$task]}" "val_batch_size=${BATCH[$task]}" "results_dir=results/serac_main/$task")
        [ "${task%-hard}" = qa ] && words+=("data.zsre_impl=$hard" "data.zsre_yn=$hard" "data.hard_neg=$hard")
        [ "$alg" = gtn ] && words+=(gtn.descent=True)
        [ "$alg" = rep ] && [ "$task" = fnli ] && words+=(rep.cross_attend=True)
        [ "$alg" = rep ] && [ "${MODEL:-}" = world ] && words+=(rep.cls_name=world)
        echo "$task $alg"
        "$PYTHON" -m experiments.train "${launcher[@]}" "${words[@]}" "$@"
    done
done
