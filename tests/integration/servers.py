"""The platform as processes on loopback: PostgreSQL, S3, MLflow, code server, webserver, daemon.

PostgreSQL comes from the system's packages (`apt-get install postgresql`) and S3 from moto's server; the rest
is what infra/compose starts, with the same instance profile.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg2
import requests
from moto.server import ThreadedMotoServer

from tests.conftest import answers, free_port, wait_for
from tests.integration.graphql import ask

BIN = Path(sys.executable).parent
PROFILE = Path(__file__).parents[2] / "infra" / "dagster" / "compose.yaml"
LOCATION = "clipgen"


def postgres_binaries() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return found[-1] if found else None


@contextmanager
def s3() -> Iterator[tuple[str, int]]:
    """An empty store without buckets: its host and port."""
    store = ThreadedMotoServer(port=0, verbose=False)
    store.start()
    host, port = store.get_host_and_port()
    try:
        # moto's buckets belong to the process and outlive a server
        requests.post(f"http://{host}:{port}/moto-api/reset", timeout=30).raise_for_status()
        yield host, port
    finally:
        store.stop()


@contextmanager
def postgres(password: str) -> Iterator[int]:
    """A cluster of its own with the databases `dagster` and `mlflow`; its port."""
    binaries, port = postgres_binaries(), free_port()
    assert binaries
    user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    folder = Path(tempfile.mkdtemp(prefix="clipgen-pg"))  # pytest's folders are closed to other users
    (folder / "password").write_text(password)
    if user:
        shutil.chown(folder, "postgres")
        shutil.chown(folder / "password", "postgres")
    where = [*user, str(binaries / "pg_ctl"), "-D", str(folder / "data")]
    try:
        init = ["-U", "dagster", "--auth=scram-sha-256", f"--pwfile={folder}/password", "--no-sync"]
        run([*user, str(binaries / "initdb"), "-D", str(folder / "data"), *init])
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off"
        run([*where, "-o", options, "-l", f"{folder}/log", "-w", "start"])
        login = {"host": "127.0.0.1", "port": port, "user": "dagster", "password": password}
        connection = psycopg2.connect(dbname="postgres", **login)  # type: ignore[call-overload]
        connection.autocommit = True
        for name in ("dagster", "mlflow"):
            connection.cursor().execute(f"CREATE DATABASE {name}")
        connection.close()
        yield port
    finally:
        subprocess.run([*where, "-m", "immediate", "stop"], check=False, capture_output=True)
        shutil.rmtree(folder, ignore_errors=True)


def run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 0, done.stdout + done.stderr


class Platform:
    """The processes, their logs in `folder`, and Dagster's GraphQL."""

    def __init__(self, folder: Path, postgres_port: int, password: str, settings: dict[str, str]) -> None:
        self.folder = folder
        self.ports = {name: free_port() for name in ("mlflow", "code", "webserver")}
        self.mlflow = f"http://127.0.0.1:{self.ports['mlflow']}"
        self.webserver = f"http://127.0.0.1:{self.ports['webserver']}"
        home = folder / "dagster"
        home.mkdir()
        shutil.copy(PROFILE, home / "dagster.yaml")
        (folder / "workspace.yaml").write_text(
            f"load_from: [{{grpc_server: {{host: 127.0.0.1, port: {self.ports['code']}, "
            f"location_name: {LOCATION}}}}}]"
        )
        self.database = f"postgresql+psycopg2://dagster:{password}@127.0.0.1:{postgres_port}/mlflow"
        self.environment = os.environ | {
            "DAGSTER_HOME": str(home),
            "DAGSTER_PG_HOST": "127.0.0.1",
            "DAGSTER_PG_PORT": str(postgres_port),
            "DAGSTER_PG_PASSWORD": password,
            "MLFLOW_TRACKING_URI": self.mlflow,
            "CLIPGEN_LOG": "json",
            "TQDM_DISABLE": "1",
            **settings,
        }
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str) -> None:
        command = self._commands()[name]
        environment = self.environment | {"MLFLOW_BACKEND_STORE_URI": self.database}
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [str(BIN / command[0]), *command[1:]],
                env=environment if name == "mlflow" else self.environment,
                cwd=self.folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _commands(self) -> dict[str, list[str]]:
        workspace = ["-w", str(self.folder / "workspace.yaml"), "--log-format", "json"]
        here = ["-h", "127.0.0.1", "-p"]
        mlflow = ["mlflow", "server", "--host", "127.0.0.1", "--port", str(self.ports["mlflow"])]
        code = ["dagster", "code-server", "start", *here, str(self.ports["code"])]
        return {
            "mlflow": [*mlflow, "--workers", "1", "--artifacts-destination", "s3://clipgen/mlflow"],
            "code": [*code, "-m", "pipelines.definitions", "--location-name", LOCATION, *workspace[2:]],
            "webserver": ["dagster-webserver", *here, str(self.ports["webserver"]), *workspace],
            "daemon": ["dagster-daemon", "run", *workspace],
        }

    def start_all(self) -> None:
        for name in ("mlflow", "code"):
            self.start(name)
        wait_for(lambda: answers(f"{self.mlflow}/health"), "MLflow")
        health = [str(BIN / "dagster"), "api", "grpc-health-check", "-p", str(self.ports["code"])]
        wait_for(lambda: not subprocess.run(health, capture_output=True, check=False).returncode, "the code")
        for name in ("webserver", "daemon"):
            self.start(name)
        wait_for(lambda: answers(f"{self.webserver}/server_info"), "the webserver")

    def kill(self, name: str) -> None:
        """SIGKILL to the whole process group."""
        os.killpg(self.processes[name].pid, signal.SIGKILL)
        self.processes.pop(name).wait()

    def stop(self) -> None:
        for name in list(self.processes):
            self.kill(name)

    def ask(self, query: str, **variables: Any) -> Any:
        return ask(self.webserver, query, **variables)

    def logs(self) -> str:
        return "\n".join(file.read_text() for file in self.folder.glob("*.log"))
