"""MLflow without a server: a folder that can be copied or moved as a root can.

MLflow stores the addresses of artifacts in full, and has no setting against that. Knows the columns of its
database that hold them; knows nothing of what is tracked.
"""

import sqlite3
from contextlib import closing
from pathlib import Path

SQLITE = "sqlite:///"
ARTIFACTS = "artifacts"  # the folder beside the database
COLUMNS = (  # table, column
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
    ("model_versions", "source"),
)


def follow(tracking_uri: str) -> None:
    """Let a database that lies beside its artifacts name these, if it was copied or moved together with them.

    Args:
        tracking_uri: The address of MLflow; nothing is done unless it is that of a SQLite file.
    """
    database = Path(tracking_uri.removeprefix(SQLITE)).absolute()
    own = database.parent / ARTIFACTS
    if not tracking_uri.startswith(SQLITE) or not database.is_file() or not own.is_dir():
        return
    with closing(sqlite3.connect(database)) as connection, connection:
        for old in _earlier_places(connection, own):
            for table, column in _columns(connection):
                connection.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                    f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                    (f"file://{own}", len(old) + 1, old, len(old) + 1, f"{old}/"),
                )


def _columns(connection: sqlite3.Connection) -> list[tuple[str, str]]:
    """Those of COLUMNS that this version of MLflow has."""
    there = connection.execute("SELECT t.name, c.name FROM sqlite_master t, pragma_table_info(t.name) c")
    return sorted(set(COLUMNS) & set(there))


def _earlier_places(connection: sqlite3.Connection, own: Path) -> list[str]:
    """Folders that the database names, though the artifacts of their runs lie in its own folder."""
    if COLUMNS[0] not in _columns(connection):
        return []  # MLflow has not used it yet
    where = "artifact_location LIKE 'file://%' AND artifact_location != ?"
    rows = connection.execute(
        f"SELECT artifact_location, run_uuid FROM experiments JOIN runs USING (experiment_id) WHERE {where}",
        (f"file://{own}",),
    )
    return sorted({place for place, run in rows if place.endswith(f"/{ARTIFACTS}") and (own / run).is_dir()})
