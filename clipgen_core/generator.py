"""The earlier place of TextToImage: models registered with version 0.1 carry code that imports it here."""

from clipgen_core.generation.generator import TextToImage as TextToImage
