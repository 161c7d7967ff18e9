"""Mark runs that were killed as failed: each would hold a slot of the pool `gpu`, and the next run wait.

In:  DAGSTER_HOME of one machine, where a process id says which run still lives
Run: `python -m pipelines.killed`; `make demo`, `make judge` and `make ui` do it first. On servers the
     daemon's run monitoring has this part.
"""

import os
import sys

import dagster as dg
import psutil


def end_killed(instance: dg.DagsterInstance) -> list[str]:
    """The ids of the runs that count as under way but have no process any more; they are failed now."""
    under_way = dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED])
    killed = [run for run in instance.get_runs(under_way) if not _lives(instance, run.run_id)]
    for run in killed:
        instance.report_run_failed(run, "its process was killed")
        instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
    return [run.run_id for run in killed]


def _lives(instance: dg.DagsterInstance, run_id: str) -> bool:
    """Whether a process that the run's events name is there; also where they name none yet."""
    events = instance.all_logs(run_id, of_type=dg.DagsterEventType.ENGINE_EVENT)
    named = [
        (int(str(entry.dagster_event.engine_event_data.metadata["pid"].value)), entry.timestamp)
        for entry in events
        if entry.dagster_event and "pid" in entry.dagster_event.engine_event_data.metadata
    ]
    return not named or any(_runs_since(pid, named_at) for pid, named_at in named)


def _runs_since(pid: int, moment: float) -> bool:
    """Whether the process is there, and is no later one with the same number."""
    try:
        return psutil.Process(pid).create_time() <= moment
    except psutil.NoSuchProcess:
        return False


if __name__ == "__main__":
    if not os.environ.get("DAGSTER_HOME"):
        sys.exit("DAGSTER_HOME is not set: set it to the folder of the Dagster instance, as `make` does")
    with dg.DagsterInstance.get() as instance:
        for run_id in end_killed(instance):
            print(
                f"run {run_id} was killed: it counts as failed now, and the next goes on from its checkpoint"
            )
