"""What the buttons of the page do: previews while codes are sampled, then pictures, neighbours and history.

Knows requests and models; knows nothing of how the page is laid out.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from typing import Any

import gradio as gr

from clipgen_core.data.images import shown_by_id
from clipgen_core.data.pixels import with_parameters
from clipgen_core.errors import ClipgenError
from clipgen_core.generation.generator import TextToImage
from clipgen_core.generation.output import settings_used
from clipgen_core.generation.requests import Generated
from clipgen_core.serving.browse import root_behind
from clipgen_core.serving.models import Models, Served
from clipgen_core.serving.monitoring import PICTURES, observed
from clipgen_core.serving.pictures import file_name, group, picture, training_picture
from clipgen_core.serving.sampling import Sampling
from clipgen_core.serving.subjects import Edit, FromPicture, FromText, Subject
from clipgen_core.serving.work import Stopped

HISTORY = 24  # requests
NEAREST = 8
SHOWN = 40  # characters of a value that cannot be used
LARGEST_SEED = 2**53 - 1  # the largest integer that browsers count to
RANGES = {  # of the fields: their labels, the smallest and the largest numbers
    "n": ("Pictures", 1, 8),
    "seed": ("Seed", 0, LARGEST_SEED),
    "guidance_scale": ("Guidance", 1, 6),
    "temperature": ("Temperature", 0.1, 1.5),
}
INTEGERS = ("n", "seed")
SCORES = "The CLIP score is below each picture, the best first."
STOPPED = "Stopped."
Past = list[dict[str, Any]]  # requests, the newest first: their first picture and their settings
Shown = tuple[Any, Any, Any, Any, Any]  # pictures, status, nearest training pictures, history, past


@dataclass(frozen=True)
class Chosen:
    """The settings of a request, as the page has them; a number is None where its field is empty.

    Attributes:
        model: The name of a model.
        n: How many pictures.
        seed: Determines them.
        guidance_scale: Higher values follow the prompt more closely.
        temperature: Lower values take the likeliest codes more often.
        compare_with: The name of a second model to compare with; empty for none.
    """

    model: str
    n: float | None
    seed: float | None
    guidance_scale: float | None
    temperature: float | None
    compare_with: str | None

    @property
    def models(self) -> list[str]:
        return list(dict.fromkeys(filter(None, [self.model, self.compare_with])))

    @property
    def parameters(self) -> dict[str, Any]:
        """Keyword arguments of the generator's call.

        Raises:
            ClipgenError: A field is empty, or holds no number that is allowed there.
        """
        return {name: self._number(name) for name in RANGES}

    def _number(self, name: str) -> float:
        (label, least, most), value = RANGES[name], getattr(self, name)
        if value is None:
            raise ClipgenError(f"{label} is empty: enter a number.")
        is_integer, is_number = name in INTEGERS, isinstance(value, int | float)
        if not is_number or not least <= value <= most or (is_integer and value % 1):
            kind = "an integer" if is_integer else "a number"
            said = f"{value:g}" if is_number else repr(value)[:SHOWN]
            raise ClipgenError(f"{label} is {said}: enter {kind} from {least:,} to {most:,}.")
        return int(value) if is_integer else value


class Answers:
    """The answers to the page's requests.

    Args:
        offered: The models.
    """

    def __init__(self, offered: Models) -> None:
        self._offered = offered
        self._running: list[tuple[str | None, Sampling]] = []  # with the session of each

    def generate(self, prompt: str, visitor: gr.Request, *, past: Past, **settings: Any) -> Iterator[Shown]:
        """Generate pictures of what a prompt says.

        Args:
            prompt: What they should show.
            visitor: Who asks.
            past: Earlier requests.
            settings: The fields of `Chosen`.

        Yields:
            What the page shows.
        """
        yield from self._answer(lambda: FromText(prompt), Chosen(**settings), past, visitor)

    def vary(
        self, picture: bytes | None, visitor: gr.Request, *, past: Past, **settings: Any
    ) -> Iterator[Shown]:
        """Generate variations of a picture.

        Args:
            picture: The file's bytes.
            visitor, past, settings: See `generate`.

        Yields:
            See `generate`.
        """
        yield from self._answer(lambda: FromPicture(picture), Chosen(**settings), past, visitor)

    def edit(
        self, picture: dict[str, Any] | None, prompt: str, visitor: gr.Request, *, past: Past, **settings: Any
    ) -> Iterator[Shown]:
        """Generate the painted part of a picture anew.

        Args:
            picture: The bytes of its file and of those of the layers painted on it.
            prompt: What the whole picture should show; empty for what it shows now.
            visitor, past, settings: See `generate`.

        Yields:
            See `generate`.
        """
        yield from self._answer(lambda: Edit(picture, prompt), Chosen(**settings), past, visitor)

    def stop(self, visitor: gr.Request) -> str:
        """Stop what is being sampled for a visitor."""
        for session, sampling in list(self._running):
            if session == visitor.session_hash:
                sampling.stop()
        return STOPPED

    def _answer(
        self, subject_of: Callable[[], Subject], chosen: Chosen, past: Past, visitor: gr.Request
    ) -> Iterator[Shown]:
        try:
            yield from self._sampled(subject_of(), chosen, past, visitor.session_hash)
        except Stopped:
            yield gr.skip(), STOPPED, gr.skip(), gr.skip(), gr.skip()
        except ClipgenError as error:
            yield gr.skip(), str(error), gr.skip(), gr.skip(), gr.skip()
            raise gr.Error(str(error), print_exception=False) from error

    def _sampled(self, subject: Subject, chosen: Chosen, past: Past, session: str | None) -> Iterator[Shown]:
        parameters, groups, nearest = chosen.parameters, list[dict[str, Any]](), gr.skip()
        notes: list[str] = []
        for name in chosen.models:
            title = name if len(chosen.models) > 1 else ""
            with observed(subject.kind):
                yield [*groups], "Sampling has begun.", gr.skip(), gr.skip(), gr.skip()
                served = self._offered.find(name)
                generator, origin = self._offered.load(served), self._offered.origin(served)
                with Sampling(generator, subject, parameters) as sampling, self._listed(session, sampling):
                    for images, progress in sampling.previews():
                        unfinished = [picture(one, f"{subject.label}, not finished") for one in images]
                        said = f"{progress:.0%} of the codes are sampled."
                        yield [*groups, group(unfinished, title)], said, gr.skip(), gr.skip(), gr.skip()
            row = sampling.generated
            PICTURES.labels(subject.kind).inc(len(row))
            used = settings_used(generator, parameters, of_text=bool(subject.prompt))
            finished = _finished(row, subject, {**parameters, **used, "model": origin})
            if not groups:
                nearest, notes = self._neighbours(served, generator, row[0]), subject.notes(generator)
                past = [_remembered(finished[0], subject, chosen), *past][:HISTORY]
            groups.append(group(finished, title))
        said = " ".join([SCORES, *(f"Note: {one}." for one in notes)])
        yield groups, said, nearest, _history(past), past

    @contextmanager
    def _listed(self, session: str | None, sampling: Sampling) -> Iterator[None]:
        """Within the `with`, a sampling is among those that its visitor can stop."""
        running = session, sampling
        self._running.append(running)
        try:
            yield
        finally:
            self._running.remove(running)

    def _neighbours(
        self, served: Served, generator: TextToImage, generated: Generated
    ) -> list[dict[str, Any]]:
        """The training images nearest to a generated one, if the images table is available."""
        root = root_behind(self._offered, served)
        if root is None or generator.embeddings is None:
            return []
        cosines = dict(generator.search(generator.embed_images([generated.image])[0], NEAREST))
        images = shown_by_id(root.table, cosines)
        shown = [
            training_picture(images[one], f"training picture, cosine {cosine:.3f}", f"{cosine:.3f}")
            for one, cosine in cosines.items()
            if one in images
        ]
        return [group(shown, "Training pictures nearest to the first picture")] if shown else []


def _finished(row: list[Generated], subject: Subject, parameters: dict[str, Any]) -> list[dict[str, str]]:
    """The pictures of a request, with their parameters in their files."""
    shown = []
    for number, one in enumerate(row, 1):
        recorded = {**subject.recorded, **parameters, "clip_score": round(one.clip_score, 4)}
        alt = f"{subject.label}, picture {number} of {len(row)}"
        file = file_name(subject.label, parameters["seed"], number)
        shown.append(picture(with_parameters(one.image, recorded), alt, f"{one.clip_score:.3f}", file))
    return shown


def _remembered(first: dict[str, str], subject: Subject, chosen: Chosen) -> dict[str, Any]:
    """A request in the history."""
    seed = f"seed {chosen.seed:.0f}"
    shown = first | {"alt": f"{subject.label}, {seed}: use these settings again", "file": ""}
    return {
        "picture": shown | {"caption": f"{subject.label}, {seed}"},
        "kind": subject.kind,
        "prompt": subject.prompt,
        "settings": list(astuple(chosen)),
    }


def _history(past: Past) -> list[dict[str, Any]]:
    return [group([one["picture"] for one in past], "History: a click brings the settings back")]
