"""Manifests and units: held to the settings, to the queues, and to what a refund in flight
needs.
"""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.compose import ROOT, composed
from worker.engine.recorder import SAVE_SECONDS
from worker.http.app import END_SECONDS, GRACE_SECONDS
from worker.model.refund import Lane
from worker.settings import Settings

K8S = ROOT / "ops" / "k8s"
SYSTEMD = ROOT / "ops" / "systemd"
LONGEST = Settings.model_fields["lease_seconds"].default + SAVE_SECONDS
OBJECTS: list[dict[str, Any]] = [
    found for file in sorted(K8S.glob("*.yaml")) for found in yaml.safe_load_all(file.read_text())
]
DEPLOYMENTS = {
    found["metadata"]["name"]: found for found in OBJECTS if found["kind"] == "Deployment"
}
UNITS = sorted(path.name for path in SYSTEMD.glob("refunds-*"))


def one(kind: str) -> dict[str, Any]:
    (found,) = [found for found in OBJECTS if found["kind"] == kind]
    return found


def pod(name: str) -> dict[str, Any]:
    spec: dict[str, Any] = DEPLOYMENTS[name]["spec"]["template"]["spec"]
    return spec


def secrets_of(name: str) -> list[dict[str, str]]:
    """The secrets that a pod always has."""
    volumes = pod(name)["volumes"]
    projected = [
        source["secret"]
        for volume in volumes
        for source in volume.get("projected", {}).get("sources", [])
    ]
    whole = [volume["secret"] for volume in volumes if "secret" in volume]
    return [item for secret in projected + whole for item in secret.get("items", [])]


