"""The network in MLX: on Metal on a Mac, on the CPU elsewhere, equal to the reference.

1. The modules of `mpnn.model`, same names, same checkpoints, with exact rewrites (`network`).
2. `mx.compile` fuses what stands between the matmuls (`engine`).
3. One Metal kernel for a layer's messages and their sum, with a fallback kernel in plain operations
   (`metal`).
4. Wavefronts queued without reading back from the device, in compiled steps of few sizes
   (`sampler`).
5. Launches are counted from the graph, without running it (`launches`).

On Linux MLX multiplies with a plain BLAS, an order of magnitude slower than torch's: results there
are right, and say nothing about the speed of a Mac.
"""

from mpnn.optimizations.mlx.engine import EagerMLXEngine, FusedMLXEngine, MLXEngine

__all__ = ["EagerMLXEngine", "FusedMLXEngine", "MLXEngine"]
