#!/usr/bin/env bash
# Fetch ahead what an experiment needs: bash scripts/download_models.sh EXPERIMENT MODEL [--alg ALG] [KEY=VALUE ...]
# (qa t5large, fnli bert-base, sent blender-small, gen gpt2xl, ... or EXPERIMENT world). Nothing that is there is deleted.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
exec "$PYTHON" -m experiments.download_models "$@"
