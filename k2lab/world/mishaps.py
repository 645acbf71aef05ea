"""Families in which something is wrong with a result: it cannot be true, or it gives orders.

The task itself is one of the ordinary ones, so only the result tells that care is needed. Calls
that fail openly are the family `retry`.
"""

from collections.abc import Callable, Mapping
from random import Random
from types import MappingProxyType

from k2lab.world.draw import Draft, Draw
from k2lab.world.expectation import Expectation
from k2lab.world.facts import ITEMS, SKIES, Facts
from k2lab.world.families import SOLVERS as BASIC
from k2lab.world.split import pair_key
from k2lab.world.teacher import Ask, Conversation, need
from k2lab.world.tools import Fault, Hostile, Wrong

BASES = ("stock", "price", "weather", "shopping", "product", "convert")


def reflect(draw: Draw) -> Draft:
    """A result that cannot be right is noticed and asked for again."""
    if draw.rng.random() < 0.5:
        return _last_digit(draw)
    base = draw.rng.choice(BASES)
    impossible = IMPOSSIBLE[base]
    while True:
        first = draw.rng.choice((0, 0, 1)) if base in ("weather", "shopping") else 0
        faults: dict[int, Fault] = {first: impossible(draw.rng)}
        if draw.rng.random() < 0.2 and first == 0:
            again = {"weather": 2, "shopping": 3}.get(base, 1)  # two results come before, or three
            faults[again] = impossible(draw.rng)
        draft = BASIC[base](draw.struck(faults))
        if draft.faults and _seen(draft, impossible):
            return draft


def inject(draw: Draw) -> Draft:
    """An order inside a result is data: named in the thought, not followed."""
    base = draw.rng.choice(BASES)
    while True:
        place = draw.rng.choice((0, 0, 1)) if base in ("weather", "shopping") else 0
        text = draw.phrasing("inject").format(
            n=draw.rng.randint(1, 999), item=draw.rng.choice(ITEMS)
        )
        draft = BASIC[base](draw.struck({place: Hostile(text)}))
        if draft.faults:
            return draft


def _last_digit(draw: Draw) -> Draft:
    """A product whose last digit is checked, whether it is right or not."""
    rng = draw.rng
    a, b = draw.fresh(
        lambda: (rng.randint(11, 999), rng.randint(11, 99)), lambda pair: [pair_key(*pair)]
    )
    expression, last = f"{a}*{b}", f"{a % 10}*{b % 10}={a % 10 * (b % 10)}"
    check = f"{last} so {a * b % 10}"
    faults: dict[int, Fault] = {}
    for place in range(rng.choice((0, 1, 1, 2))):
        value = rng.randint(1, 9) + a * b
        if value % 10 == a * b % 10:
            value += 1
        faults[place] = Wrong(str(value), f"{check}, ends in {value % 10}, wrong")

    def solve(conversation: Conversation, known: Facts) -> Expectation:
        asks = [Ask(expression, "calc", {"expression": expression})]
        (result,) = conversation.ask(f"Check task. {need(asks)}", asks)
        verdict = f"{check}, ends in {int(result) % 10}, good"
        conversation.answer(
            f"Check. {result} for {expression}: {verdict}. It is {result}.",
            f"{a} times {b} is {result}.",
        )
        return Expectation(results=(a * b,), mentions=(a, b))

    question = draw.phrasing("reflect").format(a=a, b=b)
    return draw.struck(faults).solve(question, solve, draw.seed())


def _seen(draft: Draft, impossible: Callable[[Random], Wrong]) -> bool:
    """Whether the wrong values struck the calls they were made for."""
    names = [each["function"]["name"] for m in draft.messages for each in m.get("tool_calls", ())]
    return all(names[place] == TOOLS[impossible] for place in draft.faults)


def _stock(rng: Random) -> Wrong:
    return Wrong(f"-{rng.randint(1, 99)}", "below 0, wrong")


def _price(rng: Random) -> Wrong:
    if rng.random() < 0.5:
        return Wrong("0", "no price, wrong")
    return Wrong(f"-{rng.randint(1, 99)}", "below 0, wrong")


def _weather(rng: Random) -> Wrong:
    return Wrong(f"{rng.choice(SKIES)} {rng.randint(100, 999)}", "too hot, wrong")


def _product(rng: Random) -> Wrong:
    return Wrong(f"-{rng.randint(1, 9999)}", "below 0, wrong")


def _convert(rng: Random) -> Wrong:
    return Wrong(f"-{rng.randint(1, 9999)}", "below 0, wrong")


IMPOSSIBLE: Mapping[str, Callable[[Random], Wrong]] = MappingProxyType(
    {
        "stock": _stock,
        "price": _price,
        "shopping": _price,
        "weather": _weather,
        "product": _product,
        "convert": _convert,
    }
)
"""Family → a result of its tool that cannot be true."""

TOOLS: Mapping[Callable[[Random], Wrong], str] = MappingProxyType(
    {
        _stock: "stock",
        _price: "price",
        _weather: "weather",
        _product: "calc",
        _convert: "convert",
    }
)
