"""Checks of what a run reads: images, captions, texts and prompts."""

import itertools
import os
import re
from collections.abc import Mapping, Sequence

import pyarrow as pa

from clipgen_core.data.captions import every_caption, read_captioned, require_captioned
from clipgen_core.data.columns import Columns
from clipgen_core.data.prompts import Prompt, by_split, read_prompts, read_texts, require_scorable
from clipgen_core.data.selection import require_chosen, require_condition
from clipgen_core.data.sources import File, Source
from clipgen_core.data.tables import find_table
from clipgen_core.errors import ClipgenError
from clipgen_core.preflight.doubt import Doubt
from clipgen_core.run_config import Run
from clipgen_core.schema import IMAGES
from clipgen_core.settings import images
from clipgen_core.settings.evaluation import Config
from clipgen_core.storage import Storage

LISTED = 1000  # files of the source
DECODED = 8  # images
OPENED = 64  # files, some of which may be no images


def source(run: Run) -> str:
    """Whether the source exists, and holds images that can be used."""
    url = run.resources["images"]["source"]
    if not url:
        raise ClipgenError("no images are given: set resources.images.config.source, or CLIPGEN_SOURCE")
    opened = Source(str(url))
    files = list(itertools.islice(opened.files(), LISTED))
    if not files:
        raise ClipgenError(f"the source folder {url} is empty: put images into it")
    tried, reasons = _tried(opened, files, run.recipe.images)
    if not tried:
        raise ClipgenError(f"no image was found in {url}, where {files[0].uri} is none: check the folder")
    if len(reasons) == tried:
        raise ClipgenError(
            f"none of the {tried} images tried of {url} can be used ({reasons[0]}): check the folder"
        )
    more = " or more" if len(files) == LISTED else ""
    said = f"{url} has {len(files)}{more} files"
    if reasons:
        raise Doubt(f"{said}, and {len(reasons)} of the {tried} tried cannot be used ({reasons[0]})")
    if len(files) < run.recipe.vqgan.train.batch_size and not any(map(opened.is_archive, files)):
        raise Doubt(f"{said}, fewer than one batch of the VQGAN ({run.recipe.vqgan.train.batch_size})")
    return said


def _tried(opened: Source, files: list[File], settings: images.Config) -> tuple[int, list[str]]:
    """How many images, spread over the files, were decoded, and why some cannot be used; one of an archive.

    Files that are no images, such as captions, count as nothing.
    """
    from clipgen_core.data.decode import decode
    from clipgen_core.data.examine import reference_to
    from clipgen_core.data.rejected import Rejected

    tried, reasons = 0, []
    for file in _spread(files):
        item = next(opened.items(file), None)
        if item is None:
            continue
        tried += 1
        try:
            if item.problem:
                raise Rejected("unreadable", item.problem)
            decoded = decode(item.data, settings)
            reference_to(settings, file, item, decoded)
        except Rejected as error:
            reasons.append(f"{file.uri}: {error}")
        if tried == DECODED:
            break
    return tried, reasons


