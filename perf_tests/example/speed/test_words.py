"""Two claims about counting words, gated by `mpnn.regression`."""

from collections import Counter

import pytest

from mpnn.regression.rows import Accuracy
from mpnn.regression.timing import Side
from mpnn.regression.verdict import Rule

RULE = Rule(margin=0.2, shortest_run=0.005)
TEXTS = [[f"word{(i * i + n) % 97}" for i in range(2000)] for n in range(4)]


def counted_one_by_one(words):
    found = {}
    for word in words:
        found[word] = found.get(word, 0) + 1
    return found


def counted_by_search(words):
    return {word: words.count(word) for word in set(words)}


def counted_by_counter(words):
    return dict(Counter(words))


def side(function):
    """Works on the text of the number that the gate names: four texts in rotation."""
    return Side(lambda number: function(TEXTS[number]))


def same_counts(timing):
    """Judges the outputs of the timed runs."""
    subject, reference = timing.outputs
    passed = subject == reference
    return Accuracy(passed, "the same counts" if passed else "other counts")


@pytest.fixture(scope="session")
def perf_control():
    """What is timed against itself, once a session."""
    return side(counted_one_by_one)


@pytest.mark.parametrize("function", [counted_by_counter, counted_one_by_one])
def test_counting(claim, function):
    """Each is as many times as fast as searching as it was when it was recorded."""
    claim(side(function), side(counted_by_search), accuracy=same_counts, rule=RULE)
