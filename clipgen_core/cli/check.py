"""`clipgen check`: find in seconds what would stop a run after hours."""

from typing import Annotated

import typer
from rich.text import Text

from clipgen_core.cli.options import BAD_INPUT, Command, app, console
from clipgen_core.errors import ClipgenError

COLOURS = {"ok": "green", "warning": "yellow", "problem": "red"}


@app.command(cls=Command)
def check(
    config: Annotated[
        list[str], typer.Argument(help="Run configs, as `dagster job execute -c` takes them; the last wins.")
    ],
    job: Annotated[
        str | None,
        typer.Option(
            "--job", "-j", help="The job; by default clip_training for its own config, else clip_gen."
        ),
    ] = None,
) -> None:
    """Check what a run needs before it starts: settings, inputs, models, disk, memory, MLflow and Ray.

    Exit code 2 if there is a problem. A job's first step does the same.
    """
    from clipgen_core.assets import JOBS
    from clipgen_core.config_files import read_files, with_deployed
    from clipgen_core.preflight import findings
    from clipgen_core.run_config import job_of, read_run
    from clipgen_core.settings.catalogue import suggestion

    read = read_files(config)
    job = job or job_of(read)
    if job not in JOBS:
        raise ClipgenError(
            f"there is no job {job!r}{suggestion(job, JOBS) or ': take one of ' + ', '.join(JOBS)}"
        )
    problems = 0
    for one in findings(read_run(with_deployed(read, JOBS[job]), JOBS[job])):
        console.print(Text(f"{one.status:8}", style=COLOURS[one.status]), f"{one.check:10}", one.text)
        problems += one.status == "problem"
    if problems:
        console.print(f"{problems} problem{'s' * (problems > 1)}: {job} would fail")
        raise typer.Exit(BAD_INPUT)
