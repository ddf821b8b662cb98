"""The compose file and the Dockerfile: valid by their own checkers, and hard to misuse."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.compose import ROOT, composed, variables_of
from worker.engine.recorder import SAVE_SECONDS
from worker.http.app import END_SECONDS, GRACE_SECONDS
from worker.sandbox.redis_server import DIRECTIVES
from worker.settings import Settings

SERVICES: dict[str, dict[str, Any]] = composed()["services"]
OURS = ["worker", "metrics", "flower", "webhooks", "api", "sandbox"]
SERVERS = ("redis", "redis-2")
SENTINELS = ("sentinel-1", "sentinel-2", "sentinel-3")
WAITING = ("worker", "metrics", "flower", "webhooks", "api")
DOCKERFILE = (ROOT / "ops" / "docker" / "Dockerfile").read_text()


def run_tool(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    tool = Path(sys.executable).parent / name
    return subprocess.run(
        [tool, *arguments], check=False, capture_output=True, text=True, timeout=60, cwd=ROOT
    )


def test_the_file_holds_to_the_compose_specification() -> None:
    run = run_tool(
        "check-jsonschema", "--builtin-schema", "vendor.compose-spec", "docker-compose.yml"
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    run = run_tool("hadolint", "ops/docker/Dockerfile")
    assert run.returncode == 0, run.stdout + run.stderr


def seconds(text: str) -> int:
    found = re.fullmatch(r"(?:(\d+)m)?(?:(\d+)s)?", text)
    assert found is not None
    return int(found[1] or 0) * 60 + int(found[2] or 0)


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_runs_without_root_rights_or_a_writable_root(name: str) -> None:
    service = SERVICES[name]
    user = re.fullmatch(r"(\d+):(\d+)", service["user"])
    assert user is not None
    assert int(user[1]) > 0
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service
    assert "cap_add" not in service


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_has_limits_a_pinned_image_and_a_healthcheck(name: str) -> None:
    service = SERVICES[name]
    assert service["deploy"]["resources"]["limits"].keys() == {"cpus", "memory", "pids"}
    assert re.search(r":v?\d+\.\d+\.\d+", service["image"]), service["image"]
    assert service["healthcheck"]["test"][0] in {"CMD", "CMD-SHELL"}
    assert service["logging"]["options"].keys() == {"max-size", "max-file"}


# The first patch of each line without known ways to run code through a script or over TLS
# (CVE-2024-46981, CVE-2025-49844, CVE-2026-23631, CVE-2026-81934 and those between them). A line
# that is not named has had its last.
SAFE_REDIS = {
    (6, 2): 24,
    (7, 2): 16,
    (7, 4): 11,
    (8, 2): 9,
    (8, 4): 6,
    (8, 6): 6,
    (8, 8): 2,
    (8, 10): 1,
}
OLDEST = {
    "prom/prometheus": (3, 13, 2),
    "prom/alertmanager": (0, 34, 0),
    "grafana/grafana": (13, 2, 0),
}


def version(image: str) -> tuple[int, ...]:
    found = re.search(r":v?(\d+)\.(\d+)\.(\d+)", image)
    assert found is not None, image
    return tuple(int(part) for part in found.groups())


def test_the_server_has_no_known_hole_in_its_scripts() -> None:
    major, minor, patch = version(SERVICES["redis"]["image"])
    assert SERVICES["redis"]["image"].startswith("redis:")
    assert patch >= SAFE_REDIS[major, minor]
    assert {SERVICES[name]["image"] for name in (*SERVERS, *SENTINELS)} == {
        SERVICES["redis"]["image"]
    }


@pytest.mark.parametrize(("image", "oldest"), OLDEST.items())
def test_no_image_is_older_than_what_is_known_to_be_mended(
    image: str, oldest: tuple[int, ...]
) -> None:
    (pinned,) = [
        service["image"]
        for service in SERVICES.values()
        if service["image"].startswith(f"{image}:")
    ]
    assert version(pinned) >= oldest


def test_the_image_of_ours_stands_on_the_newest_known_python_of_its_line() -> None:
    bases = re.findall(r"^FROM (python:\S+)", DOCKERFILE, re.MULTILINE)
    assert len(set(bases)) == 1
    assert version(bases[0])[:2] == (3, 11)
    assert version(bases[0]) >= (3, 11, 16)


@pytest.mark.parametrize("name", SERVERS)
def test_a_server_keeps_every_write_and_is_reached_from_inside_only(name: str) -> None:
    server = SERVICES[name]
    assert server["command"][0] == "/etc/refunds/serve"
    told = dict(zip(server["command"][1::2], server["command"][2::2], strict=True))
    assert told["--appendonly"] == "yes"
    assert told["--appendfsync"] == "always"
    assert told["--no-appendfsync-on-rewrite"] == "no"
    assert told["--maxmemory-policy"] == "noeviction"
    assert told["--auto-aof-rewrite-min-size"] == DIRECTIVES["auto-aof-rewrite-min-size"]
    assert int(told["--maxmemory"].removesuffix("mb")) * 1024**2 < 2 * 1024**3
    assert server["volumes"] == [f"{name}:/data", "./ops/redis:/etc/refunds:ro"]
    assert "ports" not in server
    assert server["networks"] == ["records"]
    assert composed()["networks"]["records"] == {"internal": True}


@pytest.mark.parametrize("name", [*SERVERS, *SENTINELS])
def test_each_server_and_sentinel_keeps_its_own_role_and_is_named_as_itself(name: str) -> None:
    service, port = SERVICES[name], 6379 if name in SERVERS else 26379
    assert service["environment"] == {
        "REDIS_DATA": "/data",
        "REDIS_SECRETS": "/run/secrets",
        "REDIS_FIRST": "redis:6379",
        "REDIS_SELF": f"{name}:{port}",
    }
    assert service["volumes"] == [f"{name}:/data", "./ops/redis:/etc/refunds:ro"]
    assert name in composed()["volumes"]
    assert service["networks"] == ["records"]
    assert "ports" not in service
    # A role on the command line would be taken up again after each promotion.
    assert not {"--replicaof", "--slaveof"} & set(service["command"])


def test_a_worker_can_be_there_any_number_of_times() -> None:
    assert not {"container_name", "ports", "hostname"} & SERVICES["worker"].keys()


def test_only_loopback_reaches_what_is_published() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert published
    assert [port for port in published if not port.startswith("127.0.0.1:")] == []


def test_whoever_needs_the_server_waits_until_it_is_healthy() -> None:
    waiting = {"redis": {"condition": "service_healthy"}}
    assert {name: SERVICES[name]["depends_on"] for name in WAITING} == dict.fromkeys(
        WAITING, waiting
    )


@pytest.mark.parametrize("name", ["webhooks", "api"])
def test_a_server_is_given_the_time_to_become_unready_and_end(name: str) -> None:
    assert seconds(SERVICES[name]["stop_grace_period"]) > GRACE_SECONDS + 2 * END_SECONDS


def test_the_api_keeps_uploaded_files_on_a_volume_that_its_user_may_write_to() -> None:
    api = SERVICES["api"]
    folder = api["environment"]["REFUNDS_SPOOL_DIR"]
    assert api["volumes"] == [f"spool:{folder}"]
    assert "spool" in composed()["volumes"]
    # A new volume takes over the owner of the image's folder.
    (made,) = re.findall(r"install --directory --owner 10001 .* --mode 0700 (.+)", DOCKERFILE)
    assert folder in made.split()


def test_the_workers_get_the_endpoints_and_their_secrets_by_a_second_file() -> None:
    run = run_tool(
        "check-jsonschema", "--builtin-schema", "vendor.compose-spec", "ops/docker/callbacks.yml"
    )
    assert run.returncode == 0, run.stdout + run.stderr
    second = yaml.safe_load((ROOT / "ops" / "docker" / "callbacks.yml").read_text())
    worker = second["services"]["worker"]
    assert worker["environment"] == {"REFUNDS_CALLBACKS_FILE": "/run/secrets/callbacks.toml"}
    assert worker["secrets"] == ["callbacks.toml", "callback_shop"] == [*second["secrets"]]
    assert SERVICES["worker"]["environment"]["REFUNDS_SECRETS_DIR"] == "/run/secrets"


def test_a_worker_is_given_the_time_to_finish_its_longest_attempt() -> None:
    longest = Settings.model_fields["lease_seconds"].default + SAVE_SECONDS
    assert seconds(SERVICES["worker"]["stop_grace_period"]) > longest


def test_secrets_are_files_and_each_goes_only_to_whom_it_concerns() -> None:
    assert {
        name: service["secrets"] for name, service in SERVICES.items() if "secrets" in service
    } == {
        "redis": ["redis_users", "redis_replication"],
        "redis-2": ["redis_users", "redis_replication"],
        **{name: ["sentinel_users", "sentinel_login"] for name in SENTINELS},
        "worker": [
            "refunds_api_key",
            {"source": "worker_redis_url", "target": "refunds_redis_url"},
        ],
        "metrics": [{"source": "metrics_redis_url", "target": "refunds_redis_url"}],
        "flower": [
            "flower_basic_auth",
            {"source": "flower_redis_url", "target": "refunds_redis_url"},
        ],
        "webhooks": [
            "refunds_webhook_secrets",
            {"source": "producer_redis_url", "target": "refunds_redis_url"},
        ],
        "api": [{"source": "producer_redis_url", "target": "refunds_redis_url"}],
        "alertmanager": ["alert_webhook"],
        "grafana": ["grafana_admin"],
    }
    for service in SERVICES.values():
        named = [
            name
            for name in service.get("environment", {})
            if re.search("KEY$|PASSWORD$|TOKEN$|SECRET$", name)
        ]
        assert named == []
    assert all(set(secret) == {"file"} for secret in composed()["secrets"].values())


def test_every_setting_that_a_service_is_given_exists() -> None:
    given = {name for service in OURS for name in SERVICES[service].get("environment", {})}
    given |= variables_of(ROOT / "ops" / "docker" / "demo.env").keys()
    ours = {name.removeprefix("REFUNDS_").lower() for name in given if name.startswith("REFUNDS_")}
    assert ours
    assert ours <= Settings.model_fields.keys()


ELSEWHERE = {
    "api_key": "a secret file",
    "redis_url": "a secret file for each service",
    "webhook_secrets": "a secret file",
    "callbacks_file": "ops/docker/callbacks.yml",
    "broker_url": "the compose file has no RabbitMQ",
    "prefix": "the users of Redis are for the keys `refunds`",
    "http_auth": "without it the API is served on a loopback address only",
    "actor": "the name of the person who types a command",
}


def test_every_other_setting_can_be_made_in_the_shell_and_reaches_its_services() -> None:
    shared = {name for service in OURS[:-1] for name in SERVICES[service]["environment"]}
    settings = {f"REFUNDS_{name.upper()}" for name in Settings.model_fields.keys() - ELSEWHERE}
    assert shared >= settings
    unset = [name for name, value in SERVICES["worker"]["environment"].items() if value is None]
    assert "REFUNDS_SETTLE_SECONDS" in unset
    for service in OURS[:-1]:
        assert set(unset) <= SERVICES[service]["environment"].keys(), service


def test_the_demo_never_reaches_a_real_provider() -> None:
    services = composed(variables_of(ROOT / "ops" / "docker" / "demo.env"))["services"]
    assert services["worker"]["environment"]["REFUNDS_API_URL"] == "http://sandbox:4010"
    assert services["worker"]["environment"]["REFUNDS_LIVE"] == "false"


def test_replicas_servers_demo_and_monitoring_run_only_when_asked_for() -> None:
    profiles = {
        name: service["profiles"] for name, service in SERVICES.items() if "profiles" in service
    }
    assert profiles == {
        "redis-2": ["ha"],
        **{name: ["ha"] for name in SENTINELS},
        "webhooks": ["webhooks"],
        "api": ["api"],
        "sandbox": ["demo"],
        "prometheus": ["monitoring"],
        "alertmanager": ["monitoring"],
        "grafana": ["monitoring"],
    }


def test_every_file_that_is_mounted_or_copied_is_there_and_let_through() -> None:
    mounted = [
        volume.split(":")[0]
        for service in SERVICES.values()
        for volume in service.get("volumes", [])
        if volume.startswith("./")
    ]
    copied = [
        source
        for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, flags=re.MULTILINE)
        for source in line.split()[:-1]
    ]
    assert mounted
    assert copied
    assert [path for path in mounted + copied if not (ROOT / path).exists()] == []
    let_through = {
        line[1:]
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    assert set(copied) == let_through


def test_the_image_takes_only_what_the_lock_holds_and_leaves_the_tools_behind() -> None:
    first, last = re.split(r"^FROM .+$", DOCKERFILE, flags=re.MULTILINE)[1:]
    assert "--require-hashes" in first
    joined = re.sub(r"\\\n\s*", " ", first)
    commands = [
        part
        for part in re.split(r"&&|\n", joined)
        if re.search(r"\bpip\b.* (install|download|wheel) ", part)
    ]
    assert len(commands) == 4
    assert all("--no-index" in command or "--require-hashes" in command for command in commands)
    assert "pip uninstall" in last
    assert "pip install" not in last
    assert re.findall(r"^USER (.+)$", DOCKERFILE, flags=re.MULTILINE) == ["10001:10001"]
