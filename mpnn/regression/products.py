"""The exact engine's bound: its matrix products alone, with nothing between them.

Whatever else a job does (gathers, GELU, LayerNorm, exponentials, the draws) comes on top, so a
job's fraction of this bound says how much of its time is arithmetic that no exact engine avoids.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from mpnn.config import NUM_LETTERS, ModelConfig
from mpnn.graph import ATOM_PAIRS, NUM_RBF
from mpnn.model import FEED_FORWARD
from mpnn.optimizations.exact.blocks import Affine
from mpnn.optimizations.exact.encoder import TILE
from mpnn.optimizations.exact.ragged import tiles
from mpnn.optimizations.exact.workers import Buffers, Workers

BEST_OF = 4
"""Runs of which the fastest counts: the first also makes the buffers."""


@dataclass(frozen=True)
class Product:
    """`times` products of [rows, inner] with [inner, columns]."""

    rows: int
    inner: int
    columns: int
    times: int = 1

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of all of them."""
        return self.rows * self.inner * self.columns * self.times


def exact_products(config: ModelConfig, length: int, samples: int) -> list[Product]:
    """What is left after the exact rewrites: one encoding, and `samples` decodings.

    Scoring takes the same products as sampling does.
    """
    C, K = config.hidden_dim, min(config.k_neighbors, length)
    edges, decoder = length * K, config.num_decoder_layers
    node = [(C, C), (C, C), (C, C), (C, FEED_FORWARD * C), (FEED_FORWARD * C, C)]  # A, V, W3, …
    return [
        Product(edges, len(ATOM_PAIRS) * NUM_RBF, C),
        Product(edges, C, C, 1 + 5 * config.num_encoder_layers + decoder),
        *(Product(length, i, o, config.num_encoder_layers) for i, o in (*node, (C, C), (C, C))),
        Product(samples * edges, C, C, decoder),
        *(Product(samples * length, i, o, decoder) for i, o in node),
        Product(samples * length, C, NUM_LETTERS),
    ]


def multiply_adds(products: list[Product]) -> int:
    """Multiply-adds of all products."""
    return sum(product.multiply_adds for product in products)


class ProductsAlone:
    """Runs products as the engine does: by tiles, on its threads, in memory that stays in cache."""

    def __init__(self, products: list[Product], k: int, threads: int) -> None:
        self.products, self.rows = products, TILE * k
        self.workers = Workers(torch.device("cpu"), threads)
        self.buffers = Buffers(torch.device("cpu"), torch.float32)

    def seconds(self) -> float:
        """Wall time of all of them, once."""
        start = time.perf_counter()
        self.workers.run(self._all)
        return time.perf_counter() - start

    def _all(self) -> None:
        for product in self.products:
            affine = Affine(torch.zeros(product.columns, product.inner))

            def tile(rows: slice, affine: Affine = affine, product: Product = product) -> None:
                x = self.buffers.get("x", rows.stop - rows.start, product.inner)
                affine(x)

            self.workers.map(tile, tiles(product.rows, self.rows) * product.times)


def bound(config: ModelConfig, length: int, samples: int, threads: int) -> dict[str, float]:
    """Multiply-adds that a job needs after the exact rewrites, and the seconds of those alone."""
    products = exact_products(config, length, samples)
    alone = ProductsAlone(products, min(config.k_neighbors, length), threads)
    return {
        "multiply_adds": float(multiply_adds(products)),
        "seconds": min(alone.seconds() for _ in range(BEST_OF)),
    }
