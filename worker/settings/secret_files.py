"""Reads secret files: a folder with one file of UTF-8 text for each secret, as Docker mounts it."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from worker.errors import SettingsError


def read_secrets(folder: Path, *, prefix: str, names: Collection[str]) -> dict[str, str]:
    """Return the values of the settings that have a file in the folder; an empty file has none.

    A file is named as its variable, in lower or upper case. Raises `SettingsError` with one
    sentence that names every file which cannot be read.
    """
    if not folder.is_dir():
        raise SettingsError(
            f"{prefix}SECRETS_DIR {folder} is not a directory: create it or unset it"
        )
    try:
        files = {path.name.lower(): path for path in sorted(folder.iterdir())}
    except OSError as error:
        raise SettingsError(
            f"{prefix}SECRETS_DIR {folder} cannot be read ({error.strerror}): let this user read it"
            " or unset it"
        ) from None
    values, problems = {}, []
    for name in names:
        path = files.get(f"{prefix}{name}".lower())
        if path is None:
            continue
        try:
            value = path.read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            problems.append(f"{prefix}{name.upper()}: the file {path} {_trouble(error)}")
            continue
        if value:
            values[name] = value
    if problems:
        raise SettingsError(
            f"wrong settings: {'; '.join(problems)}: replace it by a file of UTF-8 text that this"
            " user may read, or remove it and set the variable"
        )
    return values


def _trouble(error: OSError | ValueError) -> str:
    if isinstance(error, IsADirectoryError):
        return "is a directory"
    if isinstance(error, OSError):
        return f"cannot be read ({error.strerror})"
    return "is not UTF-8 text"
