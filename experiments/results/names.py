"""The one list of metrics: what result files call them, and what papers, tables and figures do.

A key is ``<time>_<group>_<measure>``: post_rewrite_success is the efficacy right after the edit. Values here are labels.
"""

from data.downstream import TASKS

PREFIXES = ("pre", "post", "retention")
"""Before the edit, right after it, and after later edits went into the same model."""
GROUPS = {"rewrite": "efficacy", "paraphrase": "paraphrase", "neighborhood": "neighbourhood", "attribute": "attribute",
          "portability": "portability", "locality": "locality"}
"""Groups of prompts."""
SCORED = {group: GROUPS[group] for group in ("rewrite", "paraphrase", "neighborhood")}
"""Groups that the harmonic score is made of."""
MEASURES = {"success": "success", "diff": "difference", "acc": "accuracy (teacher-forced)", "generated": "generated exactly",
            "generated_starts": "generated first", "generated_contains": "generated somewhere",
            "gap": "gap teacher-forced - generated"}
GENERATION = {"ngram_entropy": "n-gram entropy", "reference_score": "reference score", "essence_score": "essence score"}
DOWNSTREAM = {"accuracy": "accuracy", "f1": "F1", "mcc": "MCC", "invalid_rate": "invalid", "accuracy_new": "accuracy (label)"}
"""Figures of a downstream task."""

LABELS = {
    "score": "score", "score_acc": "score of accuracies",
    **{f"{group}_{measure}": f"{title} {label}" for group, title in GROUPS.items() for measure, label in MEASURES.items()},
    **GENERATION, "perplexity": "perplexity",
    **{f"{task}_{name}": f"{task} {label}" for task in TASKS for name, label in DOWNSTREAM.items()},
}
"""All that is measured at each time, in the order of tables."""
OF_EDITS = {"rounding": "change lost to rounding (16 bits)", "time": "seconds an edit batch"}
"""What is known of an edit itself."""
UNSCALED = ("time", "essence_score", "perplexity")
"""Ends of keys whose unit is seconds or perplexity; all others are percent (n-gram entropy: hundredths of a bit)."""

HEADLINES = {
    "counterfact": {"score": "score", **{f"{group}_success": title for group, title in SCORED.items()}},
    "zsre": {"score_acc": "score of accuracies", "rewrite_acc": "efficacy", "paraphrase_acc": "paraphrase",
             "neighborhood_acc": "specificity"},
}
"""{schema of the data: the metrics that papers report of it}; zsRE has no true answers, so no successes."""
SHORT = ("score", "score_acc", *(f"{group}_{measure}" for measure in ("success", "acc", "generated") for group in GROUPS),
         "perplexity")
"""What a run is known by: the rows of the short table."""
IN_A_ROW = {
    "score": "score", "score (acc.)": "score_acc",
    **{letter + initial: f"{group}_{measure}" for initial, measure in (("S", "success"), ("A", "acc"), ("G", "generated"))
       for letter, group in (("E", "rewrite"), ("P", "paraphrase"), ("N", "neighborhood"))},
    "perplexity": "perplexity",
}
"""{head of a column: key} of the table with a run a row."""
PUBLISHED = {"ES": "rewrite_success", "EA": "rewrite_acc", "EM": "rewrite_diff",
             "PS": "paraphrase_success", "PA": "paraphrase_acc", "PM": "paraphrase_diff",
             "NS": "neighborhood_success", "NA": "neighborhood_acc", "NM": "neighborhood_diff"}
"""The abbreviations of ROME, MEMIT and MEMAT: efficacy, paraphrase, neighbourhood; success, accuracy, magnitude."""
