"""What runs by itself: new and changed folders as they come, stale ones every night.

Both start switched off; CLIPGEN_SOURCE names the source (or the resource `images` does).
Knows folders, partitions and when they were materialised; knows nothing of what a run does with an image.
"""

import json
import os
from collections.abc import Iterator

import dagster as dg

from pipelines.defs.jobs import new_images
from pipelines.partitions import ALL, FOLDERS, NAME, folder_of, key_of, stale, usable
from pipelines.resources import ImagesResource

AT_ONCE = 50  # runs requested by one tick; the next tick requests the rest


@dg.sensor(job=new_images, minimum_interval_seconds=60)
def new_folders(context: dg.SensorEvaluationContext, images: ImagesResource) -> dg.SensorResult:
    """Request a run for each top-level folder that is new or whose files have changed.

    The cursor keeps each folder's listing, and the times of its directories where the store has them: a
    folder in which no file came or went is not listed again (a file overwritten in place is found by the
    nightly schedule).
    """
    from clipgen_core.data.sources import Source, unchanged

    source = Source(images.require_source())
    known = json.loads(context.cursor or "{}")
    here = [folder for folder in source.folders() if usable(folder)]
    requests: list[dg.RunRequest] = []
    for folder in here:
        key, before = key_of(folder), known.get(key_of(folder), {})
        if len(requests) == AT_ONCE or unchanged(before.get("directories", {})):
            continue
        directories, listing = source.directories(folder), source.listing(folder)
        if listing != before.get("listing"):
            requests.append(dg.RunRequest(partition_key=key))
        known[key] = {"listing": listing, "directories": directories}
    for folder in set(source.folders()) - set(here):
        context.log.warning(f"the folder {folder!r} cannot be a partition: rename it, or run {ALL!r}")
    gone = sorted(set(known) - set(map(key_of, here)))
    for key in gone:
        context.log.warning(f"folder {key} is gone: its rows stay until `clipgen prune`")
        del known[key]
    return dg.SensorResult(
        run_requests=requests,
        dynamic_partitions_requests=[FOLDERS.build_add_request([r.partition_key or "" for r in requests])],
        asset_events=[
            dg.AssetObservation("raw_images", partition=key, metadata={"vanished": True}) for key in gone
        ],
        cursor=json.dumps(known),
    )


@dg.schedule(job=new_images, cron_schedule=os.environ.get("CLIPGEN_NIGHTLY") or "0 3 * * *")
def nightly_embeddings(
    context: dg.ScheduleEvaluationContext, images: ImagesResource
) -> Iterator[dg.RunRequest | dg.SkipReason]:
    """Request a run for each folder that has changed since it was ingested, or was not embedded since."""
    from clipgen_core.data.sources import Source

    source = Source(images.require_source())
    here, asked = set(source.folders()), 0
    for key in sorted(set(context.instance.get_dynamic_partitions(NAME)) - {ALL}):
        folder = folder_of(key)
        if folder in here and stale(context.instance, key, source.listing(folder or "")):
            asked += 1
            tick = context.scheduled_execution_time.isoformat()
            yield dg.RunRequest(partition_key=key, run_key=f"{key}@{tick}")
    if not asked:
        yield dg.SkipReason("every folder is embedded as it is now")


automation = dg.AutomationConditionSensorDefinition(
    "automation",
    target=dg.AssetSelection.all(),
    default_status=dg.DefaultSensorStatus.STOPPED,
    use_user_code_server=True,  # for conditions of our own
)
