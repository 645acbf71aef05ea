"""Tasks: reproducible, exact, short, and on their own side of the split."""

import json
import re
from collections import Counter
from functools import cache
from itertools import combinations, pairwise

import pytest

from k2lab.agent.tools import call
from k2lab.errors import InputError
from k2lab.world.draw import PHRASINGS
from k2lab.world.facts import CITIES, ITEMS, MAKERS, MONTHS, SKIES, UNITS, WEEKDAYS
from k2lab.world.grade import grade
from k2lab.world.phrases import ANIMALS, COUNTRIES, Phrasings
from k2lab.world.split import Split, pair_key, reserved
from k2lab.world.tasks import ENTITIES, EXAMPLES, FAMILIES, TRAINING_MIX, Task, generate, open_world

TRAIN = tuple(generate(3, 1500, split="train"))
EVAL = tuple(generate(3, 1500, split="eval"))
WORDS = re.compile(r"[A-Za-z]+")
SLOTS = {
    "a": r"\d+", "b": r"\d+", "c": r"\d+", "value": r"\d+",
    "item": "(?:" + "|".join(ITEMS) + ")",
    "city": "(?:" + "|".join(CITIES) + ")",
    "first": "(?:" + "|".join(CITIES) + ")",
    "second": "(?:" + "|".join(CITIES) + ")",
    "strange": "(?!(?:" + "|".join((*ITEMS, *UNITS)) + r")\b)[a-z]+",
    "Strange": "(?!(?:" + "|".join(CITIES) + r")\b)[A-Z][a-z]+",
    "country": "(?:" + "|".join(COUNTRIES) + ")",
    "animal": "(?:" + "|".join(ANIMALS) + ")",
    "n": r"\d+",
    "number": r"\d+",
    "kind": "[a-z]+",
    "sky": "(?:" + "|".join(SKIES) + ")",
    "month": "(?:" + "|".join(MONTHS) + ")",
    "day": r"(?:\d+|" + "|".join(WEEKDAYS) + ")",
    "one": "(?:" + "|".join(ITEMS) + ")",
    "two": "(?:" + "|".join(ITEMS) + ")",
    "plan": r"1\. .*",
    "list": r"\d x [a-z]+(?: and \d x [a-z]+)+",
}  # fmt: skip


@cache
def pattern(template: str) -> re.Pattern[str]:
    parts = re.split(r"\{(\w+)\}", template)
    texts = [
        re.escape(part) if index % 2 == 0 else SLOTS.get(part, r"\w+")
        for index, part in enumerate(parts)
    ]
    return re.compile("".join(texts))


def matches(question: str, templates: tuple[str, ...]) -> bool:
    return any(pattern(template).fullmatch(question) for template in templates)


ALL = dict(PHRASINGS)
TRAINED = tuple(template for each in ALL.values() for template in each.train)


def of_family(family: str) -> list[Phrasings]:
    return [found for kind, found in ALL.items() if kind.split(".")[0] == family]


def spoken(task: Task) -> str:
    pieces = []
    for message in task.messages:
        pieces += [message.get("reasoning_content", ""), message["content"]]
        for each in message.get("tool_calls", ()):
            pieces += [each["id"], each["function"]["arguments"]]
    return "\n".join(pieces)


def thoughts(task: Task) -> list[str]:
    return [m["reasoning_content"] for m in task.messages if m.get("reasoning_content")]


def test_every_family_comes_about_equally_often() -> None:
    for tasks in (TRAIN, EVAL):
        counts = Counter(task.family for task in tasks)
        assert set(counts) == set(FAMILIES)
        assert min(counts.values()) > 0.6 * len(tasks) / len(FAMILIES)


def test_weights_change_the_mix() -> None:
    tasks = list(generate(0, 200, split="train", weights={"sum": 50.0, "queue": 0.0}))
    counts = Counter(task.family for task in tasks)
    assert counts["sum"] > 120
    assert counts["queue"] == 0


def test_same_seed_gives_the_same_tasks_and_a_longer_run_begins_alike() -> None:
    again = tuple(generate(3, 100, split="train"))
    assert again == TRAIN[:100]
    assert tuple(generate(4, 100, split="train")) != again


@pytest.mark.parametrize("split", ["train", "eval"])
@pytest.mark.parametrize("family", FAMILIES)
def test_one_family_alone(family: str, split: Split) -> None:
    tasks = list(generate(1, 30, split=split, families=[family]))
    assert {task.family for task in tasks} == {family}
    assert len({task.question for task in tasks}) > (3 if family == "queue" else 10)


