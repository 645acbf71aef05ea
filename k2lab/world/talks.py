"""Families about time and about talking: dates, a long conversation, and two who share a task.

In `recall` the user tells things in one turn and asks for them many turns later; other tasks may
come between. In `crew` one model plans and another carries the plan out; each sees only its own
conversation, and a system message tells which of the two it is.
"""

from collections.abc import Sequence

from k2lab.world.draw import Draft, Draw
from k2lab.world.expectation import Expectation
from k2lab.world.facts import CITIES, ITEMS, MAKERS, MONTHS, WEEKDAYS, Facts
from k2lab.world.families import SOLVERS as BASIC
from k2lab.world.split import pair_key
from k2lab.world.teacher import Ask, Conversation, need
from k2lab.world.tools import World

PLANNER = "You are the planner."
WORKER = "You are the worker."

BETWEEN = ("sum", "stock", "price", "product", "weather")
"""Families that may come between telling and asking."""


def date(draw: Draw) -> Draft:
    """A weekday counted in the thought, or a date from the tool."""
    return _weekday(draw) if draw.rng.random() < 0.5 else _calendar(draw)


def _weekday(draw: Draw) -> Draft:
    day, n = draw.fresh(
        lambda: (draw.rng.choice(WEEKDAYS), draw.rng.randint(1, 30)),
        lambda found: [f"weekday {found[0]} {found[1]}"],
    )

    def solve(conversation: Conversation, known: Facts) -> Expectation:
        left, steps = n, [f"Date task. {n} days after {day}."]
        while left >= 7:
            steps.append(f"{left}-7={left - 7}.")
            left -= 7
        start = WEEKDAYS.index(day)
        counted = [f"{k} {WEEKDAYS[(start + k) % 7]}" for k in range(left + 1)]
        found = WEEKDAYS[(start + n) % 7]
        steps.append(f"Count {left}: {', '.join(counted)}. It is {found}.")
        conversation.answer(" ".join(steps), f"It is {found}.")
        return Expectation(mentions=(n,), topics=(found, day))

    return draw.solve(draw.phrasing("date.weekday").format(day=day, n=n), solve, draw.seed())


def _calendar(draw: Draw) -> Draft:
    month, day, n = draw.fresh(
        lambda: (draw.rng.choice(MONTHS), draw.rng.randint(1, 28), draw.rng.randint(2, 60)),
        lambda found: [f"date {found}"],
    )
    side, sign = draw.rng.choice((("after", 1), ("before", -1)))

    def solve(conversation: Conversation, known: Facts) -> Expectation:
        asks = [
            Ask(
                f"{n} days {side} {month} {day}", "date", {"day": f"{month} {day}", "add": sign * n}
            )
        ]
        (found,) = conversation.ask(f"Date task. {need(asks)}", asks)
        conversation.answer(f"It is {found}.", f"It is {found}.")
        with World(0) as calendar:
            name, number = calendar.date(f"{month} {day}", sign * n).split()
        return Expectation(
            results=(int(number),), mentions=(n, day), topics=(name, month), words=(name,)
        )

    phrasing = draw.phrasing(f"date.{side}")
    return draw.solve(phrasing.format(n=n, month=month, day=day), solve, draw.seed())


def recall(draw: Draw) -> Draft:
    """The user tells facts, turn by turn, and asks for them later."""
    rng = draw.rng

    def value(kind: str) -> str:
        choices: dict[str, Sequence[str]] = {
            "name": MAKERS,
            "city": CITIES,
            "item": ITEMS,
            "day": WEEKDAYS,
        }
        return rng.choice(choices[kind]) if kind in choices else str(rng.randint(10, 999))

    def candidate() -> list[tuple[str, str]]:
        told = rng.sample(KINDS, rng.choice((1, 2, 2, 3, 3, 4)))
        return [(kind, value(kind)) for kind in told]

    told = draw.fresh(candidate, lambda facts: [f"recall {' '.join(v for _, v in facts)}"])
    keys, heard = draw.keys, list(told)
    between = BASIC[rng.choice(BETWEEN)](draw) if rng.random() < 0.3 else None
    draw.keys = keys
    seed = draw.seed() if between is None else between.world_seed
    first, *others = [draw.phrasing("recall.tell").format(kind=k, value=v) for k, v in told]

    def solve(conversation: Conversation, known: Facts) -> Expectation:
        _note(conversation, *told[0])
        for text, fact in zip(others, told[1:], strict=True):
            conversation.say(text)
            _note(conversation, *fact)
        if rng.random() < 0.25:
            kind, old = rng.choice(told)
            while (new := value(kind)) == old:
                pass
            heard.append((kind, new))
            conversation.say(draw.phrasing("recall.change").format(kind=kind, value=new))
            _note(conversation, kind, new)
        if between is not None:
            conversation.adopt(between.messages)
        kinds = list(dict(heard))
        rng.shuffle(kinds)
        asked = kinds[: rng.choice((1, 2, 3))]
        missing = [kind for kind in KINDS if kind not in kinds]
        if missing and rng.random() < 0.35:
            asked.insert(rng.randint(0, len(asked)), rng.choice(missing))
        for kind in asked:
            conversation.say(draw.phrasing("recall.ask").format(kind=kind))
            expects = _recalled(conversation, kind, heard)
        return expects

    return draw.solve(first, solve, seed)


