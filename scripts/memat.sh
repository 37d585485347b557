# Sourced by the scripts of MEMAT's experiments, after setup.sh: Aguila-7b with the published sizes, or with WORLD=1 the built-in
# world in minutes. From the environment: MODEL, HPARAMS, PROFILE (default or paper), NUM_EDITS (facts of a
# chunk), FACTS, PAIRS. The data files english_CF.json and catalan_CF.json are looked for here, then in the data folder (KE_DATA_DIR).
[ -z "${WORLD:-}" ] || MODEL=world
MODEL=${MODEL:-projecte-aina/aguila-7b}
[ "$MODEL" != projecte-aina/aguila-7b ] || HPARAMS=${HPARAMS:-Aguila-7b.json}
source scripts/evaluate.sh
PROFILE=${PROFILE:-default} PAIRS=${PAIRS:-CC EE CE EC} # language of the edits, language of the heads

# sizes WORLD_NUM_EDITS:WORLD_FACTS NUM_EDITS:FACTS: sets NUM_EDITS and FACTS where the environment does not.
sizes() {
    local of=$2
    [ "$MODEL" != world ] || of=$1
    NUM_EDITS=${NUM_EDITS:-${of%:*}} FACTS=${FACTS:-${of#*:}}
}

# language LETTER: its name.
language() {
    case $1 in C) echo catalan ;; E) echo english ;; *) echo "error: no language $1" >&2; return 2 ;; esac
}

# in_languages PAIR DIR ALG FLAGS: a run of this pair, results/DIR/run_000. ALG is MEMAT or ITI; MEMAT with --top_num_heads 0 is the
# MEMIT that is MEMAT's first part, in its profile.
in_languages() {
    local edits heads data=world more=()
    edits=$(language "${1:0:1}") heads=$(language "${1:1:1}")
    [ "$MODEL" = world ] || data=$(if [ -n "${SUBSET:-}" ]; then echo "data_${edits:0:3}_${SUBSET}_subj.json"; else echo "${edits}_CF.json"; fi)
    [ "${*/joint/}" != "$*" ] || more=(--use_cache) # a joint edit has no target states that another run could use
    evaluate "$2" --alg_name "$3" --profile "$PROFILE" ${more[@]+"${more[@]}"} --hparams_fname "$HPARAMS" --ds_name "$data" --language "$edits" \
        --language_eval "$heads" --num_edits "$NUM_EDITS" --dataset_size_limit "$FACTS" "${@:4}"
}
