"""The models that a server offers: their names, and the few of them that are loaded.

Knows where models are and how they are loaded; knows nothing of requests.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePosixPath

from clipgen_core.errors import ClipgenError
from clipgen_core.generation.generator import TextToImage
from clipgen_core.registry.champions import CANDIDATE, CHAMPION_ALIAS, MODEL
from clipgen_core.storage import Storage, last_root
from clipgen_core.tracking import describe

LOADED_MODELS = 2
REGISTERED = "models:/"


def available_models(root: str | None) -> list[str]:
    """The registry's champion and candidate and the newest local checkpoint, as far as they are available.

    Args:
        root: The root that holds the checkpoint; that of the last training by default.

    Returns:
        Sources for `TextToImage.from_pretrained`, at least one.

    Raises:
        ClipgenError: No model is available.
    """
    models = []
    for alias in (CHAMPION_ALIAS, CANDIDATE):
        try:
            describe(f"{REGISTERED}{MODEL}@{alias}")
            models.append(f"{REGISTERED}{MODEL}@{alias}")
        except ClipgenError:
            continue
    try:
        models.append(Storage(root or last_root("transformer")).current("transformer", "serving").path)
    except ClipgenError:
        if not models:
            raise ClipgenError("no model is available: run `make demo`, or name one with -m") from None
    return models


@dataclass(frozen=True)
class Served:
    """A model of the server: its name for clients, where it is, and the side of its images in pixels."""

    name: str
    source: str
    side: int

    @property
    def size(self) -> str:
        return f"{self.side}x{self.side}"


class Models:
    """The models of a server, of which the LOADED_MODELS used last are in memory.

    Args:
        sources: For `TextToImage.from_pretrained`, the default model first. Each is loaded once, so that one
            that is missing or damaged is found before the first request.

    Raises:
        ClipgenError: One cannot be loaded.
    """

    def __init__(self, sources: Sequence[str]) -> None:
        self._loaded = lru_cache(LOADED_MODELS)(TextToImage.from_pretrained)
        self._one_at_a_time = threading.Lock()
        sources = list(dict.fromkeys(sources))
        sides = {one: self._load(one).vqgan.config.image_size for one in reversed(sources)}
        names = names_of(sources)
        self.served = {name: Served(name, one, sides[one]) for name, one in zip(names, sources, strict=True)}
        self.default = self.served[names[0]]

    def find(self, name: str | None) -> Served:
        """The model of this name, the default one if None.

        Raises:
            ClipgenError: There is none.
        """
        if name is None:
            return self.default
        if name not in self.served:
            raise ClipgenError(f"there is no model {name!r}: choose {', '.join(self.served)}, or none")
        return self.served[name]

    def load(self, model: Served) -> TextToImage:
        """The model in memory.

        Raises:
            ClipgenError: It is there no longer, or damaged.
        """
        return self._load(model.source)

    def _load(self, source: str) -> TextToImage:
        with self._one_at_a_time:
            return self._loaded(source)


def names_of(sources: Sequence[str]) -> list[str]:
    """Names for clients, who learn no more of the server's folders than tells the models apart.

    Args:
        sources: Of models, each another.

    Returns:
        Registered models by their address, others by the end of their path.
    """
    parts = {one: PurePosixPath(one).parts for one in sources if not one.startswith(REGISTERED)}
    depth = 1
    while len({ends[-depth:] for ends in parts.values()}) < len(parts):
        depth += 1
    return ["/".join(parts[one][-depth:]) if one in parts else one for one in sources]
