"""clipgen_core: language-free text-to-image training (CLIP-GEN, arXiv:2203.00386) as plain functions.

>>> from clipgen_core import TextToImage
>>> TextToImage.from_pretrained("models:/clip-gen@champion").generate(["a red heart"])[0][0].save("heart.png")

Knows PyTorch, Arrow and Lance; knows nothing of Dagster. Start reading at `stages/`.
"""

from typing import TYPE_CHECKING, Any

from clipgen_core.errors import ClipgenError

if TYPE_CHECKING:
    from clipgen_core.generation.generator import TextToImage

__all__ = ["ClipgenError", "TextToImage", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """TextToImage on first use: importing the package loads no PyTorch (PEP 562)."""
    if name != "TextToImage":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from clipgen_core.generation.generator import TextToImage

    return TextToImage
