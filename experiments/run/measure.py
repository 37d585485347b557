"""Measuring the records of a job on its model as it is now."""

from collections.abc import Iterator, Sequence
from typing import Any

from data.records import Record
from experiments.metrics.counterfact import counterfact_metrics
from experiments.metrics.zsre import zsre_metrics
from experiments.run.job import is_sampled, RunJob

METRICS = {"counterfact": counterfact_metrics, "zsre": zsre_metrics}


def measure(job: RunJob, records: Sequence[Record]) -> dict[int, dict[str, Any]]:
    """The metrics of each record, with those of generated texts where the job asks for them, by case id."""
    by_case = {record.case_id: result for record, result in metrics_of(job, records)}
    if job.generate:
        sampled = [record for record in records if is_sampled(record, job.config)]
        for record, result in zip(sampled, job.generate(sampled)):
            by_case[record.case_id].update(result)
    return by_case


def metrics_of(job: RunJob, records: Sequence[Record]) -> Iterator[tuple[Record, dict[str, Any]]]:
    """(record, its metrics without generated texts) for each record."""
    schema, options = records[0].schema, {}
    if job.config.contains_length:
        options["contains_length"] = job.config.contains_length
    if schema == "counterfact" and job.config.pairing is not None:
        options["pairing"] = job.config.pairing
    return zip(records, METRICS[schema](job.model, job.tok, records, **options))
