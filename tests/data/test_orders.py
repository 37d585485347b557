"""Edit orders equal the published ones as far as can be told without the data: the first positions of each are known."""

import json
from types import SimpleNamespace

import pytest

from common.errors import UserError
from data.orders import edit_order, read_order

# Data set: schema, records, different subjects, first positions of order 0.
PUBLISHED = {
    "cf": ("counterfact", 21919, 20391, [14434, 2473, 4093, 16617, 12675]),
    "mcf": ("counterfact", 20877, 20099, [15746, 5578, 9357, 13018, 9475]),
    "zsre": ("zsre", 19086, 10720, [3840, 19083, 15114, 12745, 18543]),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_first_positions_can_be_the_published_ones(name):
    """With all first occurrences at the front, an order gives ranks among the subjects; the k-th first occurrence stands at
    k or later, by at most the number of repeated subjects, and in the same sequence."""
    schema, count, subjects, published = PUBLISHED[name]
    records = [SimpleNamespace(schema=schema, subject=f"S{min(i, subjects - 1)}") for i in range(count)]
    order = edit_order(records, 0)
    ranks = order[:5]
    assert len(order) == (10000 if schema == "zsre" else 20000) and len(set(order)) == len(order)
    assert all(rank <= position <= rank + count - subjects for rank, position in zip(ranks, published)), ranks
    assert sorted(range(5), key=ranks.__getitem__) == sorted(range(5), key=published.__getitem__)


def test_orders_differ_and_take_each_subject_once():
    records = [SimpleNamespace(schema="counterfact", subject=s) for s in ("Ann", "Bob", "ANN", "Cid", "bob", "Dee", "Eve")]
    orders = [edit_order(records, n) for n in range(10)]
    assert all(sorted(order) == [0, 1, 3, 5, 6] for order in orders)
    assert len(set(map(tuple, orders))) > 5
    with pytest.raises(UserError, match="orders 0 to 9"):
        edit_order(records, 10)


def test_order_file(tmp_path):
    path = tmp_path / "order.json"
    path.write_text(json.dumps({"0": [2, 0], "1": [7]}))
    assert read_order(path, 0, 3) == [2, 0]
    with pytest.raises(UserError, match="position 7 is beyond the data"):
        read_order(path, 1, 3)
    with pytest.raises(UserError, match='no order "4"'):
        read_order(path, 4, 3)
    path.write_text("[1, 1]")
    with pytest.raises(UserError, match="twice"):
        read_order(path, 0, 3)
