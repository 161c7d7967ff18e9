"""Imports published weights: a VQGAN, a transformer to start from, or the whole public CLIP-GEN generator."""

import hashlib
from pathlib import Path
from typing import NamedTuple

from clipgen_core.errors import ClipgenError
from clipgen_core.filesystem import write_bytes
from clipgen_core.generation.parts import FILE, Parts
from clipgen_core.models.clip import ClipEncoder
from clipgen_core.published.files import State
from clipgen_core.published.transformer import convert_clip_gen, convert_llamagen
from clipgen_core.published.vqgan import IMAGE_SIZE, Kind, convert_vqgan
from clipgen_core.published.weights import published
from clipgen_core.settings.models import GapConfig, TransformerConfig, VqganConfig
from clipgen_core.settings.sampling import SamplingConfig
from clipgen_core.storage import Storage, portable
from clipgen_core.training.checkpoint import Checkpoint, Checkpoints, Saved
from clipgen_core.training.provenance import ImportedCodes, ImportedFile, Provenance, TrainingState


class Imported(NamedTuple):
    """An imported checkpoint, and the architecture that a training which starts from it must have."""

    url: str
    model: VqganConfig | TransformerConfig


def import_vqgan(kind: Kind, file: Path, out: Storage, image_size: int = IMAGE_SIZE) -> Imported:
    """Import a published VQGAN as a checkpoint, which becomes the current VQGAN of the root.

    Args:
        kind: Who published the weights.
        file: The published file.
        out: The root.
        image_size: Side of the images that it will be used for, in pixels.

    Returns:
        The checkpoint.

    Raises:
        ClipgenError: The file cannot be read safely, or holds other weights.
    """
    config, weights = convert_vqgan(kind, published(kind, file), image_size)
    provenance = Provenance(config={"model": config.model_dump(mode="json")}, imported=imported(kind, file))
    digest = provenance.digest
    url = save(out.checkpoints("vqgan", digest), provenance, weights)
    out.publish_current("vqgan", url, digest)
    return Imported(url, config)


def import_transformer(file: Path, out: Storage, clip: str, heads: int | None = None) -> Imported:
    """Import a published transformer of LlamaGen, for the setting `transformer.start_from`.

    The current VQGAN of the root must be imported from LlamaGen: it tells the grid, and the transformer
    knows its codes alone. What is written is a generator folder, but the transformer follows no prompt before
    it is trained: it has not learned to read CLIP embeddings.

    Args:
        file: The published file.
        out: The root.
        clip: Reference of the CLIP that it will be trained with.
        heads: Attention heads; those of the published shape if None.

    Returns:
        The generator folder.

    Raises:
        ClipgenError: The file cannot be read safely or holds other weights, its heads are not known, or the
            current VQGAN is not LlamaGen's.
    """
    vqgan, encoder = out.current("vqgan", "the import of a transformer").path, ClipEncoder(clip)
    source, shape = Checkpoint(vqgan).provenance.imported, Checkpoint(vqgan).settings("model", VqganConfig)
    if source is None or source.kind != "llamagen":
        raise ClipgenError(
            f"the current VQGAN of {out.root} is not LlamaGen's, whose codes {file} was trained on: run "
            "clipgen import-vqgan llamagen first"
        )
    config, weights = convert_llamagen(published("llamagen-gpt", file), shape.grid, encoder.dim, heads)
    if (codes := len(weights["codes.weight"])) != shape.quantizer.codebook_size:
        raise ClipgenError(
            f"{file} knows {codes} codes, the current VQGAN of {out.root} has "
            f"{shape.quantizer.codebook_size}: import the VQGAN it was trained with"
        )
    provenance = _provenance(config, shape, encoder, source, imported("llamagen", file))
    folder = out.path("imported", f"transformer-{provenance.digest}")
    save(f"{folder}/transformer", provenance, weights)
    parts = Parts(
        clip=encoder.reference,
        clip_key=encoder.key,
        vqgan=vqgan,
        transformer="transformer/step-00000000",
        sampling=SamplingConfig(condition="text"),
    )
    write_bytes(f"{folder}/{FILE}", portable(parts, out.root).model_dump_json(indent=2).encode())
    return Imported(folder, config)


def import_generator(
    vqgan: Path, transformer: Path, clip: str, folder: Path, heads: int | None = None
) -> None:
    """Import the public CLIP-GEN weights as a generator folder.

    The generator has no table of image embeddings, so that prompts condition it by their text embedding, and
    uses no guidance, for which it was not trained. It samples and re-ranks as its authors do.

    Args:
        vqgan: The published file of the VQGAN.
        transformer: The published file of the transformer.
        clip: Reference of the CLIP that the transformer was trained with.
        folder: The generator folder to write.
        heads: Attention heads of the transformer; those of the published shape if None.

    Raises:
        ClipgenError: A file cannot be read safely or holds other weights, or the CLIP does not fit.
    """
    vqgan_config, vqgan_weights = convert_vqgan("clip-gen", published("clip-gen", vqgan))
    config, weights = convert_clip_gen(published("clip-gen-gpt", transformer), vqgan_config.grid, heads)
    encoder = ClipEncoder(clip)
    if encoder.dim != weights["gap.image_mean"].shape[0]:
        raise ClipgenError(
            f"{transformer} expects embeddings of {weights['gap.image_mean'].shape[0]} dimensions, "
            f"but CLIP {clip} has {encoder.dim}: name the CLIP that it was trained with"
        )
    vqgan_file = imported("clip-gen", vqgan)
    provenance = _provenance(config, vqgan_config, encoder, vqgan_file, imported("clip-gen", transformer))
    vqgan_provenance = Provenance(config={"model": vqgan_config.model_dump(mode="json")}, imported=vqgan_file)
    saved = {
        "vqgan": save(str(folder / "vqgan"), vqgan_provenance, vqgan_weights),
        "transformer": save(str(folder / "transformer"), provenance, weights),
    }
    parts = Parts(
        clip=encoder.reference,
        clip_key=encoder.key,
        **{name: Path(url).relative_to(folder).as_posix() for name, url in saved.items()},
        sampling=SamplingConfig(
            temperature=1.0, top_k=500, top_p=0.95, guidance_scale=1.0, candidates=8, condition="text"
        ),
    )
    write_bytes(str(folder / FILE), parts.model_dump_json(indent=2).encode())


def _provenance(
    config: TransformerConfig,
    vqgan: VqganConfig,
    encoder: ClipEncoder,
    vqgan_file: ImportedFile,
    transformer_file: ImportedFile,
) -> Provenance:
    """What is noted of an imported transformer and of the codes that it was trained on."""
    return Provenance(
        config={"model": config.model_dump(mode="json"), "gap": GapConfig().model_dump(mode="json")},
        tokens=ImportedCodes(
            grid=vqgan.grid,
            codebook_size=vqgan.quantizer.codebook_size,
            embedding_dim=encoder.dim,
            images_digest="unknown",
            vqgan_digest=vqgan_file.sha256,
        ),
        imported=transformer_file,
    )


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
