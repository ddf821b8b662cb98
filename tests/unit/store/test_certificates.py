"""The certificate files that an address names are read before anything connects."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from worker.errors import SettingsError
from worker.store.connection import connect, connect_async

NEXT = "name a file of PEM that this user may read"


@pytest.mark.parametrize("opening", [connect, connect_async])
@pytest.mark.parametrize("scheme", ["rediss://host:1/0?", "sentinels://host:1/0?master=m&"])
@pytest.mark.parametrize(
    ("name", "kind", "trouble"),
    [
        ("ssl_ca_certs", "missing", "cannot be read (No such file or directory)"),
        ("ssl_ca_certs", "folder", "cannot be read (Is a directory)"),
        ("ssl_ca_certs", "other", "holds no certificate in PEM"),
        ("ssl_certfile", "missing", "cannot be read (No such file or directory)"),
        ("ssl_keyfile", "folder", "cannot be read (Is a directory)"),
    ],
)
def test_a_certificate_file_that_cannot_be_used_is_one_sentence(
    tmp_path: Path, opening: object, scheme: str, name: str, kind: str, trouble: str
) -> None:
    file = tmp_path / "file.pem"
    if kind == "folder":
        file.mkdir()
    elif kind == "other":
        file.write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError) as raised:
        opening(f"{scheme}{name}={file}")  # type: ignore[operator]
    assert str(raised.value) == f"{name}={file} of REFUNDS_REDIS_URL {trouble}: {NEXT}"


def test_a_certificate_in_pem_is_accepted() -> None:
    pem = Path(__file__).parents[2] / "support" / "loopback.pem"
    connect(f"rediss://host:1/0?ssl_ca_certs={pem}").close()


@pytest.mark.parametrize("opening", [connect, connect_async])
@pytest.mark.parametrize("scheme", ["rediss://host:1/0?", "sentinels://host:1/0?master=m&"])
def test_a_word_for_how_certificates_are_checked_that_celery_alone_knows_is_one_sentence(
    opening: Callable[[str], object], scheme: str
) -> None:
    with pytest.raises(SettingsError) as raised:
        opening(f"{scheme}ssl_cert_reqs=CERT_REQUIRED")
    assert str(raised.value) == (
        "ssl_cert_reqs=CERT_REQUIRED of REFUNDS_REDIS_URL is not one of none, optional, required"
    )


@pytest.mark.parametrize("word", ["none", "optional", "required"])
def test_a_word_for_how_certificates_are_checked_is_accepted(word: str) -> None:
    connect(f"rediss://host:1/0?ssl_cert_reqs={word}").close()
