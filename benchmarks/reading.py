"""Ways to train a small CLIP, compared by how well it understands prompts in words that no caption has.

Trains the CLIP of a recipe on the same images in each way, in the same number of steps, and looks prompts up
among the images: a prompt is understood if an image of what it means is among the nearest.

Run: python -m benchmarks.reading --captions keywords.csv --prompts prompts.csv --paraphrases FILE
"""

import csv
import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from clipgen_core import filesystem
from clipgen_core.data.captions import Captioned, combined, read_captioned
from clipgen_core.data.decode import decode
from clipgen_core.data.pixels import fit_square, to_tensor
from clipgen_core.data.prompts import read_prompts
from clipgen_core.judging.metrics import Interval, bootstrap
from clipgen_core.recipes import named
from clipgen_core.settings.clip import Config
from clipgen_core.stages.clip import Batch, ClipTask
from clipgen_core.tracking import NullTracker
from clipgen_core.training.checkpoint import Checkpoint, Checkpoints
from clipgen_core.training.contrast import held_out_rows, same_rows
from clipgen_core.training.loop import fit
from clipgen_core.training.provenance import Provenance
from clipgen_core.training.task import Metrics

TEMPLATES = ("{}", "a picture of {}", "an image of {}", "{} on white")
AT_ONCE = 256  # images
Captions = Callable[[str, Captioned], list[str]]


