"""Families of several calls in the shop: look-ups that need each other, SQL, and orders.

An order changes the world, and the state afterwards is graded too.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations
from types import MappingProxyType

from k2lab.world.draw import Draft, Draw
from k2lab.world.expectation import Expectation
from k2lab.world.facts import CITIES, INVOICES, ITEMS, SKIES, Facts, facts
from k2lab.world.split import pair_key
from k2lab.world.teacher import Ask, Conversation, need


def lookup(draw: Draw) -> Draft:
    """A later call needs the result of an earlier one."""
    kind = draw.rng.choice(("city", "weather", "invoice"))
    return {"city": _maker_city, "weather": _maker_weather, "invoice": _invoice}[kind](draw)


def _maker_city(draw: Draw) -> Draft:
    item, phrasing = draw.named("lookup.city", ITEMS)

    def solve(conversation: Conversation, known: Facts) -> Expectation:
        city = _home(conversation, item, f"Lookup task. Need maker of {item}, then city.")
        conversation.answer(f"The city is {city}.", f"{city} is the city of the maker of {item}.")
        maker = known.makers[item]
        return Expectation(topics=(known.homes[maker], item, maker))

    return draw.solve(phrasing.format(item=item), solve, draw.seed())


def _maker_weather(draw: Draw) -> Draft:
    item, phrasing = draw.named("lookup.weather", ITEMS)

    def solve(conversation: Conversation, known: Facts) -> Expectation:
        thought = f"Lookup task. Need maker of {item}, then city, then weather."
        city = _home(conversation, item, thought)
        asks = [Ask(f"weather of {city}", "weather", {"city": city})]
        (text,) = conversation.ask(f"The city is {city}. {need(asks)}", asks)
        sky, degrees = text.split()
        conversation.answer(f"It is {text}.", f"It is {sky} with {degrees} degrees in {city}.")
        place = known.homes[known.makers[item]]
        return Expectation(
            results=(known.temperatures[place],),
            topics=(place, item, known.makers[item]),
            words=(known.skies[place], place),
        )

    return draw.solve(phrasing.format(item=item), solve, draw.seed())


def _home(conversation: Conversation, item: str, thought: str) -> str:
    """The city of an item's maker, after two calls."""
    (maker,) = conversation.ask(thought, [Ask(f"maker of {item}", "maker", {"item": item})])
    asks = [Ask(f"city of {maker}", "home", {"maker": maker})]
    (city,) = conversation.ask(f"The maker is {maker}. {need(asks)}", asks)
    return city


def _invoice(draw: Draw) -> Draft:
    number = draw.fresh(lambda: draw.rng.choice(INVOICES), lambda found: [f"invoice {found}"])

    def solve(conversation: Conversation, known: Facts) -> Expectation:
        asks = [Ask(f"invoice {number}", "invoice", {"number": number})]
        (text,) = conversation.ask(f"Lookup task. {need(asks)[:-1]}, then price.", asks)
        count, _, item = text.split()
        asks = [Ask(f"price of {item}", "price", {"item": item})]
        (coins,) = conversation.ask(f"It is {text}. {need(asks)}", asks)
        asks = [Ask(f"{count}*{coins}", "calc", {"expression": f"{count}*{coins}"})]
        (cost,) = conversation.ask(f"{text} at {coins}. {need(asks)}", asks)
        conversation.answer(f"It is {cost}.", f"Invoice {number} costs {cost} coins.")
        pieces, what = known.invoice(number)
        return Expectation(
            results=(pieces * known.prices[what],), mentions=(number,), topics=(what,)
        )

    question = draw.phrasing("lookup.invoice").format(number=number)
    return draw.solve(question, solve, draw.seed())


@dataclass(frozen=True, slots=True)
class _Query:
    """A kind of table question: how it is thought, its SQL, its answer, and its threshold."""

    thought: str
    sql: str
    answer: str
    low: int
    high: int
    truth: Callable[[Facts, int, str], tuple[int | str, ...]]  # all that the query may find


def _most(found: list[tuple[int, str]]) -> tuple[str, ...]:
    """The names with the largest value."""
    return tuple(name for value, name in found if value == max(found)[0])


