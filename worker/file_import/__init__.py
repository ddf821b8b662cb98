"""The import of a file, by the command line or over HTTP.

Decides whether it may be imported, opens its batch, and submits its rows.
"""

from worker.file_import.facts import facts_of, records_of
from worker.file_import.judging import (
    ImportSettings,
    Prepared,
    Refusal,
    begin,
    broken_limits,
    draft,
    of_file,
    of_rows,
    prepare,
)
from worker.file_import.limits import (
    UNSTATED,
    Limits,
    MostErrors,
    Unusable,
    each_sum,
    length_of_time,
    most_errors,
    sums_or_one,
)
from worker.file_import.readings import (
    DELIMITER_OF,
    UnknownReading,
    columns_of,
    reading_of,
    stored_reading,
    unfitting,
    unit_of,
)
from worker.file_import.submitting import BatchCanceled, SubmitCounts, submit

__all__ = [
    "DELIMITER_OF",
    "UNSTATED",
    "BatchCanceled",
    "ImportSettings",
    "Limits",
    "MostErrors",
    "Prepared",
    "Refusal",
    "SubmitCounts",
    "UnknownReading",
    "Unusable",
    "begin",
    "broken_limits",
    "columns_of",
    "draft",
    "each_sum",
    "facts_of",
    "length_of_time",
    "most_errors",
    "of_file",
    "of_rows",
    "prepare",
    "reading_of",
    "records_of",
    "stored_reading",
    "submit",
    "sums_or_one",
    "unfitting",
    "unit_of",
]
