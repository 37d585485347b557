"""Metrics: functions of (model, tok, records) that return numbers, batched over all records they are given."""
