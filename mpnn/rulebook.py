"""The rules of every structure of a run: from options, published files and a file of rules."""

from __future__ import annotations

import copy
import csv
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from mpnn.backbone import Backbone
from mpnn.errors import InputError
from mpnn.files import read_json, read_text
from mpnn.labels import fixed_labels
from mpnn.published import Fields, recognize
from mpnn.rules import FLAG, JSON, NUMBER, TEXT_OR_JSON, Rules
from mpnn.structure import name_of

RULES = {rule.name: rule for rule in dataclasses.fields(Rules)}
_TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}

Translate = Callable[[Any, Backbone], tuple[Fields, list[str]]]
"""Turns one structure's entry of a file into fields of `Rules`, and notes."""


@dataclass(frozen=True)
class _Part:
    """What one file says about the structures of a run."""

    source: str
    entries: Mapping[Path, Any]
    translate: Translate

    def fields(self, path: Path, backbone: Backbone) -> tuple[Fields, list[str]]:
        if path not in self.entries:
            raise InputError(f"{self.source}: no entry for {path}; add {name_of(path)!r}")
        try:
            return self.translate(self.entries[path], backbone)
        except InputError as error:
            raise InputError(f"{self.source}: {error}") from error


class RuleBook:
    """The rules of each structure of a run.

    Published files add to the options; a rule that both give is an error, except fixed residues,
    which add up. The fields of a file of rules replace all others for the structures it names.
    """

    def __init__(
        self,
        files: Sequence[Path],
        options: Mapping[str, Any],
        published: Sequence[str] = (),
        rules: str | None = None,
        labels: bool = False,
    ) -> None:
        """Reads all files of rules.

        Args:
            files: the structures of the run.
            options: values of the command line for the fields of `Rules`; JSON ones are file names.
            published: files that `mpnn.published` recognizes.
            rules: JSON or CSV file of structure -> fields of `Rules`.
            labels: whether residues with a FIXED label in their file are fixed.

        Raises:
            InputError: a file cannot be read or recognized, or names a structure or a rule that
                does not exist.
        """
        self._labels = labels
        self._common: Fields = {}
        self._parts: list[_Part] = []
        for name, value in options.items():
            self._add_option(name, value, files)
        for source in published:
            self._add_published(source, files)
        self._special: dict[Path, Fields] = {}
        if rules is not None:
            self._special = _assigned(_read_rules(rules), files, rules, all_used=True)
        if not self._parts and not self._special:
            Rules(**self._common)  # reports a mistake once, not for every structure

    def only(self, path: Path) -> RuleBook:
        """The rules of one structure alone: small enough to send to another process."""
        book = copy.copy(self)
        book._special = {path: self._special[path]} if path in self._special else {}
        book._parts = [
            replace(part, entries={path: part.entries[path]} if path in part.entries else {})
            for part in self._parts
        ]
        return book

    def rules(self, path: Path, backbone: Backbone) -> tuple[Rules, list[str]]:
        """Returns the rules of one structure, and notes about them.

        Raises:
            InputError: a file has no entry for the structure, or its entry does not fit it.
        """
        fields, notes = dict(self._common), []
        sources = dict.fromkeys(fields, "an option")
        for part in self._parts:
            added, more = part.fields(path, backbone)
            notes += more
            for name, value in added.items():
                if name in fields and name != "fixed":
                    raise InputError(
                        f"{path}: {name} is set twice, by {sources[name]} and by {part.source}; "
                        "keep one"
                    )
                fields[name] = _joined(fields, value) if name == "fixed" else value
                sources[name] = part.source
        fields |= self._special.get(path, {})
        if self._labels:
            places, more = fixed_labels(path, backbone)
            notes += more
            if places:
                fields["fixed"] = _joined(fields, ",".join(places))
        if fields.get("pssm") == {}:  # a pssm file without a profile for this structure
            for name in ("pssm", "pssm_multi", "pssm_threshold"):
                fields.pop(name, None)
            notes.append("no PSSM for this structure")
        return Rules(**fields), notes

    def _add_option(self, name: str, value: Any, files: Sequence[Path]) -> None:
        kind = RULES[name].metadata["kind"]
        if value is None or value is False or value in ("", RULES[name].default):
            return
        if kind == TEXT_OR_JSON and file_of(name, value):
            entries = _assigned(read_json(value), files, value)
            self._parts.append(_Part(value, entries, partial(_residues_as, name)))
        elif kind == JSON:
            content = read_json(value)
            if not _is_by_structure(name, content):
                self._common[name] = content
            else:
                entries = _assigned(content, files, value)
                self._parts.append(_Part(value, entries, partial(_as_field, name)))
        else:
            self._common[name] = value

    def _add_published(self, source: str, files: Sequence[Path]) -> None:
        try:
            found = recognize(read_json(source))
        except InputError as error:
            message = str(error)
            raise InputError(message if source in message else f"{source}: {message}") from error
        if found.everywhere:
            entries: Mapping[Path, Any] = dict.fromkeys(files)
            part = _Part(source, entries, partial(_everywhere, found.everywhere))
        else:
            part = _Part(source, _assigned(found.by_structure, files, source), found.translate)
        self._parts.append(part)


