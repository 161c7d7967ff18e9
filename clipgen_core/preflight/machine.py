"""Checks of where a run writes and trains: the root, its disk, and the memory of this machine."""

import itertools
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from clipgen_core import filesystem
from clipgen_core.assets import ASSETS
from clipgen_core.data.sources import Source
from clipgen_core.errors import ClipgenError, first_line
from clipgen_core.preflight.begun import begun
from clipgen_core.preflight.doubt import Doubt
from clipgen_core.run_config import Run
from clipgen_core.storage import Storage
from clipgen_core.stores import without_credentials

ROOT = "resources.storage.config.root"
LISTING_SECONDS = 5.0
EMBEDDING_DIM = 512  # of the transformer, whose size hardly depends on it
TRAININGS = frozenset({"clip_checkpoint", "vqgan_checkpoint", "transformer_checkpoint"})
ELSEWHERE = ("kubernetes", "ray")  # executors whose steps run on other machines


def root(run: Run) -> str:
    """Whether the root can be written to."""
    url = Storage(run.root).root
    try:
        if filesystem.is_local(url):
            with tempfile.NamedTemporaryFile(dir=existing(url, ROOT)):
                pass
        else:
            probe = f"{url.rstrip('/')}/.probe-{uuid.uuid4().hex}"
            filesystem.write_bytes(probe, b"")
            store, path = filesystem.url_to_fs(probe)
            filesystem.retried(store.rm_file, path)
    except ClipgenError:
        raise
    except Exception as error:
        if without_credentials(error):
            raise
        raise ClipgenError(
            f"the root {url} cannot be written to ({first_line(error)}): check its address and permissions, "
            f"or set {ROOT}"
        ) from error
    return url


def existing(path: str, setting: str) -> Path:
    """The folder itself, or the nearest of those above it that exists.

    Args:
        path: The folder.
        setting: What names it, for the message.

    Returns:
        A folder.

    Raises:
        ClipgenError: A file is in the way.
    """
    local = Path(path)
    nearest = next(one for one in (local, *local.parents) if one.exists())
    if not nearest.is_dir():
        raise ClipgenError(f"{nearest} is a file, so {path} cannot be a folder: choose another {setting}")
    return nearest


def disk(run: Run) -> str:
    """Whether the root's disk holds a copy of the images, and the checkpoints."""
    url = Storage(run.root).root
    if not filesystem.is_local(url):
        return ""
    images, all_listed = _image_bytes(run) if {"raw_images", "folder_images"} & run.assets else (0, True)
    needed = images + _checkpoint_bytes(run)
    free = shutil.disk_usage(existing(url, ROOT)).free
    atleast = "" if all_listed else "at least "
    said = f"the images and checkpoints need {atleast}{needed / 1e9:.2g} GB of {free / 1e9:.2g} GB free"
    if needed > free:
        raise ClipgenError(f"{said} at {url}: make room, or choose another root")
    if needed > 0.8 * free:
        raise Doubt(f"{said} at {url}: make room")
    return said


def _image_bytes(run: Run) -> tuple[int, bool]:
    """Bytes of the images that are not ingested yet, and whether all files could be listed in time."""
    source = run.resources["images"]["source"]
    referenced = run.recipe.images.store == "references"
    if not source or referenced or filesystem.exists(Storage(run.root).images):
        return 0, True
    until, size = time.monotonic() + LISTING_SECONDS, 0
    try:
        files = Source(str(source)).files()
    except ClipgenError:  # which the check of the images says
        return 0, True
    for file in itertools.takewhile(lambda _: time.monotonic() < until, files):
        size += file.size
    return size, next(files, None) is None


def _checkpoint_bytes(run: Run) -> int:
    """Bytes of the checkpoints still to write: those of trainings that may go on are there already."""
    needed = 0
    for name, parameters in parameter_counts(run):
        whole = getattr(run.recipe, ASSETS[name].stage).train.checkpoint_bytes(parameters)
        stored = max((_size(one.newest.url.rpartition("/")[0]) for one in begun(run, name)), default=0)
        needed += max(whole - stored, 0)
    return needed


def _size(folder: str) -> int:
    return sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())


def parameter_counts(run: Run) -> Iterator[tuple[str, int]]:
    """The parameters of each model that the run trains, without allocating them."""
    import torch

    from clipgen_core.models.transformer import Transformer
    from clipgen_core.models.vqgan import Vqgan

    def clip() -> torch.nn.Module:
        import open_clip

        return open_clip.CLIP(**run.recipe.clip.open_clip_config())

    recipe, shape = run.recipe, run.recipe.vqgan.model
    make = {
        "clip_checkpoint": clip,
        "vqgan_checkpoint": lambda: Vqgan(shape),
        "transformer_checkpoint": lambda: Transformer(
            recipe.transformer.model, shape.quantizer.codebook_size, shape.grid, EMBEDDING_DIM
        ),
    }
    for name in sorted(make.keys() & run.assets):
        with torch.device("meta"):
            yield name, sum(parameter.numel() for parameter in make[name]().parameters())


def processes(run: Run) -> str:
    """Whether a batch can be divided among the processes: on Ray, among any number that there may be."""
    counts = []
    for name in sorted(TRAININGS & run.assets):
        own, train = run.own[name], getattr(run.recipe, ASSETS[name].stage).train
        most = own.get("processes", 1)
        least = own.get("min_processes") or most
        if least > most or (least < most and own.get("workers_on") != "ray"):
            raise ClipgenError(
                f"{name}: min_processes is {least}: set it to at most {most}, which processes is, and "
                "workers_on to ray"
            )
        try:
            for count in range(least, most + 1):
                train.passes(count)
        except ClipgenError as error:
            raise ClipgenError(f"{name}: {error}") from None
        counts += [f"{most} for {name}"] if most > 1 else []
    return ", ".join(counts)


def memory(run: Run) -> str:
    """Whether weights, gradients and optimizer fit this machine; what a batch needs comes on top."""
    import torch

    if os.environ.get("CLIPGEN_EXECUTOR") in ELSEWHERE:
        return ""
    available = _memory()
    needs = {}
    for name, parameters in parameter_counts(run):
        train, own = getattr(run.recipe, ASSETS[name].stage).train, run.own[name]
        shards = own.get("processes", 1) if train.parallel == "fsdp" else 1
        if own.get("workers_on") != "ray":
            needs[name] = parameters * train.bytes_per_parameter / shards
    if not needs:
        return ""
    largest = max(needs, key=lambda name: needs[name])
    where = "GPU memory" if torch.cuda.is_available() else "memory"
    said = (
        f"the weights, gradients and optimizer of {largest} need {needs[largest] / 1e9:.2g} GB of "
        f"{available / 1e9:.2g} GB of {where}"
    )
    if needs[largest] > available:
        raise ClipgenError(f"{said}: choose a smaller recipe, or a larger machine")
    if needs[largest] > 0.5 * available:
        raise Doubt(f"{said}, and a batch comes on top")
    return said


def _memory() -> int:
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(0).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
