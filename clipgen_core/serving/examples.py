"""Examples of prompts, from what training images show. Knows captions and file names, not the page."""

from clipgen_core.data.filenames import words_of
from clipgen_core.generation.generator import TextToImage
from clipgen_core.serving.browse import root_behind

READ = 2000  # training images
LONGEST = 5  # words


def examples_of(generator: TextToImage, count: int) -> list[str]:
    """Captions of training images or, where they have none, the words of their files' names.

    Args:
        generator: The model.
        count: How many at most.

    Returns:
        Short texts, each another; none if the images table is not available.
    """
    root = root_behind(generator)
    if root is None:
        return []
    named = [name for name in ("caption", "uri") if name in root.table.schema.names]
    texts = dict[str, None]()
    for row in root.table.to_table(columns=named, limit=READ).to_pylist():
        folder, file = f"/{row['uri']}".split("/")[-2:]
        words = (row.get("caption") or "").split() or words_of(file) or words_of(f"{folder}/{file}")
        if 0 < len(words) <= LONGEST:
            texts[" ".join(words)] = None
    return list(texts)[:: max(len(texts) // count, 1)][:count]
