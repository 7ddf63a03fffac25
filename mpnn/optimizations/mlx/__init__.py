"""The network in MLX: on Metal on a Mac, on the CPU elsewhere, equal to the reference.

1. The modules of `mpnn.model`, same names, same checkpoints, with exact rewrites (`network`).
2. `mx.compile` fuses what stands between the products (`engine`).
3. One Metal kernel for a layer's messages and their sum, with its plain twin (`metal`).
4. Wavefronts queued without asking the device, in compiled steps of few sizes (`sampler`).
5. Launches are counted from the graph, without running it (`launches`).

On Linux MLX multiplies with a BLAS made to be read, an order of magnitude slower than torch's: what
runs there is right, and says nothing about the speed of a Mac.
"""

from mpnn.optimizations.mlx.engine import EagerMLXEngine, FusedMLXEngine, MLXEngine

__all__ = ["EagerMLXEngine", "FusedMLXEngine", "MLXEngine"]
