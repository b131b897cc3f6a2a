"""`figures.json`: every figure of README.md and RESULTS.md, and the tables that the
scripts printed.

A section of the file has the heading of its section of RESULTS.md, or is `README.md`:

    "page":     the section's tables (rows: head of the column → cell) and other lines
    "printed":  complete runs of the scripts: command, machine, rows. A number of the
                page's tables must be one of these numbers, rounded.
    "short":    the last short forms of `make bench`: command, machine, rows

`tests/benchmarks/test_figures.py` compares the pages with the file.
"""

import json
import re
from collections.abc import Iterable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FILE = ROOT / "benchmarks" / "figures.json"
README = "README.md"
RESULTS = "benchmarks/RESULTS.md"
Cells = dict[str, str]
_NUMBER = re.compile(r"(?<![\w.])\d[\d,]*(?:\.\d+)?(?:e-?\d+)?|(?<![\w.])\.\d+")


def read() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(FILE.read_text())
    return document


def write(document: dict[str, Any]) -> None:
    written = FILE.with_suffix(".new")
    written.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    written.replace(FILE)


def tables(text: str) -> Iterator[list[Cells]]:
    """Yield the tables of Markdown as rows: head of the column → cell.

    Raises:
        ValueError: two columns of a table have the same head.
    """
    rows: list[Cells] = []
    heads: list[str] = []
    for line in [*text.splitlines(), ""]:
        if not line.startswith("|"):
            if rows:
                yield rows
            rows, heads = [], []
            continue
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not heads:
            heads = cells
            if len({*heads}) < len(heads):
                raise ValueError(f"two columns have one head: {line}")
        elif not all(set(cell) <= set("-: ") for cell in cells) or not any(cells):
            rows.append(dict(zip(heads, cells, strict=False)))


def pages() -> dict[str, Any]:
    """Return the tables and the other lines with digits of README.md, and of each
    section of RESULTS.md.
    """
    texts = {README: (ROOT / README).read_text()}
    _, *parts = re.split(r"^###? ", (ROOT / RESULTS).read_text(), flags=re.MULTILINE)
    for part in parts:
        heading, _, texts[heading] = part.partition("\n")
    found = {}
    for heading, text in texts.items():
        lines = [line for line in text.splitlines() if line[:1] != "|" and _NUMBER.search(line)]
        found[heading] = {"tables": list(tables(text)), "lines": lines}
    return found


def numbers(cells: Iterable[str]) -> list[str]:
    """Return the numbers of the cells without their thousands separators."""
    return [number.replace(",", "") for cell in cells for number in _NUMBER.findall(cell)]


def is_among(number: str, known: Iterable[str]) -> bool:
    """Return True if one of the known numbers, rounded to the digits of this number, is
    this number.
    """
    value = Decimal(number)
    half = Decimal((0, (5,), int(value.as_tuple().exponent) - 1))
    return any(abs(Decimal(each) - value) <= half for each in known)
