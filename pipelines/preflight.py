"""The checks of `clipgen check`, made by the first step of a run for all of its steps.

Knows which assets a run materialises; knows nothing of what is checked.
"""

from collections.abc import Mapping
from typing import Any

import dagster as dg


def check_run(context: dg.AssetExecutionContext, **resources: dg.ConfigurableResource[Any]) -> None:
    """Check what the whole run needs. A step that comes after others of its run checks nothing.

    The run gets the recipe and the CLIP as tags, by which Dagster's page finds runs.

    Args:
        context: The context of an asset that a job begins with.
        resources: The resources of the asset, by name.

    Raises:
        dg.Failure: There are problems; its metadata has all of them.
    """
    from clipgen_core.config_files import with_deployed
    from clipgen_core.preflight import findings
    from clipgen_core.run_config import read_run

    if not begins_run(context):
        return
    context.instance.add_run_tags(context.run.run_id, _tags(resources))
    assets = [key.to_user_string() for key in selected(context)]
    given: Any = context.run.run_config.get("ops") or {}
    config = {
        "ops": {name: given[name] for name in given if name in assets},
        "resources": {name: {"config": one.model_dump()} for name, one in resources.items()},
    }
    config = with_deployed(config, assets)
    problems: dict[str, list[str]] = {}
    for one in findings(read_run(config, assets)):
        if one.status == "problem":
            problems.setdefault(one.check, []).append(one.text)
        else:
            log = context.log.warning if one.status == "warning" else context.log.info
            log(f"{one.check}: {one.text}")
    if problems:
        texts = [text for found in problems.values() for text in found]
        raise dg.Failure(
            f"{len(texts)} problem{'s' * (len(texts) > 1)} before the first stage: {'; '.join(texts)}",
            metadata={check: dg.MetadataValue.md("\n\n".join(found)) for check, found in problems.items()},
            allow_retries=False,
        )


def begins_run(context: dg.AssetExecutionContext) -> bool:
    """Whether no asset that this one depends on is materialised by the same run."""
    return not context.assets_def.asset_deps[context.asset_key] & selected(context)


def selected(context: dg.AssetExecutionContext) -> set[dg.AssetKey]:
    """The assets that a run materialises."""
    ops = {node.name for node in context.job_def.nodes}  # `-o` of `dagster job execute` leaves out ops
    known = context.job_def.asset_layer.selected_asset_keys
    return {key for key in known if key.to_python_identifier() in ops}


def _tags(resources: Mapping[str, dg.ConfigurableResource[Any]]) -> dict[str, str]:
    given = {name: one.model_dump() for name, one in resources.items()}
    tags = {"clipgen/recipe": given["recipe"]["name"]} if "recipe" in given else {}
    return tags | ({"clipgen/clip": given["images"]["clip"]} if "images" in given else {})
