"""The inference log as tables and figures."""

import dataclasses
from collections.abc import Iterator, Mapping
from datetime import date, datetime
from itertools import islice
from typing import Any

import orjson

from mlflow_deploy_plugin.cli.output.terminal import printable
from mlflow_deploy_plugin.inference_log import LogStats, QueryResult
from mlflow_deploy_plugin.tabular import values_of

_WIDEST = 40
_MEASURED_ROWS = 1000
_SHOWN_TIMES = 24
_BAR = 30


def table_lines(result: QueryResult, bound: int | None) -> Iterator[str]:
    """Yield at most `bound` rows as a table; the first rows give the widths."""
    numeric = [str(field.type).startswith(("int", "uint", "float", "double", "halffloat")) for field in result.schema]
    rows = (
        row
        for batch in result.batches
        for row in zip(*(map(_cell, values_of(column)) for column in batch.columns), strict=True)
    )
    first = list(islice(rows, _MEASURED_ROWS if bound is None else min(bound, _MEASURED_ROWS)))
    names = [printable(name) for name in result.schema.names]
    widths = [max(map(len, column)) for column in zip(names, *first, strict=True)]
    yield _line(names, widths, numeric)
    count = 0
    for row in first:
        count += 1
        yield _line(row, widths, numeric)
    for row in rows:
        if bound is not None and count >= bound:
            yield f"… and more: --limit says how many, {bound:,} now"
            return
        count += 1
        yield _line(row, widths, numeric)
    yield f"{count:,} row{'' if count == 1 else 's'}"


def stats_lines(stats: LogStats, shown: str) -> Iterator[str]:
    """Yield the figures of a log for people."""
    yield f"{stats.endpoint} in {shown}"
    span = f", {_time(stats.first)} to {_time(stats.last)}" if stats.first and stats.last else ""
    shadows = f" and {stats.shadow_rows:,} of shadows" if stats.shadow_rows else ""
    yield f"  rows      {stats.rows:,}{shadows}{span}"
    if stats.failed_rows:
        yield f"  failed    {stats.failed_rows:,} rows of requests that got no answer"
    yield f"  files     {stats.files:,}, {size_text(stats.size)}"
    yield from _count_lines("versions", stats.by_version)
    yield from _count_lines("variants", stats.by_variant)
    labels = stats.labels
    share = f" ({labels.rows / stats.rows:.1%})" if stats.rows else ""
    unmatched = "" if labels.unmatched is None else f"; {labels.names:,} labels are in, {labels.unmatched:,} unmatched"
    yield f"  labels    {labels.rows:,} rows have one{share}{unmatched}"
    if (account := stats.account) is not None:
        way = account.captured - account.shipped
        on_their_way = f", {way:,} on their way" if way > 0 else ""
        yield (
            f"  account   {account.answered:,} rows were answered, {account.captured:,} of them captured, "
            f"{account.dropped:,} dropped; {account.shipped:,} shipped{on_their_way}"
        )
        if labels.unmatched is not None and (gone := account.gone(stats.rows)):
            yield f"            {gone:,} shipped rows are not in the log any more: they have expired, or were deleted"
        yield f"            the log is complete until {_time(account.complete_until)}"
    yield from _histogram(stats.by_hour)


def stats_json(stats: LogStats) -> str:
    """Return the figures of a log as one JSON object."""
    document = dataclasses.asdict(stats)
    document["by_hour"] = {moment.isoformat(): rows for moment, rows in stats.by_hour.items()}
    return orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_UTC_Z).decode()


def size_text(size: float) -> str:
    """Return a number of bytes for people."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def _count_lines(title: str, counts: Mapping[str, int]) -> Iterator[str]:
    for position, (name, rows) in enumerate(counts.items()):
        yield f"  {title if position == 0 else '':8}  {printable(name)}: {rows:,}"


def _histogram(by_hour: Mapping[datetime, int]) -> Iterator[str]:
    """Yield a bar for each hour, or for each day if there are many."""
    form = "%Y-%m-%d %H:%M" if len(by_hour) <= _SHOWN_TIMES else "%Y-%m-%d"
    counts: dict[str, int] = {}
    for moment, rows in by_hour.items():
        counts[moment.strftime(form)] = counts.get(moment.strftime(form), 0) + rows
    if len(counts) > _SHOWN_TIMES:
        yield f"  … {len(counts) - _SHOWN_TIMES:,} earlier ones (-o json has all)"
    last = list(counts.items())[-_SHOWN_TIMES:]
    most = max((rows for _, rows in last), default=1)
    width = len(f"{most:,}")
    for shown, rows in last:
        yield f"  {shown}  {rows:{width},}  {'█' * max(1, round(_BAR * rows / most))}"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        text = f"{value:.6g}"
    elif isinstance(value, bool):
        text = "true" if value else "false"
    elif isinstance(value, datetime | date):
        text = _time(value) if isinstance(value, datetime) else value.isoformat()
    else:
        text = printable(str(value))
    return text if len(text) <= _WIDEST else text[: _WIDEST - 1] + "…"


def _line(cells: Any, widths: list[int], numeric: list[bool]) -> str:
    laid = (
        cell.rjust(width) if is_number else cell.ljust(width)
        for cell, width, is_number in zip(cells, widths, numeric, strict=True)
    )
    return "  ".join(laid).rstrip()


def _time(moment: datetime) -> str:
    form = "%Y-%m-%d %H:%M:%S.%f" if moment.microsecond else "%Y-%m-%d %H:%M:%S"
    return moment.strftime(form).rstrip("0") if moment.microsecond else moment.strftime(form)
