"""What a measuring process starts with."""

from mpnn.regression.process import PINNED, unpinned


def test_unpinned_names_what_differs():
    """Only variables with another value, or none, are named."""
    assert unpinned(PINNED) == []
    assert unpinned({**PINNED, "PYTHONHASHSEED": "random"}) == ["PYTHONHASHSEED"]
    assert unpinned({}) == list(PINNED)
