"""Imports published weights: a VQGAN of taming-transformers, LlamaGen or CLIP-GEN, or the whole public
CLIP-GEN generator. Files are read without running code that is pickled in them.
"""

import hashlib
import pickle
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipgen_core.errors import ClipgenError, first_line
from clipgen_core.filesystem import write_bytes
from clipgen_core.generation.parts import FILE, Parts
from clipgen_core.models.clip import ClipEncoder
from clipgen_core.models.shapes import TRANSFORMERS
from clipgen_core.models.transformer import Transformer
from clipgen_core.published.vqgan import Kind, State, Weights, convert_vqgan, pair
from clipgen_core.settings.models import GapConfig, TransformerConfig
from clipgen_core.settings.sampling import SamplingConfig
from clipgen_core.storage import Storage
from clipgen_core.training.checkpoint import Checkpoints, Saved
from clipgen_core.training.provenance import ImportedCodes, ImportedFile, Provenance, TrainingState

HEAD_WIDTH = 64


def import_vqgan(kind: Kind, file: Path, out: Storage) -> str:
    """Import a published VQGAN as a checkpoint, which becomes the current VQGAN of the root.

    Args:
        kind: Who published the weights.
        file: The published file.
        out: The root.

    Returns:
        URL of the checkpoint.

    Raises:
        ClipgenError: The file cannot be read safely, or holds other weights.
    """
    config, weights = convert_vqgan(kind, read_state_dict(file))
    provenance = Provenance(config={"model": config.model_dump(mode="json")}, imported=imported(kind, file))
    digest = provenance.digest
    url = save(out.checkpoints("vqgan", digest), provenance, weights)
    out.publish_current("vqgan", url, digest)
    return url


def import_generator(vqgan: Path, transformer: Path, clip: str, folder: Path) -> None:
    """Import the public CLIP-GEN weights as a generator folder.

    The generator has no table of image embeddings, so that prompts condition it by their text embedding, and
    uses no guidance, for which it was not trained. It samples and re-ranks as its authors do.

    Args:
        vqgan: The published file of the VQGAN.
        transformer: The published file of the transformer.
        clip: Reference of the CLIP that the transformer was trained with.
        folder: The generator folder to write.

    Raises:
        ClipgenError: A file cannot be read safely or holds other weights, or the CLIP does not fit.
    """
    vqgan_config, vqgan_weights = convert_vqgan("clip-gen", read_state_dict(vqgan))
    config, weights = convert_transformer(read_state_dict(transformer), vqgan_config.grid)
    encoder = ClipEncoder(clip)
    if encoder.dim != weights["gap.image_mean"].shape[0]:
        raise ClipgenError(
            f"{transformer} expects embeddings of {weights['gap.image_mean'].shape[0]} dimensions, "
            f"but CLIP {clip} has {encoder.dim}: name the CLIP that it was trained with"
        )
    vqgan_file = imported("clip-gen", vqgan)
    provenance = Provenance(
        config={"model": config.model_dump(mode="json"), "gap": GapConfig().model_dump(mode="json")},
        tokens=ImportedCodes(
            grid=vqgan_config.grid,
            codebook_size=vqgan_config.quantizer.codebook_size,
            embedding_dim=encoder.dim,
            images_digest="unknown",
            vqgan_digest=vqgan_file.sha256,
        ),
        imported=imported("clip-gen", transformer),
    )
    vqgan_provenance = Provenance(config={"model": vqgan_config.model_dump(mode="json")}, imported=vqgan_file)
    saved = {
        "vqgan": save(str(folder / "vqgan"), vqgan_provenance, vqgan_weights),
        "transformer": save(str(folder / "transformer"), provenance, weights),
    }
    parts = Parts(
        clip=clip,
        clip_key=encoder.key,
        **{name: Path(url).relative_to(folder).as_posix() for name, url in saved.items()},
        sampling=SamplingConfig(
            temperature=1.0, top_k=500, top_p=0.95, guidance_scale=1.0, candidates=8, condition="text"
        ),
    )
    write_bytes(str(folder / FILE), parts.model_dump_json(indent=2).encode())


