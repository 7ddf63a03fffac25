"""Residue names: which amino acid a name stands for, in the PDB's dictionary or a force field."""

from __future__ import annotations

import functools

import gemmi

from mpnn.config import ALPHABET

_STATES = {
    "ARG": "AR0 ARN ARGN",
    "ASN": "ASN1",
    "ASP": "AS4 ASH ASP1 ASPH ASPP",
    "CYS": "CYD CYM CYX CYZ CYS1 CYS2 CYSH",
    "GLU": "GL4 GLH GLUH GLUP",
    "HIS": "HID HIE HIP HIZ HSD HSE HSP HIS1 HIS2 HISA HISB HISD HISE HISH HISP",
    "LYS": "LSN LYN LYP LYSH LYSN",
    "PHE": "PHEH PHEU",
    "SER": "SRO",
    "THR": "THO",
    "TRP": "TRPH TRPU",
    "TYR": "TYM TYO TYRH TYRU",
}
"""States of protonation and bonding in Amber, CHARMM, GROMACS, GROMOS, OPLS and Rosetta."""

_STANDARD = {gemmi.expand_one_letter(x, gemmi.ResidueKind.AA): x for x in ALPHABET if x != "X"}
_PARENTS = {name: parent for parent, names in _STATES.items() for name in names.split()}
_TERMINI = {
    end + name: parent
    for end in "NC"
    for name, parent in {**{x: x for x in (*_STANDARD, "HYP")}, **_PARENTS}.items()
}
PARENTS = {**_TERMINI, "NHYP": "PRO", "CHYP": "PRO", **_PARENTS}
"""Names that force fields give to states of the standard amino acids (and Amber and GROMACS to the
residues at either end of a chain), and the standard name of each."""


@functools.lru_cache(maxsize=4096)
def tabulated(name: str) -> gemmi.ResidueInfo:
    """What gemmi's table of the Chemical Component Dictionary says of a residue or its parent."""
    return gemmi.find_tabulated_residue(PARENTS.get(name, name))


@functools.lru_cache(maxsize=4096)
def one_letter(name: str) -> str:
    """The letter of the residue's standard parent; X where there is none."""
    info = tabulated(name)
    letter = info.one_letter_code.upper()
    return letter if info.is_amino_acid() and letter in ALPHABET else "X"


def is_standard(name: str) -> bool:
    """Whether the name is that of one of the twenty amino acids."""
    return name in _STANDARD
