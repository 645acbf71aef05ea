"""AttentionCache's summary, table and static picture."""

import numpy as np

from k2lab.widgets.attention import AttentionCache, cost
from k2lab.widgets.details import Detail
from k2lab.widgets.source import Facts
from k2lab.widgets.store import Store


class Known:
    """Every head reads the first token with 0.75, the last with 0.25."""

    def __init__(self, heads=2):
        self.heads = heads

    def route(self, trace, token):
        raise AssertionError("nobody asked for routing")

    def attention(self, trace, token, layer):
        weights = np.zeros((self.heads, token + 1), np.float32)
        weights[:, 0], weights[:, -1] = 0.75, 0.25
        rope = np.linspace(0.2, 0.8, self.heads).astype(np.float32)
        return Detail("derived", {"weights": weights, "rope": rope, "norm": np.ones(token + 1)})


def test_summary_names_token_and_layer_of_the_selection(finished):
    store = Store(finished())
    view = AttentionCache(store)
    assert repr(view) == "AttentionCache(token=38, layer=5, tokens=39, state=done)"
    store.playhead, store.layer = 9, 2
    assert (view.token, view.layer) == (9, 2)
    store.pin = [12, -1, -1]
    assert view.token == 12


def test_heads_are_drawn_and_say_what_they_read(finished):
    facts = Facts(latent_bytes=1152, multi_head_bytes=6912)
    (picture,) = AttentionCache(Store(finished(), details=Known(), facts=facts)).pictures()
    assert picture.png is not None and len(picture.png) < 60_000
    assert picture.rows[0] == ("0", "'<|im_user|>' 0 (75%), ' 42' 38 (25%), '3 * ' 1 (0%)", "20%")
    assert "1,152 bytes" in picture.title and "6.0 ×" in picture.title


def test_k2_s_heads_make_a_short_table(finished):
    (picture,) = AttentionCache(Store(finished(), details=Known(64))).pictures()
    assert len(picture.rows) == 13 and picture.rows[-1][1] == "52 more"


def test_without_weights_it_says_how_to_get_them(finished, run):
    (picture,) = AttentionCache(finished()).pictures()
    assert picture.png is None and "not captured" in picture.rows[0][1]
    (picture,) = AttentionCache(run).pictures()
    assert "no tokens" in picture.rows[0][1].lower()
    assert cost(Store(run)) == "Size of the cache: missing."
