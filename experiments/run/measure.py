"""Measuring the records of a job on its model as it is now."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from data.records import Record
from experiments.metrics.counterfact import counterfact_metrics
from experiments.metrics.zsre import zsre_metrics
from experiments.run.job import is_sampled, Job

METRICS = {"counterfact": counterfact_metrics, "zsre": zsre_metrics}


def measure(job: Job, records: Sequence[Record]) -> dict[int, dict[str, Any]]:
    """The metrics of each record, with those of generated texts where the job asks for them, by case id."""
    by_case = {record.case_id: result for record, result in metrics_of(job, records)}
    if job.generate:
        sampled = [record for record in records if is_sampled(record, job.flags)]
        for record, result in zip(sampled, job.generate(sampled)):
            by_case[record.case_id].update(result)
    return by_case


def metrics_of(job: Job, records: Sequence[Record]) -> Iterator[tuple[Record, dict[str, Any]]]:
    """(record, its metrics without generated texts) for each record."""
    schema, wanted = records[0].schema, {"contains_length": job.flags["contains_length"] or None}
    if schema == "counterfact":
        wanted["pairing"] = job.flags["pairing"]
    options = {name: value for name, value in wanted.items() if value is not None}
    return zip(records, METRICS[schema](job.model, job.tok, records, **options))
