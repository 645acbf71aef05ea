"""Tools over a person's own data: they read, and do nothing else."""

import sqlite3
from pathlib import Path

import pytest

from k2lab.agent.data import ROWS, database, search, shipped
from k2lab.agent.tools import call
from k2lab.errors import InputError, MissingError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "shop?mode=rw.db"  # a name that must not become a parameter
    made = sqlite3.connect(path)
    made.execute('CREATE TABLE items (name TEXT, "unit price" INTEGER)')
    made.executemany("INSERT INTO items VALUES (?, ?)", [(f"item {n}", n) for n in range(90)])
    made.commit()
    made.close()
    return path


def ask(path: Path, query: str) -> str:
    import json

    return call(database(path), json.dumps({"query": query})).content


def test_a_database_is_described_and_read(file: Path) -> None:
    made = database(file)
    assert made.description == f"Read with SQL, at most {ROWS} rows: items (name, unit price)."
    assert (made.name, made.effect, made.trusted) == ("sql", "reads", False)
    assert ask(file, 'SELECT name, "unit price" FROM items WHERE "unit price" = 7') == "item 7, 7"
    assert ask(file, "SELECT count(*) FROM items") == "90"
    assert ask(file, "SELECT * FROM items WHERE 0") == "no rows"
    assert ask(file, "SELECT * FROM items").count("\n") == ROWS


@pytest.mark.parametrize(
    "query",
    [
        "DELETE FROM items",
        "DROP TABLE items",
        "INSERT INTO items VALUES ('x', 1)",
        "PRAGMA writable_schema = 1",
        "ATTACH 'other.db' AS other",
        "SELECT 1; DELETE FROM items",
        "SELECT load_extension('x')",
        "VACUUM",
        "nonsense",
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n",
        "SELECT randomblob(100000000)",
    ],
)
def test_whatever_does_more_than_read_is_refused_in_words(query: str, file: Path) -> None:
    assert ask(file, query).startswith("error: cannot read with this query")
    assert ask(file, "SELECT count(*) FROM items") == "90"


def test_what_is_no_database_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingError):
        database(tmp_path / "nothing.db")
    (tmp_path / "text.db").write_text("not a database at all, whatever its name says" * 30)
    with pytest.raises(InputError):
        database(tmp_path / "text.db")


def test_the_shipped_documents_are_searched_with_citations() -> None:
    library = shipped()
    assert len(library) == 12
    found = call(search(library), '{"query": "how long is the context"}').content
    citation = found[1 : found.index("]")]
    assert citation.startswith("context.md:")
    assert "262,144 tokens" in library.cited(citation)
