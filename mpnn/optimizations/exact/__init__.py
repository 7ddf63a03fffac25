"""The exact engine: the reference's sequences, without the reference's waste.

Every trick is an identity, so results differ from the reference by rounding alone:

1. Encode once: nothing in the encoder depends on sample, residue types or temperature (`encoder`).
2. W1 split by blocks, W3 after the neighbor sum (`blocks`).
3. One table for decoded and undecoded neighbors; the first decoder layer by residue type
   (`decoder`).
4. Wavefront: residues without open dependencies are decoded together (`mpnn.schedule.wavefront`).
5. Fixed residues in one pass; scores from sampling, without a second pass (`engine`).
6. Structures end to end without padding, edges in tiles that stay in cache (`graph`, `workers`).
"""

from mpnn.optimizations.exact.engine import ExactEngine

__all__ = ["ExactEngine"]
