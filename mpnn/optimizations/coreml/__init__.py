"""Core ML: score, encoder, decoder and sampling step for 64, 128, 256 and 512 residues.

A structure is padded to the shortest length that holds it; neighbors and edge features stay
outside, in float32. Conversion works on Linux too, prediction on macOS alone.
"""

import logging

# The converter warns, on import and at every conversion, about versions it was not tested with.
logging.getLogger("coremltools").setLevel(logging.ERROR)

from mpnn.optimizations.coreml.engine import CoreMLEngine  # noqa: E402

__all__ = ["CoreMLEngine"]
