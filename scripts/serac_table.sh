#!/usr/bin/env bash
# SERAC, MEND, ENN, LU and FT on the built-in world's questions, with 1, 10, 100 and 1,000 simultaneous edits (of at least 200 edits in
# all). SERAC's threshold is chosen on the validation split for each number of edits; MEND and ENN, whose update is the sum over the
# edits, are trained for as many at a time, up to 10. Tens of minutes on two cores.
# Every part that is done is left alone when the command is given again. Results: results/serac_table/<ALG>/edits_<N>/, then the table.
#   HARD=true adds implied and true-or-false questions (qa-hard), with 1, 10 and 100 edits; in half of the batches unrelated questions are
#   hard negatives in any case
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
source scripts/learned_run.sh

out=results/serac_table edits="1 10 100 1000"
data=(data.hard_neg=true data.hard_neg_prob=0.5)
preset=world_serac
if [ "${HARD:-false}" = true ]; then
    out+=_hard edits="1 10 100"  # with 1,000 hardly a question is implied by one edit alone, and its classifier reads all pairs
    data+=(data.zsre_impl=true data.zsre_yn=true)
    preset=world_serac_hard
fi
common=(+experiment=qa +model=world recipe=serac silent=true "${data[@]}")
declare -A OPTIONS=(
    [rep]="+preset=$preset"
    [gtn]="lr=1e-4 edit_lr=1e-3 lr_lr=1e-4 gtn.rank=64 gtn.descent=True val_interval=500 val_steps=100"
    [enn]="lr=1e-4 edit_lr=1e-2 lr_lr=1e-3 enn.first_order=True val_interval=500 val_steps=100"
    [lu]="" [ft]="edit_lr=1e-4"
)

for alg in ${ALGS:-rep gtn enn lu ft}; do
    for n in ${EDITS:-$edits}; do
        [ -f "$out/$alg/edits_$n/results.json" ] && continue
        run=$out/$alg/run world=() trained=() together=() size=
        if [ "$alg" = gtn ] || [ "$alg" = enn ]; then
            size=$((n < 10 ? n : 10))
            run+=_$size together=("batch_size=$size" "accumulate_bs=$((10 / size))" "max_iters=$((size == 1 ? 3000 : 1500))")
        fi
        if [ "$n" -gt 300 ] || [ "$preset" = world_serac_hard ]; then
            # So many edits need a world with more facts, and so do questions whose answers are names. These are spelled in other tokens
            # there, so that editors are trained in that world, too (on other subjects, as ever).
            run+=_large world=(data.facts=12000)
            [ "$alg" = rep ] && [ "$preset" = world_serac ] && world+=(max_iters=1000)
        fi
        if [ "$alg" != lu ] && [ "$alg" != ft ]; then
            # shellcheck disable=SC2086
            train "$run" "+alg=$alg" "${common[@]}" ${OPTIONS[$alg]} eval.final_eval=false "${together[@]}" "val_batch_size=${size:-10}" \
                "${world[@]}" "$@"
            trained=("archive=$run")
        fi
        if [ "$alg" = rep ]; then
            scope=$run/scope_$n.json
            [ -f "$scope" ] || "$PYTHON" -m experiments.scope "$run" --edits "$n" --out "$scope"
            trained+=("rep.threshold=$("$PYTHON" -c 'import json, sys; print(json.load(open(sys.argv[1]))["calibrated"]["threshold"])' "$scope")")
        fi
        # shellcheck disable=SC2086
        "$PYTHON" -m experiments.train "+alg=$alg" "${common[@]}" ${OPTIONS[$alg]} "${together[@]}" "val_batch_size=$n" "val_steps=$n" \
            eval_only=true debug=true "${trained[@]}" "${world[@]}" "hydra.run.dir=$out/$alg/edits_$n" "$@"
    done
done
"$PYTHON" -m experiments.serac_table "$out"
