"""Threads: one for few tokens of a small network, those that were set for everything else."""

import threading
from collections.abc import Iterator

import pytest
import torch
from threadpoolctl import ThreadpoolController

import k2lab
from k2lab.engine.generate import Prompt, Settings, generate
from k2lab.engine.threads import FEW, PAIRS, alone, as_here, few, numpy_alone, small
from k2lab.lab import Lab
from k2lab.model.cache import LatentCache
from k2lab.model.k2 import K2
from k2lab.spec.config import K2_THINKING
from k2lab.weights.meta import Meta


@pytest.fixture
def two() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def lab() -> Lab:
    return k2lab.load()


def test_k2_nano_is_small_and_k2_is_not(lab: Lab) -> None:
    assert small(lab.model)
    assert not small(K2(K2_THINKING, Meta(K2_THINKING)))


def test_few_tokens_after_many_are_not_short() -> None:
    assert few(FEW, FEW) and not few(FEW + 1, FEW + 1)
    assert few(64, 4000) and not few(64, PAIRS // 64 + 1)
    assert few(1, K2_THINKING.max_position_embeddings)


@pytest.mark.usefixtures("two")
def test_few_tokens_are_computed_by_one_thread_and_many_by_all(lab: Lab) -> None:
    seen: dict[int, int] = {}

    def tap(site: str, value: torch.Tensor) -> torch.Tensor:
        if site == "embed":
            seen[value.shape[1]] = torch.get_num_threads()
        return value

    for count in (FEW, FEW + 1):
        given = Prompt((7,) * count, ("",) * count, ("user",) * count)
        settings = Settings(max_tokens=1, tap=tap)
        for _ in generate(lab.model, lab.tokenizer, given, LatentCache(lab.config), settings):
            assert torch.get_num_threads() == 2  # whoever listens has all of them
    assert seen == {1: 1, FEW: 1, FEW + 1: 2}


@pytest.mark.usefixtures("two")
def test_threads_come_back_after_a_failure() -> None:
    with pytest.raises(ZeroDivisionError), alone(wanted=True):
        assert torch.get_num_threads() == 1
        raise ZeroDivisionError
    assert torch.get_num_threads() == 2
    with alone(wanted=False):
        assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two")
def test_work_that_begins_beside_a_token_has_the_threads_of_who_began_it() -> None:
    seen: list[int] = []
    work = as_here(lambda: seen.append(torch.get_num_threads()))
    with alone(wanted=True):
        begun = threading.Thread(target=work)
        begun.start()
        begun.join()
        assert torch.get_num_threads() == 1  # what another thread sets is its own
    assert seen == [2]


def blas_threads() -> list[int]:
    found = ThreadpoolController().select(user_api="blas").info()
    return [library["num_threads"] for library in found]


@pytest.fixture
def two_of_blas() -> Iterator[None]:
    with ThreadpoolController().limit(limits=2, user_api="blas"):
        if set(blas_threads()) != {2}:
            pytest.skip("NumPy's products have one thread here, whatever is asked for")
        yield


@pytest.mark.usefixtures("two_of_blas")
def test_numpys_products_have_one_thread_as_long_as_anybody_wants_it() -> None:
    with numpy_alone:
        with numpy_alone:
            assert set(blas_threads()) == {1}
        assert set(blas_threads()) == {1}
    assert set(blas_threads()) == {2}


@pytest.mark.usefixtures("two_of_blas")
def test_an_error_gives_numpy_its_threads_back() -> None:
    with pytest.raises(RuntimeError), numpy_alone:
        raise RuntimeError
    assert set(blas_threads()) == {2}


@pytest.mark.usefixtures("two_of_blas")
def test_one_token_is_computed_by_one_thread_of_numpy(lab: Lab) -> None:
    seen: list[int] = []

    def tap(site: str, value: torch.Tensor) -> torch.Tensor:
        if site == "embed" and value.shape[1] == 1:
            seen.extend(blas_threads())
        return value

    given = Prompt((7, 8), ("", ""), ("user", "user"))
    settings = Settings(max_tokens=2, tap=tap)
    for _ in generate(lab.model, lab.tokenizer, given, LatentCache(lab.config), settings):
        assert set(blas_threads()) == {2}  # whoever listens has all of them
    assert seen and set(seen) == {1}
