"""Everything Dagster loads: `dagster dev`, or `dagster job execute -m pipelines.definitions -j clip_gen`."""

from pathlib import Path

import dagster as dg


@dg.definitions
def defs() -> dg.Definitions:
    return dg.load_from_defs_folder(path_within_project=Path(__file__).parent)
