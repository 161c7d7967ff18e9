"""One module a stage: images, clip, embeddings, vqgan, tokens, transformer, evaluation.

Each has a frozen Config, a Result and run(). Stages never import each other: they meet in the
files that `clipgen_core.schema` describes.
"""
