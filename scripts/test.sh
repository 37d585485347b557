#!/usr/bin/env bash
# Set up and run all tests; arguments go to pytest (bash scripts/test.sh -k rome).
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
exec "$PYTHON" -m pytest "$@"
