"""Containers by podman: the image of this checkout, and the services of infra/compose by podman-compose.

Knows images, services and their health checks; knows nothing of Dagster. Options that `podman build` needs
here, such as a mounted pip.conf or `--network host`, come from CLIPGEN_BUILD_OPTIONS.
"""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import wait_for

REPOSITORY = Path(__file__).parents[2]
DOCKERFILE = REPOSITORY / "infra" / "docker" / "Dockerfile"
COMPOSE = REPOSITORY / "infra" / "compose"
STAND_INS = Path(__file__).parent / "stand_ins"
OPTIONS = shlex.split(os.environ.get("CLIPGEN_BUILD_OPTIONS", ""))


def podman(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(["podman", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, f"podman {shlex.join(arguments)}: {done.stdout}{done.stderr}"
    return done


def exists(image: str) -> bool:
    return podman("image", "exists", image, check=False).returncode == 0


def base() -> str:
    """The Dockerfile's base image. Skips the test where there is no engine or no such image."""
    if not shutil.which("podman"):
        pytest.skip("needs podman: apt-get install podman")
    (tag,) = re.findall(r"^ARG PYTHON=(\S+)", DOCKERFILE.read_text(), flags=re.M)
    if not exists(f"python:{tag}"):
        pytest.skip(f"needs the base image: podman pull python:{tag}")
    return f"python:{tag}"


def build() -> str:
    """The image under the name that compose.yaml gives it."""
    base()
    image: str = yaml.safe_load((COMPOSE / "compose.yaml").read_text())["services"]["code"]["image"]
    podman("build", *OPTIONS, "-f", str(DOCKERFILE), "-t", image, ".")
    return image


def stand_in(service: str) -> str:
    """An image in the place of one that another registry has."""
    image = f"clipgen-test-{service}"
    podman("build", *OPTIONS, "--build-arg", f"BASE={base()}", "-t", image, str(STAND_INS / service))
    return image


class Project:
    """The services of infra/compose/compose.yaml, copied to a folder with secrets of its own.

    podman 4 neither runs health checks without systemd nor waits for one: so this starts the services one by
    one and asks each by its own check.
    """

    def __init__(self, folder: Path, name: str, environment: dict[str, str]) -> None:
        self.folder, self.name = folder, name
        self.environment = os.environ | environment
        shutil.copytree(COMPOSE, folder, ignore=shutil.ignore_patterns("secrets"), dirs_exist_ok=True)
        subprocess.run([str(folder / "secrets.sh")], check=True)
        self.services: dict[str, Any] = yaml.safe_load((folder / "compose.yaml").read_text())["services"]
        missing = {
            one: stand_in(one) for one in ("postgres", "store") if not exists(self.services[one]["image"])
        }
        override = {"services": {one: {"image": image} for one, image in missing.items()}}
        (folder / "override.yaml").write_text(yaml.safe_dump(override))

    def compose(self, *arguments: str) -> str:
        files = ["-f", "compose.yaml", "-f", "override.yaml"]
        command = ["podman-compose", "--in-pod", "false", "-p", self.name, *files, *arguments]
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{shlex.join(command)}: {done.stdout}{done.stderr}"
        return done.stdout

    def up(self) -> None:
        """Each service once those that it depends on are healthy, in the order of the file."""
        for service in self.services:
            self.compose("up", "-d", "--no-build", "--no-deps", service)
            if "healthcheck" in self.services[service]:
                self.wait_until_healthy(service)
            else:
                ended = podman("wait", self.container(service)).stdout.strip()
                assert ended == "0", self.logs(service)

    def container(self, service: str) -> str:
        return f"{self.name}_{service}_1"

    def wait_until_healthy(self, service: str) -> None:
        check = ("healthcheck", "run", self.container(service))
        wait_for(
            lambda: podman(*check, check=False).returncode == 0,
            f"{service}: {self.services[service]['healthcheck']['test']}",
            alive=lambda: self.running(service) or pytest.fail(self.logs(service)),
            seconds=900,
            pause=2,
        )

    def running(self, service: str) -> bool:
        return podman("inspect", "-f", "{{.State.Running}}", self.container(service)).stdout.strip() == "true"

    def run(self, service: str, *command: str) -> str:
        """The output of a command in a running service, with the secrets that its entrypoint reads."""
        entered = ("exec", "-e", "DAGSTER_PROFILE=", self.container(service), "entrypoint", *command)
        return podman(*entered).stdout

    def logs(self, service: str) -> str:
        done = podman("logs", self.container(service))
        return (done.stdout + done.stderr)[-5000:]

    def down(self) -> None:
        self.compose("down", "-v", "-t", "5")
