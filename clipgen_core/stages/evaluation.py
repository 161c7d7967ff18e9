"""Judge a generator: pictures, scores and where it all came from, on one page.

In:  a transformer checkpoint (which names everything before it), the images table, prompts (CSV, COCO
     captions or one a line) and, where one is, the champion that the generator would replace
Out: {root}/reports/{run}/: report.html, metrics.json, prompts.json, grid.png
Run: `evaluation_report` in Dagster.

Generated pictures stand beside the champion's for the same prompts and seeds, the VQGAN's reconstructions and
the real pictures, which are the ceiling. Retrieval asks which of all prompts fits a picture best.
"""

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from clipgen_core import storage
from clipgen_core.data.images import images_by_id
from clipgen_core.data.pixels import Rejected, decode, fit_square, png_bytes, to_tensor
from clipgen_core.data.prompts import Prompt, read_prompts
from clipgen_core.data.sources import Source
from clipgen_core.data.tables import open_table
from clipgen_core.errors import ClipgenError
from clipgen_core.generation.generator import Generated, TextToImage
from clipgen_core.generation.parts import Parts, read_parts
from clipgen_core.judging.checks import Verdict, check
from clipgen_core.judging.copies import nearest_training
from clipgen_core.judging.judge import Judge, Scored
from clipgen_core.judging.metrics import bootstrap
from clipgen_core.judging.report import Curve, Report, Sample, render, sheet
from clipgen_core.models.clip import ClipEncoder
from clipgen_core.progress import track
from clipgen_core.registry.lineage import lineage
from clipgen_core.schema import digest_of
from clipgen_core.settings.evaluation import Config
from clipgen_core.tracking import Tracker
from clipgen_core.training.checkpoint import read_config, read_state

__all__ = ["Config", "Result", "run"]

GENERATED, CHAMPION, RECONSTRUCTED, REAL = "generated", "champion", "reconstructed", "real"


@dataclass(frozen=True, kw_only=True)
class Result:
    report: str
    metrics: dict[str, float]
    grid: Image.Image
    digest: str
    verdicts: list[Verdict]


def run(
    config: Config,
    *,
    transformer: str,
    images: str,
    prompts: str,
    out: storage.Storage,
    tracker: Tracker,
    champion: str | None = None,
) -> Result:
    """Generate, score, and write the report.

    Args:
        champion: the generator in use, as `TextToImage.from_pretrained` takes it.
    """
    known = read_prompts(prompts, config.pictures)
    generator = TextToImage(read_parts(transformer))
    rival = TextToImage.from_pretrained(champion) if champion else None
    clip = ClipEncoder(config.judge) if config.judge else generator.clip
    judge = Judge(clip, [prompt.text for prompt in known], config.inception)
    trials = [
        _Trial(config, split, [one for one in known if one.split == split], generator, rival, images)
        for split in dict.fromkeys(prompt.split for prompt in known)
    ]
    scored = {trial.split: trial.scored(judge) for trial in trials}
    metrics = _figures(config, judge, trials, scored)
    metrics |= _comparison(scored.values()) | _copies(config, trials) | _training_metrics(generator.parts)
    verdicts = check(metrics, config.thresholds)
    samples = _samples(config, generator, images, known)
    report = Report(
        metrics=metrics,
        judge=f"{clip.reference}, which did not condition the model"
        if config.judge
        else "the CLIP that conditions the model, which flatters it",
        champion=champion,
        verdicts=verdicts,
        copy_share=config.copy_share,
        samples=samples,
        ranked=_ranked(trials, scored),
        reconstructions=_reconstructions(config, generator, images),
        curves=_curves(generator.parts),
        made_from=lineage(generator.parts),
    )
    digest = digest_of([config.model_dump(), read_config(transformer), prompts, champion])
    folder = out.report(digest)
    grid = sheet({sample.prompt: sample.pictures for sample in samples})
    _publish(
        folder,
        {
            "report.html": render(report).encode(),
            "metrics.json": json.dumps(metrics, indent=2).encode(),
            "prompts.json": json.dumps(_by_prompt(trials, scored), indent=2).encode(),
            "grid.png": png_bytes(grid),
        },
    )
    tracker.metrics({name.replace("@", "_at_"): value for name, value in metrics.items()}, step=0)
    tracker.image("grid", grid)
    out.publish_current("evaluation", folder, digest)
    return Result(
        report=f"{folder}/report.html", metrics=metrics, grid=grid, digest=digest, verdicts=verdicts
    )


