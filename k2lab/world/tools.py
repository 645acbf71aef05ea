"""A world that tools can ask: an in-memory SQLite shop, weather, units, dates, a queue and so on.

Every call counts, so a seeded fault can strike the n-th one: an error, a wrong value, or words of
somebody else in the result. The queue is not in the database: its next number is known only by
taking it. Only `order` changes the shop. Tools may run in any thread, one at a time.
"""

import datetime
import re
import sqlite3
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from threading import Lock
from types import MappingProxyType, TracebackType
from typing import ParamSpec, Self

from k2lab.agent.tools import Tool, tool
from k2lab.errors import InputError
from k2lab.text.messages import without_surrogates
from k2lab.world.calculator import calculate
from k2lab.world.facts import CITIES, INVOICES, ITEMS, MONTHS, UNITS, facts


@dataclass(frozen=True, slots=True)
class Wrong:
    """A wrong value: the call gives back this text and does nothing."""

    text: str
    why: str  # what shows that it cannot be right


@dataclass(frozen=True, slots=True)
class Hostile:
    """Somebody else's words: they follow the true result."""

    text: str


Fault = str | Wrong | Hostile
"""What can befall a call; a string is the text of an error, such as `timeout`."""

NO_FAULTS: Mapping[int, Fault] = MappingProxyType({})
ROWS = 20
"""Rows that one query returns at most."""

COMMON_YEAR = 2025
"""The year in which dates are counted: any without 29 February."""

STEPS = 200_000
"""Steps of SQLite's virtual machine that one query may take."""

LONGEST, LONGEST_PATTERN = 2_000, 40
"""Bytes of a value, and of a pattern of LIKE: one step matches the one with the other, and is not
interrupted meanwhile."""

READING = frozenset({sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION})

Arguments = ParamSpec("Arguments")


