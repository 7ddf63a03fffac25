"""Jacobi iteration: guess all letters, then redraw all of them at once until nothing changes.

A pass computes every residue given the last pass's letters and draws every letter from the same
noise. By induction over the ranks, letters that depend on settled letters alone are settled one
pass later, so an unchanged pass is the proof that the letters are those of one-at-a-time decoding.
A pass costs a whole teacher-forced evaluation, where a wavefront computes each residue once: it
pays only where steps are dear and arithmetic is cheap. With v_48_020 at T = 0.1, 5L33 takes 6
passes against 56 steps (106 residues), 4YOW 9 against 69 (681 residues). On one CPU core the
wavefront is 1.4 to 10 times as fast; a GPU, where launches bound the time, is still to be measured.
"""

from __future__ import annotations

import numpy as np

from mpnn.decoding import IntArray, Job, Samples
from mpnn.optimizations.exact.decoder import Decoder
from mpnn.optimizations.exact.encoder import ExactEncoding
from mpnn.optimizations.exact.engine import ExactEngine, lane_of


class JacobiEngine(ExactEngine):
    """The exact engine with another sampler; `passes` tells how many the last call took."""

    passes = 0

    def sample(self, encoding: ExactEncoding, job: Job) -> Samples:
        """Iterates to the fixed point, which is the sample that the wavefront draws."""
        known = np.broadcast_to(job.S[:, None], job.rank.shape)
        last = self._pass(encoding, job, known, np.zeros_like(job.rank))  # sees no letters
        self.passes = 1
        while True:
            now = self._pass(encoding, job, last.S, job.rank)
            self.passes += 1
            if np.array_equal(now.S, last.S):
                return now
            last = now

    def _pass(self, encoding: ExactEncoding, job: Job, S: IntArray, rank: IntArray) -> Samples:
        """Scores S under `rank`, and redraws every designed letter from those scores."""

        def score_and_draw() -> Decoder:
            decoder = self.decoder_for(encoding, S, rank)
            decoder.teacher_forced()
            rows = np.flatnonzero(np.tile(job.designed[encoding.graph.valid], rank.shape[1]))
            if len(rows):
                lane = lane_of(decoder, job, rows, np.zeros_like(rows))
                decoder.S[lane.rows] = lane.draw(decoder)
            return decoder

        return self.workers.run(score_and_draw).samples()
