"""Adds the help of every command to the page "Command line" when the site is built."""

import re
from typing import Any

import typer
from typer.cli import get_docs_for_click

from clipgen_core.cli import app


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The page's text, followed by each command's usage, arguments and options."""
    if page.file.src_uri != "cli.md":
        return markdown
    group = typer.main.get_command(app)
    reference = get_docs_for_click(obj=group, ctx=typer.Context(group), name="clipgen")
    commands = reference[reference.index("\n## ") :]  # the page has its own title and overview
    return markdown + re.sub(r"^\* `--help`.*\n", "", commands, flags=re.M)
