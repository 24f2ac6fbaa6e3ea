"""Labelled texts on disk: tables, JSON lines, a folder a class, and two sets that need no download.

Every reader yields :class:`Record`. What cannot be read is an error that names file and line;
what is no text, an empty one or a file outside the classes' folders, is left out and counted.
"""

from __future__ import annotations

import ast
import csv
import json
import sysconfig
import textwrap
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from hetkern.training.config import UserError

WORDNET = Path("/usr/share/wordnet/data.noun")  # Debian's package wordnet-base
WORDNET_CLASSES = (
    "Tops act animal artifact attribute body cognition communication event feeling food group "
    "location motive object person phenomenon plant possession process quantity relation shape "
    "state substance time"
).split()
_FIRST_NOUN_CLASS = 3  # the number of noun.Tops among WordNet's lexicographer files
_NOT_LIBRARY = {"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages"}
_FEWEST_FILES, _FEWEST_FUNCTIONS = 5, 100  # of a package that becomes a class
_LONGEST_FIELD = 1 << 30  # csv's own limit is 128 KiB


class Record(NamedTuple):
    """One labelled text.

    Attributes:
        text: as it was read.
        label: the name of its class.
        group: what it is a part of, a file say: all of one group are on one side of the split.
            None where each text stands for itself.
    """

    text: str
    label: str
    group: str | None = None


class Labelled(NamedTuple):
    """What was read.

    Attributes:
        name: what it is, in words.
        records: in the order in which they were read.
        left_out: how many were no labelled text, by reason.
    """

    name: str
    records: list[Record]
    left_out: Counter[str]


def read_labelled(
    data: str | None, text_column: str = "text", label_column: str = "label"
) -> Labelled:
    """Read labelled texts.

    Args:
        data: a TSV, CSV or JSON-lines file; a folder with one folder of text files a class;
            WordNet's ``data.noun``; ``"wordnet"`` or ``"stdlib"``; None for WordNet's nouns where
            they are installed, and the standard library's functions where not.
        text_column: which column, or key, holds the text; a table without a header has "1", "2" …
        label_column: which one holds the label.

    Raises:
        UserError: there is no such file, a line of it cannot be read, or it holds no text.
    """
    path = None if data is None else Path(data)
    if path is None or (data == "stdlib" and not path.exists()):
        read = _wordnet(WORDNET) if path is None and WORDNET.exists() else _standard_library()
    elif data == "wordnet" and not path.exists():
        if not WORDNET.exists():
            raise UserError(f"there is no {WORDNET}; Debian's package wordnet-base has it")
        read = _wordnet(WORDNET)
    elif not path.exists():
        raise UserError(f"there is no file or folder {path} to train on")
    elif path.is_dir():
        read = _folder_a_class(path)
    elif path.name == WORDNET.name:
        read = _wordnet(path)
    else:
        read = _file(path, text_column, label_column)
    if not read.records:
        raise UserError(f"{read.name} holds no labelled text to train on")
    return read


# ---- Files of lines. -----------------------------------------------------------------------------


