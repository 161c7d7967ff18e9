"""Judge a generator: images, scores and provenance on one page.

In:  a transformer checkpoint (which names everything before it), the images table, prompts (CSV, COCO
     captions, one a line, or the names of image files) and, if there is one, the champion that the generator
     would replace
Out: {root}/reports/{run}/: report.html, metrics.json, prompts.json, evaluation.json, grid.png
Run: `evaluation_report` in Dagster, or `clipgen evaluate`.

Generated images are compared with the champion's for the same prompts and seeds, with the VQGAN's
reconstructions, and with the real images, which are the ceiling. Retrieval asks which of all prompts fits an
image best. Sets of images are compared with a fixed reference set of real images.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
from PIL import Image
from pydantic import JsonValue

from clipgen_core import filesystem, logs, storage
from clipgen_core.data.decode import decode
from clipgen_core.data.pixels import fit_square, png_bytes
from clipgen_core.data.prompts import Prompt, read_prompts, require_scorable
from clipgen_core.data.referenced import take_images
from clipgen_core.data.tables import open_table
from clipgen_core.generation.generator import TextToImage
from clipgen_core.generation.parts import read_parts
from clipgen_core.judging.checks import Verdict, check
from clipgen_core.judging.classes import class_prompts
from clipgen_core.judging.copies import TrainingImages
from clipgen_core.judging.detail import against_pixels
from clipgen_core.judging.figures import (
    Scores,
    above_shuffled,
    against_champion,
    against_reference,
    by_prompt,
    codebook_metrics,
    memorised,
    reference_notes,
    reference_set,
    scores_of_splits,
    starts,
    training_metrics,
    training_states,
)
from clipgen_core.judging.impartiality import Impartiality
from clipgen_core.judging.judge import Judge
from clipgen_core.judging.page import render
from clipgen_core.judging.report import Curve, Report, Sample
from clipgen_core.judging.sheet import sheet
from clipgen_core.judging.trials import GENERATED, Trial, reconstruct, trials
from clipgen_core.models.clip import ClipEncoder
from clipgen_core.registry.evaluation import METRICS, RECORD, Evaluation
from clipgen_core.registry.lineage import lineage
from clipgen_core.schema import TokenManifest, digest_of
from clipgen_core.settings.evaluation import Config
from clipgen_core.tracking import Tracker
from clipgen_core.training.checkpoint import Checkpoint
from clipgen_core.training.provenance import TrainingState

__all__ = ["Config", "Result", "run"]

CURVES = ("loss", "validation_loss", "psnr", "codebook_usage", "codes_replaced")


@dataclass(frozen=True, kw_only=True)
class Result:
    """The evaluation, the digest of its inputs, and the grid of images for the shown prompts."""

    evaluation: Evaluation
    grid: Image.Image
    digest: str

    @property
    def report(self) -> str:
        return self.evaluation.report

    @property
    def metrics(self) -> dict[str, float]:
        return self.evaluation.metrics

    @property
    def verdicts(self) -> list[Verdict]:
        return self.evaluation.verdicts


def run(
    config: Config,
    *,
    transformer: str,
    images: str,
    prompts: str | None,
    out: storage.Storage,
    tracker: Tracker,
    champion: str | None = None,
    model: str = "text-to-image model",
) -> Result:
    """Generate images for prompts, score them, and write the report.

    Args:
        config: Which prompts, how many images, and who judges.
        transformer: The checkpoint of the transformer.
        images: The images table.
        prompts: A CSV, COCO captions, a text file with one prompt a line, or names:FOLDER; if None, classes
            of ImageNet that the training images resemble.
        out: The root that gets the report.
        tracker: Gets the figures and the grid.
        champion: The generator in use, as `TextToImage.from_pretrained` takes it.
        model: Name of the model in the registry, for the report.

    Returns:
        The report, its figures and the verdicts of the checks.

    Raises:
        ClipgenError: The prompts cannot be used, or a model is not available.
    """
    made_of = {"transformer": transformer, "champion": champion, "model": model}
    tracker.params({"config": config.model_dump(), "prompts": prompts, **made_of})
    tracker.table(images, open_table(images).version)
    all_prompts = _read(prompts, config) if prompts else []
    generator = TextToImage(read_parts(transformer))
    all_prompts = all_prompts or class_prompts(generator, config.scored)
    in_use = TextToImage.from_pretrained(champion) if champion else None
    judge = _judge(config, generator, all_prompts)
    impartiality = Impartiality.of(judge.clip, generator.clip, in_use.clip if in_use else None)
    training = TrainingImages(generator, images)
    tried = trials(config, all_prompts, generator, in_use, training)
    scores = {trial.split: trial.scored(judge) for trial in tried}
    codes = Checkpoint(transformer).codes
    where = codes.where if isinstance(codes, TokenManifest) else None
    reference = reference_set(config, judge, tried, images, where)
    states = training_states(generator.parts)
    metrics = scores_of_splits(tried, scores) | against_reference(reference, tried, scores)
    metrics |= above_shuffled(scores.values()) | against_pixels(tried)
    metrics |= {} if impartiality.unfair else against_champion(scores.values())
    metrics |= memorised(config, tried) | codebook_metrics(generator.parts) | training_metrics(states)
    report = Report(
        model=model,
        date=date.today().isoformat(),
        metrics=metrics,
        names=len(judge.names),
        judge=impartiality,
        reference=reference_notes(reference, tried),
        champion=champion,
        verdicts=check(metrics, config.thresholds, impartiality.unfair),
        copy_share=config.copy_share,
        views=training.views,
        samples=_samples(config, generator, training, all_prompts),
        scored=_scored(tried, scores),
        reconstructions=_reconstructions(config, generator, images),
        starts=starts(generator.parts, states),
        curves=_curves(states),
        made_from=lineage(generator.parts),
    )
    digest = digest_of([config.model_dump(), Checkpoint(transformer).provenance.record, prompts, champion])
    evaluation = Evaluation(
        folder=out.report(digest),
        model=model,
        transformer=transformer,
        judge=config.judge,
        judged_against=champion.rpartition("/")[2] if champion else None,
        verdicts=report.verdicts,
        metrics=metrics,
    )
    return _publish(report, evaluation, by_prompt(tried, scores), out, tracker)


def _read(prompts: str, config: Config) -> list[Prompt]:
    read = read_prompts(prompts, config.prompt_images)
    require_scorable(prompts, read)
    return read


def _judge(config: Config, generator: TextToImage, prompts: Sequence[Prompt]) -> Judge:
    clip = ClipEncoder(config.judge) if config.judge else generator.clip
    return Judge(clip, [prompt.text for prompt in prompts], config.inception)


def _publish(
    report: Report,
    evaluation: Evaluation,
    prompts: list[dict[str, JsonValue]],
    out: storage.Storage,
    tracker: Tracker,
) -> Result:
    """Write the report's folder, and hand its figures and its grid to the tracker."""
    metrics, digest = report.metrics, evaluation.folder.rpartition("/")[2]
    grid = sheet({sample.prompt: sample.pictures for sample in report.samples})
    with filesystem.draft_folder(evaluation.folder) as scratch:
        draft = Path(scratch) / "report"
        draft.mkdir()
        (draft / "report.html").write_text(render(report), encoding="utf-8")
        (draft / METRICS).write_text(json.dumps(metrics, indent=2))
        (draft / RECORD).write_text(evaluation.record(out.root))
        (draft / "prompts.json").write_text(json.dumps(prompts, indent=2))
        (draft / "grid.png").write_bytes(png_bytes(grid))
        filesystem.publish_folder(draft, evaluation.folder, METRICS)
    for doubt in report.doubts:
        logs.line(f"warning: {doubt}")
    tracker.metrics({name.replace("@", "_at_"): value for name, value in metrics.items()}, step=0)
    tracker.image("grid", grid)
    out.publish_current("evaluation", evaluation.folder, digest)
    return Result(evaluation=evaluation, grid=grid, digest=digest)


