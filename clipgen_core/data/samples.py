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
    """

    def __init__(self, columns: Columns) -> None:
        self.columns, self.name = columns, ""
        self.images, self.files = list[tuple[str, Member]](), dict[str, bytes]()

    def ended_by(self, name: str) -> Iterator[Member]:
        """The images of the sample if a member does not belong to it; the first of them if too many wait."""
        if sample_of(name) != self.name:
            yield from self.end()
            self.name = sample_of(name)
        elif len(self.images) >= MOST:
            yield from self._ready(MOST // 2)

    def end(self) -> Iterator[Member]:
        """The images with their metadata; the sample is empty afterwards."""
        yield from self._ready(len(self.images))
        self.files = {}

    def takes(self, name: str, size: int) -> bool:
        """Whether a member holds metadata.

        Args:
            name: Its name.
            size: In bytes.

        Returns:
            Whether `add_file` takes it.
        """
        return self.columns.hold(name, size)

    def add_images(self, name: str, images: Iterable[Member]) -> None:
        """Add images to the sample.

        Args:
            name: Of the member that they are.
            images: The images.
        """
        self.images.extend((name, one) for one in images)

    def add_file(self, name: str, data: bytes) -> None:
        """Add metadata.

        Args:
            name: Of the member.
            data: Its bytes.
        """
        self.files[name] = data

    def _ready(self, count: int) -> Iterator[Member]:
        """The first images, with their metadata."""
        names = [*self.files, *(name for name, _ in self.images)]
        beside = self.columns.beside(((name, 0) for name in names), samples=True)
        first, self.images = self.images[:count], self.images[count:]
        for name, image in first:
            yield with_metadata(image, self.columns, [(one, self.files[one]) for one in beside.get(name, ())])
        waited_for = {one for name, _ in self.images for one in beside.get(name, ())}
        self.files = {name: data for name, data in self.files.items() if name in waited_for}


def with_metadata(image: Member, columns: Columns, files: Iterable[tuple[str, bytes]]) -> Member:
    """An image with what the files beside it say.

    Args:
        image: The image.
        columns: The metadata to keep.
        files: Names and bytes, in the order in which their values count.

    Returns:
        The image with its metadata, or with the name of a file that cannot be read.
    """
    values, unread = dict[str, Any](), ""
    for name, data in files:
        try:
            values = columns.of_file(name, data) | values
        except Unread as error:
            unread = str(error)
    return image._replace(columns=values, unread=unread) if values or unread else image
