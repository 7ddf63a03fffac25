"""The `Backbone` record: coordinates, letters, chains and author numbers of one structure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mpnn.config import ALPHABET
from mpnn.errors import InputError

ATOMS = ("N", "CA", "C", "O")
"""Backbone atoms in the order of the second axis of `Backbone.coords`."""

CHAIN_STEP = 100
"""Added to residue_idx for every chain before a residue's own, as in the published network."""

MAX_GAP = 10_000
"""Positions that numbering gaps may add to one chain; four-digit numbers cannot ask for more."""


@dataclass(frozen=True, eq=False)
class Backbone:
    """The backbone atoms and letters of one or more chains, L residues in all.

    Shapes, types and the rules below are checked on construction.

    Attributes:
        name: what the structure is called in reports, usually the file's stem.
        coords: float32 [L, 4, 3], atoms N, CA, C, O in Å; finite, and 0 where masked.
        mask: bool [L], True where all four atoms are known.
        sequence: L letters of `ALPHABET`; X where unknown.
        chain_ids: author chain names, in order of appearance.
        chain_index: int64 [L], index into `chain_ids`, non-decreasing.
        numbers: int64 [L], author residue numbers.
        insertion_codes: '<U1' [L], '' where there is none.
        notes: sentences about what was done to the residues on reading.
    """

    name: str
    coords: NDArray[np.float32]
    mask: NDArray[np.bool_]
    sequence: str
    chain_ids: tuple[str, ...]
    chain_index: NDArray[np.int64]
    numbers: NDArray[np.int64]
    insertion_codes: NDArray[np.str_]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.sequence:
            raise InputError(f"{self.name}: a backbone needs at least one residue")
        self._check_arrays()
        if unknown := sorted(set(self.sequence) - set(ALPHABET)):
            raise InputError(f"{self.name}: letters {unknown} in the sequence; use {ALPHABET}")
        if not np.isfinite(self.coords).all() or self.coords[~self.mask].any():
            raise InputError(f"{self.name}: coords must be finite, and 0 where masked")
        chains = list(range(len(self.chain_ids)))
        if (np.diff(self.chain_index) < 0).any() or np.unique(self.chain_index).tolist() != chains:
            raise InputError(f"{self.name}: chain_index must count up through chains {chains}")
        if len(set(self.chain_ids)) != len(chains):
            raise InputError(f"{self.name}: chain names {self.chain_ids} must differ")

    def _check_arrays(self) -> None:
        length = len(self.sequence)
        expected: dict[str, tuple[tuple[int, ...], str]] = {
            "coords": ((length, 4, 3), "float32"),
            "mask": ((length,), "bool"),
            "chain_index": ((length,), "int64"),
            "numbers": ((length,), "int64"),
            "insertion_codes": ((length,), "<U1"),
        }
        for field_name, (shape, dtype) in expected.items():
            array = getattr(self, field_name)
            if array.shape != shape or array.dtype != np.dtype(dtype):
                raise InputError(
                    f"{self.name}: {field_name} must be {dtype} of shape {shape}, "
                    f"not {array.dtype} of shape {array.shape}"
                )

    def __len__(self) -> int:
        return len(self.sequence)

    @property
    def residue_idx(self) -> NDArray[np.int64]:
        """int64 [L], position in the concatenated chains + 100 for every chain before."""
        return np.arange(len(self), dtype=np.int64) + CHAIN_STEP * self.chain_index

    @property
    def chain_encoding(self) -> NDArray[np.int64]:
        """int64 [L], 1, 2, … per chain."""
        return self.chain_index + 1

    def address(self, position: int) -> str:
        """How a selection names a position: chain, number and code, such as A52A or AA:7."""
        chain = self.chain_ids[self.chain_index[position]]
        number = f"{self.numbers[position]}{self.insertion_codes[position]}"
        plain = len(chain) == 1 and f"{chain}{number}" not in self.chain_ids
        return f"{chain}{number}" if plain else f"{chain}:{number}"

    def select_chains(self, order: Sequence[str]) -> Backbone:
        """The named chains, in the order given.

        Raises:
            InputError: a name is unknown or repeated, or none is given.
        """
        check_chain_names(self.name, order, self.chain_ids)
        parts = [np.flatnonzero(self.chain_index == self.chain_ids.index(name)) for name in order]
        rows = np.concatenate(parts)
        return Backbone(
            name=self.name,
            coords=self.coords[rows],
            mask=self.mask[rows],
            sequence="".join(self.sequence[row] for row in rows),
            chain_ids=tuple(order),
            chain_index=np.repeat(np.arange(len(parts)), [len(part) for part in parts]),
            numbers=self.numbers[rows],
            insertion_codes=self.insertion_codes[rows],
            notes=self.notes,
        )

    def arranged(self, designed: Collection[str]) -> Backbone:
        """Designed chains first, then fixed ones, each group in alphabetical order.

        Raises:
            InputError: a designed chain is not in the structure.
        """
        if designed:
            check_chain_names(self.name, sorted(set(designed)), self.chain_ids)
        return self.select_chains(sorted(self.chain_ids, key=lambda c: (c not in designed, c)))


