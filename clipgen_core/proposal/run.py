"""A run that is ready to start: what is going to happen, in five lines, and the run configs of its jobs.

Knows the shape of Dagster's run configs; knows nothing of how the run was chosen.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipgen_core import filesystem
from clipgen_core.assets import ASSETS
from clipgen_core.data.prompts import NAMES
from clipgen_core.extras import needed_for
from clipgen_core.progress import duration
from clipgen_core.recipes import Recipe, named
from clipgen_core.settings.catalogue import nested
from clipgen_core.storage import DEFAULT_ROOT

if TYPE_CHECKING:
    from clipgen_core.plan import Plan
    from clipgen_core.proposal.clips import ClipChoice

HOME = Path(DEFAULT_ROOT).parent
ON_TOP = 1.15  # of a plan's times: data and validations
EVALUATION = 0.05  # hours, on a small machine


@dataclass(frozen=True)
class Proposal:
    """A run that is ready to start.

    Attributes:
        name: Of the run's folder, of its root and of the model.
        source: The folder of the images.
        recipe: Name of the recipe.
        overrides: Settings that differ from it, by dotted name.
        clip: The CLIP.
        prompts: Prompts of the evaluation; None for classes of ImageNet that the images resemble.
        plan: What the run needs.
    """

    name: str
    source: str
    recipe: str
    overrides: Mapping[str, Any]
    clip: "ClipChoice"
    prompts: str | None
    plan: "Plan"

    @property
    def settings(self) -> Recipe:
        return named(self.recipe).override(self.overrides)

    @property
    def root(self) -> str:
        return str((HOME / self.name).resolve())

    @property
    def hours(self) -> float:
        """About how long the run takes on this machine."""
        return ON_TOP * sum(line.hours for line in self.plan.lines) + EVALUATION

    def lines(self) -> list[str]:
        """What is going to happen, in five lines."""
        seen, model = self.plan.source, self.settings.vqgan.model
        trains = (self.settings.vqgan.train, self.settings.transformer.train)
        steps = " and ".join(f"{train.steps:,} steps of {train.batch_size}" for train in trains)
        prompts = self.prompts or "the ImageNet classes that the images resemble"
        if prompts.startswith(NAMES):
            prompts = "the names of the images"
        elif prompts == self.clip.captions:
            prompts = "the captions"
        return [
            f"images   about {seen.images:,} of {seen.mean_side:.0f} px, {seen.usable:.0%} of them usable",
            f"CLIP     {self.clip.said}",
            f"recipe   {self.recipe}: {model.image_size} px in {model.grid} x {model.grid} codes; VQGAN and "
            f"transformer in {steps} images",
            f"prompts  {prompts}",
            f"time     about {duration(self.hours)} on {self.plan.device}",
        ]

    def configs(self) -> dict[str, dict[str, Any]]:
        """The run config of each job, in the order in which they run."""
        ops: dict[str, dict[str, Any]] = {}
        for setting, value in self.overrides.items():
            stage, _, rest = setting.partition(".")
            asset = next(name for name, one in ASSETS.items() if one.stage == stage)
            nested({rest: value}, ops.setdefault(asset, {}))
        of_clip = ops.pop("clip_checkpoint", {})
        if self.prompts:
            ops.setdefault("evaluation_report", {})["prompts"] = self.prompts
        jobs = {"clip_gen": self._config(ops)}
        if self.clip.captions is None:
            return jobs
        of_clip["captions"] = self.clip.captions
        return {"clip_training": self._config({"clip_checkpoint": of_clip})} | jobs

    def _config(self, ops: Mapping[str, Any]) -> dict[str, Any]:
        resources = {
            "storage": {"root": self.root},
            "images": {"source": self.source, "clip": self.clip.reference},
            "recipe": {"name": self.recipe},
            "mlflow": {"local_folder": str((HOME / "mlflow").resolve()), "model": self.name},
        }
        return {
            "execution": {"config": {"in_process": {}}},
            "loggers": {"console": {"config": {"log_level": "ERROR"}}},
            "resources": {name: {"config": config} for name, config in resources.items()},
            "ops": {asset: {"config": config} for asset, config in ops.items()},
        }

    def write(self) -> dict[str, Path]:
        """Write the run configs, under `.clipgen/runs`.

        Returns:
            The file of each job, in the order in which they run.
        """
        with needed_for("writing a run config"):
            import yaml
        files = {}
        for job, config in self.configs().items():
            files[job] = HOME / "runs" / self.name / f"{job}.yaml"
            text = f"# dagster job execute -m pipelines.definitions -j {job} -c {files[job]}\n"
            filesystem.write_bytes(str(files[job]), (text + yaml.safe_dump(config, sort_keys=False)).encode())
        return files
