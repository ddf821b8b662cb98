"""The file of endpoints: what is read, and every mistake in one message that holds no secret."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from worker.callbacks.endpoints import EVENTS, Endpoint, load
from worker.errors import SettingsError
from worker.model.redaction import without_secrets
from worker.settings import Settings

SECRET = "whsec_" + base64.b64encode(b"k" * 32).decode()
USUAL = 'name = "shop"\nurl = "https://shop.example.com/refunds"\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A directory with the secret of the endpoint `shop`."""
    (tmp_path / "callback_shop").write_text(SECRET + "\n")
    return tmp_path


def loaded(folder: Path, text: str | bytes, **others: Any) -> tuple[Endpoint, ...]:
    file = folder / "callbacks.toml"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    usual: dict[str, Any] = {
        "callbacks_file": file,
        "secrets_dir": folder,
        "redis_url": "redis://127.0.0.1:7001/0",
        "broker_url": "amqp://127.0.0.1:7002",
    }
    return load(Settings.load(**(usual | others)))


def refusal(folder: Path, text: str | bytes, **others: Any) -> str:
    with pytest.raises(SettingsError) as refused:
        loaded(folder, text, **others)
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
    # Without a name it has no file of secrets.
    assert "endpoint 2: secrets" not in said


@pytest.mark.parametrize(
    "line",
    [
        "timeout_s = 1",
        "timeout_s = 60",
        "in_flight = 1",
        "in_flight = 100",
    ],
)
def test_least_and_most_are_allowed(line: str, folder: Path) -> None:
    field, _, number = line.partition(" = ")
    (endpoint,) = loaded(folder, f"[[endpoints]]\n{USUAL}{line}\n")
    assert getattr(endpoint, field.replace("_s", "_seconds")) == int(number)


@pytest.mark.parametrize("line", ["timeout_s = 60.5", "in_flight = 101", "in_flight = 0"])
def test_number_beyond_the_least_and_the_most_is_refused(line: str, folder: Path) -> None:
    field = line.partition(" = ")[0]
    said = refusal(folder, f"[[endpoints]]\n{USUAL}{line}\n")
    assert f"endpoint shop: {field} must be a " in said


def test_one_unknown_event_among_known_ones_is_refused(folder: Path) -> None:
    text = f'[[endpoints]]\n{USUAL}events = ["refund.failed", "refund.done"]\n'
    assert "endpoint shop: events must be a list of" in refusal(folder, text)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://shop.example.com/refunds", "https://shop.example.com/refunds"),
        ("https://shop.example.com/refunds?key=7", "https://shop.example.com/refunds?…"),
    ],
)
def test_url_is_shown_without_its_query(url: str, shown: str) -> None:
    assert Endpoint(name="shop", url=url, keys=()).shown_url == shown


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
        ('url = "https://shop.example.com:0"', "must be an address such as"),
        (f'url = "https://{"a" * 64}.example.com"', "must be an address such as"),
        ("url = 7", "must be an address such as"),
    ],
)
def test_wrong_address_is_refused(line: str, problem: str, folder: Path) -> None:
    assert problem in refusal(folder, f'[[endpoints]]\nname = "shop"\n{line}\n')


def test_address_of_up_to_2000_characters_is_allowed(folder: Path) -> None:
    url = "https://shop.example.com/".ljust(2000, "a")
    text = '[[endpoints]]\nname = "shop"\nurl = "{}"\n'
    (endpoint,) = loaded(folder, text.format(url))
    assert endpoint.url == url
    assert "must be an address such as" in refusal(folder, text.format(f"{url}a"))


@pytest.mark.parametrize(
    "redis_url", ["redis://redis.internal/0", "sentinel://127.0.0.1:7003,127.0.0.2:7003/0"]
)
def test_redis_without_one_port_of_its_own_leaves_the_other_ports_closed(
    redis_url: str, folder: Path
) -> None:
    (endpoint,) = loaded(folder, f"[[endpoints]]\n{USUAL}", redis_url=redis_url)
    assert endpoint.name == "shop"
    text = '[[endpoints]]\nname = "shop"\nurl = "https://shop.example.com:7002"\n'
    assert "must not name the port of Redis" in refusal(folder, text, redis_url=redis_url)


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


