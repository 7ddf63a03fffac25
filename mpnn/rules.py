"""The rules of a design: what may be sampled where, spelled out once.

One `Rules` object goes from the command line to the engine. Its fields are the keyword arguments of
`Model.design`, the options of `mpnn design` and the keys of a `--rules` file; the sentence beside a
field is the help of all three. `mpnn.constraints` turns (Backbone, Rules) into arrays.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

from mpnn.errors import InputError

TEXT, TEXT_OR_JSON, FLAG, NUMBER, JSON = "text", "text or JSON", "flag", "number", "JSON"
"""What the command line takes for a rule: JSON stands for the name of a JSON file."""


def _rule(kind: str | None, sentence: str, example: str, default: Any = dataclasses.MISSING) -> Any:
    """A field of `Rules`: how the command line reads it (None: not at all), and its help."""
    metadata = {"kind": kind, "help": sentence, "example": example}
    if default is dataclasses.MISSING:
        return field(default_factory=dict, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Rules:
    """The rules of one design; residues are written as in `mpnn.selection`.

    Types are checked on construction, residues and values by `mpnn.constraints`.
    """

    chains: str | Sequence[str] = _rule(
        TEXT, "Chains to design; the others are context. All by default.", '"A,C"', ()
    )
    fixed: str = _rule(
        TEXT_OR_JSON,
        'Residues that keep their residue type: "A1-10,B5".',
        '"A1-10,B5"',
        "",
    )
    redesigned: str = _rule(
        TEXT_OR_JSON,
        'Residues to design; all others keep their residue type: "A10-20,B5".',
        '"A10-20,B5"',
        "",
    )
    tied: str = _rule(
        TEXT,
        'Residues that share a residue type, or ranges tied by place; "|" separates ties, "=" '
        'gives a weight: "A10-40,B10-40|C1,D1=0.5".',
        '"A1,B1|A10-40,B10-40"',
        "",
    )
    homo_oligomer: bool = _rule(
        FLAG,
        "Tie the chains to design residue by residue: by number, or by place where the numbers of "
        "one chain continue those of another.",
        "True or False",
        False,
    )
    omit: str = _rule(TEXT, 'Amino acids that are never sampled: "CM".', '"CM"', "")
    bias: str | Mapping[str, float] = _rule(
        TEXT, 'Added to the logits of amino acids: "A:-1.1,F:0.7".', '"A:-1.1,F:0.7"', ""
    )
    omit_per_residue: Mapping[str, str] = _rule(
        JSON,
        'Amino acids that are never sampled at a residue: {"A12": "CP"}.',
        'a mapping such as {"A12": "CP"}',
    )
    bias_per_residue: Mapping[str, Mapping[str, float]] = _rule(
        JSON,
        'Bias at a residue, added to the general one: {"A12": {"F": 1.5}}.',
        'a mapping such as {"A12": {"F": 1.5}}',
    )
    pssm: Mapping[str, Mapping[str, Sequence[Any]]] = _rule(
        None,
        "Sequence profile of each chain, as one structure's entry in ProteinMPNN's pssm.jsonl: "
        "pssm_coef [L], pssm_bias [L, 21], pssm_log_odds [L, 21], rows counted along the chain.",
        'a mapping such as {"A": {"pssm_coef": …, "pssm_bias": …, "pssm_log_odds": …}}',
    )
    pssm_multi: float = _rule(
        NUMBER,
        "Weight of the PSSM in the probabilities, times each residue's pssm_coef: 0 ignores the "
        "PSSM, 1 ignores the network.",
        "a number from 0 to 1",
        0.0,
    )
    pssm_threshold: float | None = _rule(
        NUMBER,
        "Makes amino acids with a pssm_log_odds up to this value a thousand times less likely; not "
        "applied by default.",
        "a number",
        None,
    )

    def __post_init__(self) -> None:
        for rule in dataclasses.fields(self):
            value = getattr(self, rule.name)
            if not _fits(rule, value):
                raise InputError(f"{rule.name} is {value!r}; write {_example(rule)}")
        if not 0 <= self.pssm_multi <= 1:
            raise InputError(f"pssm_multi is {self.pssm_multi}; write a number from 0 to 1")
        if self.pssm and not self.pssm_multi and self.pssm_threshold is None:
            raise InputError("a PSSM has no effect without --pssm-multi or --pssm-threshold")
        if not self.pssm and (self.pssm_multi or self.pssm_threshold is not None):
            raise InputError("--pssm-multi and --pssm-threshold need a PSSM; name its pssm.jsonl")

    @classmethod
    def of(cls, rules: Rules | None = None, **fields: Any) -> Rules:
        """Returns `rules`, or the rules with these fields.

        Raises:
            InputError: both are passed, or a field has the wrong type.
        """
        if rules is None:
            return cls(**fields)
        if fields:
            raise InputError(f"rules and {', '.join(fields)}: pass a Rules object or its fields")
        return rules


Rules.__doc__ = f"{Rules.__doc__}\n    Attributes:\n    " + "".join(
    f"    {rule.name}: {rule.metadata['help']}\n    " for rule in dataclasses.fields(Rules)
)


def _fits(rule: dataclasses.Field[Any], value: object) -> bool:
    """Whether a value has the type of its rule."""
    if rule.name == "chains":
        return isinstance(value, str) or (
            isinstance(value, Sequence) and all(isinstance(name, str) for name in value)
        )
    if rule.name == "bias":
        return isinstance(value, (str, Mapping))
    kind = rule.metadata["kind"]
    if kind == NUMBER:
        is_number = isinstance(value, Real) and not isinstance(value, bool)
        return is_number or (value is None and rule.default is None)
    return isinstance(value, {TEXT: str, TEXT_OR_JSON: str, FLAG: bool}.get(kind, Mapping))


def _example(rule: dataclasses.Field[Any]) -> str:
    kind, example = rule.metadata["kind"], str(rule.metadata["example"])
    return f"text such as {example}" if kind in (TEXT, TEXT_OR_JSON) else example