class SigmoidTask(ClipTask):
    """The loss of SigLIP (arXiv:2303.15343): each pair of image and text is a yes or a no of its own."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        model: Any = self.model
        model.logit_scale.data.fill_(float(np.log(10)))
        model.logit_bias = nn.Parameter(torch.tensor(-10.0, device=self.device))

    def losses(self, batch: Batch, progress: float) -> Iterator[tuple[str, Tensor, Metrics]]:
        images, tokens, _ = batch
        image, text, scale = self._embed(images, tokens)
        model: Any = self.model
        logits = scale.float().clamp(max=100) * image.float() @ text.float().T + model.logit_bias
        loss = F.binary_cross_entropy_with_logits(logits, same_rows(tokens).float(), reduction="sum")
        yield "clip", loss / len(logits), {"logit_scale": scale.detach()}


class Sentences:
    """A frozen sentence encoder in the place of a tokenizer: texts to embeddings, float32 [n, d].

    Args:
        folder: A model of sentence-transformers with mean pooling.
    """

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModel, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.model = AutoModel.from_pretrained(folder, local_files_only=True).eval()
        self.known: dict[str, Tensor] = {}

    @property
    def dim(self) -> int:
        return int(self.model.config.hidden_size)

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        new = [text for text in dict.fromkeys(texts) if text not in self.known]
        if new:
            tokens = self.tokenizer(new, padding=True, truncation=True, max_length=32, return_tensors="pt")
            mask = tokens["attention_mask"].unsqueeze(-1)
            states = self.model(**tokens).last_hidden_state
            rows = F.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)
            self.known.update(zip(new, rows, strict=True))
        return torch.stack([self.known[text] for text in texts])


class TwoLayers(nn.Module):
    """Sentence embeddings [n, d] to text embeddings [n, embed_dim].

    Args:
        dim: d.
        embed_dim: Of the CLIP.
    """

    def __init__(self, dim: int, embed_dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, embed_dim))

    def forward(self, sentences: Tensor, normalize: bool = False) -> Tensor:
        texts: Tensor = self.layers(sentences)
        return F.normalize(texts, dim=-1) if normalize else texts


@dataclasses.dataclass(frozen=True)
class Way:
    """The captions of an image, the changed settings of the CLIP and what is trained."""

    captions: Captions
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    task: type[ClipTask] = ClipTask
    sentences: bool = False


@dataclasses.dataclass(frozen=True)
class Read:
    """Recall with its 95 % interval over prompts: of paraphrases, also averaged over templates, and of the
    names that the captions have."""

    way: str
    seconds: float
    recall_at_1: Interval
    recall_at_5: Interval
    by_templates: Interval
    names_at_5: Interval


def own(file: str, image: Captioned) -> list[str]:
    return list(dict.fromkeys(image.captions))


def singly(file: str, image: Captioned) -> list[str]:
    return list(dict.fromkeys([*image.captions, *image.keywords]))


def phrased(file: str, image: Captioned) -> list[str]:
    made = [template.format(text) for text in image.captions[:2] for template in TEMPLATES]
    return list(dict.fromkeys([*image.captions, *made]))


def joined(file: str, image: Captioned) -> list[str]:
    return own(file, image) + combined(file, image.captions, image.keywords)


def phrased_and_joined(file: str, image: Captioned) -> list[str]:
    return phrased(file, image) + combined(file, image.captions, image.keywords)


WAYS = {
    "captions alone": Way(own),
    "each keyword a caption": Way(singly),
    "captions in four phrasings": Way(phrased),
    "keywords combined": Way(joined),
    "keywords combined, four phrasings": Way(phrased_and_joined),
    "keywords combined, sigmoid loss": Way(joined, task=SigmoidTask),
    "keywords combined, 3 text layers": Way(joined, {"text_layers": 3}),
    "keywords combined, frozen sentence encoder": Way(joined, sentences=True),
}


def main(
    captions: Annotated[str, typer.Option(help="A CSV with file, caption and keywords.")],
    prompts: Annotated[str, typer.Option(help="A CSV with prompt, split and file: names of images.")],
    paraphrases: Annotated[Path, typer.Option(help="A CSV with prompt and names, separated by |.")],
    out: Annotated[str, typer.Option(help="Where checkpoints go.")] = ".clipgen/reading",
    ways: Annotated[str, typer.Option(help="Which, by parts of their names, separated by commas.")] = "",
    sentences: Annotated[Path | None, typer.Option(help="The folder of a sentence encoder.")] = None,
    steps: Annotated[int | None, typer.Option(help="Training steps; the recipe's.")] = None,
    seed: int = 0,
    recipe: str = "demo",
    json_file: Annotated[Path | None, typer.Option("--json")] = None,
) -> None:
    """Print one table. Trainings that are there already are taken."""
    images = read_captioned(captions)
    gallery = {one.file: one.text for one in read_prompts(prompts) if one.split == "train" and one.file}
    known = {text for way in WAYS.values() for file in images for text in way.captions(file, images[file])}
    with paraphrases.open() as file:
        given = [(row["prompt"], row["names"].split("|")) for row in csv.DictReader(file)]
    asked = [(prompt, names) for prompt, names in given if prompt not in known]
    typer.echo(f"{len(asked)} of {len(given)} paraphrases are no caption in any way", err=True)
    config = named(recipe).clip
    train = {"steps": steps or config.train.steps, "seed": seed}
    config = config.model_copy(update={"train": config.train.model_copy(update=train)})
    rows = []
    for name, way in WAYS.items():
        chosen = not ways or any(part.strip() in name for part in ways.split(","))
        if chosen and (sentences or not way.sentences):
            task, took = trained(name, way, config, captions, images, out, sentences)
            rows.append(read(name, took, task, gallery, asked))
            show(rows)
    if json_file:
        json_file.write_text(json.dumps([dataclasses.asdict(row) for row in rows], indent=2))


def trained(
    name: str,
    way: Way,
    config: Config,
    captions: str,
    images: dict[str, Captioned],
    out: str,
    sentences: Path | None,
) -> tuple[ClipTask, float]:
    """Train in one way.

    Args:
        name: Of the way.
        way: What it changes.
        config: Of the recipe.
        captions: The CSV, which the files are relative to.
        images: What it says of them.
        out: Where the checkpoints go.
        sentences: The folder of a sentence encoder.

    Returns:
        The trained models, and the seconds that it took.
    """
    config = config.model_copy(update=way.settings)
    pairs = {file: way.captions(file, image) for file, image in images.items()}
    task = way.task(config, captions, pairs)
    if way.sentences and sentences:
        take_sentences(task, sentences)
    url = f"{out}/{name.replace(', ', '-').replace(' ', '-')}-{config.train.steps}-{config.train.seed}"
    checkpoints = Checkpoints(url=url, provenance=Provenance(config=config.model_dump(mode="json")))
    start = time.perf_counter()
    fitted = fit(lambda: task, config.train, checkpoints=checkpoints, tracker=NullTracker(), label=name)
    took = time.perf_counter() - start
    task.model.load_state_dict(Checkpoint(fitted.checkpoint).weights())
    task.model.eval()
    return task, took


def take_sentences(task: ClipTask, folder: Path) -> None:
    """Put a frozen sentence encoder and two layers into the place of the text tower.

    Args:
        task: Gets them.
        folder: Of the sentence encoder.
    """
    encoder: Any = Sentences(folder)
    model: Any = task.model
    tower = TwoLayers(encoder.dim, task.config.embed_dim).to(task.device)
    model.transformer, model.tower, model.encode_text = nn.Identity(), tower, tower.forward
    task.tokenizer = encoder
    held = held_out_rows(task.files) or task.rows
    task.held_out = task._load([(i, task.captions[i][0]) for i in held], 0)


def read(
    way: str,
    took: float,
    task: ClipTask,
    gallery: dict[str, str],
    asked: Sequence[tuple[str, list[str]]],
) -> Read:
    """Look prompts up among images.

    Args:
        way: Its name.
        took: Seconds that its training took.
        task: The trained models.
        gallery: The URL of each image and the name of what it shows.
        asked: Prompts, each with the names that it may mean.

    Returns:
        The row of the table.
    """
    embedded, names = embed_images(task, list(gallery)), np.array(list(gallery.values()))
    known = sorted(set(gallery.values()))

    def found(texts: np.ndarray, wanted: Sequence[list[str]], k: int) -> Interval:
        nearest = names[np.argsort(-(texts @ embedded.T), axis=1, kind="stable")[:, :k]]
        return bootstrap(
            np.array([float(bool(set(row) & set(own))) for row, own in zip(nearest, wanted, strict=True)])
        )

    texts, wanted = [text for text, _ in asked], [own for _, own in asked]
    plain = embed_texts(task, texts)
    averaged = np.mean([embed_texts(task, [one.format(text) for text in texts]) for one in TEMPLATES], axis=0)
    by_name = found(embed_texts(task, known), [[name] for name in known], 5)
    return Read(
        way, took, found(plain, wanted, 1), found(plain, wanted, 5), found(averaged, wanted, 5), by_name
    )


@torch.no_grad()
def embed_images(task: ClipTask, urls: Sequence[str]) -> np.ndarray:
    """Unit embeddings [n, d] of whole images, of which the shorter side is cropped.

    Args:
        task: The trained models.
        urls: Of the images.

    Returns:
        Float32.
    """
    model: Any = task.model
    mean, std = task.mean_std
    rows = []
    for start in range(0, len(urls), AT_ONCE):
        read = (decode(filesystem.read_bytes(url)).image for url in urls[start : start + AT_ONCE])
        images = [fit_square(image, task.config.image_size) for image in read]
        pixels = to_tensor(images).to(task.device)
        rows.append(model.encode_image(((pixels + 1) / 2 - mean) / std, normalize=True).cpu())
    return torch.cat(rows).numpy()


@torch.no_grad()
def embed_texts(task: ClipTask, texts: Sequence[str]) -> np.ndarray:
    """Unit embeddings [n, d] of texts, float32."""
    model: Any = task.model
    embedded: Tensor = model.encode_text(task.tokenizer(list(texts)).to(task.device), normalize=True)
    return embedded.cpu().numpy()


def show(rows: Sequence[Read]) -> None:
    columns = ("recall@1", "recall@5", "recall@5 by templates", "names: recall@5")
    sheet = Table("way", "seconds", *columns, box=None)
    for row in rows:
        scores = (row.recall_at_1, row.recall_at_5, row.by_templates, row.names_at_5)
        shown = [f"{one.mean:.2f} ± {one.half_width:.2f}" for one in scores]
        sheet.add_row(row.way, f"{row.seconds:.0f}", *shown)
    Console(width=160).print(sheet)


if __name__ == "__main__":
    typer.run(main)
