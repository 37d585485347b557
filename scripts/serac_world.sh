#!/usr/bin/env bash
# SERAC for the built-in world's decoder, so that experiments.evaluate --alg_name SERAC has its networks: trains the scope classifier and
# the counterfactual decoder on edits of facts, calibrates the threshold, and puts both into the data folder. Minutes on a core or two.
#   bash scripts/serac_world.sh [KEY=VALUE ...]; a killed run goes on when the command is given again
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
source scripts/learned_run.sh

run=${RUN:-outputs/serac_world_gen}
# As in CounterFact: equivalents behind another sentence, unrelated facts of the same relation and object. As in zsRE: questions.
train "$run" +alg=rep +experiment=gen +model=world +preset=world_serac recipe=serac data.preceded=0.5 data.same_relation=0.5 \
    data.asked=0.3 max_iters=800 "$@"
"$PYTHON" -m experiments.scope "$run" --export "${KE_DATA_DIR:-$HOME/.cache/knowledge-editing/data}/world-models/serac"
