"""Log lines on stderr: text for people, or JSON with the ids of the run that they belong to.

CLIPGEN_LOG=json selects JSON. Ids are bound around a run; a process that the run starts reads them from
CLIPGEN_RUN_IDS.
"""

import json
import os
import sys
from typing import Any

import structlog
from structlog.contextvars import bind_contextvars, bound_contextvars, get_contextvars

RUN_IDS = "CLIPGEN_RUN_IDS"

bound = bound_contextvars


def line(text: str, **fields: Any) -> None:
    """Write a log line to stderr.

    Args:
        text: The line, or the JSON field `event`.
        fields: Further JSON fields; left out of text lines.
    """
    if os.environ.get("CLIPGEN_LOG") == "json":
        _json().info(text, **fields)
    else:
        print(text, file=sys.stderr, flush=True)


def for_children() -> dict[str, str]:
    """Environment variables that give the bound ids to a child process."""
    return {RUN_IDS: json.dumps(get_contextvars())}


def take_over() -> None:
    """Bind the ids that the parent process gave by `for_children`."""
    bind_contextvars(**json.loads(os.environ.get(RUN_IDS, "{}")))


def _json() -> Any:
    return structlog.wrap_logger(
        structlog.PrintLogger(sys.stderr),
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(),
        ],
    )
