"""Jobs as people run them: what is timed does the job, and wrong outputs are seen."""

import numpy as np
import pytest

import mpnn
from mpnn.regression import jobs
from mpnn.regression.workloads import WORKLOADS, backbones
from mpnn.synthetic import synthetic_backbone

SMALL = [[synthetic_backbone(20, 2, seed), synthetic_backbone(24, 1, seed)] for seed in range(2)]


@pytest.mark.parametrize("form", jobs.READING)
def test_the_plain_pass_reads_what_the_reader_reads(form):
    """Both give the coordinates of the structure that was written, to PDB's three decimals."""
    inputs = [[proteins[0]] for proteins in SMALL]
    read, plain = (jobs.call(form, engine, inputs, 0) for engine in ("exact-native", "reference"))
    for number, (backbone,) in enumerate(inputs):
        found = {0: read(number)}
        assert jobs.accuracy(form, found, {0: plain(number)}).passed
        assert np.allclose(found[0][0], backbone.coords, atol=6e-4)
        found[0][0][3, 1, 2] += 0.001
        assert not jobs.accuracy(form, found, {0: plain(number)}).passed


def test_a_campaign_designs_what_a_model_designs():
    """Each input's files are designed anew, by each engine to the same sequences."""
    ours = jobs.call(jobs.CAMPAIGN, "exact-native", SMALL, 2)
    theirs = jobs.call(jobs.CAMPAIGN, "reference", SMALL, 2)
    first = ours(0)
    assert jobs.accuracy(jobs.CAMPAIGN, {0: first}, {0: theirs(0)}).passed
    assert not jobs.accuracy(jobs.CAMPAIGN, {0: first}, {0: ours(1)}).passed
    designed = mpnn.load().design(SMALL[0][1], num_seqs=2).designs
    sequences = bytes(first[1]).decode().split("/")[1:]  # after the native one
    assert sequences == [design.sequence for design in designed]


def test_a_cold_process_designs_what_a_warm_one_does():
    """`mpnn design` writes the sequence of the structure, and is counted by its modules."""
    cold = jobs.call(jobs.COLD, "exact-native", [SMALL[0][1:]], 1)
    (found,) = cold(0)
    designed = mpnn.load().design(SMALL[0][1]).designs[0].sequence
    assert bytes(found).decode().split("/")[1] == designed


def test_an_import_gives_this_version_and_few_modules():
    """Another version fails; the import alone loads a tenth of what designing does."""
    found = {0: jobs.call(jobs.IMPORT, "exact-native", [], 0)(0)}
    assert jobs.accuracy(jobs.IMPORT, found, {}).passed
    assert not jobs.accuracy(jobs.IMPORT, {0: [found[0][0][:-1]]}, {}).passed
    few, many = jobs.modules(jobs.IMPORT, SMALL), jobs.modules(jobs.COLD, SMALL)
    assert few < many / 5


def test_outputs_that_are_missing_are_wrong():
    """A job without outputs has not been done."""
    assert not jobs.accuracy(jobs.CAMPAIGN, {0: []}, {0: []}).passed


def test_the_campaign_is_twenty_backbones():
    """Of different lengths, 106 residues on average, eight sequences each."""
    workload = WORKLOADS["campaign-20x8"]
    lengths = [len(backbone) for backbone in backbones(workload, 0)]
    assert len(set(lengths)) == len(lengths) == 20
    assert (sum(lengths) / 20, workload.samples) == (106, 8)
