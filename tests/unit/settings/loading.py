"""Settings as they are loaded from some variables, and the message of wrong ones."""

from __future__ import annotations

import pytest

from worker.errors import SettingsError
from worker.settings import Settings

SECRET = "hunter2-do-not-print"


def loaded(monkeypatch: pytest.MonkeyPatch, **variables: str) -> Settings:
    for name, value in variables.items():
        monkeypatch.setenv(f"REFUNDS_{name}", value)
    return Settings.load()


def message(monkeypatch: pytest.MonkeyPatch, **variables: str) -> str:
    with pytest.raises(SettingsError) as caught:
        loaded(monkeypatch, **variables)
    return str(caught.value)
