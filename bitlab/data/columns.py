"""Some columns of a file of your own: CSV, TSV, JSON lines, parquet, a folder in the hub's layout, or a data set of
the hub; what a file is wrong in is told with file and line."""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import pyarrow.parquet as parquet
from datasets import ClassLabel, Dataset, List

from bitlab.data.sources import load_hub
from bitlab.errors import BitlabError, either
from bitlab.files import reading

QUOTING = "in .csv, a text with commas, quote marks or line breaks is quoted, and its own quote marks are doubled"
ENDINGS = (".csv", ".tsv", ".jsonl", ".json", ".parquet")


@dataclass
class Rows:
    """Some columns of a file, and where each row of it stands.

    Args:
        where: file and split, for errors.
        columns: the values by column.
        places: "line 5" or "row 3", for each row.
        names: of the classes, where the file has numbers for them and tells their names.
    """

    where: str
    columns: dict[str, list]
    places: list[str]
    names: list[str] | None = None

    def __len__(self) -> int:
        return len(self.places)

    def wrong(self, row: int, column: str, problem: str) -> BitlabError:
        """The error of one value."""
        return BitlabError(f"{self.where}, {self.places[row]}, column {column!r}: {problem}")


def read_columns(path: str | PathLike, columns: Sequence[str]) -> dict[str, Rows]:
    """The columns of every split in a file ("train" alone), a folder or a data set of the hub."""
    file = Path(path).expanduser()
    if file.is_file():
        if file.suffix.lower() not in ENDINGS:
            raise BitlabError(f"{str(path)!r} is no file of a kind that is read here: give {either(ENDINGS)}")
        with reading(file, "give a .csv, .tsv, .jsonl or .parquet file"):
            found = {"train": _READERS[file.suffix.lower()](file, columns)}
    elif not file.is_dir() and (file.suffix.lower() in ENDINGS or str(path).startswith((".", "/", "~"))):
        raise BitlabError(f"there is no file {str(path)!r}: give {', '.join(ENDINGS)}, a folder or an id of the hub")
    else:
        splits = load_hub(str(file), advice=f"give a file ({either(ENDINGS)}), a folder of such or an id of the hub")
        found = {split: _of_dataset(f"{path}, split {split!r}", rows, columns) for split, rows in splits.items()}
    if "train" not in found:
        raise BitlabError(f"{path} has no split 'train', only {', '.join(found)}: give a file")
    for rows in found.values():
        if not len(rows):
            raise BitlabError(f"{rows.where} has no rows: give a file with examples")
    return found


def _check_header(where: str, header: Sequence[str], columns: Sequence[str]) -> None:
    if not header:
        raise BitlabError(f"{where} is empty: give a file with a row of column names and rows of examples")
    missing = [column for column in columns if column not in header]
    if missing or len(set(header)) < len(header):
        problem = f"no column {missing[0]!r}" if missing else "two columns of one name"
        other = next((mark for mark in "\t;|," if len(header) == 1 and mark in header[0]), None)
        remedy = f", parted by {other!r}: .csv wants commas, .tsv tabs" if other else ": name columns of these"
        raise BitlabError(f"{where}: {problem}; it has {', '.join(map(repr, header)):.200}{remedy}")


def _read_csv(path: Path, columns: Sequence[str]) -> Rows:
    """A header and rows. In CSV a text with commas or line breaks is quoted; in TSV a quote mark is a quote mark."""
    options = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if path.suffix.lower() == ".tsv" else {"strict": True}
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, **options)
        try:
            header = next(reader, None) or []
            _check_header(str(path), header, columns)
            found, places = {column: [] for column in columns}, []
            for fields in filter(None, reader):  # an empty line is no row
                if len(fields) != len(header):
                    problem = f"{len(fields)} columns, expected the header's {len(header)}"
                    raise BitlabError(f"{path}, line {reader.line_num}: {problem}: {QUOTING}")
                row = dict(zip(header, fields))
                for column, values in found.items():
                    values.append(row[column])
                places.append(f"line {reader.line_num}")
        except csv.Error as error:
            raise BitlabError(f"{path}, line {reader.line_num}: {error}: {QUOTING}") from error
    return Rows(str(path), found, places)


def _read_json_lines(path: Path, columns: Sequence[str]) -> Rows:
    found, places = {column: [] for column in columns}, []
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            with reading(f"{path}, line {number}", "give JSON lines, one object a line"):
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError(f"it holds {type(row).__name__}, expected an object")
            _check_header(f"{path}, line {number}", list(row), columns)
            for column, values in found.items():
                values.append(row[column])
            places.append(f"line {number}")
    return Rows(str(path), found, places)


def _read_parquet(path: Path, columns: Sequence[str]) -> Rows:
    return _of_dataset(str(path), Dataset(parquet.read_table(path)), columns)


def _of_dataset(where: str, rows: Dataset, columns: Sequence[str]) -> Rows:
    _check_header(where, rows.column_names, columns)
    label = rows.features[columns[-1]]
    label = label.feature if isinstance(label, List) else label
    found = rows.select_columns(list(dict.fromkeys(columns)))[:]
    places = [f"row {number}" for number in range(len(rows))]
    return Rows(where, found, places, label.names if isinstance(label, ClassLabel) else None)


_READERS = {
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".jsonl": _read_json_lines,
    ".json": _read_json_lines,
    ".parquet": _read_parquet,
}
