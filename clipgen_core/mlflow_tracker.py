"""One MLflow run: what is logged to it, and with which status it ends.

MlflowTracker writes through MLflow's client, without MLflow's global state, and waits while MLflow is away.
Knows nothing of what the run is about.
"""

import json
import logging
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any, NamedTuple, Self

from PIL import Image

from clipgen_core import __version__
from clipgen_core.errors import Interrupted
from clipgen_core.mlflow_sender import Sender
from clipgen_core.settings.catalogue import flatten
from clipgen_core.tracking import EXPERIMENT, mlflow_client, without_password

TRAINING = "clipgen.training"  # a tag of a run: which training it is of
GROUP = "clipgen.group"  # a tag of a run under which others are shown: the group's id
MLFLOW_PARENT_RUN_ID = "mlflow.parentRunId"
MAX_PARAM_LENGTH = 500
PATIENCE, HURRY = 30.0, 5.0  # seconds for what is not sent at the end of a run; of one that has to stop


class Group(NamedTuple):
    """Runs that belong together, such as those of one job's steps. MLflow shows them under a run of theirs.

    Attributes:
        name: Of the run that stands for the group; it ends with the status of the last of them.
        id: Identifies the group.
        tags: Of that run.
    """

    name: str
    id: str
    tags: Mapping[str, str]


