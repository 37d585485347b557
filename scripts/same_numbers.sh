#!/usr/bin/env bash
# A fixed list of small runs of every program, a quarter of an hour on one core, that shows whether a change of the code moves
# a number:
#     bash scripts/same_numbers.sh before            # with the old code
#     bash scripts/same_numbers.sh after             # with the new code, on the same machine
#     python scripts/same_numbers.py before after    # every difference in a line; exit code 1 if there is any
# Everything is written below the folder that is named: results, statistics, caches, trained networks, and what the programs
# print. A run that is done (done/NAME) is skipped, so the same command goes on where it stopped; one cut short begins anew.
# Only programs, flags and files that users know are named here, so that the list stays valid whatever becomes of the modules.
here=$PWD # before setup.sh goes to the repository's root
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
[ $# = 1 ] || { echo "usage: bash scripts/same_numbers.sh OUT" >&2; exit 2; }
case $1 in /*) OUT=$1 ;; *) OUT=$here/$1 ;; esac
mkdir -p "$OUT"/{done,printed,errors,given,memory}
OUT=$(cd "$OUT" && pwd)
printf '%s\n' "$PWD" "$OUT" >"$OUT/places.txt" # same_numbers.py takes these paths out of what it compares

# One thread: sums are taken in one order. No network: nothing depends on what is there today.
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 CUDA_VISIBLE_DEVICES="" HF_HUB_OFFLINE=1 TZ=UTC LC_ALL=C.UTF-8
export KE_DATA_DIR=$OUT/data KE_STATS_DIR=$OUT/stats
results=$OUT/results trained=$OUT/train models=$OUT/models figures=$OUT/figures given=$OUT/given

# run NAME MADE PROGRAM WORDS...: python -m PROGRAM WORDS..., unless that has been done. MADE (- for nothing) is a file or
# folder that this run alone makes; it is removed first: what is there is of a run cut short. What is printed is in
# printed/NAME.txt.
run() {
    local name=${1//\//_} made=$2 begun=$SECONDS
    shift 2
    [ ! -f "$OUT/done/$name" ] || return 0
    [ "$made" = - ] || rm -rf "$made"
    if ! "$PYTHON" -m "$@" >"$OUT/printed/$name.txt" 2>"$OUT/errors/$name.txt"; then
        echo "error: $name failed: $(tail -n 1 "$OUT/errors/$name.txt")" >&2
        exit 1
    fi
    touch "$OUT/done/$name"
    echo "$name $((SECONDS - begun)) s" | tee -a "$OUT/seconds.txt"
}

# evaluate NAME FLAGS...: experiments.evaluate on the world, results/NAME/run_000. Texts are sampled only where FLAGS say so.
evaluate() {
    local name=$1 skip=(--skip_generation_tests)
    shift
    [[ " $* " == *" --generation_test_interval "* ]] && skip=()
    run "$name" "$results/$name" experiments.evaluate --model_name world --results_dir "$results" --dir_name "$name" "$@" \
        ${skip[@]+"${skip[@]}"}
}

# train NAME WORDS...: a training of 50 iterations on a small world, train/NAME, validated on VAL_STEPS edits (10).
train() {
    local name=$1
    shift
    run "train_$name" "$trained/$name" experiments.train "$@" max_iters=50 val_interval=25 log_interval=10 \
        "val_steps=${VAL_STEPS:-10}" silent=True device=cpu data.source=world data.facts=600 "hydra.run.dir=$trained/$name"
}

# --- the quickstart ---
evaluate quickstart --alg_name MEMIT --hparams_fname world.json --ds_name world --num_edits 100 --dataset_size_limit 100 \
    --generation_test_interval 1
run quickstart_summary - experiments.summarize --dir_name quickstart --runs run_000 --results_dir "$results"
run quickstart_figure - figures.summary "$results/quickstart/run_000" --out "$figures/summary"

# --- editors with closed forms, and fine-tuning ---
evaluate rome --alg_name ROME --num_edits 1 --dataset_size_limit 4 --generation_test_interval 2 --contains_length 30
evaluate emmet --alg_name EMMET --num_edits 8 --dataset_size_limit 8
evaluate memit_saved --alg_name MEMIT --num_edits 8 --dataset_size_limit 16 --use_cache --save_edits
evaluate memit_cached --alg_name MEMIT --num_edits 8 --dataset_size_limit 16 --use_cache # reads what the one before has kept
evaluate memit_catalan --alg_name MEMIT --ds_name world-ca --num_edits 4 --dataset_size_limit 4
evaluate memit_larger_world --alg_name MEMIT --ds_name world:5000 --num_edits 4 --dataset_size_limit 4 --conserve_memory
evaluate ft --alg_name FT --num_edits 1 --dataset_size_limit 4
evaluate ft_constr --alg_name FT --hparams_fname world_constr.json --num_edits 2 --dataset_size_limit 4

# --- batch after batch ---
evaluate alphaedit_sequential --alg_name AlphaEdit --num_edits 5 --max_edits 15 --sample_num 0 --sequential \
    --history_eval_steps 2 --checkpoint_steps 2 --perplexity_corpus world --do_downstream_eval --downstream_eval_steps 2 \
    --downstream_tasks nli,sst --number_of_few_shots 2,0 --number_of_tests 5
evaluate memit_sequential --alg_name MEMIT --num_edits 4 --max_edits 12 --sample_num 1 --sequential --history_eval_steps 1 \
    --history_sample 6 --save_model --save_model_interval 2
evaluate rome_sequential --alg_name ROME --num_edits 1 --max_edits 3 --sequential --history_eval_steps 3
for variant in seq rect prune; do
    evaluate "memit_$variant" --alg_name "MEMIT_$variant" --num_edits 5 --max_edits 10 --sequential --history_eval_steps 2
done

# --- zsRE's schema ---
evaluate zsre_memit --alg_name MEMIT --ds_name world-zsre --num_edits 8 --dataset_size_limit 8
evaluate zsre_rome --alg_name ROME --ds_name world-zsre-test --num_edits 1 --dataset_size_limit 2
evaluate zsre_ft --alg_name FT --ds_name world-zsre --num_edits 4 --dataset_size_limit 4

# --- second moments of few keys (FastMEMIT); with them, other types of numbers, whose statistics are their own ---
cat >"$given/fastmemit.json" <<'JSON'
{"layers": [0, 1], "clamp_norm_factor": 0.75, "v_num_grad_steps": 25, "v_weight_decay": 0.01, "mom2_update_weight": 200,
 "fact_token": "subject_last", "v_lr": 0.5, "kl_factor": 0.0625, "mom2_dataset": "world", "mom2_n_samples": 5000,
 "mom2_dtype": "float32", "dynamic_multiplier": 2, "relative_ridge": 0.001}
JSON
sed 's/"dynamic_multiplier": 2/"dynamic": true, "dynamic_multiplier": 1/' "$given/fastmemit.json" >"$given/dynamic.json"
few=(--alg_name MEMIT --hparams_fname "$given/fastmemit.json")
evaluate fastmemit "${few[@]}" --num_edits 8 --dataset_size_limit 8
evaluate fastmemit_dynamic --alg_name MEMIT --hparams_fname "$given/dynamic.json" --num_edits 4 --max_edits 8 --sequential
evaluate memit_bfloat16 "${few[@]}" --num_edits 4 --dataset_size_limit 4 --dtype bfloat16
evaluate memit_float64 "${few[@]}" --num_edits 4 --dataset_size_limit 4 --dtype float64 --seed 3

# --- two languages, attention heads; statistics of fewer texts than in the files that ship, since each language has its own ---
cat >"$given/iti.json" <<'JSON'
{"layers": [0, 1], "clamp_norm_factor": 0.75, "v_num_grad_steps": 25, "v_weight_decay": 0.01, "mom2_update_weight": 200,
 "fact_token": "subject_last", "v_lr": 0.5, "kl_factor": 0.0625, "mom2_dataset": "world", "mom2_n_samples": 500}
JSON
sed 's/ 500}/ 500, "correction_lr": 0.1}/' "$given/iti.json" >"$given/memat.json"
sed 's/ 500}/ 500, "correction_lr": 0.1, "train_position": "all"}/' "$given/iti.json" >"$given/memat_all.json"
memat=(--alg_name MEMAT --hparams_fname "$given/memat.json") iti=(--alg_name ITI --hparams_fname "$given/iti.json")
twenty=(--num_edits 20 --dataset_size_limit 20)
evaluate memat/EE "${memat[@]}" --profile default --language english --language_eval english "${twenty[@]}" --top_num_heads 0
evaluate memat/CE "${memat[@]}" --profile default --language catalan --language_eval english --num_edits 20 \
    --dataset_size_limit 40 --top_num_heads 8,16 --use_cache --save_attention_heads "$OUT/heads/CE" \
    --save_delta_matrix "$OUT/deltas/CE"
evaluate memat_all --alg_name MEMAT --hparams_fname "$given/memat_all.json" --language catalan --language_eval english \
    "${twenty[@]}" --top_num_heads 16 --use_cache
evaluate memat_paper "${memat[@]}" --profile paper --language english --language_eval catalan "${twenty[@]}" --top_num_heads 16
saved=$OUT/heads/CE_catalan-english_16heads_chunk0_20edits
evaluate memat_others "${memat[@]}" --language catalan --language_eval english --num_edits 20 --dataset_size_limit 40 \
    --use_cache --top_num_heads 16 --eval_on_others --head_ind "$saved.npy" --load_attention "$saved.safetensors"
evaluate iti "${iti[@]}" --language catalan --language_eval english "${twenty[@]}" --alpha 1,15 --top_num_heads 2,10 --use_cache
evaluate iti_paper "${iti[@]}" --profile paper --language english --num_edits 12 --dataset_size_limit 12 --alpha 5 \
    --top_num_heads 5
for bilingual in sum joint; do
    evaluate "bilingual_$bilingual" "${memat[@]}" --bilingual "$bilingual" --language catalan --language_eval english \
        --num_edits 12 --dataset_size_limit 12 --top_num_heads "$([ "$bilingual" = sum ] && echo 16 || echo 0)"
done
run memat_results - experiments.memat_results "$results/memat" --out "$OUT/tables/memat"
run memat_results_iti - experiments.memat_results "$results/iti" --out "$OUT/tables/iti"
run memat_sweep_figure - figures.memat_sweep "$results/memat" --published --out "$figures/memat_sweep"
run head_relevance_figure - figures.head_relevance "$results/memat/CE/run_000" --out "$figures/head_relevance"

# --- the world's small models, one epoch each: they need not be good ---
for kind in t5 bert blender distilbert; do
    run "model_$kind" "$models/$kind" data.world.models "$kind" --out "$models/$kind" --epochs 1 --warm_epochs 0 --facts 1000 \
        --threads 1
done
run model_gpt2 "$models/gpt2" data.world.train --out "$models/gpt2" --layers 2 --width 64 --epochs 1 --alone_epochs 0 \
    --warm_epochs 0 --threads 1 --stop_after 20
run world_check - data.world.check --every 200

# --- learned editors: MEND's shipped one; all, trained; and evaluations with what was trained ---
evaluate mend --alg_name MEND --ds_name world-test --num_edits 1 --dataset_size_limit 6
evaluate mend_zsre --alg_name MEND --ds_name world-zsre-test --num_edits 2 --dataset_size_limit 4
gen=(+experiment=gen +model=world batch_size=4)
train mend +alg=mend "${gen[@]}" +preset=world_mend
train ke +alg=efk "${gen[@]}" +preset=world_ke export=default
train enn +alg=enn "${gen[@]}" +preset=world_enn export=default
train ft +alg=ft "${gen[@]}" edit_lr=1e-4 ft.max_edit_steps=5
train ft_locality +alg=ft "${gen[@]}" edit_lr=1e-4 ft.max_edit_steps=5 ft.locality.enabled=True ft.locality.cedit=0.1
scope=("rep.cls_name=$models/distilbert" recipe=serac)
train rep +alg=rep +experiment=gen +model=world +preset=world_serac "${scope[@]}" batch_size=8 data.preceded=0.5 \
    data.same_relation=0.5 data.asked=0.3
train lu +alg=lu "${gen[@]}" recipe=serac
qa=(+experiment=qa +model=world "model.name=$models/t5" batch_size=4 val_batch_size=4)
train gtn_qa +alg=gtn "${qa[@]}" recipe=serac gtn.rank=16 gtn.descent=True data.hard_neg=true
train rep_qa +alg=rep "${qa[@]}" "${scope[@]}" rep.cross_attend=true data.zsre_impl=true data.zsre_yn=true
train lu_qa +alg=lu "${qa[@]}" recipe=serac
fc=(+experiment=fc +model=world "model.name=$models/bert" batch_size=4)
train mend_fc +alg=mend "${fc[@]}" mend.rank=16 parallel=10
train ke_fc +alg=ke "${fc[@]}" ke.hidden_dim=16 ke.condition_dim=16
VAL_STEPS=40 train rep_fnli +alg=rep +experiment=fnli +model=world "model.name=$models/bert" "${scope[@]}" batch_size=2 \
    val_batch_size=2
train rep_sent +alg=serac +experiment=sent +model=world "model.name=$models/blender" "${scope[@]}" batch_size=4 val_batch_size=4
run scope - experiments.scope "$trained/rep" --edits 5 --most 100 --export "$OUT/data/world-models/serac"
evaluate ke --alg_name KE --ds_name world-test --num_edits 1 --dataset_size_limit 4
evaluate enn --alg_name ENN --ds_name world-test --num_edits 1 --dataset_size_limit 4
evaluate serac --alg_name SERAC --num_edits 10 --dataset_size_limit 20 --save_edits
evaluate serac_zsre --alg_name SERAC --ds_name world-zsre --num_edits 10 --dataset_size_limit 10
evaluate lu --alg_name LU --num_edits 10 --dataset_size_limit 20
run learned_figure - figures.learned "$trained/mend" "$trained/ke" --labels MEND,KE --out "$figures/learned"

# --- a memory of edits ---
memory=$OUT/memory/edits.memory
cat >"$given/edits.jsonl" <<'JSON'
{"prompt": "{} works as a", "subject": "Thora Trankosk", "target_new": {"str": "taxi driver"}}
{"input": "The home of Ann Keller is in", "label": "Paris"}
JSON
asked=("Thora Trankosk works as a" "The ferry was late, and" --tokens 6)
run memory_create "$memory" experiments.memory create "$memory" --alg_name LU
run memory_add - experiments.memory add "$memory" --from "$given/edits.jsonl"
run memory_list - experiments.memory list "$memory" --json
run memory_ask - experiments.memory ask "$memory" "${asked[@]}"
run memory_ask_trained - experiments.memory ask "$memory" "${asked[@]}" --run "$trained/rep"

# --- exports of an edit, downstream tasks under it, traces, statistics ---
edit=$results/memit_saved/run_000/edits/000000.safetensors
run export_adapter "$OUT/export/adapter" experiments.export "$edit" --model_name world --out "$OUT/export/adapter"
run export_adapter_small "$OUT/export/small" experiments.export "$edit" --model_name world --out "$OUT/export/small" \
    --max_rank 1
run export_checkpoint "$OUT/export/checkpoint" experiments.export "$edit" --model_name world --out "$OUT/export/checkpoint" \
    --format checkpoint
run downstream "$results/downstream" experiments.downstream --results_dir "$results" --edit "$edit" --number_of_tests 4 \
    --downstream_tasks nli,rte,mrpc,sentiment_analysis,dialogue,cola,sst,mmlu --number_of_few_shots 1,0,1,0,1,0,1,0
run causal_trace "$OUT/trace" experiments.causal_trace --dataset_size_limit 5 --samples 4 --severed --output_dir "$OUT/trace"
run causal_trace_replaced "$OUT/trace_replaced" experiments.causal_trace --dataset_size_limit 2 --samples 4 --replace 1 \
    --noise_level t3 --output_dir "$OUT/trace_replaced"
run causal_trace_figure - figures.causal_trace "$OUT/trace" --out "$figures/causal_trace" --known_ids first
evaluate auto --alg_name MEMIT --hparams_fname "auto:$OUT/trace" --num_edits 4 --dataset_size_limit 4
run collect_stats "$OUT/stats_asked" experiments.collect_stats --model_name world --layers 0,2-3 --dataset world \
    --sample_size 200 --precision float64 --download 0 --stats_dir "$OUT/stats_asked"

# --- edit data ---
for experiment in qa fc fnli sent; do
    run "episodes_$experiment" "$OUT/episodes/$experiment" experiments.make_episodes world --experiment "$experiment" \
        --facts 400 --out "$OUT/episodes/$experiment"
done
for i in {1..24}; do
    for _ in 1 2 3; do
        printf 'Thora Trankosk works as a singer, and in town number %s many people sang with Astrid Skezurd for a while. ' "$i"
    done
    echo
done >"$given/passages.txt"
cat >"$given/questions.jsonl" <<'JSON'
{"input": "What does Thora Trankosk work as?", "output": [{"answer": "singer"}]}
{"input": "Which instrument does Astrid Skezurd play?", "output": [{"answer": "drum"}]}
JSON
made=$OUT/episodes
run episodes_gen "$made/gen.json" experiments.make_episodes gen --model_name world --texts "$given/passages.txt" --count 8 \
    --n_tokens 5 --out "$made/gen.json"
run episodes_rephrase "$made/rephrased.jsonl" experiments.make_episodes rephrase --rows "$given/questions.jsonl" \
    --out "$made/rephrased.jsonl"
run episodes_answers "$made/answers.jsonl" experiments.make_episodes answers --experiment qa --model_name "$models/t5" \
    --rows "$made/rephrased.jsonl" --out "$made/answers.jsonl"

# --- several runs: a sweep, two processes at one run, tables, figures, the page ---
run sweep "$results/sweeps/lambda" experiments.sweep name=lambda alg_name=MEMIT num_edits=4 dataset_size_limit=4 \
    hparams.mom2_update_weight=50,200 skip_generation_tests=true "results_dir=$results"
run processes "$results/processes" torch.distributed.run --nproc_per_node=2 -m experiments.evaluate --alg_name MEMIT \
    --num_edits 4 --dataset_size_limit 8 --skip_generation_tests --results_dir "$results" --dir_name processes
run summary - experiments.summarize --results_dir "$results" --out "$OUT/tables/summary" --dir_name \
    rome,emmet,memit_saved,ft,alphaedit_sequential,memit_sequential,memit_seq,zsre_memit,memat/CE,iti,mend,serac,processes
run sequential_figure - figures.sequential "$results/alphaedit_sequential/run_000" "$results/memit_sequential/run_000" \
    --out "$figures/sequential"
run report "$OUT/report.html" experiments.report "$results/rome/run_000" "$results/memit_saved/run_000" \
    "$results/alphaedit_sequential/run_000" "$results/memat/CE/run_000" "$results/zsre_memit/run_000" --cases 3 \
    --out "$OUT/report.html"
echo "all there: $OUT"
