"""The mapping's file: written as it is read, and refused with what is wrong in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from worker.errors import InputError
from worker.reconcile import mapping
from worker.reconcile.mapping import ExportMapping

ODD = 'Gr\u00fcn \U0001f600 "x" \\ \x7f\t'


def test_mapping_is_written_as_people_write_it_and_read_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "provider.toml"
    whole = ExportMapping(columns={"metadata.refund_id": "Id"}, statuses={ODD: "failed"})
    mapping.write(path, whole)
    assert path.read_bytes().decode("utf-8") == (
        "# How 'refunds reconcile --mapping' reads this provider's file.\n\n"
        '[columns]\n"metadata.refund_id" = "Id"\n\n'
        '[status]\n"Gr\u00fcn \U0001f600 \\"x\\" \\\\ \\u007f\\t" = "failed"\n'
    )
    assert mapping.read(path) == whole


def test_mapping_is_not_written_over_a_file(tmp_path: Path) -> None:
    path = tmp_path / "provider.toml"
    path.write_text("kept")
    with pytest.raises(InputError) as raised:
        mapping.write(path, ExportMapping())
    assert str(raised.value) == f"{path}: cannot be written (File exists): name another file"
    assert path.read_text() == "kept"


def test_what_is_not_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError) as raised:
        mapping.read(tmp_path)
    assert str(raised.value) == f"{tmp_path}: cannot be read (Is a directory): name another file"


def test_mapping_has_at_most_100_000_bytes(tmp_path: Path) -> None:
    path = tmp_path / "provider.toml"
    text = '[columns]\nid = "X"\n'
    path.write_text(f"#{'x' * (100_000 - len(text) - 2)}\n{text}")
    assert mapping.read(path) == ExportMapping(columns={"id": "X"})
    path.write_text(f"#{path.read_text()}")
    with pytest.raises(InputError) as raised:
        mapping.read(path)
    assert str(raised.value) == f"{path}: is longer than 100,000 bytes: is it the mapping?"


def test_name_with_a_dot_needs_no_quotation_marks(tmp_path: Path) -> None:
    path = tmp_path / "provider.toml"
    path.write_text('[columns]\nmetadata.refund_id = " Order "\n[file]\nstatus = "failed"\n')
    assert mapping.read(path) == ExportMapping(
        columns={"metadata.refund_id": "Order"}, file={"status": "failed"}
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "unit = 'minor'",
            "[file]: 'unit' is not one of amount_unit, decimal, sign, currency, tz, status",
        ),
        (
            "status = 'done'",
            "[file] status: 'done' is not one of succeeded, pending, failed, canceled",
        ),
    ],
)
def test_setting_of_the_file_that_is_not_known_is_refused(
    tmp_path: Path, text: str, says: str
) -> None:
    path = tmp_path / "provider.toml"
    path.write_text(f"[file]\n{text}\n")
    with pytest.raises(InputError) as raised:
        mapping.read(path)
    assert str(raised.value) == f"{path}: {says}"