QUERIES: Mapping[str, _Query] = MappingProxyType(
    {
        "dear": _Query(
            "Count items with price > {n}.",
            "SELECT COUNT(*) FROM items WHERE price > {n}",
            "The count is {found}.",
            5,
            95,
            lambda known, n, _: (sum(each > n for each in known.prices.values()),),
        ),
        "few": _Query(
            "Count items with stock < {n}.",
            "SELECT COUNT(*) FROM items WHERE stock < {n}",
            "The count is {found}.",
            5,
            95,
            lambda known, n, _: (sum(each < n for each in known.stocks.values()),),
        ),
        "sky": _Query(
            "Count cities with sky {sky} and temperature > {n}.",
            "SELECT COUNT(*) FROM cities WHERE sky = '{sky}' AND temperature > {n}",
            "The count is {found}.",
            4,
            38,
            lambda known, n, sky: (
                sum(known.skies[c] == sky and known.temperatures[c] > n for c in CITIES),
            ),
        ),
        "sum": _Query(
            "Sum stock of items with price < {n}.",
            "SELECT SUM(stock) FROM items WHERE price < {n}",
            "The total stock is {found}.",
            10,
            95,
            lambda known, n, _: (sum(known.stocks[i] for i in ITEMS if known.prices[i] < n),),
        ),
        "most": _Query(
            "Name of item with price < {n}, stock at the top.",
            "SELECT name FROM items WHERE price < {n} ORDER BY stock DESC LIMIT 1",
            "{found} has the largest stock.",
            10,
            95,
            lambda known, n, _: _most([(known.stocks[i], i) for i in ITEMS if known.prices[i] < n]),
        ),
        "cheap": _Query(
            "Name of item with stock > {n}, price at the bottom.",
            "SELECT name FROM items WHERE stock > {n} ORDER BY price LIMIT 1",
            "{found} is the cheapest.",
            5,
            90,
            lambda known, n, _: _most(
                [(-known.prices[i], i) for i in ITEMS if known.stocks[i] > n]
            ),
        ),
    }
)
"""Kind of table question → its query."""


def table(draw: Draw) -> Draft:
    """A question for which a small SQL query is written."""
    kind = draw.rng.choice(tuple(QUERIES))
    query = QUERIES[kind]
    n, sky = draw.fresh(
        lambda: (draw.rng.randint(query.low, query.high), draw.rng.choice(SKIES)),
        lambda found: [f"table {kind} {found[0]}"],
    )
    seed = draw.seed()
    while len(query.truth(facts(seed), n, sky)) != 1 or query.truth(facts(seed), n, sky) == (0,):
        seed = draw.seed()  # one answer, and more than nothing

    def solve(conversation: Conversation, known: Facts) -> Expectation:
        sql = query.sql.format(n=n, sky=sky)
        (found,) = conversation.ask(
            f"Table task. {query.thought.format(n=n, sky=sky)}",
            [Ask("the query", "sql", {"query": sql})],
        )
        conversation.answer(f"It is {found}.", query.answer.format(found=found))
        (right,) = query.truth(known, n, sky)
        if isinstance(right, str):
            return Expectation(topics=(right,))
        return Expectation(results=(right,))

    question = draw.phrasing(f"table.{kind}").format(n=n, sky=sky)
    return draw.solve(question, solve, seed)


def order(draw: Draw) -> Draft:
    """Check the stock, then order what there is enough of."""
    rng = draw.rng
    items = draw.fresh(
        lambda: rng.sample(ITEMS, rng.choice((2, 2, 3))),
        lambda found: [pair_key(*pair) for pair in combinations(found, 2)],
    )
    counts = [rng.randint(2, 9) for _ in items]
    parts = [f"{count} x {item}" for count, item in zip(counts, items, strict=True)]
    seed, short = draw.seed(), rng.random() < 0.4

    def enough(known: Facts) -> list[bool]:
        return [known.stocks[i] >= count for i, count in zip(items, counts, strict=True)]

    while short and all(enough(facts(seed))):
        seed = draw.seed()

    def solve(conversation: Conversation, known: Facts) -> Expectation:
        asks = [Ask(f"stock of {item}", "stock", {"item": item}) for item in items]
        stocks = conversation.ask(f"Order {' and '.join(parts)}. {need(asks)}", asks)
        wide = zip(parts, stocks, enough(known), strict=True)
        checks = [f"{part} of {have} {'enough' if ok else 'too few'}" for part, have, ok in wide]
        kept = [k for k, ok in enumerate(enough(known)) if ok]
        missing = [item for k, item in enumerate(items) if k not in kept]
        few = f" Too few {' and '.join(missing)}." if missing else ""
        thought = f"{', '.join(checks)}.{few}"
        if kept:
            listed = " and ".join(parts[k] for k in kept)
            conversation.ask(
                f"{thought} Need order of {listed}.",
                [
                    Ask(f"order of {parts[k]}", "order", {"item": items[k], "count": counts[k]})
                    for k in kept
                ],
            )
            thought = f"The order is done.{few}"
        done = [parts[k] for k in kept]
        sentences = [f"Ordered {' and '.join(done)}"] if done else []
        sentences += [f"Too few {' and '.join(missing)}"] if missing else []
        conversation.answer(thought, f"{'. '.join(sentences)}.")
        return Expectation(
            mentions=tuple(counts[k] for k in kept),
            topics=(*(items[k] for k in kept), *missing),
            words=(*(("ordered",) if done else ()), *(("few", *missing) if missing else ())),
            orders=tuple(sorted((items[k], counts[k]) for k in kept)),
        )

    return draw.solve(draw.phrasing("order").format(list=" and ".join(parts)), solve, seed)