def _samples(
    config: Config, generator: TextToImage, training: TrainingImages, prompts: Sequence[Prompt]
) -> list[Sample]:
    """Images for the shown prompts, the best first, and the training image nearest to the best."""
    shown = config.shown or tuple(dict.fromkeys(prompt.text for prompt in prompts))[:12]
    rows = generator.generate_scored(
        shown, n=config.images_shown, seed=config.seed, candidates=config.candidates
    )
    nearest = training.nearest([row[0] for row in rows])
    return [
        Sample(prompt=text, pictures=[one.image for one in row], score=row[0].clip_score, nearest=near)
        for text, row, near in zip(shown, rows, nearest, strict=True)
    ]


def _scored(tried: Sequence[Trial], scores: Scores) -> list[Sample]:
    """The image of every scored prompt, the best CLIP score first."""
    samples = [
        Sample(prompt=text, pictures=[generated.image], score=float(score), nearest=near, split=trial.split)
        for trial in tried
        for text, generated, score, near in zip(
            trial.texts,
            trial.generated,
            scores[trial.split][GENERATED].clip_score,
            trial.nearest,
            strict=True,
        )
    ]
    return sorted(samples, key=lambda sample: -sample.score)


def _reconstructions(
    config: Config, generator: TextToImage, images: str
) -> list[tuple[Image.Image, Image.Image]]:
    """Some stored images and their reconstructions."""
    table = open_table(images)
    rows = np.random.default_rng(config.seed).permutation(table.count_rows())
    data = take_images(table, rows[: config.reconstructions].tolist()).rows["image"]
    size = generator.vqgan.config.image_size
    originals = [fit_square(decode(one).image, size) for one in data.to_pylist()]
    return list(zip(originals, reconstruct(generator, originals), strict=True))


def _curves(states: Mapping[str, TrainingState]) -> list[Curve]:
    curves = []
    for stage, state in states.items():
        for name in CURVES:
            points = [(row["step"], row[name]) for row in state.history if name in row]
            if points:
                curves.append(Curve(f"{stage}: {name.replace('_', ' ')}", points))
    return curves
