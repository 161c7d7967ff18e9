"""The external asset `source_images`: the folders of images as they are in the source now.

Knows which folders are partitions; knows nothing of images or tables.
"""

import dagster as dg

from pipelines.partitions import FOLDERS, NAME, forget_vanished, key_of, usable
from pipelines.resources import ImagesResource


@dg.observable_source_asset(
    group_name="images",
    partitions_def=FOLDERS,
    description="The folders of the source. The data version of each is a digest of its files.",
    tags={"dagster/kind/files": ""},
)
def source_images(context: dg.OpExecutionContext, images: ImagesResource) -> dg.DataVersionsByPartition:
    """List the source, make partitions of new folders, and remove those of folders that are gone."""
    from clipgen_core.data.sources import Source

    source = Source(images.require_source())
    there = source.folders()
    if not there:
        raise dg.Failure(f"the source {source.url} is empty now: no partition is removed; check the path")
    folders = {key_of(folder): folder for folder in there if usable(folder)}
    for folder in sorted(set(there) - set(folders.values())):
        context.log.warning(
            f"the folder {folder!r} cannot be a partition: rename it, or run the job all_images"
        )
    listings = {key: dg.DataVersion(source.listing(folder)) for key, folder in folders.items()}
    context.instance.add_dynamic_partitions(NAME, list(listings))
    gone = set(context.instance.get_dynamic_partitions(NAME)) - set(listings)
    for key in forget_vanished(context.instance, gone):
        context.log.warning(
            f"the folder {key} is gone: its rows stay until `clipgen prune {key} --source {source.url}`"
        )
    return dg.DataVersionsByPartition(listings)