KINDS = ("name", "city", "number", "item", "day", "code")


def _note(conversation: Conversation, kind: str, value: str) -> None:
    conversation.answer(f"Recall task. The {kind} is {value}.", f"Noted, your {kind} is {value}.")


def _recalled(
    conversation: Conversation, kind: str, heard: Sequence[tuple[str, str]]
) -> Expectation:
    """What is right to say of a kind of fact, once the teacher has said it.

    The thought goes through all that was told, in order, and then says the kind again: what came
    after it last is what counts.
    """
    listed = ", ".join(f"{told} {value}" for told, value in heard)
    value = dict(heard).get(kind)
    thought = f"Recall task. Need {kind}. Told {listed}. So {kind} {value or 'none'}."
    if value is None:
        conversation.answer(thought, f"I do not know that, you did not tell me your {kind}.")
        return Expectation(unknown=True)
    conversation.answer(thought, f"Your {kind} is {value}.")
    if value.isdigit():
        return Expectation(results=(int(value),))
    return Expectation(topics=(value,))


def crew(draw: Draw) -> Draft:
    """One plans, another carries out: a task for either."""
    rng = draw.rng
    subject = rng.choice(("price", "stock"))
    size = rng.choice((2, 2, 3)) if subject == "price" else 2
    items = draw.fresh(
        lambda: rng.sample(ITEMS, size),
        lambda found: [pair_key(a, b) for k, a in enumerate(found) for b in found[k + 1 :]],
    )
    counts = [rng.randint(1, 9) if subject == "price" else 1 for _ in items]
    parts = [
        f"{count} x {item}" if subject == "price" else item
        for count, item in zip(counts, items, strict=True)
    ]
    steps = [f"Get {subject} of {item}" for item in items]
    steps += [f"Compute {' + '.join(parts)}", "Report"]
    plan = " ".join(f"{k}. {step}." for k, step in enumerate(steps, start=1))

    def planned(conversation: Conversation, known: Facts) -> Expectation:
        needs = " and ".join(f"{subject} of {item}" for item in items)
        conversation.answer(f"Plan task. Need {needs}, then {' + '.join(parts)}.", plan)
        return Expectation(steps=tuple(steps))

    def carried_out(conversation: Conversation, known: Facts) -> Expectation:
        thought, values = "Worker task.", list[str]()
        for k, item in enumerate(items, start=1):
            asks = [Ask(f"{subject} of {item}", subject, {"item": item})]
            values += conversation.ask(f"{thought} Step {k}. {need(asks)}", asks)
            thought = f"Step {k} gave {values[-1]}."
        terms = [
            f"{count}*{value}" if subject == "price" else value
            for count, value in zip(counts, values, strict=True)
        ]
        lines = [f"{part} at {value}" for part, value in zip(parts, values, strict=True)]
        expression = "+".join(terms)
        asks = [Ask(expression, "calc", {"expression": expression})]
        thought = f"{thought} Step {len(items) + 1}. {' and '.join(lines)}. {need(asks)}"
        (result,) = conversation.ask(thought, asks)
        conversation.answer(
            f"Step {len(items) + 1} gave {result}. Step {len(items) + 2}, report.",
            f"The result is {result}.",
        )
        each = known.prices if subject == "price" else known.stocks
        total = sum(count * each[item] for count, item in zip(counts, items, strict=True))
        return Expectation(results=(total,), topics=tuple(items))

    if rng.random() < 0.6:
        question = draw.phrasing("crew.plan").format(plan=plan)
        return draw.solve(question, carried_out, draw.seed(), system=WORKER)
    if subject == "price":
        question = draw.phrasing("shopping").format(list=" and ".join(parts))
    else:
        question = draw.phrasing("crew.stock").format(one=items[0], two=items[1])
    return draw.solve(question, planned, draw.seed(), system=PLANNER)
