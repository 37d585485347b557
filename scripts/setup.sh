# Sourced by the other scripts: leaves $PYTHON pointing at a virtual environment with everything installed.
# Does nothing when that has been done already for these requirements.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

VENV="${VENV:-.venv}"
stamp="$VENV/.requirements-installed"
if ! cmp -s requirements.txt "$stamp"; then
    if ! "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then # not there, or only half made
        for candidate in "${PYTHON:-}" python3 python3.13 python3.12 python3.11 python3.10; do
            if [ -n "$candidate" ] && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
                base="$candidate"
                break
            fi
        done
        if [ -z "${base:-}" ]; then
            echo "error: no Python 3.10 or newer found; install one or set PYTHON=/path/to/python3" >&2
            exit 2
        fi
        echo "making a virtual environment in $VENV with $("$base" --version)"
        "$base" -m venv "$VENV" || {
            echo "error: $base cannot make a virtual environment; install its venv module (Debian: apt install python3-venv)" >&2
            exit 2
        }
    fi
    echo "installing requirements.txt (a few minutes the first time)"
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check -r requirements.txt
    cp requirements.txt "$stamp"
    echo "installed; so that \`python\` is this one in your shell: source $VENV/bin/activate"
fi
PYTHON="$VENV/bin/python"
export TOKENIZERS_PARALLELISM=false
