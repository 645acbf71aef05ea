"""What is computed again after a run is what the run computed."""

import numpy as np
import pytest
import torch

from k2lab.engine.replay import reading, routers
from k2lab.engine.taps import edit, watch


@pytest.fixture(scope="module")
def lab():
    import k2lab

    return k2lab.load()


@pytest.fixture(scope="module")
def ids(lab):
    return lab.tokenizer.encode("What do 3 x lamp and 2 x rope cost?")


def seen(lab, ids, site):
    found = {}
    tap = watch(
        site, lab.config, lambda name, value: found.__setitem__(name, value.float().clone())
    )
    with torch.inference_mode():
        step = lab.model.step(len(ids), cache=None, tap=tap)
        lab.model.hidden(torch.tensor([ids]), step)
    return found


def test_router_scores_are_those_of_the_forward(lab, ids):
    got = routers(lab.model, ids)
    scores = seen(lab, ids, "layers.*.mlp.router.scores")
    wanted = torch.stack([value[0, -1] for value in scores.values()]).numpy()
    assert got.scores.shape == (5, 64) and np.allclose(got.scores, wanted, atol=1e-6)
    bias = got.choice - got.scores
    assert np.allclose(
        bias, routers(lab.model, ids[:3]).choice - routers(lab.model, ids[:3]).scores, atol=1e-6
    )


def test_router_scores_choose_the_experts_of_the_run(lab):
    trace = lab.run("What is 3 * 14?", max_tokens=12).wait().trace
    again = total = 0
    for token in range(0, trace.routed, 5):
        choice = routers(lab.model, trace.ids[: token + 1].tolist()).choice
        for row in range(5):
            best = set(np.argsort(-choice[row])[:8].tolist())
            again += len(best & set(trace.experts[token, row].tolist()))
            total += 8
    assert again / total > 0.99  # near ties may fall the other way in another order of sums


def test_heads_read_what_the_forward_read_and_the_rotated_share_is_a_share(lab, ids):
    got = reading(lab.model, ids, 2)
    weights = seen(lab, ids, "layers.2.self_attn.weights")["layers.2.self_attn.weights"]
    assert np.allclose(got.weights, weights[0, :, -1].numpy(), atol=1e-6)
    assert np.allclose(got.weights.sum(-1), 1, atol=0.02)
    assert got.rope.shape == (6,) and (got.rope > 0).all() and (got.rope < 1).all()
    assert got.norm.shape == (len(ids),) and (got.norm > 0).all()


def test_a_run_s_own_edits_are_made_again(lab, ids):
    muted = edit("layers.1.mlp.output", lab.config, torch.zeros_like)
    plain, edited = routers(lab.model, ids), routers(lab.model, ids, muted)
    assert np.array_equal(plain.scores[0], edited.scores[0])  # layer 1's router comes before
    assert not np.allclose(plain.scores[1:], edited.scores[1:], atol=1e-4)
