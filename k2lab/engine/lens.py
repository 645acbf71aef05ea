"""The logit lens: what the network would say if it stopped at a layer.

The residual stream before a layer goes through the last norm and the output matrix. Early layers
were never trained to be read like this: what it shows is a view, not a decision.
Source: nostalgebraist, "interpreting GPT: the logit lens" (2020).
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from k2lab.engine.taps import untouched
from k2lab.errors import InputError
from k2lab.model.k2 import K2


@dataclass(frozen=True, slots=True)
class View:
    """Next-token distributions, read off a residual stream."""

    ids: NDArray[np.int64]  # likeliest tokens, falling [token, count]
    probabilities: NDArray[np.float32]  # [token, count]
    entropy: NDArray[np.float32]  # nats [token]


def lens(model: K2, residual: NDArray[np.float32], *, count: int = 5) -> View:
    """The view of a residual stream [token, hidden], such as `captured.values("residual", 3)`."""
    if residual.ndim != 2 or residual.shape[1] != model.config.hidden_size:
        raise InputError(
            f"A residual stream of shape {list(residual.shape)}.",
            expected=f"[token, {model.config.hidden_size}], as the model is wide.",
            mend='use trace.captured.values("residual", layer) of a run of this model.',
        )
    with torch.inference_mode(), model.store.dense(None, "norm") as w:
        x = torch.from_numpy(np.array(residual)).to(model.device, w.norm.dtype)
        step = model.step(1, cache=None, tap=untouched)
        logs = model.logits(x[None], step)[0].float().log_softmax(-1)
        chances = logs.exp()
        best = chances.topk(min(count, chances.shape[-1]))
        entropy = torch.special.entr(chances).sum(-1)
    return View(best.indices.cpu().numpy(), best.values.cpu().numpy(), entropy.cpu().numpy())