def test_queue_is_as_long_as_asked_for() -> None:
    (task,) = generate(4, 1, split="eval", families=["queue"], queue_length=300)
    calls = [each for m in task.messages for each in m.get("tool_calls", ())]
    assert len(calls) == 301
    assert grade(task, task.answer).right
    with open_world(task) as world:
        (take,) = [each for each in world.tools() if each.name == "next_item"]
        taken = [call(take, "{}").content for _ in range(301)]
    assert sum(map(int, taken[:-1])) == task.expects.results[0]
    assert taken[-1] == "done"


def test_training_mix_names_families() -> None:
    assert set(TRAINING_MIX) <= set(FAMILIES)
    assert list(generate(0, 5, split="train", weights=TRAINING_MIX))


def test_wrong_requests_are_refused() -> None:
    wrong: list[dict[str, object]] = [
        {"split": "test"},
        {"split": "train", "families": ["poetry"]},
        {"split": "train", "families": []},
        {"split": "train", "weights": {"sum": -1.0}},
        {"split": "train", "queue_length": 0},
        {"split": "train", "queue_length": 5, "families": ["sum"]},  # it would do nothing
        {"split": "train", "weights": {"sums": 1.0}},
        {"split": "train", "families": ["sum"], "weights": {"sum": 0.0}},
        {"split": "train", "weights": {"sum": float("nan")}},
    ]
    for options in wrong:
        with pytest.raises(InputError):
            list(generate(0, 1, **options))  # type: ignore[arg-type]


def test_teacher_is_graded_right() -> None:
    for task in TRAIN + EVAL:
        assert grade(task, task.answer).right, (task.answer, grade(task, task.answer).why)


def test_no_other_answer_is_graded_right() -> None:
    for tasks in (TRAIN, EVAL):
        for task, other in pairwise(tasks):
            if task.family == "outside" or other.answer == task.answer:
                continue
            alike = bool(task.expects.results) and task.expects.results == other.expects.results
            alike |= (
                bool(task.expects.topics) and task.expects.topics[0] in other.expects.topics[:1]
            )
            if task.expects.unknown or alike:
                continue  # what is not known, and the same result by chance
            assert not grade(task, other.answer).right, (task.answer, other.answer)


def test_changed_digits_are_graded_wrong() -> None:
    for task in EVAL:
        for found in re.finditer(r"\d", task.answer):
            digit = str((int(found[0]) + 1) % 10)
            changed = task.answer[: found.start()] + digit + task.answer[found.end() :]
            if task.family in ("sum", "difference", "compare", "stock", "price", "queue"):
                assert not grade(task, changed).right or changed in spoken(task), changed


def test_tool_results_are_what_the_world_answers() -> None:
    for task in TRAIN[:300]:
        answers = {m["tool_call_id"]: m["content"] for m in task.messages if m["role"] == "tool"}
        asked = [each for message in task.messages for each in message.get("tool_calls", ())]
        assert [each["id"] for each in asked] == list(answers)
        with open_world(task) as world:
            tools = {each.name: each for each in world.tools()}
            for number, each in enumerate(asked):
                name, arguments = each["function"]["name"], each["function"]["arguments"]
                assert each["id"] == f"functions.{name}:{number}"
                assert arguments == json.dumps(json.loads(arguments))
                assert call(tools[name], arguments).content == answers[each["id"]]


def test_conversation_has_the_form_of_a_tool_loop() -> None:
    for task in TRAIN:
        first, *rest = [each for each in task.messages if each["role"] != "system"]
        assert [each["role"] for each in task.messages].index("user") <= 1
        assert first["role"] == "user"
        asked = [each["content"] for each in task.messages if each["role"] == "user"]
        assert asked[-1] == task.question
        assert rest[-1]["content"] == task.answer
        for message, following in pairwise(rest):
            answered = message["role"] == "assistant" and not message.get("tool_calls")
            assert answered == (following["role"] == "user")
            assert message["role"] != "assistant" or bool(message["content"]) == answered
        assert "tool_calls" not in rest[-1]
        assert all(m["reasoning_content"] for m in rest if m["role"] == "assistant")


