"""Names of files and of members of archives as keys: text that Arrow can hold, each of them once."""

from collections import Counter


def text_of(name: str) -> str:
    r"""A name that Arrow and JSON can hold, whatever bytes it had: others are written as `\udce4`."""
    return name if name.isascii() else name.encode("utf-8", "backslashreplace").decode()


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
