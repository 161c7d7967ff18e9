"""A sample of an archive: its images, which wait for the metadata beside them. See WebDataset."""

from collections.abc import Iterable, Iterator
from typing import Any

from clipgen_core.data.columns import Columns, Unread, sample_of
from clipgen_core.data.member import Member

MOST = 64  # images of a sample that wait; archives that name all their files alike hold no samples


class Sample:
    """The members of an archive that belong together, one after the other.

    Args:
        columns: The metadata to keep.
        images: Images that are known already.
    """

    def __init__(self, columns: Columns, images: Iterable[Member] = ()) -> None:
        self.columns, self.images = columns, [*images]
        self.name, self.values, self.unread = "", dict[str, Any](), ""

    def ended_by(self, name: str) -> Iterator[Member]:
        """The images of the sample if a member does not belong to it, or if too many wait."""
        if sample_of(name) != self.name or len(self.images) >= MOST:
            yield from self.end()
            self.name = sample_of(name)

    def end(self) -> Iterator[Member]:
        """The images with their metadata; the sample is empty afterwards."""
        images, values, unread = self.images, self.values, self.unread
        self.images, self.values, self.unread = [], {}, ""
        said = values or unread
        yield from (one._replace(columns=values, unread=unread) if said else one for one in images)

    def takes(self, name: str, size: int) -> bool:
        """Whether a member holds metadata.

        Args:
            name: Its name.
            size: In bytes.

        Returns:
            Whether `add_file` takes it.
        """
        return self.columns.hold(name, size)

    def add_images(self, images: Iterable[Member]) -> None:
        """Add images to the sample."""
        self.images.extend(images)

    def add_file(self, name: str, data: bytes) -> None:
        """Add metadata; what JSON files say of a column counts.

        Args:
            name: Of the member.
            data: Its bytes.
        """
        try:
            values = self.columns.of_file(name, data)
        except Unread as error:
            self.unread = str(error)
            return
        self.values = self.values | values if name.lower().endswith("json") else values | self.values
