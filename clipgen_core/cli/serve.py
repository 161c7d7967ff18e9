"""The command that serves models over HTTP."""

from pathlib import Path
from typing import Annotated

import typer

from clipgen_core.cli.options import Command, Models, Root, app


@app.command(cls=Command)
def serve(
    model: Models = None,
    root: Root = None,
    host: Annotated[str, typer.Option(help="The address to listen at.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="The port to listen at; 0 for a free one.")
    ] = 8000,
    token_file: Annotated[
        Path | None, typer.Option(help="A file with the token that clients must send as bearer token.")
    ] = None,
    waiting: Annotated[int, typer.Option(min=0, help="Requests that may wait; more are refused.")] = 32,
) -> None:
    """Serve models over HTTP, compatible with OpenAI's images API."""
    from clipgen_core.serving.models import available_models
    from clipgen_core.serving.server import serve

    serve(model or available_models(root), host=host, port=port, token_file=token_file, waiting=waiting)
