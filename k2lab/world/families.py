"""The families of tasks: each draws a question, lets the teacher solve it, and says what is right.

A family is a function from a `Draw` (random numbers, the split and its rules) to a `Draft`.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from random import Random
from types import MappingProxyType

from k2lab.world.arithmetic import addition, comparison, extreme, ordering, running, subtraction
from k2lab.world.draw import Draft, Draw
from k2lab.world.expectation import Expectation
from k2lab.world.facts import CITIES, ITEMS, UNITS, Facts, facts
from k2lab.world.phrases import ANIMALS, COUNTRIES, PERSONS, PHRASINGS, TITLES
from k2lab.world.split import pair_key
from k2lab.world.teacher import Ask, Conversation, need

LARGEST = 999_999
"""The largest value in a conversion: long rows of zeros are a task of their own."""

UNKNOWN = "I do not know that, it is outside my small world."
ABOUT = "I am a small model, I know numbers, a shop, the weather, units and a queue."
SUBJECTS = ("stock", "price", "cost", "costs", "coins", "degrees", "weather", "queue")
"""Words that say what a number counts; a number of something else is not the answer."""

MONEY = ("price", "cost", "costs", "coins")
HEAT = ("degrees", "weather")

TROUBLES: tuple[str, ...] = ("timeout", "busy", "no answer", "connection lost")


def total(draw: Draw) -> Draft:
    def candidate() -> tuple[int, int]:
        while (pair := (draw.number(), draw.number())) and sum(pair) > 9999:
            pass
        return pair

    a, b = draw.fresh(candidate, lambda pair: [pair_key(*pair)])

    def solve(conversation: Conversation, known: Facts) -> Expectation:
        conversation.answer(addition(a, b), f"{a} plus {b} is {a + b}.")
        return Expectation(results=(a + b,), mentions=(a, b), banned=_foreign())

    return draw.solve(draw.phrasing("sum").format(a=a, b=b), solve, draw.seed())


def difference(draw: Draw) -> Draft:
    def candidate() -> tuple[int, int]:
        low, high = sorted((draw.number(), draw.number()))
        return high, low

    a, b = draw.fresh(candidate, lambda pair: [pair_key(*pair)])

    def solve(conversation: Conversation, known: Facts) -> Expectation:
        conversation.answer(subtraction(a, b), f"{a} minus {b} is {a - b}.")
        return Expectation(results=(a - b,), mentions=(a, b), ordered=True, banned=_foreign())

    return draw.solve(draw.phrasing("difference").format(a=a, b=b), solve, draw.seed())


def product(draw: Draw) -> Draft:
    def candidate() -> tuple[int, int]:
        return draw.rng.randint(2, 999), draw.rng.randint(2, 99)

    a, b = draw.fresh(candidate, lambda pair: [pair_key(*pair)])
    if draw.rng.random() < 0.5:
        a, b = b, a
    c = draw.rng.randint(1, 99) if draw.rng.random() < 0.25 else 0
    question = draw.phrasing("product.plus" if c else "product").format(a=a, b=b, c=c)
    expression = f"{a}*{b}+{c}" if c else f"{a}*{b}"
    mentions, spoken = ((a, b, c), f" plus {c}") if c else ((a, b), "")

    def solve(conversation: Conversation, known: Facts) -> Expectation:
        asks = [Ask(expression, "calc", {"expression": expression})]
        (result,) = conversation.ask(f"Product {expression}. {need(asks)}", asks)
        conversation.answer(f"It is {result}.", f"{a} times {b}{spoken} is {result}.")
        return Expectation(
            results=(a * b + c,), mentions=mentions, ordered=bool(c), banned=_foreign()
        )

    return draw.solve(question, solve, draw.seed())


def compare(draw: Draw) -> Draft:
    kinds = ("larger", "smaller", "larger", "smaller", "largest", "smallest", "sort")
    kind = draw.rng.choice(kinds)

    def candidate() -> list[int]:
        numbers = [draw.number()]
        while len(numbers) < (2 if kind in ("larger", "smaller") else 3):
            near = str(numbers[-1])
            if draw.rng.random() < 0.5 and len(near) > 1:  # the same length, the same beginning
                kept = draw.rng.randrange(1, len(near))
                tail = "".join(str(draw.rng.randrange(10)) for _ in near[kept:])
                number = int(near[:kept] + tail)
            else:
                number = draw.number()
            if number not in numbers:
                numbers.append(number)
        draw.rng.shuffle(numbers)
        return numbers

    numbers = draw.fresh(candidate, lambda found: [pair_key(*p) for p in combinations(found, 2)])
    question = draw.phrasing(f"compare.{kind}").format(**dict(zip("abc", numbers, strict=False)))

    def solve(conversation: Conversation, known: Facts) -> Expectation:
        if kind == "sort":
            thought, order = ordering(numbers)
            spoken = " ".join(map(str, order))
            conversation.answer(f"Sort {_listed(numbers)}. {thought}", f"The order is {spoken}.")
            return Expectation(results=order, mentions=tuple(numbers), banned=_foreign())
        large = kind in ("larger", "largest")
        thought, best = extreme(numbers, "larger" if large else "smaller")
        rest = [str(number) for number in numbers if number != best]
        spoken = f"{kind} than {rest[0]}" if len(rest) == 1 else f"the {kind}"
        conversation.answer(
            f"{kind.capitalize()} of {_listed(numbers)}. {thought}", f"{best} is {spoken}."
        )
        banned = ("smaller", "smallest", "less") if large else ("larger", "largest", "more")
        return Expectation(results=(best,), mentions=tuple(numbers), banned=banned + _foreign())

    return draw.solve(question, solve, draw.seed())


def stock(draw: Draw) -> Draft:
    item, phrasing = draw.named("stock", ITEMS)

    def solve(conversation: Conversation, known: Facts) -> Expectation:
        asks = [Ask(f"stock of {item}", "stock", {"item": item})]
        (count,) = conversation.ask(f"Stock of {item}. {need(asks)}", asks)
        conversation.answer(f"It is {count}.", f"The stock of {item} is {count}.")
        return Expectation(results=(known.stocks[item],), topics=(item,), banned=_foreign("stock"))

    return draw.solve(phrasing.format(item=item), solve, draw.seed())


def price(draw: Draw) -> Draft:
    item, phrasing = draw.named("price", ITEMS)

    def solve(conversation: Conversation, known: Facts) -> Expectation:
        asks = [Ask(f"price of {item}", "price", {"item": item})]
        (coins,) = conversation.ask(f"Price of {item}. {need(asks)}", asks)
        conversation.answer(f"It is {coins}.", f"The price of {item} is {coins} coins.")
        return Expectation(results=(known.prices[item],), topics=(item,), banned=_foreign(*MONEY))

    return draw.solve(phrasing.format(item=item), solve, draw.seed())


def shopping(draw: Draw) -> Draft:
    def candidate() -> list[str]:
        return draw.rng.sample(ITEMS, draw.rng.choice((2, 2, 3)))

    items = draw.fresh(candidate, lambda found: [pair_key(*p) for p in combinations(found, 2)])
    counts = [draw.rng.randint(1, 9) for _ in items]
    parts = [f"{count} x {item}" for count, item in zip(counts, items, strict=True)]
    listed = " and ".join(parts)
    question = draw.phrasing("shopping").format(list=listed)

    def solve(conversation: Conversation, known: Facts) -> Expectation:
        asks = [Ask(f"price of {item}", "price", {"item": item}) for item in items]
        prices = conversation.ask(f"Cost of {listed}. {need(asks)}", asks)
        lines = [f"{part} at {coins}" for part, coins in zip(parts, prices, strict=True)]
        terms = [f"{count}*{coins}" for count, coins in zip(counts, prices, strict=True)]
        expression = "+".join(terms)
        (cost,) = conversation.ask(
            f"{' and '.join(lines)}. Need {expression}.",
            [Ask(expression, "calc", {"expression": expression})],
        )
        conversation.answer(f"It is {cost}.", f"{listed} cost {cost} coins.")
        worth = sum(known.prices[item] * n for item, n in zip(items, counts, strict=True))
        return Expectation(
            results=(worth,), mentions=tuple(counts), topics=tuple(items), banned=_foreign(*MONEY)
        )

    return draw.solve(question, solve, draw.seed())


def weather(draw: Draw) -> Draft:
    if draw.rng.random() < 0.3:
        return _one_city(draw)
    kind = draw.rng.choice(("warmer", "colder"))
    first, second = draw.fresh(lambda: draw.rng.sample(CITIES, 2), lambda pair: [pair_key(*pair)])
    question = draw.phrasing(f"weather.{kind}").format(first=first, second=second)
    seed = draw.seed()
    while len({facts(seed).temperatures[city] for city in (first, second)}) == 1:
        seed = draw.seed()

    def solve(conversation: Conversation, known: Facts) -> Expectation:
        cities = (first, second)
        asks = [Ask(f"weather of {city}", "weather", {"city": city}) for city in cities]
        thought = f"{kind.capitalize()} of {first} and {second}. {need(asks)}"
        a, b = (int(text.split()[-1]) for text in conversation.ask(thought, asks))
        line, best = comparison(a, b, "larger" if kind == "warmer" else "smaller")
        winner, loser = (first, second) if best == a else (second, first)
        conversation.answer(
            f"{a} in {first} and {b} in {second}. {line} {best} in {winner}.",
            f"{winner} is {kind} with {best} degrees.",
        )
        other = {"warmer": ("colder", "cooler"), "colder": ("warmer", "hotter")}[kind]
        degrees = (known.temperatures[winner], known.temperatures[loser])
        return Expectation(mentions=degrees, topics=(winner, loser), banned=other + _foreign(*HEAT))

    return draw.solve(question, solve, seed)


def _one_city(draw: Draw) -> Draft:
    city, phrasing = draw.named("weather", CITIES)

    def solve(conversation: Conversation, known: Facts) -> Expectation:
        asks = [Ask(f"weather of {city}", "weather", {"city": city})]
        (text,) = conversation.ask(f"Weather of {city}. {need(asks)}", asks)
        sky, degrees = text.split()
        conversation.answer(f"It is {text}.", f"It is {sky} with {degrees} degrees in {city}.")
        return Expectation(
            results=(known.temperatures[city],),
            topics=(city,),
            words=(known.skies[city],),
            banned=_foreign(*HEAT),
        )

    return draw.solve(phrasing.format(city=city), solve, draw.seed())


def convert(draw: Draw) -> Draft:
    steps = [
        (unit, to)
        for unit, (kind, size) in UNITS.items()
        for to, (other, small) in UNITS.items()
        if kind == other and unit != to and (size / small).denominator == 1
    ]

    def candidate() -> tuple[int, str, str]:
        value, (unit, to) = draw.rng.randint(1, 99), draw.rng.choice(steps)
        ratio = int(UNITS[unit][1] / UNITS[to][1])
        if value * ratio > LARGEST:
            return candidate()
        return (value * ratio, to, unit) if draw.rng.random() < 0.25 else (value, unit, to)

    value, unit, to = draw.fresh(candidate, lambda found: [f"convert {found}"])
    question = draw.phrasing("convert").format(value=value, unit=unit, to=to)

    def solve(conversation: Conversation, known: Facts) -> Expectation:
        arguments: dict[str, str | int] = {"value": value, "unit": unit, "to": to}
        asks = [Ask(f"{value} {unit} to {to}", "convert", arguments)]
        (result,) = conversation.ask(f"Convert {value} {unit} to {to}. {need(asks)}", asks)
        conversation.answer(f"It is {result}.", f"{value} {unit} is {result} {to}.")
        right = value * UNITS[unit][1] / UNITS[to][1]
        return Expectation(results=(int(right),), mentions=(value,), words=(to,), banned=_foreign())

    return draw.solve(question, solve, draw.seed())


def queue(draw: Draw) -> Draft:
    seed = draw.fresh(draw.seed, lambda found: [f"queue {facts(found).queue}"])

    def solve(conversation: Conversation, known: Facts) -> Expectation:
        asks = [Ask("next", "next_item", {})]
        reached, thought = 0, "Sum of queue. Total 0. Take next."
        while (found := conversation.ask(thought, asks)[0]) != "done":
            step, reached = running(reached, int(found))
            thought = f"{step} Take next."
        conversation.answer(f"Done. It is {reached}.", f"The queue adds up to {reached}.")
        return Expectation(
            results=(sum(known.queue),),
            mentions=known.queue,
            ordered=True,
            banned=_foreign("queue"),
        )

    return draw.solve(draw.phrasing("queue"), solve, seed)


def retry(draw: Draw) -> Draft:
    bases = (stock, price, weather, weather, *(3 * (shopping,)), product, convert)
    base = draw.rng.choice(bases)
    while True:
        first = draw.rng.choice((0, 0, 1)) if base in (weather, shopping) else 0
        faults = {first: draw.rng.choice(TROUBLES)}
        if draw.rng.random() < 0.25:
            faults[first + 2 if base in (weather, shopping) else first + 1] = draw.rng.choice(
                TROUBLES
            )
        draft = base(Draw(draw.rng, draw.split, faults))
        if draft.faults:
            return draft


def outside(draw: Draw) -> Draft:
    about = draw.rng.random() < 0.15
    phrasings = PHRASINGS["outside.about" if about else "outside"]

    def candidate() -> str:
        return draw.rng.choice(phrasings.train).format(**_subjects(draw.rng))

    if draw.split == "eval" and (about or draw.rng.random() < 0.5):
        question = draw.rng.choice(phrasings.held_out).format(**_subjects(draw.rng))
    elif about:
        question = candidate()  # so few that none is kept from training
    else:
        question = draw.fresh(candidate, lambda found: [f"question {found}"])

    def solve(conversation: Conversation, known: Facts) -> Expectation:
        if about:
            conversation.answer("This is about me.", ABOUT)
            return Expectation(words=("small", "model"))
        conversation.answer("No tool knows this.", UNKNOWN)
        return Expectation(unknown=True)

    return draw.solve(question, solve, draw.seed())


def _subjects(rng: Random) -> dict[str, str]:
    """What a question about another world may be about."""
    return {
        "title": rng.choice(TITLES),
        "country": rng.choice(COUNTRIES),
        "person": rng.choice(PERSONS),
        "animal": rng.choice(ANIMALS),
        "strange": _strange(rng),
        "Strange": _strange(rng).capitalize(),
    }


def _listed(numbers: Sequence[int]) -> str:
    return f"{', '.join(map(str, numbers[:-1]))} and {numbers[-1]}"


def _foreign(*own: str) -> tuple[str, ...]:
    """The words for subjects other than one's own."""
    return tuple(word for word in SUBJECTS if word not in own)


def _strange(rng: Random) -> str:
    """A word that means nothing, so that any unknown word is a reason to say so."""
    syllable = ("bcdfglmnprstvz", "aeiou", "bdklmnrst ")
    while True:
        letters = [rng.choice(choice) for _ in range(rng.randint(1, 3)) for choice in syllable]
        word = "".join(letters).replace(" ", "")
        if not {word, word.capitalize()} & {*ITEMS, *CITIES, *UNITS}:
            return word


SOLVERS: Mapping[str, Callable[[Draw], Draft]] = MappingProxyType(
    {
        "sum": total,
        "difference": difference,
        "product": product,
        "compare": compare,
        "stock": stock,
        "price": price,
        "shopping": shopping,
        "weather": weather,
        "convert": convert,
        "queue": queue,
        "retry": retry,
        "outside": outside,
    }
)
