"""clipgen_core: language-free text-to-image training (CLIP-GEN, arXiv:2203.00386) as plain functions.

Knows PyTorch, Arrow and Lance; knows nothing of Dagster. Start reading at `stages/`.
"""

__version__ = "0.1.0"