def file_of(name: str, value: object) -> str:
    """The file that the value of an option or rule names; "" where it names none."""
    if name in ("rules", "fasta"):
        return str(value)
    kind = RULES[name].metadata["kind"] if name in RULES else ""
    names_json = isinstance(value, str) and value.endswith((".json", ".jsonl"))
    is_file = isinstance(value, str) and (kind == JSON or (kind == TEXT_OR_JSON and names_json))
    return str(value) if is_file else ""


def _joined(fields: Fields, fixed: str) -> str:
    return f"{fields['fixed']},{fixed}" if fields.get("fixed") else fixed


def _residues_as(name: str, entry: Any, backbone: Backbone) -> tuple[Fields, list[str]]:
    """Translates LigandMPNN's "A12 A13" or ["A12", "A13"] into the field `name`."""
    words = entry.split() if isinstance(entry, str) else entry
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise InputError(f'{backbone.name} has {entry!r}; write residues such as "A12 A13 B2-5"')
    return ({name: ",".join(words)} if words else {}), []


def _as_field(name: str, entry: Any, _: Backbone) -> tuple[Fields, list[str]]:
    return {name: entry}, []


def _everywhere(fields: Fields, _entry: Any, _backbone: Backbone) -> tuple[Fields, list[str]]:
    return fields, []


def _is_by_structure(name: str, content: Mapping[str, Any]) -> bool:
    """Whether rules by residue are nested one level deeper, below the names of structures."""
    deeper = [value for value in content.values() if isinstance(value, Mapping)]
    if name == "omit_per_residue":
        return bool(deeper)
    return any(isinstance(item, Mapping) for value in deeper for item in value.values())


def _assigned(
    content: Mapping[str, Any], files: Sequence[Path], source: str, all_used: bool = False
) -> dict[Path, Any]:
    """Entries by file; a name is a file's path, its name, or its name without the ending.

    Args:
        content: entries by name.
        files: the structures of the run.
        source: the file that holds the entries.
        all_used: whether a name that no structure has is an error.

    Raises:
        InputError: a name matches no structure, or two names match one.
    """
    paths = {path.absolute(): path for path in files}
    exact = {name: paths.get(Path(name).absolute()) for name in content}
    entries = {path: content[name] for name, path in exact.items() if path is not None}
    by_last: dict[str, list[str]] = {}
    for name in (name for name, path in exact.items() if path is None):
        by_last.setdefault(Path(name).name, []).append(name)
    used = {name for name, path in exact.items() if path is not None}
    for path in files:
        names = by_last.get(path.name, []) + by_last.get(name_of(path), [])
        if len(names) + (path in entries) > 1:
            raise InputError(f"{source}: {path} has several entries: {', '.join(names)}; keep one")
        if names:
            entries[path] = content[names[0]]
            used.add(names[0])
    if all_used and (unknown := [name for name in content if name not in used]):
        raise InputError(
            f"{source}: no structure of this run is called {', '.join(unknown[:4])}; name files as "
            f"on the command line, or without folder and ending, such as {name_of(files[0])!r}"
        )
    return entries


def _read_rules(source: str) -> dict[str, Fields]:
    """A JSON or CSV file of structure -> fields of `Rules`; the ending says which."""
    if not source.lower().endswith(".csv"):
        content = read_json(source)
        for name, fields in content.items():
            if not isinstance(fields, dict):
                raise InputError(
                    f'{source}: {name} has {fields!r}; write fields such as {{"fixed": "A1-10"}}'
                )
            _check_names(fields, f"{source}: {name}")
        return content
    rows = csv.DictReader(read_text(source).splitlines(), strict=True)
    try:
        return _table(list(rows), source)
    except csv.Error as error:
        raise InputError(f"{source}: line {rows.line_num}: is not CSV ({error})") from error


def _table(rows: Sequence[dict[str, str]], source: str) -> dict[str, Fields]:
    table: dict[str, Fields] = {}
    for row in rows:
        if None in row or None in row.values() or not row.get("file"):
            raise InputError(
                f"{source}: each line needs a cell for each column, one of them called file; "
                f"{list(row.values())} does not"
            )
        name = row.pop("file").strip()
        if name in table:
            raise InputError(f"{source}: {name} has two lines; keep one")
        cells = {key.strip().replace("-", "_"): cell.strip() for key, cell in row.items()}
        _check_names(cells, source)
        table[name] = {key: _cell(key, cell, source) for key, cell in cells.items() if cell}
    return table


def _cell(name: str, text: str, source: str) -> Any:
    kind = RULES[name].metadata["kind"]
    if kind in (JSON, None):
        raise InputError(f"{source}: {name} does not fit into a table; write the rules as JSON")
    if kind == FLAG:
        if text.lower() not in _TRUTH:
            raise InputError(f"{source}: {name} is {text!r}; write true or false")
        return _TRUTH[text.lower()]
    if kind == NUMBER:
        try:
            return float(text)
        except ValueError:
            raise InputError(f"{source}: {name} is {text!r}; write a number") from None
    return text


def _check_names(fields: Mapping[str, Any], where: str) -> None:
    if unknown := sorted(set(fields) - set(RULES)):
        raise InputError(f"{where}: no rule {', '.join(unknown)}; the rules are {', '.join(RULES)}")
