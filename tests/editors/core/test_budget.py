"""Sizes of batches from the memory of a device."""

import torch

from editors.core import budget


def test_groups_of_neighbours_keep_to_their_limits():
    groups = list(budget.consecutive([3, 4, 2, 9, 1, 1, 1, 1], sum, 7, most=3))
    assert groups == [[3, 4], [2], [9], [1, 1, 1], [1]]
    assert list(budget.consecutive([], sum, 7)) == []


def test_every_kind_of_work_has_a_part_of_all_the_memory():
    cpu = torch.device("cpu")
    for work, parts in budget.PARTS.items():
        assert budget.allowance(cpu, work) == budget.total_bytes(cpu) // parts
