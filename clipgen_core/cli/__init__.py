"""The `clipgen` command line. Parses and prints; the work is elsewhere."""

import atexit
import gc
import os
import sys

from clipgen_core.cli import (
    check,
    data,
    edit,
    generate,
    models,
    plan,
    remove,
    serve,
    settings,
    stages,
    train,
    train_stage,
)
from clipgen_core.cli.options import BAD_INPUT, app

__all__ = [
    "app",
    "check",
    "data",
    "edit",
    "generate",
    "main",
    "models",
    "plan",
    "remove",
    "serve",
    "settings",
    "stages",
    "train",
    "train_stage",
]


def main() -> None:
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # a person waits
    atexit.register(gc.freeze)  # else Python looks through all objects: seconds after a model was loaded
    try:
        sys.exit(app())
    except SystemExit as end:
        if end.code == BAD_INPUT:  # threads may still wait for a store that is away
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(BAD_INPUT)
        raise
