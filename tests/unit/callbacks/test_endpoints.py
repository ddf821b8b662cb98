"""The file of endpoints: what is read, and every mistake in one message that holds no secret."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from worker.callbacks.endpoints import EVENTS, Endpoint, load
from worker.errors import SettingsError
from worker.settings import Settings

SECRET = "whsec_" + base64.b64encode(b"k" * 32).decode()
USUAL = 'name = "shop"\nurl = "https://shop.example.com/refunds"\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A directory with the secret of the endpoint `shop`."""
    (tmp_path / "callback_shop").write_text(SECRET + "\n")
    return tmp_path


def loaded(folder: Path, text: str) -> tuple[Endpoint, ...]:
    file = folder / "callbacks.toml"
    file.write_text(text)
    return load(
        Settings.load(
            callbacks_file=file,
            secrets_dir=folder,
            redis_url="redis://127.0.0.1:7001/0",
            broker_url="amqp://127.0.0.1:7002",
        )
    )


def refusal(folder: Path, text: str) -> str:
    with pytest.raises(SettingsError) as refused:
        loaded(folder, text)
    assert "kkkk" not in str(refused.value)
    assert SECRET not in str(refused.value)
    return str(refused.value)


def test_endpoint_has_the_usual_values_unless_it_names_others(folder: Path) -> None:
    (endpoint,) = loaded(folder, f"[[endpoints]]\n{USUAL}")
    assert endpoint.keys == (b"k" * 32,)
    assert endpoint.events == frozenset(EVENTS)
    assert (endpoint.ids, endpoint.timeout_seconds, endpoint.in_flight) == ("", 15, 8)
    assert (endpoint.metadata, endpoint.allow_private) == (True, False)
    assert SECRET not in repr(endpoint)
    (endpoint,) = loaded(
        folder,
        f"""[[endpoints]]\n{USUAL}
events = ["refund.failed"]
ids = "shop-"
timeout_s = 2.5
in_flight = 3
metadata = false
""",
    )
    assert endpoint.events == {"refund.failed"}
    assert (endpoint.ids, endpoint.timeout_seconds, endpoint.in_flight) == ("shop-", 2.5, 3)
    assert endpoint.metadata is False


def test_without_the_setting_there_are_none() -> None:
    assert load(Settings.load()) == ()


def test_all_secrets_of_the_file_sign(folder: Path) -> None:
    other = "whsec_" + base64.b64encode(b"n" * 32).decode()
    (folder / "callback_shop").write_text(f"{SECRET}\n{other}\n")
    (endpoint,) = loaded(folder, f"[[endpoints]]\n{USUAL}")
    assert endpoint.keys == (b"k" * 32, b"n" * 32)


def test_every_mistake_is_named_in_one_message(folder: Path) -> None:
    said = refusal(
        folder,
        f"""[[endpoints]]\n{USUAL}
timeout_s = 0
in_flight = 1.5
[[endpoints]]
name = "Shop"
url = "ftp://x"
events = ["refund.done"]
ids = "a b"
metadata = "no"
colour = "red"
""",
    )
    for part in ("endpoint shop: timeout_s", "endpoint shop: in_flight", "endpoint 2: name"):
        assert part in said
    for part in (
        "endpoint 2: url",
        "endpoint 2: events",
        "endpoint 2: ids",
        "endpoint 2: metadata",
    ):
        assert part in said
    assert "'colour' is none of" in said


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('url = "http://shop.example.com"', "must begin with https://"),
        ('url = "http://127.0.0.1:9000"', "must begin with https://"),
        ('url = "https://127.0.0.1:9000"', "must not name an inner address"),
        ('url = "https://[::ffff:10.0.0.1]"', "must not name an inner address"),
        ('url = "https://2130706433"', "must not name an inner address"),
        ('url = "https://user:pw@shop.example.com"', "must not hold credentials"),
        ('url = "https://shop.example.com/#top"', "must not hold credentials or a fragment"),
        ('url = "https://shop.example.com:7001"', "must not name the port of Redis"),
        ('url = "https://shop.example.com:7002"', "must not name the port of Redis"),
        ('url = "https://shop.example.com:6379"', "must not name the port of Redis"),
        ('url = "https://shop.example.com:99999"', "must be an address such as"),
        ('url = "https://sh op.example.com"', "must be an address such as"),
        ('url = "https:///refunds"', "must be an address such as"),
        ("url = 7", "must be an address such as"),
    ],
)
def test_wrong_address_is_refused(line: str, problem: str, folder: Path) -> None:
    assert problem in refusal(folder, f'[[endpoints]]\nname = "shop"\n{line}\n')


def test_plain_http_and_private_addresses_need_allow_private(folder: Path) -> None:
    for url in ("http://127.0.0.1:9000/x", "https://10.1.2.3/x", "http://localhost:9000"):
        text = f'[[endpoints]]\nname = "shop"\nurl = "{url}"\nallow_private = true\n'
        assert loaded(folder, text)[0].allow_private
    text = '[[endpoints]]\nname = "shop"\nurl = "http://10.1.2.3"\nallow_private = true\n'
    assert "must begin with https://" in refusal(folder, text)
    text = '[[endpoints]]\nname = "shop"\nurl = "https://169.254.169.254"\nallow_private = true\n'
    assert "inner address" in refusal(folder, text)


@pytest.mark.parametrize(
    "text", ["", "whsec_abc\n", f"{SECRET}\nplain\n", "\n".join([SECRET[:-4] + "AAA="] * 1) + "\nx"]
)
def test_secrets_of_another_form_are_refused(text: str, folder: Path) -> None:
    (folder / "callback_shop").write_text(text)
    assert "each whsec_ and the base64" in refusal(folder, f"[[endpoints]]\n{USUAL}")


def test_missing_secret_names_its_file(folder: Path) -> None:
    (folder / "callback_shop").unlink()
    assert f"file {folder / 'callback_shop'}" in refusal(folder, f"[[endpoints]]\n{USUAL}")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[[endpoints", "is not TOML"),
        ("endpoints = 3", "write each endpoint under [[endpoints]]"),
        ("[[endpoint]]\n", "nothing is named 'endpoint'"),
        (f"[[endpoints]]\n{USUAL}[[endpoints]]\n{USUAL}", "is used twice"),
        ("".join(f'[[endpoints]]\nname = "e{n}"\n' for n in range(51)), "at most 50"),
    ],
)
def test_wrong_file_is_refused(text: str, problem: str, folder: Path) -> None:
    assert problem in refusal(folder, text)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        load(Settings.load(callbacks_file=tmp_path / "none.toml"))
