#!/usr/bin/env bash
# SERAC, MEND, ENN, LU and FT on the built-in world's questions, with 1, 10, 100 and 1,000 simultaneous edits (of at least 200 edits in
# all). SERAC's threshold is the one chosen on the validation split. Tens of minutes on two cores.
# Every part that is done is left alone when the command is given again. Results: results/serac_table/<ALG>/edits_<N>/, then the table.
#   HARD=true adds implied and true-or-false questions (qa-hard); unrelated questions are hard negatives in any case
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

out=results/serac_table${HARD:+_hard}
data=(data.hard_neg=true data.hard_neg_prob=0.5)
[ -n "${HARD:-}" ] && data+=(data.zsre_impl=true data.zsre_yn=true)
common=(+experiment=qa +model=world recipe=serac silent=true "${data[@]}")
declare -A OPTIONS=(
    [rep]="+preset=world_serac"
    [gtn]="lr=1e-4 edit_lr=1e-3 lr_lr=1e-4 gtn.rank=64 gtn.descent=True batch_size=10 accumulate_bs=1 max_iters=1500 val_interval=500 val_steps=100"
    [enn]="lr=1e-4 edit_lr=1e-2 lr_lr=1e-3 enn.first_order=True batch_size=10 accumulate_bs=1 max_iters=1000 val_interval=500 val_steps=100"
    [lu]="" [ft]="edit_lr=1e-3"
)

for alg in ${ALGS:-rep gtn enn lu ft}; do
    run=$out/$alg
    trained=()
    if [ "$alg" != lu ] && [ "$alg" != ft ]; then
        # shellcheck disable=SC2206
        words=("+alg=$alg" "${common[@]}" ${OPTIONS[$alg]} "hydra.run.dir=$run/run" eval.final_eval=false "$@")
        if [ ! -f "$run/run/results.json" ]; then
            [ -f "$run/run/last.safetensors" ] && words+=("archive=$run/run")
            "$PYTHON" -m experiments.train "${words[@]}"
        fi
        trained=("archive=$run/run")
        if [ "$alg" = rep ]; then
            "$PYTHON" -m experiments.scope "$run/run" --edits 10
            trained+=("rep.threshold=$("$PYTHON" -c 'import json, sys; print(json.load(open(sys.argv[1]))["calibrated"]["threshold"])' "$run/run/scope.json")")
        fi
    fi
    for n in ${EDITS:-1 10 100 1000}; do
        [ -f "$run/edits_$n/results.json" ] && continue
        # 1,000 edits at once need a world with more facts: its subjects are new to all models.
        facts=()
        [ "$n" -gt 300 ] && facts=(data.facts=12000)
        # shellcheck disable=SC2206
        "$PYTHON" -m experiments.train "+alg=$alg" "${common[@]}" ${OPTIONS[$alg]} "val_batch_size=$n" "val_steps=$n" eval_only=true \
            debug=true "${trained[@]}" "${facts[@]}" "hydra.run.dir=$run/edits_$n" "$@"
    done
done
"$PYTHON" -m experiments.serac_table "$out"
