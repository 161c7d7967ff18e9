"""Published weights, which are recognised by their names, taken one by one, and checked."""

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from clipgen_core.errors import ClipgenError
from clipgen_core.published.files import State, read_state_dict


@dataclass(frozen=True)
class Format:
    """How the weights of one publisher are recognised.

    Args:
        title: What they are.
        names: Regular expressions, each of which the name of at least one weight matches.
        advice: What to do with them.
    """

    title: str
    names: tuple[str, ...]
    advice: str

    def fits(self, state: State) -> bool:
        return all(any(re.match(pattern, name) for name in state) for pattern in self.names)


CANNOT = "clipgen cannot import it"
LEVELS = r"encoder\.down\.0\.block\.0\.conv1\.weight"
FORMATS: dict[str, Format] = {
    "llamagen": Format(
        "LlamaGen's tokenizer", (r"encoder\.conv_blocks\.0\.res\.",), "use clipgen import-vqgan llamagen"
    ),
    "llamagen-gpt": Format(
        "LlamaGen's transformer",
        (r"tok_embeddings\.weight", r"layers\.0\.attention\.wqkv\.weight"),
        "use clipgen import-transformer llamagen",
    ),
    "clip-gen": Format(
        "the VQGAN of the public CLIP-GEN",
        (r"encoder\.down\.0\.block\.0\.weight",),
        "use clipgen import-vqgan clip-gen",
    ),
    "clip-gen-gpt": Format(
        "the transformer of the public CLIP-GEN",
        (r"tok_emb\.weight", r"cond_proj\.weight"),
        "use clipgen import-generator",
    ),
    "gumbel": Format(
        "a Gumbel VQGAN of taming-transformers",
        (r"quantize\.proj\.weight", r"quantize\.embed\.weight"),
        f"{CANNOT}, because its codes are not the nearest vectors; choose a VQGAN without Gumbel",
    ),
    "magvit": Format("Open-MAGVIT2's tokenizer", (r"encoder\.mid_block\.0\.",), CANNOT),
    "diffusers": Format("an autoencoder of diffusers", (r"encoder\.down_blocks\.0\.",), CANNOT),
    "ibq": Format(
        "a tokenizer of SEED-Voken", (LEVELS, r"model_ema\."), "for IBQ, use clipgen import-vqgan ibq"
    ),
    "taming": Format(
        "a VQGAN of taming-transformers",
        (LEVELS, r"quantize\.embedding\."),
        "use clipgen import-vqgan taming",
    ),
    "continuous": Format("an autoencoder without codes", (LEVELS,), CANNOT),
    "taming-gpt": Format(
        "a transformer of taming-transformers without its VQGAN", (r"transformer\.tok_emb\.weight",), CANNOT
    ),
}
FIRST_STAGE = "first_stage_model."  # of a transformer that is stored with its VQGAN (Net2NetTransformer)
AVERAGED = "model_ema."  # SEED-Voken: averaged weights, by names without their dots


class Weights:
    """Published weights, from which each is taken once.

    Args:
        state: The state dict.
        kind: A key of `FORMATS`.
        file: Where they are from, for error messages.
    """

    def __init__(self, state: State, kind: str, file: str) -> None:
        self.remaining, self.title, self.file = dict(state), FORMATS[kind].title, file

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a weight.

        Raises:
            ClipgenError: The weight is missing.
        """
        if name not in self.remaining:
            raise ClipgenError(f"{self.file} has no {name}: it does not hold all of {self.title}")
        return tuple(self.remaining[name].shape)

    def has(self, name: str) -> bool:
        """Whether a layer of this name has weights."""
        return f"{name}.weight" in self.remaining

    def take(self, name: str) -> Tensor:
        """Remove and return a weight.

        Raises:
            ClipgenError: The weight is missing, not in floating point, or holds values that are not finite.
        """
        self.shape(name)
        weight = self.remaining.pop(name)
        if not weight.is_floating_point():
            dtype = str(weight.dtype).removeprefix("torch.")
            raise ClipgenError(
                f"{self.file} has {name} as {dtype}, not in floating point: it is quantised; use the "
                "published file unchanged"
            )
        if not weight.isfinite().all():
            raise ClipgenError(
                f"{self.file} has values in {name} that are not finite: its training broke down or the file "
                "is damaged; use another one"
            )
        return weight

    def both(self, name: str) -> tuple[Tensor, Tensor]:
        """Remove and return the weight and the bias of a layer."""
        return self.take(f"{name}.weight"), self.take(f"{name}.bias")

    def expect_all_taken(self, ignored: str) -> None:
        """Check that only weights remain whose names match the regular expression `ignored`.

        Raises:
            ClipgenError: Other weights remain.
        """
        left = [name for name in self.remaining if not re.match(ignored, name)]
        if left:
            raise ClipgenError(
                f"{self.file} has {len(left)} unexpected weights, {left[0]} among them: "
                f"it does not hold {self.title}"
            )

    def fit(self, model: nn.Module, converted: State) -> State:
        """Put converted weights into a model of ours; what they leave out stays as it is.

        Args:
            model: The model.
            converted: Weights by the model's names.

        Returns:
            The model's state dict.

        Raises:
            ClipgenError: A weight has another shape than the model's.
        """
        expected = model.state_dict()
        for name, weight in converted.items():
            if weight.shape != expected[name].shape:
                raise ClipgenError(
                    f"{self.file} is not {self.title} as published: its weights for {name} have the shape "
                    f"{tuple(weight.shape)} where the others need {tuple(expected[name].shape)}"
                )
        model.load_state_dict(expected | converted)
        return model.state_dict()


def published(kind: str, file: Path) -> Weights:
    """Read a file and check that it holds what the user says.

    A transformer's file of taming-transformers also holds its VQGAN, which is taken out of it.

    Args:
        kind: A key of `FORMATS`.
        file: The published file.

    Returns:
        The weights.

    Raises:
        ClipgenError: The file cannot be read safely, or holds something else.
    """
    state = read_state_dict(file)
    first_stage = {k.removeprefix(FIRST_STAGE): v for k, v in state.items() if k.startswith(FIRST_STAGE)}
    state = first_stage or state
    found = next((key for key, known in FORMATS.items() if known.fits(state)), kind)
    if found != kind and (kind, found) != (
        "ibq",
        "taming",
    ):  # IBQ without averaged weights has taming's names
        raise ClipgenError(
            f"{file} seems to hold {FORMATS[found].title}, not {FORMATS[kind].title}: {FORMATS[found].advice}"
        )
    return Weights(averaged(state) if kind == "ibq" else state, kind, str(file))


def averaged(state: State) -> State:
    """The averaged weights of SEED-Voken's training, with which its authors evaluate, where there are any.

    Args:
        state: A state dict that may hold both.

    Returns:
        The state dict with one value of each weight.
    """
    trained = {name: value for name, value in state.items() if not name.startswith(AVERAGED)}
    return {name: state.get(AVERAGED + name.replace(".", ""), value) for name, value in trained.items()}


def pair(path: str, both: tuple[Tensor, Tensor]) -> State:
    """The state of one layer.

    Args:
        path: The layer's path.
        both: Its weight and bias.

    Returns:
        Both by their keys.
    """
    return {f"{path}.weight": both[0], f"{path}.bias": both[1]}


def concatenated(weights: Weights, *names: str) -> Tensor:
    """Several weights as one, along the first dimension.

    Args:
        weights: Where they are taken from.
        names: Their names.

    Returns:
        All rows, in the order of the names.
    """
    return torch.cat([weights.take(name) for name in names])
