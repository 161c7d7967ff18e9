"""Top-level folders of the source as partitions, and which of them are to be read and embedded.

Dagster's events are the memory: an observation of `source_images` has the digest of a folder's files, a
materialisation of `folder_images` has the one that was read, and one of `folder_embeddings` has the data
version of the images that were embedded. TOP holds the files that are in no folder.

Knows partitions and their events; knows nothing of what a run does with an image.
"""

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
from dagster import DagsterEventType

NAME = "folders"
FOLDERS = dg.DynamicPartitionsDefinition(name=NAME)
TOP = "."
SOURCE, IMAGES, EMBEDDINGS = "source_images", "folder_images", "folder_embeddings"
VERSION = "dagster/data_version"
LISTING = "clipgen/listing"  # tag of folder_images: the digest of a folder's files when they were read
EMBEDDED = "clipgen/images"  # tag of folder_embeddings: the data version of the images that were embedded
ROWS, PARTITION_ROWS = "dagster/row_count", "dagster/partition_row_count"
PARTITION, PARTITIONS = "dagster/partition", "dagster/asset_partition_range_start"  # tags of runs
AGAIN = timedelta(hours=1)  # after which an unchanged folder whose run failed is requested again


def key_of(folder: str) -> str:
    return folder or TOP


def folder_of(key: str) -> str:
    """The top-level folder that a partition stands for."""
    return "" if key == TOP else key


def usable(folder: str) -> bool:
    """Whether a folder's name can be a partition's; others are read with the whole source only."""
    return folder != TOP and "..." not in folder and (folder == "" or folder.isprintable())


class FolderResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """Refuses a run without a partition; Dagster itself would fail inside its own code, without a hint."""

    def setup_for_execution(self, context: dg.InitResourceContext) -> None:
        """Check the run's tags.

        Raises:
            dg.Failure: The run has no partition.
        """
        if context.run and not {PARTITION, PARTITIONS} & context.run.tags.keys():
            raise dg.Failure(
                f"{context.run.job_name} reads one top-level folder: choose its partition, or run the job "
                "all_images for the whole source",
                allow_retries=False,
            )


def record_observed(instance: dg.DagsterInstance, listings: Mapping[str, str]) -> None:
    """Record what the source holds now, and make partitions of new folders.

    Args:
        instance: Dagster's instance.
        listings: The digest of the files of each partition.
    """
    instance.add_dynamic_partitions(NAME, list(listings))
    for key, listing in listings.items():
        event = dg.AssetObservation(SOURCE, partition=key, tags={VERSION: listing})
        instance.report_runless_asset_event(event)


def record(
    instance: dg.DagsterInstance,
    asset: str,
    tags: Mapping[str, str],
    metadata: Mapping[str, Any],
    partition: str | None = None,
) -> None:
    """Record that an asset has changed with another one that holds the same rows; nothing if it has not.

    Args:
        instance: Dagster's instance.
        asset: The asset's name.
        tags: Its data version, and what else identifies its state.
        metadata: Its facts.
        partition: Which partition; None for an asset without partitions.
    """
    if not tags.items() <= _tags(instance, asset, partition).items():
        event = dg.AssetMaterialization(asset, partition=partition, tags=tags, metadata=metadata)
        instance.report_runless_asset_event(event)


def forget_vanished(instance: dg.DagsterInstance, gone: Iterable[str]) -> list[str]:
    """Remove the partitions of folders that have left the source.

    Args:
        instance: Dagster's instance.
        gone: Their keys; those without a partition are left out.

    Returns:
        The removed partitions. If such a folder comes back it is read again, as its rows may be pruned.
    """
    removed = sorted(set(gone) & set(instance.get_dynamic_partitions(NAME)))
    read = _versions(instance, IMAGES, DagsterEventType.ASSET_MATERIALIZATION)
    for key in removed:
        if key in read:
            record(instance, IMAGES, {VERSION: "vanished", LISTING: "vanished"}, {"vanished": True}, key)
        instance.delete_dynamic_partition(NAME, key)
    return removed


def outdated(instance: dg.DagsterInstance, done: dict[str, str]) -> Iterator[tuple[str, str]]:
    """The folders that are not read or not embedded as they were last observed.

    A folder comes when two observations saw the same files, so that one that is still being copied waits. One
    whose run goes on, or failed within the last hour and has not changed since, waits too.

    Args:
        instance: Dagster's instance.
        done: The state in which each folder was last found up to date; those are not looked up again. It is
            kept up to date here.

    Yields:
        The partition and the digest of its files.
    """
    seen = _versions(instance, SOURCE, DagsterEventType.ASSET_OBSERVATION)
    images = _versions(instance, IMAGES, DagsterEventType.ASSET_MATERIALIZATION)
    partitions = sorted(instance.get_dynamic_partitions(NAME))
    for key in done.keys() - set(partitions):
        del done[key]
    for key in partitions:
        listing, read = seen.get(key), images.get(key)
        if listing is None or done.get(key) == (state := f"{listing} {read}"):
            continue
        embedded = _tags(instance, EMBEDDINGS, key).get(EMBEDDED)
        if _tags(instance, IMAGES, key).get(LISTING) == listing and embedded == read:
            done[key] = state
        elif _quiet(instance, key) and not _requested(instance, key, listing):
            yield key, listing


def _versions(instance: dg.DagsterInstance, asset: str, kind: DagsterEventType) -> dict[str, str]:
    """The latest data version of each partition, in one query."""
    latest = instance.event_log_storage.get_latest_tags_by_partition(dg.AssetKey(asset), kind, [VERSION])
    return {key: tags[VERSION] for key, tags in latest.items()}


def _tags(instance: dg.DagsterInstance, asset: str, key: str | None) -> Mapping[str, str]:
    """The tags of the latest materialisation."""
    latest = dg.AssetRecordsFilter(dg.AssetKey(asset), asset_partitions=[key] if key else None)
    records = instance.fetch_materializations(latest, limit=1).records
    made = records[0].asset_materialization if records else None
    return (made and made.tags) or {}


def _quiet(instance: dg.DagsterInstance, key: str) -> bool:
    """Whether the last two observations of a folder saw the same files."""
    of_folder = dg.AssetRecordsFilter(dg.AssetKey(SOURCE), asset_partitions=[key])
    seen = [one.asset_observation for one in instance.fetch_observations(of_folder, limit=2).records]
    versions = [(one.tags or {}).get(VERSION) for one in seen if one]
    return len(versions) == 2 and versions[0] == versions[1]


def _requested(instance: dg.DagsterInstance, key: str, listing: str) -> bool:
    """Whether a run reads the folder now, or has tried to within the last hour, with the same files."""
    runs = [dg.RunsFilter(tags={tag: key}) for tag in (PARTITION, PARTITIONS)]  # the latter of backfills
    latest = [record for one in runs for record in instance.get_run_records(one, limit=1)]
    return any(not record.dagster_run.is_finished or _tried(record, listing) for record in latest)


def _tried(record: dg.RunRecord, listing: str) -> bool:
    """Whether a run for these files ended within the last hour."""
    ended = datetime.fromtimestamp(record.end_time or 0, UTC)
    return record.dagster_run.tags.get(LISTING) == listing and ended > datetime.now(UTC) - AGAIN
