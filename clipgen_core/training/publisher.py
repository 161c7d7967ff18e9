"""Publishes checkpoints in a thread of its own while the training goes on.

The first process copies the state to its memory, gathering shards tensor by tensor, and the training waits
for this copy alone: seconds for the 13 GB of the recipe `xl`. Writing the files and uploading them takes
minutes and happens here. A checkpoint still appears whole or not at all, since only `Checkpoints.save` gives
it its name.

torch.distributed.checkpoint would write shards from all processes at once. But weights are to be one
safetensors file, which other programs read, and a checkpoint is to be read by any number of processes; shards
would have to be joined on every storage, with a state between written and joined that a kill can leave
behind. Copying is fast enough, so they are not worth it.
"""

import threading
from typing import Self

from clipgen_core.training.checkpoint import Checkpoints, Saved


class Publisher:
    """Publishes one checkpoint at a time. As a context it waits for the last one, unless interrupted.

    Args:
        checkpoints: Where they are published.
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.checkpoints = checkpoints
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, saved: Saved) -> None:
        """Publish a checkpoint, after the one before.

        Args:
            saved: Its content, which nobody may change any more.
        """
        self.wait()
        self._thread = threading.Thread(target=self._publish, args=(saved,), daemon=True)
        self._thread.start()

    def _publish(self, saved: Saved) -> None:
        try:
            self.checkpoints.save(saved)
        except BaseException as error:
            self._error = error

    def wait(self) -> None:
        """Wait until the last checkpoint is published or has failed."""
        if self._thread:
            self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or not issubclass(kind, KeyboardInterrupt):
            self.wait()

    @property
    def error(self) -> BaseException | None:
        """What went wrong in the publishing that has ended."""
        return self._error