class World:
    """The world of one seed. `faults` maps the number of a call (from 0) to what befalls it."""

    def __init__(
        self,
        seed: int,
        *,
        faults: Mapping[int, Fault] = NO_FAULTS,
        queue: Sequence[int] | None = None,
    ) -> None:
        known = facts(seed)
        self._known = known
        self.seed = seed
        self.faults = dict(faults)
        self.calls = 0
        self.struck = 0  # faults that were met so far
        self._queue = list(known.queue if queue is None else queue)
        self._lock = Lock()
        self._database = sqlite3.connect(
            ":memory:", check_same_thread=False, isolation_level=None, cached_statements=16
        )
        self._close = weakref.finalize(self, self._database.close)
        self._database.executescript(
            "CREATE TABLE items (name TEXT PRIMARY KEY, price INTEGER, stock INTEGER);"
            "CREATE TABLE cities (name TEXT PRIMARY KEY, sky TEXT, temperature INTEGER);"
            "CREATE TABLE makers (item TEXT PRIMARY KEY, maker TEXT);"
            "CREATE TABLE homes (maker TEXT PRIMARY KEY, city TEXT);"
            "CREATE TABLE orders (item TEXT, count INTEGER);"
            "BEGIN"
        )
        self._database.executemany(
            "INSERT INTO items VALUES (?, ?, ?)",
            [(name, known.prices[name], known.stocks[name]) for name in ITEMS],
        )
        self._database.executemany(
            "INSERT INTO cities VALUES (?, ?, ?)",
            [(name, known.skies[name], known.temperatures[name]) for name in CITIES],
        )
        self._database.executemany("INSERT INTO makers VALUES (?, ?)", known.makers.items())
        self._database.executemany("INSERT INTO homes VALUES (?, ?)", known.homes.items())
        self._database.execute("COMMIT")
        self._database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LONGEST)
        self._database.setlimit(sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH, LONGEST_PATTERN)
        self._database.set_authorizer(_only_reading)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"World(seed={self.seed})"

    def close(self) -> None:
        """Close the database; a second time does nothing."""
        self._close()

    @property
    def orders(self) -> tuple[tuple[str, int], ...]:
        """What was ordered, in the order of the items' names."""
        with self._lock:
            rows = self._database.execute("SELECT item, count FROM orders ORDER BY item, count")
            return tuple((str(item), int(count)) for item, count in rows)

    def tools(self) -> list[Tool]:
        """The tools of this world, in the order in which they are declared."""
        functions: tuple[Callable[..., str], ...] = (
            self.calc,
            self.stock,
            self.price,
            self.weather,
            self.convert,
            self.next_item,
            self.sql,
            self.maker,
            self.home,
            self.invoice,
            self.date,
            self.order,
        )
        return [tool(self._counted(function)) for function in functions]

    def calc(self, expression: str) -> str:
        """Compute an expression of whole numbers, + - * // and brackets."""
        return str(calculate(expression))

    def stock(self, item: str) -> str:
        """How many pieces of an item the shop has."""
        return self._one("SELECT stock FROM items WHERE name = ? COLLATE NOCASE", item)

    def price(self, item: str) -> str:
        """The price of one piece of an item in coins."""
        return self._one("SELECT price FROM items WHERE name = ? COLLATE NOCASE", item)

    def weather(self, city: str) -> str:
        """The sky and the temperature in degrees in a city."""
        return self._one(
            "SELECT sky || ' ' || temperature FROM cities WHERE name = ? COLLATE NOCASE", city
        )

    def convert(self, value: int, unit: str, to: str) -> str:
        """A value in another unit: km, m, cm, mm, kg, g, days, hours, minutes, seconds."""
        if unit not in UNITS or to not in UNITS or UNITS[unit][0] != UNITS[to][0]:
            raise InputError(
                f"cannot convert {unit} to {to}",
                expected=f"Two units of one dimension out of {', '.join(UNITS)}.",
                mend="Name other units.",
            )
        result = value * UNITS[unit][1] / UNITS[to][1]
        if result.denominator == 1:
            return str(result.numerator)
        whole, millionths = divmod(abs(round(result * 10**6)), 10**6)  # exact, as no float is
        return f"{'-' * (result < 0)}{whole}.{millionths:06d}".rstrip("0")

    def next_item(self) -> str:
        """Take the next number from the queue, or done when the queue is empty."""
        with self._lock:
            return str(self._queue.pop(0)) if self._queue else "done"

    def sql(self, query: str) -> str:
        """Read with SQL: items (name, price, stock), cities (name, sky, temperature)."""
        with self._lock:
            self._database.set_progress_handler(lambda: 1, STEPS)
            try:
                rows = self._database.execute(without_surrogates(query)).fetchmany(ROWS)
            except (sqlite3.Error, sqlite3.Warning) as error:
                raise InputError(
                    f"cannot read with this query: {error}",
                    expected="One SELECT over the tables items and cities.",
                    mend="Correct the query.",
                ) from error
            finally:
                self._database.set_progress_handler(None, 0)
        return "; ".join(", ".join(str(value) for value in row) for row in rows) or "no rows"

    def maker(self, item: str) -> str:
        """Who makes an item."""
        return self._one("SELECT maker FROM makers WHERE item = ? COLLATE NOCASE", item)

    def home(self, maker: str) -> str:
        """The city of a maker."""
        return self._one("SELECT city FROM homes WHERE maker = ? COLLATE NOCASE", maker)

    def invoice(self, number: int) -> str:
        """What an invoice is for: how many pieces of which item."""
        if number not in INVOICES:
            raise InputError(
                f"there is no invoice {number}",
                expected=f"A number from {INVOICES.start} to {INVOICES.stop - 1}.",
                mend="Ask for another number.",
            )
        count, item = self._known.invoice(number)
        return f"{count} x {item}"

    def date(self, day: str, add: int) -> str:
        """The date some days after (or before, if negative) a date such as March 15."""
        found = re.fullmatch(r"([A-Za-z]+) (\d{1,2})", day.strip())
        try:
            month = MONTHS.index(found[1].capitalize()) + 1 if found else 0
            start = datetime.date(COMMON_YEAR, month, int(found[2]) if found else 0)
            later = start + datetime.timedelta(days=add)
        except (ValueError, OverflowError) as error:
            raise InputError(
                f"cannot count {add} days from {day[:40]}",
                expected="A month and a day, such as March 15, and a whole number of days.",
                mend="Correct the date.",
            ) from error
        return f"{MONTHS[later.month - 1]} {later.day}"

    def order(self, item: str, count: int) -> str:
        """Order pieces of an item; the stock gets smaller by as many."""
        stock = int(self.stock(item))
        if not 0 < count <= stock:
            raise InputError(
                f"cannot order {count} {item}, the stock is {stock}",
                expected="At least one piece, and no more than the stock.",
                mend="Order another number.",
            )
        with self._lock:
            self._database.set_authorizer(None)
            try:
                name = self._database.execute(
                    "UPDATE items SET stock = stock - ? WHERE name = ? COLLATE NOCASE "
                    "AND stock >= ? RETURNING name",
                    (count, item, count),
                ).fetchone()
                if name is not None:
                    self._database.execute("INSERT INTO orders VALUES (?, ?)", (name[0], count))
            finally:
                self._database.set_authorizer(_only_reading)
        if name is None:  # another thread was quicker
            raise InputError(
                f"cannot order {count} {item}, the stock has changed",
                expected="No more pieces than the stock.",
                mend="Check the stock and order again.",
            )
        return f"ordered {count} {name[0]}"

    def _one(self, query: str, name: str) -> str:
        with self._lock:
            # cut, it still is longer than any name that is there
            row = self._database.execute(query, (without_surrogates(name)[:100],)).fetchone()
        if row is None:
            raise InputError(
                f"{name[:40]} is unknown",
                expected="A name that is in the database.",
                mend="Ask for another name.",
            )
        return str(row[0])

    def _counted(self, function: Callable[Arguments, str]) -> Callable[Arguments, str]:
        """The function behind the counter of calls, with this world's faults."""

        @wraps(function)
        def counted(*args: Arguments.args, **kwargs: Arguments.kwargs) -> str:
            with self._lock:
                fault = self.faults.get(self.calls)
                self.calls += 1
                self.struck += fault is not None
            match fault:
                case str():
                    raise TimeoutError(fault)
                case Wrong():
                    return fault.text
                case Hostile():
                    return f"{function(*args, **kwargs)}. {fault.text}"
                case None:
                    return function(*args, **kwargs)

        return counted


def _only_reading(
    action: int, first: str | None, second: str | None, database: str | None, trigger: str | None
) -> int:
    """SQLite's authorizer: reading is allowed, everything else refused, recursion included."""
    return sqlite3.SQLITE_OK if action in READING else sqlite3.SQLITE_DENY