def _lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file; one that is none is named."""
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    yield line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise UserError(
                        f"{path} line {number} is not UTF-8 ({error.reason}); save it as UTF-8"
                    ) from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def _file(path: Path, text_column: str, label_column: str) -> Labelled:
    suffix = path.suffix.lower()
    left_out: Counter[str] = Counter()
    columns = text_column, label_column
    if text_column == label_column:
        raise UserError(f"{text_column!r} cannot be both the text and its label")
    if suffix in (".jsonl", ".ndjson", ".json"):
        rows = _json_lines(path, columns)
    elif suffix in (".tsv", ".tab", ".csv"):
        rows = _table(path, suffix == ".csv", columns)
    else:
        raise UserError(
            f"{path} is no .tsv, .csv or .jsonl file; give one, or a folder with a folder a class"
        )
    records = []
    for text, label in rows:
        if text.strip():
            records.append(Record(text, label))
        else:
            left_out["empty"] += 1
    return Labelled(str(path), records, left_out)


def _json_lines(path: Path, columns: tuple[str, str]) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        where = f"{path} line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise UserError(f"{where} is no JSON object with {' and '.join(map(repr, columns))}")
        for column in columns:
            if column not in row:
                near = ", ".join(map(repr, row)) or "none"
                raise UserError(f"{where} has no key {column!r}; its keys are {near}")
        text, label = (row[column] for column in columns)
        if not isinstance(text, str):
            raise UserError(f"{where}: {columns[0]!r} must be a string, got {text!r}")
        if isinstance(label, float | list | dict) or label is None or label == "":
            raise UserError(f"{where}: {columns[1]!r} must be a string or a number, got {label!r}")
        yield text, str(label)


def _table(path: Path, quoted: bool, columns: tuple[str, str]) -> Iterator[tuple[str, str]]:
    """Rows of a CSV file, or of a TSV file, in which a quote is a character like another."""
    limit = csv.field_size_limit(_LONGEST_FIELD)
    how = {} if quoted else {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
    reader = csv.reader(_lines(path), strict=quoted, **how)  # type: ignore[arg-type]
    places: tuple[int, int] | None = None
    width = 0  # columns of the first row
    if all(column.isdigit() for column in columns):
        places = int(columns[0]) - 1, int(columns[1]) - 1
        if min(places) < 0:
            raise UserError(f"columns are counted from 1, got {columns[0]} and {columns[1]}")
    try:
        while True:
            line = reader.line_num + 1
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise UserError(f"{path} line {line} cannot be read: {error}") from error
            if not row:
                continue
            width = width or len(row)
            if places is None:
                places = _places(path, row, columns)
                continue
            if len(row) <= max(places):
                wanted = max(places) + 1
                raise UserError(f"{path} line {line} has {len(row)} columns, {wanted} wanted")
            if any(row[width:]):  # the end of a text, and it would be lost
                held = "a text with a comma stands in quotes" if quoted else "a text has no tab"
                raise UserError(
                    f"{path} line {line} has {len(row)} columns, {width} wanted; {held}"
                )
            text, label = row[places[0]], row[places[1]].strip()
            if not label:
                raise UserError(f"{path} line {line} has no label")
            yield text, label
    finally:
        csv.field_size_limit(limit)


def _places(path: Path, header: list[str], columns: tuple[str, str]) -> tuple[int, int]:
    names = [name.strip() for name in header]
    for column in columns:
        if column not in names:
            raise UserError(
                f"{path} has no column {column!r}; its first line names {', '.join(names)}. "
                "Name them with --text-column and --label-column; without a header, 1, 2 …"
            )
        if names.count(column) > 1:
            raise UserError(f"{path}: its first line names {column!r} more than once")
    return names.index(columns[0]), names.index(columns[1])


# ---- A folder a class. ---------------------------------------------------------------------------


def _folder_a_class(root: Path) -> Labelled:
    records, left_out = [], Counter[str]()
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        parts = path.relative_to(root).parts
        if any(part.startswith(".") for part in parts):
            left_out["hidden files"] += 1
            continue
        if len(parts) < 2:
            left_out["files outside the classes' folders"] += 1
            continue
        text = "".join(_lines(path))
        if text.strip():
            records.append(Record(text, parts[0]))
        else:
            left_out["empty"] += 1
    if not records:
        raise UserError(f"{root} holds no text in a folder a class, as in {root}/CLASS/text.txt")
    return Labelled(str(root), records, left_out)


# ---- What is there without a download. -----------------------------------------------------------


def _wordnet(path: Path) -> Labelled:
    """The glosses of WordNet's nouns, by lexicographer file.

    A line is ``offset file type words … | gloss``; those that begin with a blank are the licence.
    Source of the format: WordNet's wndb(5WN) and lexnames(5WN).
    """
    records = []
    for number, line in enumerate(_lines(path), 1):
        if line.startswith(" ") or not line.strip():
            continue
        head, bar, gloss = line.partition(" | ")
        fields = head.split()
        try:
            label = WORDNET_CLASSES[int(fields[1]) - _FIRST_NOUN_CLASS]
            whole = bool(bar) and int(fields[1]) >= _FIRST_NOUN_CLASS
        except (ValueError, IndexError):
            whole = False
        if not whole:
            raise UserError(f"{path} line {number} is no noun of WordNet: {line[:40]!r}")
        records.append(Record(gloss.strip(), label))
    return Labelled(f"WordNet's noun glosses ({path})", records, Counter())


def _standard_library() -> Labelled:
    """Functions and methods of the standard library's packages, by package, grouped by file."""
    root = Path(sysconfig.get_paths()["stdlib"])
    by_package: dict[str, list[Record]] = defaultdict(list)
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if len(parts) < 2 or _NOT_LIBRARY & set(parts):
            continue
        group = "/".join(parts)
        by_package[parts[0]] += [Record(text, parts[0], group) for text in _functions(path)]
    records, left_out = [], Counter[str]()
    for package in sorted(by_package):
        of_package = by_package[package]
        files = {record.group for record in of_package}
        if len(files) >= _FEWEST_FILES and len(of_package) >= _FEWEST_FUNCTIONS:
            records += of_package
        else:
            left_out["functions of packages too small to be a class"] += len(of_package)
    version = sysconfig.get_python_version()
    return Labelled(f"functions of Python {version}'s standard library", records, left_out)


def _functions(path: Path) -> Iterator[str]:
    try:
        source = path.read_text(encoding="utf-8")
        waiting: list[ast.AST] = [ast.parse(source)]
    except (OSError, ValueError, SyntaxError, RecursionError):
        return  # some of the library's files are no Python on purpose
    lines = source.split("\n")
    while waiting:
        for node in getattr(waiting.pop(), "body", []):
            if isinstance(node, ast.ClassDef):
                waiting.append(node)
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield textwrap.dedent("\n".join(lines[node.lineno - 1 : node.end_lineno]))
