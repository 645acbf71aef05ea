"""Others who offload the same model, each in its best case.

Both read a bfloat16 export, as neither computes with INT4 experts. transformers with accelerate's
disk offload: all but the routed experts lies on the device. On a CPU those come page by page as
they are touched, from a mapped file; to a GPU all experts of a layer are copied. airllm: every
layer comes from disk for every token; transformers keeps the experts of a layer in one tensor,
which airllm cannot split, so the export is written that way for it.
Not here: what is measured of k2lab itself (`offload.py`).
"""

import contextlib
import gc
import io
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from inspect import signature
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import save_file

from k2lab.errors import MissingError
from k2lab.evals.disk import device_bytes, evict
from k2lab.evals.machine import settle
from k2lab.model.export import export_transformers
from k2lab.spec.config import K2Config
from k2lab.spec.costs import bytes_on_disk
from k2lab.spec.keys import shard_name
from k2lab.tensors.shards import INDEX
from k2lab.weights.memory import free

TOKENS = 4  # that a peer decodes for each figure
WARM_UP = 2  # tokens before the clock runs
SHARE = 0.7  # of free memory that a bfloat16 export may have for peers to be run


@dataclass(frozen=True, slots=True)
class Peer:
    """Somebody else's offloading of the same model."""

    name: str
    cold_tok_s: float
    warm_tok_s: float
    cold_device_bytes_per_token: float | None  # read from the block device, as the system counts
    cold_ratio: float  # k2lab / peer, both cold, smallest budget
    warm_ratio: float


def peers(
    folder: Path, config: K2Config, ids: Sequence[int], device: torch.device
) -> tuple[list[Peer], dict[str, str]]:
    """Those that can be run here, and for the others why not."""
    size = bytes_on_disk(replace(config, quantization_config=None))
    limit = int(SHARE * free(torch.device("cpu")))
    if size > limit:
        why = f"a bfloat16 export would take {size:,} bytes, and memory suffices for {limit:,}"
        return [], {"accelerate": why, "airllm": why}
    try:
        import transformers
    except ImportError as error:
        raise MissingError(
            "The package transformers is not installed.",
            expected="the peer of the comparison.",
            mend="Install it with `pip install k2lab[test]`.",
        ) from error
    transformers.utils.logging.disable_progress_bar()
    found, notes = [], {}
    with TemporaryDirectory(prefix="k2lab-peer-", dir=folder.parent) as place:
        exported = export_transformers(folder, Path(place) / "export")
        found.append(_accelerate(exported, config, ids, device))
        gc.collect()
        try:
            found.append(_airllm(exported, ids, device))
        except ImportError:
            notes["airllm"] = "not installed: `pip install airllm`"
    return found, notes


def _accelerate(exported: Path, config: K2Config, ids: Sequence[int], device: torch.device) -> Peer:
    """transformers with the routed experts on disk."""
    import transformers

    model = transformers.DeepseekV3ForCausalLM.from_pretrained(
        exported,
        dtype=torch.bfloat16,
        device_map=_map(config, str(device)),
        offload_folder=str(exported.parent / "offload"),
    ).eval()
    name = f"transformers {transformers.__version__}, accelerate disk offload of routed experts"
    return _timed(name, model, ids, device, exported.parent)


def _airllm(exported: Path, ids: Sequence[int], device: torch.device) -> Peer:
    """airllm, told the layout of tensors that transformers has in memory."""
    import transformers

    # What it prints would stand before the figures.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        import airllm
        from tokenizers import Tokenizer, models

        model = transformers.DeepseekV3ForCausalLM.from_pretrained(exported, dtype=torch.bfloat16)
        home, file = exported.parent / "airllm", shard_name(1, 1)
        home.mkdir()
        state = {key: value.contiguous() for key, value in model.state_dict().items()}
        save_file(state, home / file, metadata={"format": "pt"})
        index = {"metadata": {}, "weight_map": dict.fromkeys(state, file)}
        (home / INDEX).write_text(json.dumps(index))
        (home / "config.json").write_text((exported / "config.json").read_text())
        # It will not start without a tokenizer; ids are given here.
        words = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
        transformers.PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(home)
        del model, state
        gc.collect()
        streamed = airllm.AutoModel.from_pretrained(
            str(home), device=str(device), prefetching=False
        )
        (home / file).unlink()  # it has split it into layers of its own
        return _timed("airllm, one layer at a time", streamed, ids, device, home)


def _timed(name: str, model: Any, ids: Sequence[int], device: torch.device, place: Path) -> Peer:
    files = [file for file in place.rglob("*") if file.is_file()]
    cold, brought = _decode(model, ids, device, lambda: evict(files))
    warm, _ = _decode(model, ids, device, lambda: None)
    return Peer(f"{name}, bfloat16", cold, warm, brought, 0.0, 0.0)


def _map(config: K2Config, device: str) -> dict[str, str]:
    """All on the device but the routed experts: the finest that a device map can say."""
    outer = ("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head")
    where = dict.fromkeys(outer, device)
    for layer in range(config.num_hidden_layers):
        moe = ("mlp.gate", "mlp.shared_experts")
        inner = ("self_attn", "input_layernorm", "post_attention_layernorm")
        for name in (*inner, *(moe if config.is_moe(layer) else ("mlp",))):
            where[f"model.layers.{layer}.{name}"] = device
        if config.is_moe(layer):
            where[f"model.layers.{layer}.mlp.experts"] = "disk"
    return where


def _decode(
    model: Any, ids: Sequence[int], device: torch.device, before: Callable[[], None]
) -> tuple[float, float | None]:
    """Tokens per second of the peer's own forward and cache, and bytes that a token read."""
    state, seconds, start = None, 0.0, device_bytes()
    # Its argument was renamed in transformers 5.24.
    kept = "cache" if "cache" in signature(model.forward).parameters else "past_key_values"
    for place, token in enumerate(ids[: WARM_UP + TOKENS]):
        if place == WARM_UP:
            seconds, start = 0.0, device_bytes()
        before()
        began = time.perf_counter()
        with torch.inference_mode():
            past = None if state is None else state.past_key_values
            token_ids = torch.tensor([[token]], device=device)
            state = model(token_ids, **{kept: past}, use_cache=True)
        settle(device)
        seconds += time.perf_counter() - began
    read = device_bytes()
    brought = None if read is None or start is None else (read - start) / TOKENS
    return TOKENS / seconds, brought
