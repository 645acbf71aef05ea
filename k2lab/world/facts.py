"""What is true in a world: the shop, its makers, weather and the queue, all from the world's seed.

Names are single words: one token each, so that copying a name is copying one token. Prices and
weather differ from world to world, so that they can be found out only by asking the tools.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from random import Random
from types import MappingProxyType

# fmt: off
ITEMS: tuple[str, ...] = (
    "tent", "lamp", "rope", "kettle", "mug", "knife", "pot", "pan", "stove", "torch", "map",
    "compass", "belt", "glove", "scarf", "hat", "jacket", "sock", "towel", "soap", "brush", "comb",
    "mirror", "clock", "radio", "camera", "pencil", "notebook", "ruler", "glue", "tape", "hammer",
    "saw", "nail", "ladder", "bucket", "broom", "basket", "candle", "whistle",
)
CITIES: tuple[str, ...] = (
    "Oslo", "Cairo", "Lima", "Paris", "Rome", "Tokyo", "Delhi", "Quito", "Dublin", "Madrid",
    "Berlin", "Vienna", "Prague", "Athens", "Lisbon", "Warsaw", "Sydney", "Boston", "Nairobi",
    "Havana", "Kyoto", "Seoul", "Hanoi", "Zurich",
)
MAKERS: tuple[str, ...] = (
    "Anna", "Boris", "Clara", "David", "Emil", "Fatima", "Greta", "Hugo", "Irene", "Jonas",
    "Karin", "Leo", "Mira", "Nils", "Olga", "Pablo",
)
WEEKDAYS: tuple[str, ...] = (
    "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday",
)
MONTHS: tuple[str, ...] = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September",
    "October", "November", "December",
)
# fmt: on
SKIES: tuple[str, ...] = ("sunny", "cloudy", "rainy", "windy", "foggy", "stormy")

UNITS: Mapping[str, tuple[str, Fraction]] = MappingProxyType(
    {
        "km": ("length", Fraction(1000)),
        "m": ("length", Fraction(1)),
        "cm": ("length", Fraction(1, 100)),
        "mm": ("length", Fraction(1, 1000)),
        "kg": ("mass", Fraction(1)),
        "g": ("mass", Fraction(1, 1000)),
        "days": ("time", Fraction(86400)),
        "hours": ("time", Fraction(3600)),
        "minutes": ("time", Fraction(60)),
        "seconds": ("time", Fraction(1)),
    }
)
"""Unit → (dimension, size in the dimension's base unit: metre, kilogram, second)."""


INVOICES = range(100, 1000)
"""Numbers of invoices; each is for a few pieces of one item."""


@dataclass(frozen=True, slots=True)
class Facts:
    """One world's facts: prices in coins, stocks in pieces, temperatures in degrees Celsius."""

    seed: int
    prices: Mapping[str, int]
    stocks: Mapping[str, int]
    skies: Mapping[str, str]
    temperatures: Mapping[str, int]
    makers: Mapping[str, str]  # item → who makes it
    homes: Mapping[str, str]  # maker → city
    queue: tuple[int, ...]

    def invoice(self, number: int) -> tuple[int, str]:
        """The pieces and the item of an invoice."""
        draw = Random(f"invoice {self.seed} {number}")
        return draw.randint(2, 9), draw.choice(ITEMS)


def facts(seed: int, *, queue_length: int | None = None) -> Facts:
    """The facts of the world with this seed; its queue as drawn, or of the length asked for.

    Most queues are short; one in eight has 11 to 25 numbers.
    """
    draw = Random(f"world {seed}")
    return Facts(
        seed=seed,
        prices={item: draw.randint(2, 99) for item in ITEMS},
        stocks={item: draw.randint(1, 99) for item in ITEMS},
        skies={city: draw.choice(SKIES) for city in CITIES},
        temperatures={city: draw.randint(3, 39) for city in CITIES},
        makers={item: draw.choice(MAKERS) for item in ITEMS},
        homes={maker: draw.choice(CITIES) for maker in MAKERS},
        queue=_queue(Random(f"queue {seed}"), queue_length),
    )


def _queue(draw: Random, length: int | None) -> tuple[int, ...]:
    """The numbers of a queue; a longer one from the same draws begins with a shorter one."""
    drawn = draw.randint(3, 9) if draw.random() < 0.875 else draw.randint(11, 25)
    return tuple(draw.randint(1, 9) for _ in range(drawn if length is None else length))
