"""Imports files of refunds: a file becomes rows, then requests or row errors, then a result file.

    with open_source("refunds.csv", ImportOptions()) as source:
        validation = validate(source)
        for line, request in accepted(source, validation): ...

Everything but a workbook's sheet streams: a file is read as often as needed and never held in
memory. The package uses no Celery, no Redis and no clock.
"""

from worker.importer.columns import (
    ALIASES,
    FAILED_COLUMNS,
    FIELDS,
    IGNORED,
    RESULT_COLUMNS,
    USED_BY_RESULT,
    USED_FOR_ID,
    field_of,
    is_settable,
)
from worker.importer.formats import Row, delimiter_of, describe, read_rows
from worker.importer.ids import MOST_ATTEMPTS, MadeId, SameRefund, made_id
from worker.importer.naming import column_option, looks_like_amount
from worker.importer.options import DELIMITERS, FORMATS, Format, ImportOptions
from worker.importer.requests import Candidate, RowError, requests_of
from worker.importer.resultfile import INVALID, result_suffix, write_failed_rows, write_result
from worker.importer.sources import Source, open_source
from worker.importer.validation import validate
from worker.importer.verdicts import (
    Accepted,
    JudgedRow,
    LinePair,
    Mark,
    Summary,
    Total,
    Validation,
    accepted,
    judged,
    refused,
)

__all__ = [
    "ALIASES",
    "DELIMITERS",
    "FAILED_COLUMNS",
    "FIELDS",
    "FORMATS",
    "IGNORED",
    "INVALID",
    "MOST_ATTEMPTS",
    "RESULT_COLUMNS",
    "USED_BY_RESULT",
    "USED_FOR_ID",
    "Accepted",
    "Candidate",
    "Format",
    "ImportOptions",
    "JudgedRow",
    "LinePair",
    "MadeId",
    "Mark",
    "Row",
    "RowError",
    "SameRefund",
    "Source",
    "Summary",
    "Total",
    "Validation",
    "accepted",
    "column_option",
    "delimiter_of",
    "describe",
    "field_of",
    "is_settable",
    "judged",
    "looks_like_amount",
    "made_id",
    "open_source",
    "read_rows",
    "refused",
    "requests_of",
    "result_suffix",
    "validate",
    "write_failed_rows",
    "write_result",
]
