"""What is published: the wheel and the source archive, built here with the locked backend, and the
one version.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email import message_from_string
from email.message import Message
from pathlib import Path

import pytest

import worker
from tests.support.compose import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
VERSION: str = PROJECT["version"]
LICENSE = (ROOT / "ops" / "LICENSE").read_bytes()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both archives; nothing is fetched for them."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    return folder


@pytest.fixture
def wheel(built: Path) -> dict[str, bytes]:
    """The wheel's files by name."""
    (archive,) = built.glob("*.whl")
    return files_of(archive)


def files_of(archive: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(archive) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


def metadata(text: bytes) -> Message:
    return message_from_string(text.decode())


def test_a_wheel_holds_the_whole_package_with_its_types_and_scripts(
    wheel: dict[str, bytes],
) -> None:
    paths = [
        path
        for path in (ROOT / "worker").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    ]
    files = [path.relative_to(ROOT).as_posix() for path in paths]
    assert {"worker/py.typed", "worker/store/lua/claim.lua"} <= set(files)
    assert [name for name in files if name not in wheel] == []


def test_a_wheel_states_the_licence_and_carries_its_text(wheel: dict[str, bytes]) -> None:
    folder = f"refund_worker-{VERSION}.dist-info"
    stated = metadata(wheel[f"{folder}/METADATA"])
    assert (stated["License-Expression"], stated["License-File"]) == ("MIT", "ops/LICENSE")
    assert wheel[f"{folder}/licenses/ops/LICENSE"] == LICENSE
    assert LICENSE.startswith(b"MIT License\n")


def test_a_source_archive_carries_the_licence_too(built: Path) -> None:
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        text = opened.extractfile(f"refund_worker-{VERSION}/ops/LICENSE")
        stated = opened.extractfile(f"refund_worker-{VERSION}/PKG-INFO")
        assert text is not None
        assert stated is not None
        assert text.read() == LICENSE
        assert metadata(stated.read())["License-Expression"] == "MIT"


def test_the_command_and_the_package_state_the_version_of_pyproject_whatever_the_settings() -> None:
    command = [str(Path(sys.executable).parent / "refunds"), "--version"]
    settings = dict(os.environ) | {"REFUNDS_REDIS_URL": "not an address"}
    ran = subprocess.run(
        command, env=settings, check=False, capture_output=True, text=True, timeout=30
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, f"refunds {VERSION}\n", "")
    assert worker.__version__ == VERSION


def test_the_images_that_are_deployed_bear_the_version() -> None:
    files = [ROOT / "docker-compose.yml", *(ROOT / "ops" / "k8s").glob("*.yaml")]
    named = [
        found
        for file in files
        for found in re.findall(
            r"image: refund-worker:(?:\$\{VERSION:-)?([\w.]+)", file.read_text("utf-8")
        )
    ]
    assert len(named) >= 4
    assert set(named) == {VERSION}


def test_the_changelog_describes_the_version() -> None:
    assert f"\n## {VERSION}" in (ROOT / "ops" / "docs" / "CHANGELOG.md").read_text("utf-8")


def test_the_image_builds_the_same_wheel_from_what_it_copies(
    wheel: dict[str, bytes], tmp_path: Path
) -> None:
    dockerfile = (ROOT / "ops" / "docker" / "Dockerfile").read_text("utf-8")
    build = dockerfile[: dockerfile.index(" wheel ")]
    copied = [
        source
        for line in re.findall(r"^COPY (.+)$", build, re.MULTILINE)
        for source in line.split()[:-1]
    ]
    for source in copied:
        target = tmp_path / source
        target.parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
        copy(ROOT / source, target)
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=120)
    (archive,) = tmp_path.glob("dist/*.whl")
    assert files_of(archive) == wheel
