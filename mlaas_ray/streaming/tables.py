"""Tables as events: Parquet, CSV and JSON lines, by the same protocol as ROOT files."""

from __future__ import annotations

from collections.abc import Callable

from mlaas_ray.core.errors import JobError
from mlaas_ray.streaming.events import Events, Nested
from mlaas_ray.streaming.formats import format_of
from mlaas_ray.streaming.parquet import ParquetEvents
from mlaas_ray.streaming.source import Source
from mlaas_ray.streaming.texts import CsvEvents, JsonEvents

_READERS: dict[str, Callable[[Source, Nested], Events]] = {
    "Parquet": ParquetEvents,
    "CSV": CsvEvents,
    "JSON lines": JsonEvents,
}


def open_table(source: Source, *, nested: Nested = "leave") -> Events:
    """Open a table.

    Numbers are flat columns, lists of numbers jagged, lists of one length fixed; null is NaN, and a list that
    is null has no values. What is no number is left out, with the reason in ``left_out``.

    Args:
        source: The file; its suffix tells its format.
        nested: What becomes of lists of lists of numbers.

    Raises:
        FileMissingError: When the file is not there.
        FileUnreadableError: When it cannot be read; names the line or column.
        JobError: When its suffix is none of a table.
    """
    form = format_of(source.path)
    if form is None or form not in _READERS:
        raise JobError(f"{source} is no table", "Give .parquet, .csv or .jsonl")
    return _READERS[form](source, nested)
