"""The models that a server offers: their names, and the few of them that are loaded.

Knows where models are and how they are loaded; knows nothing of requests.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from clipgen_core import logs
from clipgen_core.errors import ClipgenError
from clipgen_core.generation.generator import TextToImage
from clipgen_core.generation.parts import read_parts
from clipgen_core.generation.sources import HUB, end_of, folder_of
from clipgen_core.generation.worker import elsewhere
from clipgen_core.registry.candidates import CANDIDATE
from clipgen_core.registry.champions import CHAMPION_ALIAS, MODEL, promoted_under
from clipgen_core.schema import TokenManifest
from clipgen_core.storage import Storage, last_root
from clipgen_core.tracking import default_uri, describe
from clipgen_core.training.checkpoint import Checkpoint

LOADED_MODELS = 2
LOOKED_UP = 30.0  # seconds for which the version that an alias names is taken to be the same
REGISTERED = "models:/"


def available_models(root: str | None) -> list[str]:
    """The models of a root and the registry's champion, as far as they are available.

    Args:
        root: The root; that of the last training by default.

    Returns:
        Sources for `TextToImage.from_pretrained`, at least one: champions and candidates of the models that
        the root promoted, its newest checkpoint, and those of MODEL if another root promoted them.

    Raises:
        ClipgenError: No model is available.
    """
    out = Storage(root or last_root("transformer"))
    own = promoted_under(out)
    models = _registered(own)
    if own and not models:
        logs.line(
            f"{', '.join(own)} has a champion, but not in the MLflow at {default_uri()}: set "
            "MLFLOW_TRACKING_URI, or start in the folder of the training; the newest checkpoint is offered"
        )
    with suppress(ClipgenError):
        models.append(out.current("transformer", "serving").path)
    models += _registered({MODEL}.difference(own))
    if not models:
        raise ClipgenError("no model is available: run `make demo`, or name one with -m")
    return models


def _registered(names: Iterable[str]) -> list[str]:
    models = []
    for model in (f"{REGISTERED}{name}@{alias}" for name in names for alias in (CHAMPION_ALIAS, CANDIDATE)):
        with suppress(ClipgenError):
            describe(model)
            models.append(model)
    return models


def require_available(sources: Sequence[str]) -> None:
    """Refuse models that do not exist, before a port is taken; those of the Hub are looked up later.

    Raises:
        ClipgenError: One is not at its address, or not in the registry.
    """
    for source in sources:
        if source.startswith(REGISTERED):
            describe(source)
        elif not source.startswith(HUB):
            read_parts(folder_of(source))


@dataclass(frozen=True)
class Served:
    """A model of the server: its name for clients, where it is, and the side of its images in pixels."""

    name: str
    source: str
    side: int

    @property
    def size(self) -> str:
        return f"{self.side}x{self.side}"


class Lazy:
    """A generator that is loaded by the first thread that needs it, while others wait for it."""

    def __init__(self, address: str) -> None:
        self._address, self._loading = address, threading.Lock()
        self._generator: TextToImage | None = None

    def get(self) -> TextToImage:
        with self._loading:
            if self._generator is None:
                self._generator = elsewhere(lambda: TextToImage.from_pretrained(self._address))
            return self._generator


class Models:
    """The models of a server, of which the LOADED_MODELS used last are in memory.

    Args:
        sources: For `TextToImage.from_pretrained`, the default model first. Each is loaded once, so that one
            that is missing or damaged is found before the first request.

    Raises:
        ClipgenError: One cannot be loaded.
    """

    def __init__(self, sources: Sequence[str]) -> None:
        self._lock = threading.Lock()
        self._lazy: OrderedDict[str, Lazy] = OrderedDict()
        self._versions: dict[str, tuple[str, float]] = {}
        self._images: dict[str, str] = {}
        sources = list(dict.fromkeys(sources))
        names = names_of(sources)
        offered = [Served(name, source, 0) for name, source in zip(names, sources, strict=True)]
        self.served = {one.name: one for one in offered}
        for one in reversed(offered):
            self.load(one)
        self.default = names[0]

    def find(self, name: str | None) -> Served:
        """The model of this name, or of the version that it has now; the default one if None.

        Raises:
            ClipgenError: There is none.
        """
        name = self.default if name is None else name
        if name not in self.served and name.startswith(REGISTERED):  # as an image says where it is from
            name = next((one for one, served in self.served.items() if self.origin(served) == name), name)
        if name not in self.served:
            raise ClipgenError(f"there is no model {name!r}: choose {', '.join(self.served)}, or none")
        return self.served[name]

    def load(self, model: Served) -> TextToImage:
        """The model in memory; of an alias of the registry, the version that it names now.

        Raises:
            ClipgenError: It is there no longer, or damaged.
        """
        address = self._address(model.source)
        with self._lock:
            lazy = self._lazy.setdefault(address, Lazy(address))
            self._lazy.move_to_end(address)
            while len(self._lazy) > LOADED_MODELS:
                self._lazy.popitem(last=False)
        generator = lazy.get()
        self.served[model.name] = replace(model, side=generator.vqgan.config.image_size)
        return generator

    def origin(self, model: Served) -> str:
        """What images say they are from: the version of the registry, or the model's name.

        Raises:
            ClipgenError: The registry does not say which version it is.
        """
        address = self._address(model.source)
        return address if address.startswith(REGISTERED) else model.name

    def images(self, model: Served) -> str:
        """The images table that a model was trained on, which may be gone; "" if that is unknown."""
        address = self._address(model.source)
        if address not in self._images:
            if address.startswith(REGISTERED):
                with suppress(ClipgenError):  # the registry does not answer: it is asked again
                    self._images[address] = describe(address).get("images", "")
            else:
                codes = Checkpoint(self.load(model).parts.transformer).codes
                self._images[address] = codes.images if isinstance(codes, TokenManifest) else ""
        return self._images.get(address, "")

    def _address(self, source: str) -> str:
        """Where a source is now: an alias is looked up again after LOOKED_UP seconds."""
        if not source.startswith(REGISTERED) or "@" not in source:
            return source
        address, since = self._versions.get(source, ("", -LOOKED_UP))
        if time.monotonic() - since < LOOKED_UP:
            return address
        try:
            address = f"{source.partition('@')[0]}/{describe(source)['version']}"
        except ClipgenError as error:
            if not address:
                raise
            logs.line(f"{source} stays {address}: {error}")
        self._versions[source] = address, time.monotonic()
        return address


def names_of(sources: Sequence[str]) -> list[str]:
    """Names for clients, who learn no more of the server's folders than tells the models apart.

    Args:
        sources: Of models, each another.

    Returns:
        Registered models by their address, others by the end of their path; that of a checkpoint `step-N` has
        the name of its training in it.
    """
    paths = [one for one in sources if not one.startswith(REGISTERED)]
    depth = 1
    while len({end_of(one, depth) for one in paths}) < len(paths):
        depth += 1
    return [end_of(one, depth) if one in paths else one for one in sources]
