"""An MLflow server that tests stop and start again."""

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import answers, free_port, wait_for


class Server:
    """`mlflow server` as a process of its own, on one port and one database whenever it is started."""

    def __init__(self, folder: Path) -> None:
        self.port, self.folder = free_port(), folder
        self.url = f"http://127.0.0.1:{self.port}"
        folder.mkdir()

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, start_new_session=True, env=environment
            )

    def wait(self) -> None:
        alive = lambda: self.process.poll() is None  # noqa: E731
        wait_for(lambda: answers(f"{self.url}/health"), "MLflow", alive=alive, seconds=120)

    def stop(self) -> None:
        os.killpg(self.process.pid, 9)
        self.process.wait()
