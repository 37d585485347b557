#!/usr/bin/env bash
# Causal tracing (ROME, Meng et al. 2022, figures 2 and 3): average indirect effects of hidden states, MLPs and attentions,
# states with severed MLPs or attentions, heat maps of single facts. On the built-in world 200 of its facts, five minutes on two
# cores; as published on known_1000:
#     MODEL=gpt2-xl bash scripts/causal_trace.sh
# Goes on where it stopped. From the environment: MODEL, NOISE, FACTS (so many), SHOWN (numbers of facts with a heat map of
# their own, which the model must know; by default the first that it knows).
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
MODEL=${MODEL:-world}
case $MODEL in # as published, where it was
    gpt2-xl) noise=0.1 ;;
    EleutherAI/gpt-j-6B) noise=0.025 ;;
    EleutherAI/gpt-neox-20b) noise=0.03 ;;
    *) noise=s3 ;;
esac
NOISE=${NOISE:-$noise} FACTS=${FACTS:-$([ "$MODEL" = world ] && echo 200 || echo 1209)} 
out=results/causal_trace/$(basename "$MODEL")_n$NOISE

"$PYTHON" -m experiments.causal_trace --model_name "$MODEL" --noise_level "$NOISE" --dataset_size_limit "$FACTS" --severed \
    --output_dir "$out"
"$PYTHON" -m figures.causal_trace "$out" --known_ids "${SHOWN:-first}"
