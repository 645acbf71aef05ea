"""Tools over a person's own data: reading a SQLite file, and searching a library of documents.

Both only read. What they give back was written by somebody, so it is not trusted.
"""

import re
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Annotated

from k2lab.agent.library import Library
from k2lab.agent.tools import Tool, tool
from k2lab.errors import InputError, MissingError

ROWS = 50  # of one query
STEPS = 5_000_000  # of SQLite's virtual machine that a query may take
BYTES = 1_000_000  # of one value

READING = frozenset(
    {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
)


def database(path: str | Path, name: str = "sql") -> Tool:
    """A tool that reads a SQLite file; its description lists tables and columns."""
    file = Path(path)
    if not file.is_file():
        raise MissingError(
            f"There is no database {file}.",
            expected="a SQLite file.",
            mend="Correct the path.",
        )
    with closing(_opened(file)) as connection:
        tables = _tables(connection, file)

    def sql(query: Annotated[str, "one SELECT"]) -> str:
        with closing(_opened(file)) as connection:
            connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, BYTES)
            connection.set_authorizer(_only_reading)
            connection.set_progress_handler(lambda: 1, STEPS)
            try:
                rows = connection.execute(query).fetchmany(ROWS + 1)
            except (sqlite3.Error, sqlite3.Warning) as error:
                raise InputError(
                    f"cannot read with this query: {error}",
                    expected=f"one SELECT over {tables}.",
                    mend="Correct the query.",
                ) from error
        lines = [", ".join(str(value) for value in row) for row in rows[:ROWS]]
        return "\n".join([*lines, *(["…"] if len(rows) > ROWS else [])]) or "no rows"

    sql.__name__ = name
    sql.__doc__ = f"Read with SQL, at most {ROWS} rows: {tables}."
    return tool(sql, effect="reads")


def search(library: Library, name: str = "search", k: int = 3) -> Tool:
    """A tool that finds passages in a library; each has its citation in brackets."""

    def look(query: Annotated[str, "words to look for"]) -> str:
        hits = library.search(query, k)
        return "\n".join(f"[{each.citation}] {each.text}" for each in hits) or "nothing found"

    look.__name__ = name
    look.__doc__ = "Search the documents; cite what you use by its brackets."
    return tool(look, effect="reads")


def shipped() -> Library:
    """A library in memory of the documents that come with k2lab, about Kimi K2 Thinking."""
    from k2lab.paths import asset

    library = Library()
    library.add_folder(asset("library"))
    return library


def _opened(file: Path) -> sqlite3.Connection:
    # Read-only by the file as well as by the authorizer; a `?` in a name is not a parameter.
    address = f"{file.resolve().as_uri()}?mode=ro"
    return sqlite3.connect(address, uri=True, check_same_thread=False)


def _tables(connection: sqlite3.Connection, file: Path) -> str:
    try:
        names = connection.execute(
            "SELECT name FROM sqlite_master WHERE type IN ('table', 'view') "
            "AND name NOT LIKE 'sqlite_%' ORDER BY name"
        ).fetchall()
        found = []
        for (name,) in names:
            quoted = re.sub('"', '""', name)
            columns = connection.execute(f'PRAGMA table_info("{quoted}")').fetchall()
            found.append(f"{name} ({', '.join(str(each[1]) for each in columns)})")
    except sqlite3.DatabaseError as error:
        raise InputError(
            f"{file} cannot be read: {error}.",
            expected="a SQLite file.",
            mend="Name another file.",
        ) from error
    return ", ".join(found) or "no tables"


def _only_reading(action: int, *_: object) -> int:
    return sqlite3.SQLITE_OK if action in READING else sqlite3.SQLITE_DENY
