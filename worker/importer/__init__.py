"""Files of refunds: a file becomes rows, rows become requests or row errors, and what became of them a file again.

    with open_source("refunds.csv", ImportOptions()) as source:
        validation = validate(source)
        for line, request in accepted(source, validation): ...

Everything but a workbook's sheet streams: a file is read as often as it is needed and never held. Knows no Celery,
no Redis, no clock.
"""

from worker.importer.columns import ALIASES, FAILED_COLUMNS, RESULT_COLUMNS
from worker.importer.formats import Row, delimiter_of, describe, read_rows
from worker.importer.options import FORMATS, AmountUnit, Format, ImportOptions
from worker.importer.requests import Candidate, RowError, requests_of
from worker.importer.resultfile import INVALID, result_suffix, write_failed_rows, write_result
from worker.importer.sources import Source, open_source
from worker.importer.validation import (
    Accepted,
    Judged,
    Pair,
    Summary,
    Total,
    Validation,
    accepted,
    judged,
    refused,
    validate,
)

__all__ = [
    "ALIASES",
    "FAILED_COLUMNS",
    "FORMATS",
    "INVALID",
    "RESULT_COLUMNS",
    "Accepted",
    "AmountUnit",
    "Candidate",
    "Format",
    "ImportOptions",
    "Judged",
    "Pair",
    "Row",
    "RowError",
    "Source",
    "Summary",
    "Total",
    "Validation",
    "accepted",
    "delimiter_of",
    "describe",
    "judged",
    "open_source",
    "read_rows",
    "refused",
    "requests_of",
    "result_suffix",
    "validate",
    "write_failed_rows",
    "write_result",
]