def _publish(folder: str, files: Mapping[str, bytes]) -> None:
    with storage.draft_folder(folder) as scratch:
        draft = Path(scratch) / "report"
        draft.mkdir()
        for name, data in files.items():
            (draft / name).write_bytes(data)
        storage.publish_folder(draft, folder, "metrics.json")


class _Trial:
    """The pictures of one split's prompts, of every kind, in the prompts' order."""

    def __init__(
        self,
        config: Config,
        split: str,
        prompts: list[Prompt],
        generator: TextToImage,
        rival: TextToImage | None,
        images: str,
    ) -> None:
        self.split = split
        self.prompts = _choose(prompts, config)
        self.texts = [prompt.text for prompt in self.prompts]
        self.made = _generate(generator, self.texts, config, f"generating ({split})")
        self.nearest = nearest_training(generator, self.made, images)
        real = [_real_picture(prompt, generator, images) for prompt in self.prompts]
        self.pictures = {GENERATED: [one.image for one in self.made]}
        if rival:
            shown = _generate(rival, self.texts, config, f"the champion's ({split})")
            self.pictures[CHAMPION] = [one.image for one in shown]
        self.pictures |= {RECONSTRUCTED: reconstruct(generator, real), REAL: real}

    def scored(self, judge: Judge) -> dict[str, Scored]:
        return {kind: judge.score(self.texts, shown) for kind, shown in self.pictures.items()}


def _choose(prompts: list[Prompt], config: Config) -> list[Prompt]:
    """`scored` prompts, each text once, by a seeded draw."""
    once = list({prompt.text: prompt for prompt in prompts}.values())
    order = np.random.default_rng(config.seed).permutation(len(once))[: config.scored]
    return [once[i] for i in order]


def _generate(generator: TextToImage, texts: list[str], config: Config, label: str) -> list[Generated]:
    """The best of the candidates for each text."""
    made: list[Generated] = []
    with track(label, len(texts), "prompts") as meter:
        for start in range(0, len(texts), config.batch_prompts):
            some = texts[start : start + config.batch_prompts]
            rows = generator.generate_scored(some, seed=config.seed, candidates=config.candidates)
            made += [row[0] for row in rows]
            meter.advance(len(some))
    return made


def _real_picture(prompt: Prompt, generator: TextToImage, images: str) -> Image.Image:
    """The prompt's own picture, or the stored one nearest to it where none is known."""
    if prompt.file:
        picture = decode(storage.read_bytes(prompt.file)).image
    else:
        found = generator.search(generator.embed_text([prompt.text])[0], 1)[0][0]
        (picture,) = images_by_id(open_table(images), [found]).values()
    return fit_square(picture, generator.vqgan.config.image_size)


@torch.no_grad()
def reconstruct(generator: TextToImage, pictures: list[Image.Image]) -> list[Image.Image]:
    """Through the VQGAN's codes and back."""
    device = next(generator.vqgan.parameters()).device
    codes = [generator.vqgan.encode(part.to(device)) for part in to_tensor(pictures).split(64)]
    return generator.decode(torch.cat(codes).flatten(1))


def _figures(
    config: Config, judge: Judge, trials: Sequence[_Trial], scored: Mapping[str, Mapping[str, Scored]]
) -> dict[str, float]:
    """`{split}/{kind}/{figure}` of every kind of pictures."""
    held_out = judge.reference(_reference(config, trials)) if config.reference else None
    metrics: dict[str, float] = {}
    for trial in trials:
        kinds = scored[trial.split]
        reference = held_out or judge.reference(kinds[REAL].images, kinds[REAL].embeddings)
        for kind, seen in kinds.items():
            figures = seen.metrics() | reference.distances(seen.images, seen.embeddings)
            metrics |= {f"{trial.split}/{kind}/{name}": value for name, value in figures.items()}
        metrics[f"{trial.split}/prompts"] = len(trial.prompts)
    return metrics


def _reference(config: Config, trials: Sequence[_Trial]) -> list[Image.Image]:
    """The first pictures of the reference folder, as large as the real ones."""
    source, size = Source(config.reference or ""), trials[0].pictures[REAL][0].width
    items = (item for file in source.files() for item in source.items(file))
    pictures: list[Image.Image] = []
    for item in itertools.islice(items, config.reference_pictures):
        try:
            pictures.append(fit_square(decode(item.data).image, size))
        except Rejected as error:
            raise ClipgenError(f"{item.uri} is no usable reference picture ({error}): take it out") from error
    if len(pictures) < 2:
        raise ClipgenError(f"the reference folder {source.url} holds {len(pictures)} pictures: name another")
    return pictures


