"""What is true in a world: prices, stocks, weather and the queue, all from the world's seed.

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


@dataclass(frozen=True, slots=True)
class Facts:
    """One world's facts: prices in coins, stocks in pieces, temperatures in degrees Celsius."""

    prices: Mapping[str, int]
    stocks: Mapping[str, int]
    skies: Mapping[str, str]
    temperatures: Mapping[str, int]
    queue: tuple[int, ...]


def facts(seed: int) -> Facts:
    """The facts of the world with this seed."""
    draw = Random(f"world {seed}")
    return Facts(
        prices={item: draw.randint(2, 99) for item in ITEMS},
        stocks={item: draw.randint(1, 99) for item in ITEMS},
        skies={city: draw.choice(SKIES) for city in CITIES},
        temperatures={city: draw.randint(3, 39) for city in CITIES},
        queue=tuple(draw.randint(1, 9) for _ in range(draw.randint(3, 8))),
    )
