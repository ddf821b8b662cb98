"""The heartbeat file: wrong at the start it ends the worker, later it is told once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from worker.errors import SettingsError
from worker.process.heartbeat import Heartbeat
from worker.process.heartbeat_file import check


def test_a_worker_without_a_heartbeat_file_touches_none() -> None:
    heartbeat = Heartbeat(None)
    heartbeat.begin()
    heartbeat.beat()


def test_each_beat_makes_the_file_fresh(tmp_path: Path) -> None:
    path = tmp_path / "heartbeat"
    heartbeat = Heartbeat(path)
    heartbeat.begin()
    os.utime(path, (0, 0))
    heartbeat.beat()
    assert path.stat().st_mtime > 0


def test_a_file_that_cannot_be_written_at_the_start_is_a_wrong_setting(tmp_path: Path) -> None:
    with pytest.raises(
        SettingsError,
        match=r"^REFUNDS_HEARTBEAT_FILE .*no/heartbeat cannot be written \(No such file",
    ):
        Heartbeat(tmp_path / "no" / "heartbeat").begin()


def test_a_folder_is_no_heartbeat_file(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="it is a directory"):
        Heartbeat(tmp_path).begin()


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    precious, path = tmp_path / "precious", tmp_path / "heartbeat"
    path.symlink_to(precious)
    for there in (False, True):
        if there:
            precious.touch()
            os.utime(precious, (0, 0))
        with pytest.raises(SettingsError, match="it is a symbolic link"):
            Heartbeat(path).begin()
        assert precious.exists() == there
    assert precious.stat().st_mtime == 0


def test_the_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        Heartbeat(tmp_path / "heartbeat").begin()
    finally:
        os.umask(before)
    assert (tmp_path / "heartbeat").stat().st_mode & 0o777 == 0o600


def test_a_file_that_is_lost_and_found_later_is_told_once_each_time(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    heartbeat = Heartbeat(folder / "heartbeat")
    heartbeat.begin()
    with capture_logs() as logged:
        (folder / "heartbeat").unlink()
        folder.rmdir()
        heartbeat.beat()
        heartbeat.beat()
        folder.mkdir()
        heartbeat.beat()
        heartbeat.beat()
    told = [(line["event"], line["log_level"]) for line in logged]
    assert told == [("heartbeat_not_written", "warning"), ("heartbeat_written_again", "warning")]
    assert logged[0]["reason"] == "No such file or directory"


def test_a_check_before_the_start_makes_no_file_and_removes_none(tmp_path: Path) -> None:
    path = tmp_path / "heartbeat"
    check(path)
    assert not path.exists()
    path.write_text("precious")
    os.utime(path, (1, 2))
    check(path)
    assert path.read_text() == "precious"
    # Of an earlier run: this one does not beat yet.
    assert path.stat().st_mtime == 2
    check(None)
    with pytest.raises(SettingsError, match="cannot be written"):
        check(tmp_path / "no" / "heartbeat")