@dataclass(frozen=True, eq=False)
class Chain:
    """One chain as recorded, R residues in file order, numbering gaps not yet filled.

    Attributes:
        name: author chain name.
        coords: float32 [R, 4, 3], atoms N, CA, C, O in Å; read only where `complete`.
        complete: bool [R], True where all four atoms are known.
        letters: R letters of `ALPHABET`.
        numbers: int64 [R], author residue numbers.
        insertion_codes: '<U1' [R].
    """

    name: str
    coords: NDArray[np.float32]
    complete: NDArray[np.bool_]
    letters: str
    numbers: NDArray[np.int64]
    insertion_codes: NDArray[np.str_]

    def filled(self) -> Chain:
        """The chain with every numbering gap filled by masked X residues, and 0 where masked.

        Raises:
            InputError: the gaps come to more than `MAX_GAP` residues.
        """
        rows, numbers = _fill_gaps(self.numbers.tolist(), self.name)
        real = rows >= 0
        complete = self.complete[rows] & real
        return Chain(
            name=self.name,
            coords=np.where(complete[:, None, None], self.coords[rows], np.float32(0)),
            complete=complete,
            letters="".join(self.letters[row] if row >= 0 else "X" for row in rows),
            numbers=numbers,
            insertion_codes=np.where(real, self.insertion_codes[rows], "").astype("<U1"),
        )


def assemble(name: str, chains: Sequence[Chain], notes: Sequence[str] = ()) -> Backbone:
    """The `Backbone` of some chains, numbering gaps filled and counted in its notes.

    Raises:
        InputError: a chain's gaps come to more than `MAX_GAP` residues.
    """
    try:
        filled = [chain.filled() for chain in chains]
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    sizes = [len(chain.letters) for chain in filled]
    gaps = sum(sizes) - sum(len(chain.letters) for chain in chains)
    if gaps:
        notes = (*notes, f"missing residue numbers filled in as masked X ({gaps})")
    return Backbone(
        name=name,
        coords=np.concatenate([chain.coords for chain in filled]),
        mask=np.concatenate([chain.complete for chain in filled]),
        sequence="".join(chain.letters for chain in filled),
        chain_ids=tuple(chain.name for chain in filled),
        chain_index=np.repeat(np.arange(len(filled)), sizes),
        numbers=np.concatenate([chain.numbers for chain in filled]),
        insertion_codes=np.concatenate([chain.insertion_codes for chain in filled]),
        notes=tuple(notes),
    )


def _fill_gaps(numbers: Sequence[int], chain: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Source row of each filled position (-1 in a gap) and its number, both [L]."""
    seen = set(numbers)
    rows: list[int] = []
    filled: list[int] = []
    previous = numbers[0]
    for row, number in enumerate(numbers):
        if number - previous + len(rows) - row > MAX_GAP + 1:
            raise InputError(
                f"chain {chain} jumps from residue {previous} to {number}: gaps are filled with at "
                f"most {MAX_GAP} positions a chain; renumber the residues or split the chain"
            )
        gap = [n for n in range(previous + 1, number) if n not in seen]
        seen.update(gap)
        rows += [-1] * len(gap) + [row]
        filled += [*gap, number]
        previous = number
    return np.array(rows), np.array(filled)


def check_chain_names(where: str, asked: Sequence[str], there: Sequence[str]) -> None:
    """Refuse a choice of chains that is empty, repeats a name or names one that is not there."""
    missing = [name for name in asked if name not in there]
    if missing or not asked or len(set(asked)) != len(asked):
        raise InputError(
            f"{where}: chains {', '.join(asked) or 'none'} asked for; "
            f"name one or more of {', '.join(there)}, each once"
        )
