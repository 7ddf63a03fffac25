"""Core ML: one package, with an encoder and a score pass for 64, 128, 256 and 512 residues.

A structure is padded to the shortest length that holds it; neighbors and edge features stay
outside, in float32. Conversion works on Linux too, prediction on macOS alone.
"""

import logging

# The converter tells, on import and at every conversion, of versions it was not tested with.
logging.getLogger("coremltools").setLevel(logging.ERROR)

from mpnn.optimizations.coreml.engine import (  # noqa: E402
    CoreMLCPUEngine,
    CoreMLEngine,
    CoreMLGPUEngine,
    CoreMLInt8Engine,
    CoreMLPalette4Engine,
    CoreMLPalette6Engine,
)

__all__ = [
    "CoreMLCPUEngine",
    "CoreMLEngine",
    "CoreMLGPUEngine",
    "CoreMLInt8Engine",
    "CoreMLPalette4Engine",
    "CoreMLPalette6Engine",
]
