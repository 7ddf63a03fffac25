"""`mpnn collect`: the shards of a run as one table, in CSV and Parquet."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from mpnn.atomic import write_whole
from mpnn.errors import InputError
from mpnn.manifest import Collected, collect

TABLE = "designs.csv"


def write_tables(folder: Path, out: str | None = None, parquet: bool = False) -> Collected:
    """Writes one row for each design or score of a run, best score first.

    Args:
        folder: of the run's results.
        out: the CSV file; None takes `TABLE` in the folder.
        parquet: write the same with the ending .parquet too.

    Raises:
        InputError: the folder holds no manifest, a file cannot be written, or pyarrow is missing.
    """
    found = collect(folder)
    path = folder / TABLE if out is None else Path(out)
    columns = list(found.rows[0]) if found.rows else ["name"]
    text = io.StringIO()
    writer = csv.DictWriter(text, ["rank", *columns], lineterminator="\n")
    writer.writeheader()
    writer.writerows({"rank": rank, **row} for rank, row in enumerate(found.rows, start=1))
    write_whole(path, text.getvalue())
    if parquet:
        _write_parquet(path.with_suffix(".parquet"), found)
    return found


def _write_parquet(path: Path, found: Collected) -> None:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise InputError("--parquet needs pyarrow; pip install 'mpnn[parquet]'") from error
    rows = [{"rank": rank, **row} for rank, row in enumerate(found.rows, start=1)]
    content = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), content)
    write_whole(path, content.getvalue())
