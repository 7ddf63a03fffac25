"""The study of the gate's error rates: its limits, its file, its table."""

import json

import pytest

from mpnn.studies import gate
from mpnn.studies.tables import GATE, gate_markdown

CASE = {"what": "same code", "sessions": 300, "found": "0", "demand": "none", "passed": True}


def test_the_upper_limit_is_clopper_and_pearsons():
    """None of 300 leaves rates up to 1 − 0.05^(1/300), and one of 20 those up to 21.6 %."""
    assert gate.upper_limit(0, 300) == pytest.approx(1 - 0.05 ** (1 / 300), rel=1e-6)
    assert gate.upper_limit(1, 20) == pytest.approx(0.2161, abs=1e-4)


def test_a_case_takes_the_place_of_the_one_before(tmp_path):
    """Cases may be studied one by one: each renews itself, and their order is that of the list."""
    path = tmp_path / GATE
    gate.store(path, "five", CASE | {"what": "planted"})
    gate.store(path, "same", CASE | {"sessions": 10})
    gate.store(path, "same", CASE)
    cases = json.loads(path.read_text())["cases"]
    assert [(name, case["sessions"]) for name, case in cases.items()] == [
        ("same", 300),
        ("five", 300),
    ]
    table = gate_markdown(tmp_path)
    assert table.splitlines()[2] == "| same code | 300 | 0 | none |"


def test_cases_of_another_machine_do_not_stay(tmp_path, monkeypatch):
    """Error rates hold for one machine: a case from another takes the whole file."""
    path = tmp_path / GATE
    gate.store(path, "five", CASE)
    monkeypatch.setenv("MPNN_HARDWARE_CHIP", "another")
    gate.store(path, "same", CASE)
    assert list(json.loads(path.read_text())["cases"]) == ["same"]
