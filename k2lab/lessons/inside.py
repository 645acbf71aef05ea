"""Short ways into the network for lessons: values at sites, logits, and how far two lie apart."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from k2lab.engine.generate import check_ids
from k2lab.engine.taps import untouched, watch
from k2lab.errors import InputError

if TYPE_CHECKING:
    from k2lab.lab import Lab
    from k2lab.model.k2 import Form
    from k2lab.spec.sites import Tap


WHOLE = (torch.int64, torch.int32)  # what an embedding takes


def look(lab: "Lab", ids: Tensor, pattern: str) -> dict[str, Tensor]:
    """Values at the sites that match, by site name, each [token, …], for ids [1, token].

    InputError for other ids, SiteError where no site matches.
    """
    seen: dict[str, Tensor] = {}

    def see(site: str, value: Tensor) -> None:
        seen[site] = value[0].clone()

    forward(lab, ids, tap=watch(pattern, lab.config, see))
    return seen


def forward(
    lab: "Lab", ids: Tensor, *, tap: "Tap" = untouched, form: "Form" = "expanded"
) -> Tensor:
    """Logits of the token after each [token, vocab], for ids [1, token], without a cache.

    InputError for other ids or for a form that is none.
    """
    _check(lab, ids)
    with torch.inference_mode():
        step = lab.model.step(ids.shape[1], cache=None, tap=tap, form=form)
        return lab.model(ids, step)[0].float()


def _check(lab: "Lab", ids: object) -> None:
    """Raise unless they are the ids of one text."""
    if not isinstance(ids, Tensor) or ids.dtype not in WHOLE or ids.dim() != 2 or len(ids) != 1:
        shown = f"{list(ids.shape)} of {ids.dtype}" if isinstance(ids, Tensor) else repr(ids)
        raise InputError(
            f"ids are {shown:.80}.",
            expected="whole numbers in a tensor of the shape [1, token].",
            mend="Use torch.tensor([lab.tokenizer.encode(text)]); of several texts, one at a time.",
        )
    check_ids(ids[0].tolist(), lab.config.vocab_size)


def divergence(plain: Tensor, other: Tensor) -> float:
    """Mean Kullback–Leibler divergence in nats of next-token probabilities, from logits."""
    p, q = plain.log_softmax(-1), other.log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())