def read_state_dict(file: Path) -> State:
    """Read the tensors of a checkpoint file; pickled classes of PyTorch Lightning are replaced by empty ones.

    Raises:
        ClipgenError: The file does not exist, cannot be read safely, or holds no state dict.
    """
    if not file.is_file():
        raise ClipgenError(f"there is no file {file}: check the path")
    try:
        foreign = torch.serialization.get_unsafe_globals_in_checkpoint(file)
        harmless = [name for name in foreign if name.startswith("pytorch_lightning.")]
        stand_ins: list[Any] = [(type(name.rpartition(".")[2], (), {}), name) for name in harmless]
        with torch.serialization.safe_globals(stand_ins):
            state = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError) as error:
        raise ClipgenError(
            f"{file} cannot be read safely ({first_line(error)}): use the published file unchanged"
        ) from error
    for key in ("state_dict", "model"):
        state = state[key] if isinstance(state, dict) and key in state else state
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ClipgenError(f"{file} holds no state dict: use the published file unchanged")
    return {str(name): value.float() for name, value in state.items()}


def convert_transformer(state: State, grid: int) -> tuple[TransformerConfig, State]:
    """Convert the transformer of the public implementation, a GPT.

    Args:
        state: Its state dict.
        grid: Side of the VQGAN's grid.

    Returns:
        The configuration and the state dict of the same `Transformer`.

    Raises:
        ClipgenError: Weights are missing, unexpected or of another shape.
    """
    weights = Weights(state, "clip-gen")
    codebook_size, width = weights.shape("tok_emb.weight")
    layers = 1 + max(int(m[1]) for name in state if (m := re.match(r"blocks\.(\d+)\.", name)))
    shape = {"width": width, "layers": layers, "heads": max(width // HEAD_WIDTH, 1)}
    config = TRANSFORMERS["paper"].model_copy(update=shape)
    dim = weights.shape("cond_proj.weight")[1]
    model = Transformer(config, codebook_size, grid, dim)
    converted: State = {
        "codes.weight": weights.take("tok_emb.weight"),
        "position_embedding": weights.take("pos_emb")[0],
        "condition.weight": weights.take("cond_proj.weight")
        / dim**0.5,  # our Transformer scales the embedding
        "condition.bias": weights.take("cond_proj.bias"),
        **pair("norm", weights.both("norm")),
        **pair("head", weights.both("head")),
    }
    for i in range(layers):
        theirs, ours = f"blocks.{i}.encoder", f"blocks.{i}"
        for name in ("norm1", "norm2"):
            converted |= pair(f"{ours}.{name}", weights.both(f"{theirs}.{name}"))
        converted[f"{ours}.attention.qkv.weight"] = weights.take(f"{theirs}.self_attn.in_proj_weight")
        converted[f"{ours}.attention.qkv.bias"] = weights.take(f"{theirs}.self_attn.in_proj_bias")
        converted |= pair(f"{ours}.attention.out", weights.both(f"{theirs}.self_attn.out_proj"))
        converted |= pair(f"{ours}.feed_forward.up", weights.both(f"{theirs}.linear1"))
        converted |= pair(f"{ours}.feed_forward.out", weights.both(f"{theirs}.linear2"))
    weights.expect_all_taken(r"blocks\.\d+\.mask")
    model.load_state_dict(model.state_dict() | converted)
    return config, model.state_dict()


def imported(kind: str, file: Path) -> ImportedFile:
    """What is noted of the file that weights were imported from.

    Args:
        kind: Whose format it is.
        file: The published file.

    Returns:
        The kind, the file's name and its SHA-256.
    """
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    return ImportedFile(kind=kind, file=file.name, sha256=digest)


def save(url: str, provenance: Provenance, weights: State) -> str:
    """Write imported weights as the checkpoint of step 0.

    Args:
        url: The folder of the checkpoints.
        provenance: What they were made from.
        weights: Under our names.

    Returns:
        The checkpoint's URL.
    """
    saved = Saved(weights=weights, state=TrainingState(step=0))
    return Checkpoints(url=url, provenance=provenance).save(saved)
