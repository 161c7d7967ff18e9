"""Lines about work that goes on: for people, or as JSON with the ids of the run they belong to.

CLIPGEN_LOG=json asks for JSON. Ids are bound around a run; a process that the run starts takes them over from
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
    """Say `text` on stderr; as JSON, `fields` beside it."""
    if os.environ.get("CLIPGEN_LOG") == "json":
        _json().info(text, **fields)
    else:
        print(text, file=sys.stderr, flush=True)


def for_children() -> dict[str, str]:
    """Environment for processes that work for this one."""
    return {RUN_IDS: json.dumps(get_contextvars())}


def take_over() -> None:
    """Bind the ids that the starting process gave."""
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