def _comparison(scored: Iterable[Mapping[str, Scored]]) -> dict[str, float]:
    """How much better than the champion: the mean difference of the CLIP scores of the same prompts and
    seeds, and its 95 % interval; empty where there is no champion."""
    pairs = [(kinds[GENERATED], kinds[CHAMPION]) for kinds in scored if CHAMPION in kinds]
    if not pairs:
        return {}
    difference = bootstrap(np.concatenate([ours.clip_score - theirs.clip_score for ours, theirs in pairs]))
    return {f"against_champion/{name}": value for name, value in difference._asdict().items()}


def _copies(config: Config, trials: Sequence[_Trial]) -> dict[str, float]:
    """Which share of the generated pictures are copies of training pictures."""
    shares = [near.same_codes for trial in trials for near in trial.nearest if near]
    if not shares:
        raise ClipgenError("no training picture is left to compare with: take the pictures in again")
    return {
        "memory/copies": float(np.mean([share >= config.copy_share for share in shares])),
        "memory/same_codes": float(np.mean(shares)),
    }


def _samples(config: Config, generator: TextToImage, images: str, known: Sequence[Prompt]) -> list[Sample]:
    """Pictures for the shown prompts, the best first, and what the best is nearest to."""
    shown = config.shown or tuple(dict.fromkeys(prompt.text for prompt in known))[:12]
    rows = generator.generate_scored(
        shown, n=config.pictures_shown, seed=config.seed, candidates=config.candidates
    )
    nearest = nearest_training(generator, [row[0] for row in rows], images)
    return [
        Sample(prompt=text, pictures=[one.image for one in row], score=row[0].clip_score, nearest=near)
        for text, row, near in zip(shown, rows, nearest, strict=True)
    ]


def _ranked(
    trials: Sequence[_Trial], scored: Mapping[str, Mapping[str, Scored]], count: int = 8
) -> dict[str, list[Sample]]:
    """The prompts that the judge likes best and least."""
    samples = [
        Sample(prompt=text, pictures=[made.image], score=float(score), nearest=near)
        for trial in trials
        for text, made, score, near in zip(
            trial.texts, trial.made, scored[trial.split][GENERATED].clip_score, trial.nearest, strict=True
        )
    ]
    samples.sort(key=lambda sample: -sample.score)
    return {"best": samples[:count], "worst": samples[::-1][:count]}


def _by_prompt(trials: Sequence[_Trial], scored: Mapping[str, Mapping[str, Scored]]) -> list[dict[str, Any]]:
    """One record a prompt, for those who want to reckon themselves."""
    return [
        {
            "prompt": text,
            "split": trial.split,
            "clip_score": {kind: float(one.clip_score[i]) for kind, one in scored[trial.split].items()},
            "better_prompts": {kind: int(one.rank[i]) for kind, one in scored[trial.split].items()},
            "nearest_training_picture": near
            and {"id": near.id, "cosine": near.cosine, "same_codes": near.same_codes},
        }
        for trial in trials
        for i, (text, near) in enumerate(zip(trial.texts, trial.nearest, strict=True))
    ]


def _reconstructions(
    config: Config, generator: TextToImage, images: str
) -> list[tuple[Image.Image, Image.Image]]:
    table = open_table(images)
    rows = np.random.default_rng(config.seed).permutation(table.count_rows())
    data = table.take(rows[: config.reconstructions].tolist(), columns=["image"])["image"]
    size = generator.vqgan.config.image_size
    originals = [fit_square(decode(one).image, size) for one in data.to_pylist()]
    return list(zip(originals, reconstruct(generator, originals), strict=True))


def _training_metrics(parts: Parts) -> dict[str, float]:
    """The last figures of both trainings."""
    metrics: dict[str, float] = {}
    for stage in ("vqgan", "transformer"):
        state = read_state(getattr(parts, stage))
        last: dict[str, float] = {}
        for row in state["history"]:
            last |= row
        wanted = ("psnr", "codebook_usage", "codebook_perplexity", "loss", "validation_loss")
        metrics |= {f"{stage}/{name}": last[name] for name in wanted if name in last}
        metrics[f"{stage}/steps"] = state["step"]
        metrics[f"{stage}/pictures_per_second"] = state["pictures_per_second"]
    return metrics


def _curves(parts: Parts) -> list[Curve]:
    curves = []
    for stage in ("vqgan", "transformer"):
        history = read_state(getattr(parts, stage))["history"]
        for name in ("loss", "validation_loss", "psnr", "codebook_usage"):
            points = [(row["step"], row[name]) for row in history if name in row]
            if points:
                curves.append(Curve(f"{stage}: {name.replace('_', ' ')}", points))
    return curves
