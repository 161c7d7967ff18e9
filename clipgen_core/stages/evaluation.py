"""Judge a generator: pictures, scores and where it all came from, on one page.

In:  a transformer checkpoint (which names everything before it), the images table, and a CSV with the
     column `prompt` and, where known, `file` (a picture of it, relative to the CSV) and `split`
Out: {root}/reports/{run}/: report.html, metrics.json, grid.png
Run: `evaluation_report` in Dagster.

Scores of generated pictures stand beside those of the VQGAN's reconstructions and of the real
pictures, which are the ceiling. Retrieval asks which of all prompts fits a picture best.
"""

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from pydantic import Field

from clipgen_core import storage
from clipgen_core.data.pictures import decode, fit_square, png_bytes, to_tensor
from clipgen_core.data.prompts import Prompt, read_prompts
from clipgen_core.data.tables import open_table
from clipgen_core.generator import TextToImage
from clipgen_core.metrics import frechet_distance
from clipgen_core.models.clip import ClipEncoder
from clipgen_core.parts import Parts, copy_parts, read_parts
from clipgen_core.progress import track
from clipgen_core.report import Curve, Picture, Report, render, sheet
from clipgen_core.schema import Frozen, digest_of
from clipgen_core.tracking import MlflowTracker, Tracker, register_generator
from clipgen_core.training.checkpoint import read_config, read_state


class Config(Frozen):
    """scored: how many prompts of each split are generated and scored; judge: a CLIP to score with,
    the conditioning one if None."""

    shown: tuple[str, ...] = ()
    pictures_shown: int = Field(default=4, gt=0)
    scored: int = Field(default=64, gt=0)
    candidates: int = Field(default=4, gt=0)
    reconstructions: int = Field(default=12, gt=0)
    batch_prompts: int = Field(default=16, gt=0)
    seed: int = 0
    judge: str | None = None


@dataclass(frozen=True, kw_only=True)
class Result:
    report: str
    metrics: dict[str, float]
    grid: Image.Image
    digest: str


def run(
    config: Config,
    *,
    transformer: str,
    images: str,
    prompts: str,
    out: storage.Storage,
    tracker: Tracker,
) -> Result:
    """Generate, score, and write the report."""
    known = read_prompts(prompts)
    generator = TextToImage(read_parts(transformer))
    judge = ClipEncoder(config.judge) if config.judge else generator.clip
    samples = _samples(config, generator, config.shown or tuple(prompt.text for prompt in known[:12]))
    metrics = _scores(config, known, generator, judge, images) | _training_metrics(generator.parts)
    report = Report(
        title="clip-gen",
        metrics=metrics,
        judge=f"{judge.reference}, which did not condition the model"
        if config.judge
        else "the CLIP that conditions the model, which flatters it",
        samples={text: [Picture(one) for one in row] for text, row in samples.items()},
        reconstructions=_reconstructions(config, generator, images),
        curves=_curves(generator.parts),
        made_from=_lineage(generator.parts),
    )
    digest = digest_of([config.model_dump(), read_config(transformer), prompts])
    folder, grid = out.report(digest), sheet(samples)
    _publish(
        folder,
        {
            "report.html": render(report).encode(),
            "metrics.json": json.dumps(metrics, indent=2).encode(),
            "grid.png": png_bytes(grid),
        },
    )
    tracker.metrics({name.replace("@", "_at_"): value for name, value in metrics.items()}, step=0)
    tracker.image("grid", grid)
    out.publish_current("evaluation", folder, digest)
    return Result(report=f"{folder}/report.html", metrics=metrics, grid=grid, digest=digest)


def _publish(folder: str, files: Mapping[str, bytes]) -> None:
    with storage.draft_folder(folder) as scratch:
        draft = Path(scratch) / "report"
        draft.mkdir()
        for name, data in files.items():
            (draft / name).write_bytes(data)
        storage.publish_folder(draft, folder, "metrics.json")


def register(transformer: str, result: Result, tracker: MlflowTracker, *, name: str, alias: str) -> str:
    """Register the judged generator, self-contained, under `alias`; returns its version."""
    parts = read_parts(transformer)
    tags = {key: value for key, value in _lineage(parts).items() if key != "configuration"}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "generator"
        copy_parts(parts, folder)
        tracker.file(storage.local_copy(result.report))
        return register_generator(folder, tracker, name=name, alias=alias, tags=tags)