class MlflowTracker:
    """One MLflow run. What it is given is sent in the background, later if MLflow is away; as a context it
    waits at its end until all is sent.

    Args:
        client: Of MLflow.
        run_id: The run.
        experiment_id: The experiment of the run, for those who need it.
    """

    def __init__(self, client: Any, run_id: str, experiment_id: str = "") -> None:
        self.client, self.run_id, self.experiment_id = client, run_id, experiment_id
        self.sender = Sender(without_password(client.tracking_uri), lambda: client.get_run(run_id))
        self.logged: dict[str, int] | None = None  # the last step of each metric before this tracker

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        stopped = kind is not None and issubclass(kind, Interrupted | KeyboardInterrupt)
        self.sender.flush(HURRY if stopped else PATIENCE)

    def params(self, values: Mapping[str, Any]) -> None:
        texts = {name: str(value)[:MAX_PARAM_LENGTH] for name, value in flatten(values).items()}

        def send() -> None:
            for name, text in texts.items():
                self.client.log_param(self.run_id, name, text)

        self.sender.put("parameters", send)

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Log metrics, with the present time.

        A training that goes on from a checkpoint logs the steps before it again, and repeats those since
        then. What the run has of them already is not logged twice.

        Args:
            values: Metrics by name.
            step: The training step; 0 outside of trainings.
        """
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        rows = [Metric(name, float(value), now, step) for name, value in values.items()]

        def send() -> None:
            if self.logged is None:
                self.logged = _last_steps(self.client.get_run(self.run_id))
            if new := [row for row in rows if row.step > self.logged.get(row.key, -1)]:
                self.client.log_batch(self.run_id, metrics=new)

        self.sender.put("metrics", send)

    def tags(self, values: Mapping[str, str]) -> None:
        given = dict(values)

        def send() -> None:
            for name, value in given.items():
                self.client.set_tag(self.run_id, name, value)

        self.sender.put("tags", send)

    def table(self, url: str, version: int | None, digest: str | None = None) -> None:
        """Log a table that the run reads, with its version.

        Args:
            url: The Lance table.
            version: Of the table.
            digest: Of the rows that are used; by default the version stands for it.
        """
        from mlflow.entities import Dataset, DatasetInput

        source = json.dumps({"uri": without_password(url), "version": version})
        name = url.rstrip("/").rpartition("/")[2]
        given = DatasetInput(Dataset(name, digest or f"version {version}", "lance", source))
        self.sender.put(f"the input {name}", lambda: self.client.log_inputs(self.run_id, [given]))

    def image(self, name: str, image: Image.Image) -> None:
        """Log an image as a PNG file.

        Args:
            name: The file's name, without its ending.
            image: The image.
        """
        file = f"{name}.png"
        self.sender.put(file, lambda: self.client.log_image(self.run_id, image, file))

    def file(self, path: Path) -> None:
        self.sender.put(path.name, lambda: self.client.log_artifact(self.run_id, str(path)))

    def end(self, status: str) -> None:
        """Set the status with which the run ended: FINISHED, FAILED or KILLED."""
        self.sender.put(f"the status {status}", lambda: self.client.set_terminated(self.run_id, status))


@contextmanager
def mlflow_run(
    name: str,
    *,
    tracking_uri: str,
    artifacts: str | None,
    tags: Mapping[str, str],
    training: str | None = None,
    group: Group | None = None,
) -> Iterator[MlflowTracker]:
    """An MLflow run that ends FINISHED, FAILED if the body raises, or KILLED if it was requested to stop.

    A training that stopped before it was finished goes on in the MLflow run in which it began.

    The machine's load is logged every ten seconds (MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL) as `system/...`,
    that of NVIDIA GPUs too if nvidia-ml-py is installed.

    Args:
        name: Of the run.
        tracking_uri: Such as `sqlite:///mlflow.db`, or a server's URL.
        artifacts: Where a new experiment keeps its artifacts; the server's default if None.
        tags: Of the run.
        training: Identifies the training that the run is of; None if it is of none.
        group: The runs that it belongs to. A training that goes on moves to the newest.

    Yields:
        The tracker of the run.

    Raises:
        MlflowAway: MLflow does not answer when the run begins. Later, what is logged waits until it does.
    """
    client = mlflow_client(tracking_uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    experiment_id = (
        experiment.experiment_id
        if experiment
        else client.create_experiment(EXPERIMENT, artifact_location=artifacts)
    )
    tags = {**tags, **_of_the_code(), **({TRAINING: training} if training else {})}
    parent = _parent(client, experiment_id, group) if group else None
    tags |= {MLFLOW_PARENT_RUN_ID: parent} if parent else {}
    run = _reopened(client, experiment_id, training, tags) if training else None
    run = run or client.create_run(experiment_id, run_name=name, tags=tags)
    ended = "FAILED"
    with MlflowTracker(client, run.info.run_id, experiment_id) as tracker:
        try:
            with _machine_load(tracker, run.info.start_time / 1000):
                yield tracker
            ended = "FINISHED"
        except (Interrupted, KeyboardInterrupt):
            ended = "KILLED"
            raise
        finally:
            tracker.end(ended)
            if parent:
                tracker.sender.put("the status", lambda: client.set_terminated(parent, ended))


def _parent(client: Any, experiment: str, group: Group) -> str:
    """The run that stands for a group, which is open now: the oldest, or else a new one."""
    same = f"tags.`{GROUP}` = '{group.id}'"
    found = client.search_runs([experiment], same, max_results=1, order_by=["attributes.start_time ASC"])
    if not found:
        new = client.create_run(experiment, run_name=group.name, tags={**group.tags, GROUP: group.id})
        return str(new.info.run_id)
    run_id = str(found[0].info.run_id)
    client.update_run(run_id, status="RUNNING")
    return run_id


def _reopened(client: Any, experiment: str, training: str, tags: Mapping[str, str]) -> Any:
    """The newest run of a training that did not finish, with its tags set anew; None if there is none."""
    same = client.search_runs([experiment], f"tags.`{TRAINING}` = '{training}'", max_results=1)
    if not same or same[0].info.status == "FINISHED":
        return None
    run_id = same[0].info.run_id
    client.update_run(run_id, status="RUNNING")
    for name, value in tags.items():
        client.set_tag(run_id, name, value)
    return same[0]


def _last_steps(run: Any) -> dict[str, int]:
    """The last step of each metric of a run."""
    return {metric.key: metric.step for metric in run.data.to_proto().metrics}


def _of_the_code() -> dict[str, str]:
    """Tags that name clipgen's version and, in a clone, the git commit."""
    from mlflow.utils.git_utils import get_git_commit

    commit = get_git_commit(str(Path(__file__).parent)) if shutil.which("git") else None
    return {"clipgen.version": __version__} | ({"mlflow.source.git.commit": commit} if commit else {})


@contextmanager
def _machine_load(tracker: MlflowTracker, began: float) -> Iterator[None]:
    """Log what MLflow's monitors measure. MLflow's own thread for that ends for good when MLflow is away.

    Args:
        tracker: The run.
        began: When the run was created, in seconds since 1970.
    """
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    logging.getLogger("mlflow.system_metrics").setLevel(logging.WARNING)
    load, stop = SystemMetricsMonitor(tracker.run_id, tracking_uri=tracker.client.tracking_uri), Event()

    def watch() -> None:
        while not stop.wait(load.sampling_interval):
            load.collect_metrics()
            figures = {f"system/{name}": value for name, value in load.aggregate_metrics().items()}
            tracker.metrics(figures, step=int((time.time() - began) / load.sampling_interval))
            for monitor in load.monitors:
                monitor.clear_metrics()

    thread = Thread(target=watch, name="machine load", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
