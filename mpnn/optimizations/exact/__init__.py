"""The exact engine: the reference's sequences, without the reference's waste.

Every trick is an identity, so results differ from the reference by rounding alone:

1. Encode once: nothing in the encoder depends on sample, letters or temperature (`encoder`).
2. W1 split by blocks, W3 after the neighbor sum (`blocks`).
3. One table for seen and unseen neighbors; the first decoder layer by letter (`decoder`).
4. Wavefront: residues that wait for nobody are decoded together (`mpnn.decoding.wavefront`).
5. Fixed residues in one pass; scores from sampling, without a second pass (`engine`).
6. Structures end to end without padding, edges in tiles that stay in cache (`ragged`, `workers`).
"""

from mpnn.optimizations.exact.engine import ExactEngine

__all__ = ["ExactEngine"]