def _scores(
    config: Config, known: list[Prompt], generator: TextToImage, judge: ClipEncoder, images: str
) -> dict[str, float]:
    """`{split}/{generated, reconstructed or real}/{score}`; fid_clip is the Frechet distance to the real
    pictures in the judge's space."""
    names = list(dict.fromkeys(prompt.text for prompt in known))
    names_embedded = judge.encode_texts(names)
    metrics: dict[str, float] = {}
    for split in dict.fromkeys(prompt.split for prompt in known):
        chosen = _choose([prompt for prompt in known if prompt.split == split], config)
        texts = [prompt.text for prompt in chosen]
        pictures = _pictures_of(chosen, config, generator, images, split)
        embedded = {kind: judge.encode_images(shown) for kind, shown in pictures.items()}
        for kind, seen in embedded.items():
            scores = score(seen, texts, names, names_embedded)
            scores["fid_clip"] = frechet_distance(*map(torch.from_numpy, (embedded["real"], seen)))
            metrics |= {f"{split}/{kind}/{name}": value for name, value in scores.items()}
        metrics[f"{split}/prompts"] = len(chosen)
    return metrics


def score(
    pictures: np.ndarray, texts: Sequence[str], names: list[str], names_embedded: np.ndarray
) -> dict[str, float]:
    """CLIP score (mean cosine with the own prompt) and recall@1/5 of that prompt among all names.

    Args:
        pictures: float32 [n, d]; texts: the n prompts, all of them in names; names_embedded [m, d].
    """
    cosine = pictures @ names_embedded.T
    own = cosine[np.arange(len(texts)), [names.index(text) for text in texts]]
    better = (cosine > own[:, None]).sum(axis=1)
    return {
        "clip_score": float(own.mean()),
        "recall@1": float((better < 1).mean()),
        "recall@5": float((better < 5).mean()),
    }


def _choose(prompts: list[Prompt], config: Config) -> list[Prompt]:
    """`scored` prompts, each text once, by a seeded draw."""
    once = list({prompt.text: prompt for prompt in prompts}.values())
    order = np.random.default_rng(config.seed).permutation(len(once))[: config.scored]
    return [once[i] for i in order]


def _samples(config: Config, generator: TextToImage, shown: Sequence[str]) -> dict[str, list[Image.Image]]:
    rows = generator.generate(shown, n=config.pictures_shown, seed=config.seed, candidates=config.candidates)
    return dict(zip(shown, rows, strict=True))


def _pictures_of(
    chosen: list[Prompt], config: Config, generator: TextToImage, images: str, split: str
) -> dict[str, list[Image.Image]]:
    """Generated, reconstructed and real pictures of the prompts, in their order."""
    generated: list[Image.Image] = []
    with track(f"generating ({split})", len(chosen), "prompts") as meter:
        for start in range(0, len(chosen), config.batch_prompts):
            texts = [prompt.text for prompt in chosen[start : start + config.batch_prompts]]
            rows = generator.generate(texts, seed=config.seed, candidates=config.candidates)
            generated += [row[0] for row in rows]
            meter.advance(len(texts))
    real = [_real_picture(prompt, generator, images) for prompt in chosen]
    return {
        "generated": generated,
        "reconstructed": reconstruct(generator, real),
        "real": real,
    }


def _real_picture(prompt: Prompt, generator: TextToImage, images: str) -> Image.Image:
    """The prompt's own picture, or the stored one nearest to it where none is known."""
    if prompt.file:
        data = storage.read_bytes(prompt.file)
    else:
        found = generator.search(generator.clip.encode_texts([prompt.text])[0], 1)[0][0]
        rows = open_table(images).to_table(columns=["image"], filter=f"id = '{found}'")
        data = rows["image"][0].as_py()
    return fit_square(decode(data).image, generator.vqgan.config.image_size)


@torch.no_grad()
def reconstruct(generator: TextToImage, pictures: list[Image.Image]) -> list[Image.Image]:
    """Through the VQGAN's codes and back."""
    device = next(generator.vqgan.parameters()).device
    codes = [generator.vqgan.encode(part.to(device)) for part in to_tensor(pictures).split(64)]
    return generator.decode(torch.cat(codes).flatten(1))


def _reconstructions(config: Config, generator: TextToImage, images: str) -> list[tuple[Picture, Picture]]:
    table = open_table(images)
    rows = np.random.default_rng(config.seed).permutation(table.count_rows())
    data = table.take(rows[: config.reconstructions].tolist(), columns=["image"])["image"]
    size = generator.vqgan.config.image_size
    originals = [fit_square(decode(one).image, size) for one in data.to_pylist()]
    made = reconstruct(generator, originals)
    return [(Picture(a), Picture(b)) for a, b in zip(originals, made, strict=True)]


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


def _lineage(parts: Parts) -> dict[str, str]:
    """What the generator was made from, back to the pictures: for the report and the registry's tags."""
    made_from = read_config(parts.transformer)
    return {
        "images_digest": made_from["tokens"]["images_digest"],
        "clip": parts.clip,
        "clip_key": parts.clip_key,
        "embeddings": parts.embeddings,
        "embeddings_version": str(parts.embeddings_version),
        "vqgan": parts.vqgan,
        "vqgan_digest": made_from["tokens"]["vqgan_digest"],
        "transformer": parts.transformer,
        "sampling": parts.sampling.model_dump_json(),
        "configuration": json.dumps(made_from["config"], indent=2),
    }