def test_everything_stands_in_one_namespace_and_no_secret_in_any_file() -> None:
    assert {found["metadata"].get("namespace", "refunds") for found in OBJECTS} == {"refunds"}
    assert "Secret" not in {found["kind"] for found in OBJECTS}
    text = "".join(file.read_text() for file in K8S.glob("*.yaml"))
    assert re.findall(r"[sr]k_(?:test|live)_\w+", text) == []


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_every_pod_is_found_by_its_labels_and_runs_without_rights(name: str) -> None:
    deployment, spec = DEPLOYMENTS[name], pod(name)
    assert (
        deployment["spec"]["selector"]["matchLabels"]
        == deployment["spec"]["template"]["metadata"]["labels"]
    )
    assert (spec["securityContext"]["runAsNonRoot"], spec["securityContext"]["runAsUser"]) == (
        True,
        10001,
    )
    assert spec["automountServiceAccountToken"] is False
    (container,) = spec["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["resources"]["limits"].keys() == {"cpu", "memory"}
    assert "livenessProbe" in container
    assert re.search(r":\d+\.\d+\.\d+$", container["image"])


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_a_pod_runs_the_command_of_its_compose_service(name: str) -> None:
    (container,) = pod(name)["containers"]
    assert container["args"] == composed()["services"][container["name"]]["command"]


def test_the_worker_is_alive_by_its_heartbeat_as_in_compose() -> None:
    (container,) = pod("refunds-worker")["containers"]
    compose = composed()["services"]["worker"]["healthcheck"]["test"]
    assert (
        container["livenessProbe"]["exec"]["command"]
        == compose[1:]
        == container["startupProbe"]["exec"]["command"]
    )
    assert {"name": "REFUNDS_HEARTBEAT_FILE", "value": "/tmp/heartbeat"} in container["env"]  # noqa: S108 - the pod's own
    assert {"name": "tmp", "mountPath": "/tmp"} in container["volumeMounts"]  # noqa: S108 - likewise


def test_the_worker_is_given_the_time_to_finish_and_one_goes_at_a_time() -> None:
    assert pod("refunds-worker")["terminationGracePeriodSeconds"] > LONGEST
    budget = one("PodDisruptionBudget")["spec"]
    assert budget["maxUnavailable"] == 1
    assert budget["selector"] == DEPLOYMENTS["refunds-worker"]["spec"]["selector"]


def test_it_scales_by_both_queues_and_never_to_none() -> None:
    scaled = one("ScaledObject")["spec"]
    assert scaled["scaleTargetRef"]["name"] in DEPLOYMENTS
    assert scaled["minReplicaCount"] >= 1
    assert {trigger["metadata"]["listName"] for trigger in scaled["triggers"]} == {
        lane.value for lane in Lane
    }
    assert {trigger["authenticationRef"]["name"] for trigger in scaled["triggers"]} == {
        one("TriggerAuthentication")["metadata"]["name"]
    }
    # A number of its own would be set back with each rollout.
    assert "replicas" not in DEPLOYMENTS["refunds-worker"]["spec"]


def test_every_setting_exists_and_no_key_reaches_whom_it_does_not_concern() -> None:
    settings = {name.removeprefix("REFUNDS_").lower() for name in one("ConfigMap")["data"]}
    assert settings <= Settings.model_fields.keys()
    mounted = {name: {item["key"] for item in secrets_of(name)} for name in DEPLOYMENTS}
    assert mounted == {
        "refunds-worker": {"refunds_api_key", "worker_redis_url"},
        "refunds-metrics": {"metrics_redis_url"},
        "refunds-flower": {"flower_redis_url", "flower_basic_auth"},
        "refunds-webhooks": {"producer_redis_url", "refunds_webhook_secrets"},
        "refunds-api": {"producer_redis_url"},
    }


@pytest.mark.parametrize("name", ["refunds-api", "refunds-webhooks"])
def test_two_of_a_server_run_and_each_is_ready_by_its_own_word(name: str) -> None:
    spec = DEPLOYMENTS[name]["spec"]
    assert spec["replicas"] == 2
    assert spec["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    (container,) = pod(name)["containers"]
    assert container["readinessProbe"]["httpGet"]["path"] == "/ready"
    assert container["livenessProbe"]["httpGet"]["path"] == "/health"
    assert pod(name)["terminationGracePeriodSeconds"] > GRACE_SECONDS + 2 * END_SECONDS


def test_the_api_pod_keeps_uploaded_files_on_disk() -> None:
    (container,) = pod("refunds-api")["containers"]
    folder = composed()["services"]["api"]["environment"]["REFUNDS_SPOOL_DIR"]
    assert {"name": "REFUNDS_SPOOL_DIR", "value": folder} in container["env"]
    (mount,) = [each for each in container["volumeMounts"] if each["mountPath"] == folder]
    (volume,) = [each for each in pod("refunds-api")["volumes"] if each["name"] == mount["name"]]
    assert "medium" not in volume["emptyDir"]


def test_a_worker_pod_gets_the_endpoints_and_their_secrets_if_there_are_any() -> None:
    (container,) = pod("refunds-worker")["containers"]
    (variable,) = [each for each in container["env"] if each["name"] == "REFUNDS_CALLBACKS_FILE"]
    given = {"name": "refunds-callbacks", "optional": True}
    assert variable["valueFrom"] == {"configMapKeyRef": given | {"key": "file"}}
    (volume,) = [each for each in pod("refunds-worker")["volumes"] if each["name"] == "secrets"]
    assert {"secret": given} in volume["projected"]["sources"]
    folder = one("ConfigMap")["data"]["REFUNDS_SECRETS_DIR"]
    assert {"name": "secrets", "mountPath": folder, "readOnly": True} in container["volumeMounts"]
    assert f"--from-literal=file={folder}/callbacks.toml" in (K8S / "settings.yaml").read_text()


@pytest.mark.parametrize(
    ("role", "user"),
    [
        ("worker", "worker"),
        ("metrics", "metrics"),
        ("flower", "flower"),
        ("webhooks", "producer"),
        ("api", "producer"),
    ],
)
def test_each_process_reaches_redis_as_its_own_user(role: str, user: str) -> None:
    assert {"key": f"{user}_redis_url", "path": "refunds_redis_url"} in secrets_of(
        f"refunds-{role}"
    )
    (unit_of_role,) = [
        name
        for name in UNITS
        if name.startswith(f"refunds-{role}")
        and name.endswith((f"{role}.service", "@.service"))
        and "check" not in name
    ]
    credential = f"LoadCredential=refunds_redis_url:/etc/refunds/secrets/{user}_redis_url"
    assert credential in (SYSTEMD / unit_of_role).read_text().splitlines()


def test_the_scaler_reaches_redis_as_its_own_user() -> None:
    parameters = {
        ref["parameter"]: ref["key"]
        for ref in one("TriggerAuthentication")["spec"]["secretTargetRef"]
    }
    assert parameters == {
        "address": "redis_address",
        "username": "redis_username",
        "password": "redis_password",
    }


def unit(name: str) -> configparser.RawConfigParser:
    # A key may come several times in a unit; here the last one is enough.
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment, method-assign]  # keys as they are written
    parser.read(SYSTEMD / name)
    return parser


def test_systemd_finds_nothing_wrong_with_the_units(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("there is no systemd-analyze here: the units' syntax was not checked")
    for name in UNITS:
        # The product is not installed where this runs.
        text = re.sub(r"/opt/refunds/bin/\w+", "/bin/true", (SYSTEMD / name).read_text())
        (tmp_path / name).write_text(text)
        if "@" in name:
            (tmp_path / name.replace("@", "@1")).write_text(text)
    beside = tmp_path / "refunds-worker@1.service.d"
    beside.mkdir()
    shutil.copy(SYSTEMD / "callbacks.conf", beside)
    files = [
        str(path)
        for path in sorted(tmp_path.glob("refunds-*"))
        if path.is_file() and "@." not in path.name
    ]
    run = subprocess.run(
        [analyze, "verify", "--man=no", *files],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (run.returncode, run.stderr) == (0, "")


def test_a_worker_unit_lets_what_is_in_flight_finish_and_rests_after_a_wrong_setting() -> None:
    service = unit("refunds-worker@.service")["Service"]
    assert int(service["TimeoutStopSec"]) > LONGEST
    assert service["KillMode"] == "mixed"
    assert service["RestartPreventExitStatus"].split() == ["2", "6"]
    assert "REFUNDS_HEARTBEAT_FILE=%t/refunds-worker-%i/heartbeat" in service["Environment"]
    assert (
        "/run/refunds-worker-%i/heartbeat"
        in unit("refunds-worker-check@.service")["Service"]["ExecStart"]
    )


@pytest.mark.parametrize(
    "name", [name for name in UNITS if name.endswith(".service") and "check" not in name]
)
def test_every_unit_runs_a_known_command_without_rights(name: str) -> None:
    service = unit(name)["Service"]
    commands = {
        tuple(service_["command"][:3])
        for service_ in composed()["services"].values()
        if "build" in service_
    }
    program, *rest = service["ExecStart"].split()
    assert program.startswith("/opt/refunds/bin/")
    assert any((program.rpartition("/")[2], *rest)[: len(known)] == known for known in commands)
    assert (
        service["DynamicUser"],
        service["NoNewPrivileges"],
        service["CapabilityBoundingSet"],
    ) == ("yes", "yes", "")


def test_the_api_unit_keeps_uploaded_files_in_a_folder_of_its_own() -> None:
    service = unit("refunds-api.service")["Service"]
    assert (service["StateDirectory"], service["StateDirectoryMode"]) == ("refunds-api", "0700")
    assert "REFUNDS_SPOOL_DIR=%S/refunds-api" in service["Environment"].split()


def test_a_worker_unit_gets_the_endpoints_and_their_secrets_by_a_file_beside_it() -> None:
    lines = (SYSTEMD / "callbacks.conf").read_text().splitlines()
    assert {line for line in lines if line and not line.startswith(("#", "["))} == {
        "LoadCredential=callbacks.toml:/etc/refunds/callbacks.toml",
        # A folder: each file in it is a credential `callback_FILE`, as the worker expects.
        "LoadCredential=callback:/etc/refunds/secrets/callbacks",
        "Environment=REFUNDS_CALLBACKS_FILE=%d/callbacks.toml",
    }


def test_the_units_settings_exist() -> None:
    lines = [
        line
        for line in (SYSTEMD / "settings.env").read_text().splitlines()
        if line and line[0] != "#"
    ]
    names = {line.split("=", 1)[0].removeprefix("REFUNDS_").lower() for line in lines}
    assert names
    assert names <= Settings.model_fields.keys()
