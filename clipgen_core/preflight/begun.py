"""The trainings under the root that a run may go on with."""

from pydantic import ValidationError

from clipgen_core.assets import ASSETS
from clipgen_core.errors import ClipgenError
from clipgen_core.run_config import Run
from clipgen_core.schema import Frozen
from clipgen_core.settings.catalogue import identity
from clipgen_core.storage import Storage, located
from clipgen_core.training import runs


def begun(run: Run, asset: str) -> list[runs.Run]:
    """The trainings under the root with the settings of the run, which may go on.

    Args:
        run: What is going to be done.
        asset: The name of the asset that trains.

    Returns:
        The trainings; whether their images are the same is not known.
    """
    stage, out = ASSETS[asset].stage, Storage(run.root)
    config = getattr(run.recipe, stage)
    return [one for one in runs.runs(out, stage) if _same(one, config, out)]


def _same(one: runs.Run, config: Frozen, out: Storage) -> bool:
    try:
        earlier = located(one.newest.provenance.config, out.root)
        return identity(type(config).model_validate(earlier)) == identity(config)
    except (ClipgenError, ValidationError):
        return False
