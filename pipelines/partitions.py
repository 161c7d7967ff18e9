"""Top-level folders of the source as partitions, and which of them are stale.

ALL stands for the whole source at once. `clip_gen` materialises it, so that a first run needs a run config
only; each folder then counts as materialised. TOP holds the files that are in no folder.
"""

from collections.abc import Mapping

import dagster as dg

NAME = "folders"
FOLDERS = dg.DynamicPartitionsDefinition(name=NAME)
ALL, TOP = "all folders", "."
LISTING = "listing"  # metadata: the digest of a folder's files when they were ingested


def key_of(folder: str) -> str:
    return folder or TOP


def folder_of(key: str) -> str | None:
    """The top-level folder that a partition stands for, None for all."""
    return None if key == ALL else "" if key == TOP else key


def usable(folder: str) -> bool:
    """Whether a folder's name can be a partition's; others are ingested by runs of ALL only."""
    return folder not in (ALL, TOP) and "..." not in folder and (folder == "" or folder.isprintable())


def record_folders(context: dg.AssetExecutionContext, listings: Mapping[str, str]) -> None:
    """Add the folders of a run as partitions; a run of ALL has materialised each of them.

    Args:
        context: Of the asset raw_images.
        listings: Digest of the files of each top-level folder.
    """
    keys = {key_of(folder): listing for folder, listing in listings.items() if usable(folder)}
    context.instance.add_dynamic_partitions(NAME, [ALL, *keys])
    if context.partition_key == ALL:
        for key, listing in keys.items():
            _report(context, key, {LISTING: listing})


def record_all(context: dg.AssetExecutionContext) -> None:
    """Record that a run of ALL has materialised every folder."""
    if context.partition_key == ALL:
        for key in set(context.instance.get_dynamic_partitions(NAME)) - {ALL}:
            _report(context, key, {})


def _report(context: dg.AssetExecutionContext, key: str, metadata: dict[str, str]) -> None:
    event = dg.AssetMaterialization(context.asset_key, partition=key, metadata=metadata)
    context.instance.report_runless_asset_event(event)


def recorded(instance: dg.DagsterInstance, asset: str, key: str) -> tuple[str | None, float]:
    """The last materialisation of a partition.

    Args:
        instance: Dagster's instance.
        asset: The asset's name.
        key: The partition.

    Returns:
        The listing, and the time in seconds since the epoch; (None, 0) if there was none.
    """
    latest = dg.AssetRecordsFilter(dg.AssetKey(asset), asset_partitions=[key])
    records = instance.fetch_materializations(latest, limit=1).records
    if not records or not records[0].asset_materialization:
        return None, 0.0
    listing = records[0].asset_materialization.metadata.get(LISTING)
    return (str(listing.value) if listing else None), records[0].timestamp


def stale(instance: dg.DagsterInstance, key: str, listing: str) -> bool:
    """Whether a folder changed since it was ingested, or was not embedded since.

    Args:
        instance: Dagster's instance.
        key: The partition.
        listing: Digest of the folder's files now.

    Returns:
        True if it has to be materialised.
    """
    taken, when = recorded(instance, "raw_images", key)
    _, embedded = recorded(instance, "clip_embeddings", key)
    return taken != listing or embedded < when
