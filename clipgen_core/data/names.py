"""Names of files and of members of archives as keys: text that Arrow can hold, each of them once."""

import os
from collections import Counter
from pathlib import Path


def text_of(name: str) -> str:
    r"""A name that Arrow and JSON can hold, whatever bytes it had: others are written as `\udce4`."""
    return name if name.isascii() else name.encode("utf-8", "backslashreplace").decode()


def local_path(name: str) -> str:
    """The absolute path of a local file or folder without `..`, which is the same from wherever it is named.
    Links in it are kept, except before a `..` that leads elsewhere."""
    given = Path(name).expanduser().absolute()
    plain = Path(os.path.normpath(given))
    return str(plain if not given.exists() or (plain.exists() and plain.samefile(given)) else given.resolve())


def uri_of(place: str) -> str:
    """The URI of a place that a person names: a URI, or a local file."""
    return text_of(place if "://" in place else f"file://{local_path(place)}")


class Unique:
    """Gives each name of an archive once: the second `a.png` becomes `a.png~2`."""

    def __init__(self) -> None:
        self.given = set[str]()
        self.counts = Counter[str]()

    def name(self, name: str) -> str:
        """A name as `text_of` gives it, with a number if it was given before."""
        text = made = text_of(name)
        while made in self.given:
            self.counts[text] += 1
            made = f"{text}~{self.counts[text] + 1}"
        self.given.add(made)
        return made