def test_retry_meets_an_error_and_calls_again() -> None:
    tasks = [task for task in TRAIN if task.family == "retry"]
    for task in tasks:
        errors = [m for m in task.messages if m["role"] == "tool" and "error: " in m["content"]]
        assert len(errors) == len(task.faults) > 0
        assert task.messages[-2]["content"][:5] != "error"
    assert {len(task.faults) for task in tasks} == {1, 2}
    mixed = [each for task in tasks for each in thoughts(task) if each.count(" for ") == 3]
    assert mixed  # the good results of a turn are told among the failed ones, in order
    assert all(re.fullmatch(r"Retry(\. [^.]+ for [^.]+){3}\. Try again\.", e) for e in mixed)


def test_text_is_ascii_short_and_of_few_words() -> None:
    words: set[str] = set()
    for task in TRAIN + EVAL:
        text = spoken(task)
        assert text.isascii()
        longest = {"queue": 1200, "recall": 600, "retry": 480, "reflect": 480}.get(task.family, 400)
        assert len(re.findall(r"[A-Za-z_]+|\d|\s|[^\w\s]", text)) <= longest
        if task.family != "outside":
            words |= set(WORDS.findall(text))
    fixed = {w for each in TRAINED for w in WORDS.findall(re.sub(r"\{\w+\}", "", each))}
    assert len(words | fixed) < 450


def test_names_are_single_words_that_nothing_else_uses() -> None:
    assert all(re.fullmatch(r"[A-Z]?[a-z]+", name) for name in ENTITIES)
    kinds = (ITEMS, CITIES, MAKERS, WEEKDAYS, MONTHS)
    assert len(ENTITIES) == sum(map(len, kinds)) == 99
    fixed = {w for each in TRAINED for w in WORDS.findall(re.sub(r"\{\w+\}", "", each))}
    assert not fixed & ENTITIES


def test_every_family_has_phrasings_for_both_sides() -> None:
    for family in set(FAMILIES) - {"retry"}:
        kinds = of_family(family)
        assert sum(len(each.train) for each in kinds) >= 4
        assert sum(len(each.held_out) for each in kinds) >= 1
        assert not {t for each in kinds for t in each.train} & {
            t for each in kinds for t in each.held_out
        }


def test_held_out_phrasings_use_only_trained_words() -> None:
    trained = {word for template in TRAINED for word in re.findall(r"\w+|[^\w\s]", template)}
    for each in ALL.values():
        for template in each.held_out:
            assert not set(re.findall(r"\w+|[^\w\s]", template)) - trained, template


def test_training_uses_no_held_out_phrasing_and_evaluation_about_half() -> None:
    for task in TRAIN:
        assert matches(task.question, TRAINED), task.question
    unseen = [task for task in EVAL if not matches(task.question, TRAINED)]
    assert 0.4 < len(unseen) / len(EVAL) < 0.6


def pairs(task: Task) -> set[str]:
    """The pairs a question is about, read from the question alone."""
    names = dict.fromkeys(w for w in WORDS.findall(task.question) if w in ENTITIES)
    numbers = re.findall(r"\d+", task.question)
    if task.family in ("sum", "difference", "compare"):
        return {pair_key(*pair) for pair in combinations(numbers, 2)}
    if re.search(r"times|[Mm]ultiply|product|\*", task.question):
        return {pair_key(*numbers[:2])}
    return {pair_key(*pair) for pair in combinations(names, 2)}


def test_reserved_pairs_never_occur_in_training() -> None:
    for task in TRAIN:
        assert not any(map(reserved, task.keys))
        assert not any(map(reserved, pairs(task))), task.question
        assert task.world_seed % 2 == 0


def test_every_evaluation_task_is_about_something_reserved() -> None:
    for task in EVAL:
        held_out = not matches(task.question, TRAINED)
        assert any(map(reserved, task.keys)) or held_out, task.question
        if found := pairs(task):
            assert any(map(reserved, found)), task.question
        assert task.world_seed % 2 == 1


def test_no_question_about_numbers_or_pairs_is_in_both_splits() -> None:
    families = ("sum", "difference", "product", "compare", "shopping", "convert")
    seen = {task.question for task in TRAIN if task.family in families}
    assert not seen & {task.question for task in EVAL if task.family in families}


def test_examples_are_of_trained_kinds() -> None:
    for question in EXAMPLES:
        assert matches(question, TRAINED), question


def test_questions_outside_the_world_name_nothing_inside_it() -> None:
    for task in (*TRAIN, *EVAL):
        if task.family == "outside":
            assert not set(WORDS.findall(task.question)) & ENTITIES, task.question