@pytest.mark.parametrize("count", [4, 5])
def test_endpoint_has_at_most_four_secrets(count: int, folder: Path) -> None:
    keys = tuple(bytes([65 + number]) * 32 for number in range(count))
    lines = ["whsec_" + base64.b64encode(key).decode() for key in keys]
    (folder / "callback_shop").write_text("\n".join(lines))
    text = f"[[endpoints]]\n{USUAL}"
    if count > 4:
        assert "must be 1 to 4 lines" in refusal(folder, text)
    else:
        assert loaded(folder, text)[0].keys == keys


def test_secret_that_was_read_is_hidden_from_then_on(folder: Path) -> None:
    secret = "whsec_" + base64.b64encode(b"read from a file, and then hidden").decode()
    (folder / "callback_shop").write_text(secret)
    loaded(folder, f"[[endpoints]]\n{USUAL}")
    assert without_secrets(f"a shop said {secret}") == "a shop said ***"


def test_missing_secrets_directory_is_named(folder: Path) -> None:
    said = refusal(folder, f"[[endpoints]]\n{USUAL}", secrets_dir=None)
    assert "secrets are read from the file callback_shop of REFUNDS_SECRETS_DIR: set it" in said


def test_missing_secret_names_its_file(folder: Path) -> None:
    (folder / "callback_shop").unlink()
    assert f"file {folder / 'callback_shop'}" in refusal(folder, f"[[endpoints]]\n{USUAL}")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[[endpoints", "is not TOML"),
        (b"# \xff", "is not TOML in UTF-8"),
        (f"[[endpoints]]\n{USUAL}in_flight = {'9' * 5000}", "is not TOML: a number is too long"),
        ("endpoints = 3", "write each endpoint under [[endpoints]]"),
        ("endpoints = [{}, 3]", "write each endpoint under [[endpoints]]"),
        ("[[endpoint]]\n", "nothing is named 'endpoint'"),
        (f"[[endpoints]]\n{USUAL}[[endpoints]]\n{USUAL}", "is used twice"),
        ("".join(f'[[endpoints]]\nname = "e{n}"\n' for n in range(51)), "at most 50"),
    ],
)
def test_wrong_file_is_refused(text: str | bytes, problem: str, folder: Path) -> None:
    assert problem in refusal(folder, text)


def test_file_of_up_to_a_million_bytes_is_read(folder: Path) -> None:
    text = f"[[endpoints]]\n{USUAL}# ".ljust(1_000_000, "-")
    assert len(loaded(folder, text)) == 1
    assert "is longer than 1,000,000 bytes" in refusal(folder, f"{text}-")


def test_fifty_endpoints_are_allowed(folder: Path) -> None:
    text = ""
    for number in range(50):
        (folder / f"callback_e{number}").write_text(SECRET)
        text += f'[[endpoints]]\nname = "e{number}"\nurl = "https://shop.example.com"\n'
    assert len(loaded(folder, text)) == 50


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        load(Settings.load(callbacks_file=tmp_path / "none.toml"))


def test_endpoint_of_which_nothing_more_is_said_wants_all_and_no_private_address() -> None:
    usual = Endpoint(name="shop", url="https://shop.example/", keys=())
    assert (usual.events, usual.ids, usual.metadata) == (frozenset(EVENTS), "", True)
    assert (usual.timeout_seconds, usual.in_flight, usual.allow_private) == (15, 8, False)


@pytest.mark.parametrize(
    ("ids", "member", "is_wanted"),
    [
        ("", "order-1", True),
        ("", "batch/b-1", True),
        ("order-", "order-1", True),
        ("order-", "other-1", False),
        ("order-", "batch/b-1", False),
        ("batch", "batch/b-1", False),
    ],
)
def test_endpoint_for_some_ids_wants_only_those_and_no_batch(
    ids: str, member: str, *, is_wanted: bool
) -> None:
    endpoint = Endpoint(name="shop", url="https://shop.example.com/", keys=(), ids=ids)
    assert endpoint.wants(member) is is_wanted
    assert endpoint.wants(member, "refund.failed") is is_wanted
    assert not endpoint.wants(member, "no.such.event")
