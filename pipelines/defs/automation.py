"""What runs by itself: the source is observed, and new and changed folders are read and embedded.

Everything starts switched off; CLIPGEN_SOURCE names the source (or the resource `images` does).
Knows the jobs and when they run; knows nothing of what a run does with an image.
"""

import itertools
import json
import os

import dagster as dg
from dagster._core.storage.dagster_run import IN_PROGRESS_RUN_STATUSES

from pipelines.defs.jobs import new_images, observation
from pipelines.partitions import LISTING, outdated

AT_ONCE = 50  # runs requested by one tick; the next tick requests the rest
GOING_ON = [*IN_PROGRESS_RUN_STATUSES, dg.DagsterRunStatus.QUEUED]


@dg.schedule(job=observation, cron_schedule=os.environ.get("CLIPGEN_OBSERVE") or "*/10 * * * *")
def source_observation(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
    """Observe the source, unless the last observation goes on."""
    if context.instance.get_runs(dg.RunsFilter(job_name=observation.name, statuses=GOING_ON), limit=1):
        return dg.SkipReason("the last observation of the source goes on")
    return dg.RunRequest()


@dg.sensor(job=new_images, minimum_interval_seconds=60)
def new_folders(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
    """Request a run for each top-level folder that is not read and embedded as it was last observed.

    It asks Dagster's events only, never the source: the schedule `source_observation` does. The cursor keeps
    which folders are up to date.
    """
    if reading := _whole_source_is_read(context.instance):
        return dg.SkipReason(f"run {reading} reads the whole source")
    done: dict[str, str] = json.loads(context.cursor or "{}")
    folders = itertools.islice(outdated(context.instance, done), AT_ONCE)
    requests = [dg.RunRequest(partition_key=key, tags={LISTING: listing}) for key, listing in folders]
    return dg.SensorResult(
        requests,
        skip_reason=None if requests else "every folder that two observations saw unchanged is embedded",
        cursor=json.dumps(done),
    )


def _whole_source_is_read(instance: dg.DagsterInstance) -> str | None:
    """The id of a run whose step raw_images or clip_embeddings is not finished."""
    steps = {"raw_images", "clip_embeddings"}
    for run in instance.get_runs(dg.RunsFilter(statuses=GOING_ON)):
        selected = {key.to_user_string() for key in run.asset_selection or ()}
        if run.job_name in ("clip_gen", "all_images") or selected & steps:
            waiting = steps & selected if selected else steps
            ended = {one.step_key for one in instance.get_run_step_stats(run.run_id) if one.end_time}
            if waiting - ended:
                return run.run_id
    return None


automation = dg.AutomationConditionSensorDefinition(
    "automation",
    target=dg.AssetSelection.all(),
    default_status=dg.DefaultSensorStatus.STOPPED,
    use_user_code_server=True,  # for conditions of our own
)
