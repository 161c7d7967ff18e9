"""Examples of prompts, from what training images show. Knows captions and file names, not the page."""

from clipgen_core.data.filenames import words_of
from clipgen_core.serving.browse import Root

READ = 2000  # training images
LONGEST = 5  # words


def examples_of(root: Root | None, count: int) -> list[str]:
    """Captions of training images or, where they have none, the words of their files' names.

    Args:
        root: That a model was trained under, if it is available.
        count: How many at most.

    Returns:
        Short texts, each another; none if the images table is not available.
    """
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
