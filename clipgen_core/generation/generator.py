"""TextToImage: prompts in, images out. What users and the model registry load.

A generator is a folder with generator.json, which names its parts: CLIP, VQGAN, transformer and
the table of image embeddings. A transformer checkpoint names the same parts in its config.json.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from clipgen_core.device import usable, usable_dtype
from clipgen_core.errors import ClipgenError
from clipgen_core.generation import requests
from clipgen_core.generation.arguments import refusing_unknown
from clipgen_core.generation.engine import Request
from clipgen_core.generation.export import export_file
from clipgen_core.generation.from_images import ImageToImage
from clipgen_core.generation.output import Images, OnStepEnd, OutputType, checked_output_type, told
from clipgen_core.generation.parts import copy_parts, read_parts
from clipgen_core.generation.sampling import OnStep
from clipgen_core.generation.sources import ENDINGS, folder_of
from clipgen_core.progress import track
from clipgen_core.settings.sampling import Condition


class TextToImage(ImageToImage):
    """A trained generator; safe to call from several threads.

    Examples:
        >>> generator = TextToImage.from_pretrained("models:/clip-gen@candidate")
        >>> generator.generate(["a red heart"], n=4, seed=1)[0][0].save("heart.png")

    Args:
        parts: Where CLIP, VQGAN, transformer and image embeddings are.
        compile, device, dtype: See `from_pretrained`.

    Raises:
        ClipgenError: A part is missing, damaged, or not the one that the model was trained with.
    """

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        compile: bool = False,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> "TextToImage":
        """Load a generator.

        Args:
            source: A model file (`model.clipgen`), a generator folder, a transformer checkpoint (`step-N`), a
                registered model (`models:/NAME@ALIAS`, `models:/NAME/VERSION`), found at
                MLFLOW_TRACKING_URI, or a repository of the Hugging Face Hub (`hf://ORG/NAME`).
            compile: On a GPU, compile the transformer's blocks by `torch.compile`. The first images of every
                number of candidates then take seconds to minutes longer: for services and long lists of
                prompts. Without it, steps are recorded as CUDA graphs, which pays from the first image on.
            device: Where it runs; by default the GPU if there is one.
            dtype: Of the transformer's weights, torch.bfloat16 or torch.float32; by default bfloat16 where
                the device is faster with it.

        Returns:
            The generator.

        Raises:
            ClipgenError: Nothing usable is there; the message says what is missing.
        """
        if not isinstance(source, str | Path):
            raise ClipgenError(
                f"the model is of type {type(source).__name__}: give its folder or name as a text"
            )
        parts = read_parts(folder_of(str(source)))
        return cls(parts, compile=compile, device=device, dtype=dtype)

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> "TextToImage":
        """Move the generator to another device, or to another type of weights, by loading it again.

        Args:
            device, dtype: See `from_pretrained`. The present device if it is not named.

        Returns:
            The same generator. Images that are being generated meanwhile are finished as they began.

        Raises:
            ClipgenError: There is no such device, or a part of the model is gone.
        """
        if isinstance(device, torch.dtype):
            device, dtype = None, device
        place = usable(device or self.device)
        wanted = usable_dtype(dtype, place)
        if (place, wanted) != (str(self.device), self.dtype):
            loaded = type(self)(self.parts, compile=self.compile, device=place, dtype=wanted)
            vars(self).update(vars(loaded))
        return self

    @property
    def dtype(self) -> torch.dtype:
        """The type of the transformer's weights."""
        return self.transformer.codes.weight.dtype

    @refusing_unknown
    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        num_images_per_prompt: int = 1,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        seed: int = 0,
        output_type: OutputType = "pil",
        callback_on_step_end: OnStepEnd | None = None,
        progress_bar: bool = False,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        candidates: int | None = None,
        condition: Condition | None = None,
        neighbours: int | None = None,
        neighbour_temperature: float | None = None,
    ) -> Images:
        """Generate images, with the names of diffusers' pipelines.

        Args:
            prompt: A prompt, or several.
            num_images_per_prompt: `n` of `generate`.
            num_inference_steps: `steps` of `generate`.
            guidance_scale, seed: See `generate`.
            output_type: "pil" for PIL images, "np" for float32 arrays [h, w, 3], "pt" for float32 tensors
                [3, h, w], both in [0, 1].
            callback_on_step_end: Called after each step with the generator, the number of the step from 0,
                the number of known codes of an image in the mean, and {"codes": codes} as `on_step` of
                `generate_scored` gets them. What it returns is ignored; an error that it raises ends the
                sampling.
            progress_bar: Whether to show the progress: a bar on a terminal, else log lines.
            temperature, top_k, top_p, candidates: See `generate`.
            condition, neighbours, neighbour_temperature: See `generate`.

        Returns:
            A list of all images, with `images`, `clip_scores` and `codes`.

        Raises:
            ClipgenError: As `generate`, or the output type is not known.
        """
        kind = checked_output_type(output_type)
        with track("sampling", self.transformer.positions, "codes", shown=progress_bar) as meter:
            rows = self.generate_scored(
                prompt,
                num_images_per_prompt,
                seed,
                on_step=told(self, callback_on_step_end, meter),
                steps=num_inference_steps,
                guidance_scale=guidance_scale,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                candidates=candidates,
                condition=condition,
                neighbours=neighbours,
                neighbour_temperature=neighbour_temperature,
            )
        return Images(rows, kind)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a self-contained generator: weights, CLIP and embeddings table.

        Args:
            folder: A new or empty folder, which gets exact copies; one that holds this generator already is
                left as it is. Or a file `NAME.clipgen`, as `clipgen export` writes it.

        Raises:
            ClipgenError: It is a file, holds something else, or cannot be written.
        """
        if not isinstance(folder, str | Path):
            raise ClipgenError(f"the folder is of type {type(folder).__name__}: give its path as a text")
        if Path(folder).suffix == ENDINGS[0]:
            export_file(self.parts, str(folder), name=Path(folder).stem)
        else:
            copy_parts(self.parts, Path(folder))

    @refusing_unknown
    def generate(
        self,
        prompts: str | Sequence[str],
        n: int = 1,
        seed: int = 0,
        *,
        steps: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        guidance_scale: float | None = None,
        candidates: int | None = None,
        condition: Condition | None = None,
        neighbours: int | None = None,
        neighbour_temperature: float | None = None,
    ) -> list[list[Image.Image]]:
        """Generate images for prompts.

        The same prompt and seed give the same images, whatever else is in the batch.
        Settings that are None take the model's defaults (`generator.parts.sampling`).
        A log line says which prompts are longer than CLIP reads; see `dropped_tokens`.

        Args:
            prompts: What the images should show, at most 1000 characters each; a string is one prompt.
            n: Images for each prompt.
            seed: Another seed gives other images.
            steps: In how many steps a model of any order generates; fewer are faster. 0: its default.
            temperature: Divides the logits; lower is safer, higher is more varied, 0 ignores the seed.
            top_k: Sample from the k likeliest codes only; 0 for all.
            top_p: Sample from the fewest codes that hold this probability; 1 for all.
            guidance_scale: Strength of classifier-free guidance; higher follows the prompt more, 1 is off.
            candidates: Images sampled for each one returned; CLIP keeps the best.
            condition: What stands for the prompt: its `text` embedding; that `shifted` by the difference of
                the mean text and image embeddings; by `retrieval` the mean of the nearest image embeddings;
                or the `nearest` ones in turn, one a candidate.
            neighbours: How many of the nearest image embeddings are used.
            neighbour_temperature: Of the softmax over their cosines that weighs the mean.

        Returns:
            For each prompt `n` RGB images, the best CLIP score first.

        Raises:
            ClipgenError: A prompt, the seed or a setting is not allowed, or too many are requested at once.
        """
        rows = self.generate_scored(
            prompts,
            n,
            seed,
            steps=steps,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            guidance_scale=guidance_scale,
            candidates=candidates,
            condition=condition,
            neighbours=neighbours,
            neighbour_temperature=neighbour_temperature,
        )
        return [[one.image for one in row] for row in rows]

    @refusing_unknown
    def generate_scored(
        self,
        prompts: str | Sequence[str],
        n: int = 1,
        seed: int = 0,
        *,
        on_step: OnStep | None = None,
        steps: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        guidance_scale: float | None = None,
        candidates: int | None = None,
        condition: Condition | None = None,
        neighbours: int | None = None,
        neighbour_temperature: float | None = None,
    ) -> list[list[requests.Generated]]:
        """Generate images with their CLIP scores and codes; see `generate`.

        Args:
            prompts, n, seed: See `generate`.
            on_step: Called after each step with the codes of all candidates so far, int64 [rows, t], -1 where
                there is none yet; an error that it raises ends the sampling. Candidates that do not fit into
                memory begin when others are complete.
            steps, temperature, top_k, top_p, guidance_scale, candidates: See `generate`.
            condition, neighbours, neighbour_temperature: See `generate`.

        Returns:
            For each prompt `n` generated images, the best CLIP score first.

        Raises:
            ClipgenError: As `generate`.
        """
        prompts, seed = requests.checked_prompts(prompts), requests.checked_seed(seed)
        config = self.parts.sampling.override(
            steps=steps,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            guidance_scale=guidance_scale,
            candidates=candidates,
            condition=condition,
            neighbours=neighbours,
            neighbour_temperature=neighbour_temperature,
        )
        n = requests.checked_count(n, config)
        asked = Request(prompts, *self.of_texts(prompts, config), n, seed, config)
        return self.sample(asked, on_step=on_step)
