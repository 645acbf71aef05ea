"""Budgets: what they may be; that they end a run is in test_loop.py."""

from typing import Any

import pytest

from k2lab.agent.budget import Budget
from k2lab.errors import InputError


@pytest.mark.parametrize(
    "nonsense",
    [
        {"steps": 0},
        {"steps": None},
        {"steps": 2.0},
        {"tokens": 0},
        {"tokens": True},
        {"seconds": -0.1},
        {"seconds": float("nan")},
        {"cost": "much"},
        {"context": 0},
        {"context": 1.5},
    ],
)
def test_nonsense_is_refused(nonsense: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(nonsense))):
        Budget(**nonsense)
