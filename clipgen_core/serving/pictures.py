"""Pictures on the page: enlarged at a click, saved one by one or all at once, named by what they show.

Knows images and Gradio's HTML component; knows nothing of models. A picture travels as a data URL, so that no
file is written for it and no address shows a folder of the server.
"""

import base64
import io
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import gradio as gr
from PIL import Image

from clipgen_core.data.pixels import png_bytes

FILES = Path(__file__).with_name("page_files")
SMALL = 256  # pixels of the longest side of a training image
LONGEST_NAME = 60  # characters of a file's name
TEXT = {"type": "string"}
ONE = {"type": "object", "properties": {"src": TEXT, "alt": TEXT, "caption": TEXT, "file": TEXT}}
FIELDS = {"title": TEXT, "pictures": {"type": "array", "items": ONE}, "zip": TEXT}
SCHEMA = {"type": "array", "items": {"type": "object", "properties": FIELDS}}  # of a value


def pictures(label: str, elem_id: str, click: Literal["enlarge", "select"] = "enlarge") -> gr.HTML:
    """A component that shows groups of pictures, as `group` makes them.

    Args:
        label: What the page's API calls it.
        elem_id: Of the element.
        click: What a click on a picture does; `select` lets listeners know its `index`.

    Returns:
        The component, empty.
    """
    made = gr.HTML(
        [],
        label=label,
        html_template=(FILES / "pictures.html").read_text(),
        js_on_load=(FILES / f"{click}.js").read_text(),
        elem_id=elem_id,
        elem_classes=["pictures"],
    )
    # a subclass of a component would let Gradio write a .pyi file beside this one
    made.api_info = lambda: SCHEMA  # type: ignore[method-assign]
    return made


def picture(image: Image.Image, alt: str, caption: str = "", file: str = "") -> dict[str, str]:
    """One picture of a group.

    Args:
        image: The image, with the parameters to write into its file.
        alt: What it shows, for people who do not see it.
        caption: Shown below it.
        file: The name under which it can be saved; it cannot be if this is empty.

    Returns:
        What the page shows.
    """
    return {"src": _url("image/png", png_bytes(image)), "alt": alt, "caption": caption, "file": file}


def training_picture(image: Image.Image, alt: str, caption: str = "") -> dict[str, str]:
    """A small copy of a training image, which cannot be saved.

    Args:
        image: The image.
        alt: What it shows.
        caption: Shown below it.

    Returns:
        What the page shows.
    """
    small = image.copy()
    small.thumbnail((SMALL, SMALL))
    return picture(small, alt, caption)


def group(pictures: Sequence[dict[str, str]], title: str = "") -> dict[str, Any]:
    """Pictures under a title. Those that can be saved can be saved at once, as a zip file.

    Args:
        pictures: As `picture` returns them.
        title: The title; none if empty.

    Returns:
        What the page shows.
    """
    saved = [one for one in pictures if one["file"]]
    return {"title": title, "pictures": list(pictures), "zip": _zip(saved) if len(saved) > 1 else ""}


def file_name(label: str, seed: int, number: int) -> str:
    """The name under which a picture is saved.

    Args:
        label: What it shows.
        seed: Its seed.
        number: Counts the pictures of a request.

    Returns:
        A name that every file system takes.
    """
    words = re.sub(r"\W+", "-", label.lower()).strip("-")[:LONGEST_NAME]
    return f"{words or 'picture'}-seed-{seed}-{number}.png"


def _zip(pictures: Sequence[dict[str, str]]) -> str:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for one in pictures:
            archive.writestr(one["file"], base64.b64decode(one["src"].partition(",")[2]))
    return _url("application/zip", buffer.getvalue())


def _url(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
