"""Two claims about sums of squares, gated by `mpnn.regression`."""

from operator import mul

import pytest

from mpnn.regression.rows import Accuracy
from mpnn.regression.timing import Side
from mpnn.regression.verdict import Rule

RULE = Rule(margin=0.2, shortest_run=0.005)
VECTORS = [[float(i + n) for i in range(2000)] for n in range(8)]


def by_index(x):
    total = 0.0
    for i in range(len(x)):
        total += x[i] ** 2
    return total


def by_loop(x):
    total = 0.0
    for value in x:
        total += value * value
    return total


def by_map(x):
    return sum(map(mul, x, x))


def side(function):
    """Works on the vector whose number the gate names: four in rotation, four more at the end."""
    return Side(lambda number: function(VECTORS[number]))


def same_sums(timing):
    """Judges the outputs of the timed runs."""
    subject, reference = timing.outputs
    passed = subject == reference
    return Accuracy(passed, "the same sums" if passed else "other sums")


@pytest.fixture(scope="session")
def perf_control():
    """What is timed against itself, once a session."""
    return side(by_index)


@pytest.mark.parametrize("function", [by_map, by_loop])
def test_sum_of_squares(claim, function):
    """Each is as many times as fast as indexing as it was when it was recorded."""
    claim(side(function), side(by_index), accuracy=same_sums, rule=RULE)