def _spread(files: list[File]) -> list[File]:
    """At most OPENED files, of which the first ones are spread over all."""
    step = -(-len(files) // DECODED) or 1
    return [file for start in range(step) for file in files[start::step]][:OPENED]


def where(run: Run) -> str:
    """Whether the conditions on the images can be used, and whether they are alike."""
    vqgan, tokens = run.recipe.vqgan.where, run.recipe.tokens.where
    if not (vqgan or tokens):
        return ""
    table = find_table(Storage(run.root).images)
    fields = {field.name: field for field in (*IMAGES, *Columns(run.recipe.images).fields)}
    fields |= {field.name: field for field in table.schema} if table else {}
    read = table and table.count_rows() and not run.recipe.images.read_again
    new = fields.keys() - {*table.schema.names} if table else ()
    for setting, condition in (("vqgan.where", vqgan), ("tokens.where", tokens)):
        if condition:
            require_condition(pa.schema(fields.values()), condition, setting)
            if table and read and not any(re.search(rf"\b{re.escape(name)}\b", condition) for name in new):
                require_chosen(table, condition, setting)
    if vqgan != tokens:
        raise Doubt(
            f"vqgan.where is {vqgan!r} and tokens.where is {tokens!r}: the VQGAN is trained on other images "
            "than the transformer, unless you set both alike"
        )
    return f"both models are trained on the images where {tokens}"


def captions(run: Run) -> str:
    """Whether the captions can be read and differ, and their images exist."""
    import open_clip

    from clipgen_core.training.contrast import require_variety

    url = run.own["clip_checkpoint"].get("captions")
    if not url:
        raise ClipgenError("no captions are given: set clip_checkpoint's config captions")
    read = read_captioned(url)
    require_captioned(url, read)
    config, every = run.recipe.clip, every_caption(read)
    tokenizer = open_clip.SimpleTokenizer(context_length=config.context_length)
    variety = require_variety(url, every.values(), tokenizer, config.train.batch_size)
    if variety <= config.train.batch_size and 2 * variety < len(read):
        raise Doubt(f"{url} has only {variety} different captions for {len(read)} images: give them more")
    given, made = sum(len(one.captions) for one in read.values()), sum(map(len, every.values()))
    of_keywords = f", and {made - given} that join keywords" if made > given else ""
    return f"{url} has {given} captions of {len(read)} images{of_keywords}"


def texts(run: Run) -> str:
    """Whether the texts can be read, where there are any."""
    url = run.own["transformer_checkpoint"].get("texts")
    return f"{url} has {len(read_texts(url))} texts" if url else ""


def prompts(run: Run) -> str:
    """Whether the prompts can be scored, and are enough for a promotion."""
    url = run.own["evaluation_report"].get("prompts") or os.environ.get("CLIPGEN_PROMPTS")
    config = run.recipe.evaluation
    if not url:
        return f"none are named: {config.scored} classes of ImageNet that the images resemble are scored"
    read = read_prompts(url, config.prompt_images)
    require_scorable(url, read)
    splits = by_split(read)
    scored = sum(min(len(own), config.scored) for own in splits.values())
    least = config.thresholds.min_prompts
    if scored < least:
        said = (
            f"{scored} of the {sum(map(len, splits.values()))} prompts of {url} would be scored, too few for "
            f"the check enough_prompts: {_more_scored(splits, config)}, or lower "
            f"evaluation.thresholds.min_prompts, which is {least}"
        )
        trains_to_promote = {"transformer_checkpoint", "champion"} <= run.assets
        raise ClipgenError(said) if trains_to_promote else Doubt(said)
    return (
        f"{url} has {len(read)} prompts in {len(splits)} split{'s' * (len(splits) > 1)}, {scored} are scored"
    )


def _more_scored(splits: Mapping[str, Sequence[Prompt]], config: Config) -> str:
    """What to do so that enough prompts are scored: `scored` limits those of each split."""
    least = config.thresholds.min_prompts
    ways = []
    if sum(map(len, splits.values())) < least:
        ways.append("add prompts")
    if config.scored * len(splits) < least or not ways:
        ways.append(f"raise evaluation.scored, which is {config.scored}")
    return " and ".join(ways)


def reference(run: Run) -> str:
    """Whether the folder of held-out images holds some that can be used, where one is set."""
    url = run.recipe.evaluation.reference
    if not url:
        return ""
    from clipgen_core.data.decode import decode
    from clipgen_core.data.rejected import Rejected

    opened, usable = Source(url), 0
    files = list(itertools.islice(opened.files(), LISTED))
    for item in (next(opened.items(file), None) for file in _spread(files)):
        try:
            usable += item is not None and bool(decode(item.data))
        except Rejected as error:
            raise ClipgenError(
                f"evaluation.reference is {url}, where {item and item.uri} cannot be used ({error}): take it "
                "out"
            ) from error
    if not usable and len(files) <= OPENED:
        raise ClipgenError(f"evaluation.reference is {url}, which holds no image: put some into it")
    return f"evaluation.reference is {url}"
