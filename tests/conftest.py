"""What tests share: small configs, exact random weights, checkpoint folders, small models.

Weights come from integer arithmetic, so that they are the same bits on every machine and with every
version of torch: stored results (`tests/golden/`) stay comparable.
"""

import json
import math
import os
import subprocess
import sys
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from k2lab.spec.config import K2_NANO, K2Config, RopeScaling
from k2lab.spec.keys import TensorSpec, tensors

if TYPE_CHECKING:
    from torch import Tensor

    from k2lab.model.k2 import K2
    from k2lab.text.tokenizer import Tokenizer

if not Path("/proc/driver/nvidia").exists():
    # No GPU: its kernels run in Triton's interpreter, which has to be said before Triton comes.
    os.environ.setdefault("TRITON_INTERPRET", "1")

MYPY = pytest.StashKey[subprocess.Popen[str]]()


def pytest_collection_finish(session: pytest.Session) -> None:
    """mypy, which takes a minute or more, begins before the tests: its own finds it done."""
    wanted = any(item.name == "test_mypy_finds_nothing" for item in session.items)
    if wanted and not session.config.option.collectonly:
        session.stash[MYPY] = subprocess.Popen(
            [sys.executable, "-m", "mypy"],
            cwd=Path(__file__).parents[1],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


def pytest_sessionfinish(session: pytest.Session) -> None:
    """It does not outlive tests that are stopped."""
    mypy = session.stash.get(MYPY, None)
    if mypy is not None and mypy.returncode is None:
        mypy.kill()
        mypy.communicate()


@pytest.fixture(scope="session")
def mypy(request: pytest.FixtureRequest) -> "subprocess.Popen[str]":
    """Its process."""
    return request.session.stash[MYPY]


YARN = RopeScaling(
    factor=8.0,
    beta_fast=32.0,
    beta_slow=1.0,
    mscale=1.0,
    mscale_all_dim=1.0,
    original_max_position_embeddings=64,
)
VOCABULARY = 640  # 384 ranks and 256 specials
SMALL = replace(
    K2_NANO,
    vocab_size=512,
    hidden_size=64,
    num_hidden_layers=3,
    intermediate_size=64,
    num_attention_heads=2,
    num_key_value_heads=2,
    q_lora_rank=32,
    kv_lora_rank=32,
    qk_nope_head_dim=16,
    qk_rope_head_dim=16,
    v_head_dim=16,
    n_routed_experts=8,
    num_experts_per_tok=2,
    bos_token_id=256,
    eos_token_id=258,
    pad_token_id=511,
    max_position_embeddings=1024,
    rope_scaling=None,
)


def pytest_configure() -> None:
    """Notebooks are compared by their static pictures: a live view differs in every run."""
    os.environ["K2LAB_STATIC"] = "1"


@pytest.fixture(autouse=True)
def _live(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests see widgets as a person does."""
    monkeypatch.delenv("K2LAB_STATIC", raising=False)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--write-golden",
        action="store_true",
        help="write tests/golden/ from transformers and compressed-tensors instead of comparing",
    )


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """One line on the comparison with transformers, more with -v."""
    told = []
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, ()):
            found = dict(getattr(report, "user_properties", ()))
            if report.when == "call" and "routing_flips" in found:
                told.append((report.nodeid.partition("[")[2].rstrip("]"), found))
    if not told:
        return
    worst = max(found["max_difference"] for _, found in told)
    flips, choices = (
        sum(found[key] for _, found in told) for key in ("routing_flips", "routing_choices")
    )
    terminalreporter.write_line(
        f"parity with transformers: {len(told)} configs, max |Δ| = {worst:.1e}, "
        f"routing flips = {flips} of {choices}"
    )
    if terminalreporter.verbosity > 0:
        for name, found in told:
            terminalreporter.write_line(
                f"  {name:24} max |Δ| = {found['max_difference']:.1e}, "
                f"flips = {found['routing_flips']} of {found['routing_choices']}"
            )


@pytest.fixture(scope="session")
def yarn() -> RopeScaling:
    return YARN


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., K2Config]:
    """A factory of float32 configs that compute in milliseconds; keywords change fields."""
    return _tiny_config


@pytest.fixture(scope="session")
def random_weights() -> "Callable[[K2Config, int], dict[str, Tensor]]":
    """A factory of all checkpoint tensors of a config, the same bits for the same seed."""
    return _random_weights


@pytest.fixture(scope="session")
def tiny_model() -> "Callable[..., K2]":
    """A factory of networks with random weights; `dtype` and `keeping` go to the store."""
    from k2lab.model.k2 import K2
    from k2lab.weights.resident import Resident

    def build(config: K2Config, seed: int = 0, **options: Any) -> K2:
        return K2(config, Resident(config, _random_weights(config, seed).__getitem__, **options))

    return build


@pytest.fixture(scope="session")
def tiny_tokenizer() -> "Tokenizer":
    """384 ranks learned from two sentences, 256 specials after them."""
    return _tokenizer()


@pytest.fixture(scope="session")
def random_checkpoint() -> Callable[[Path, K2Config, int], Path]:
    """A factory of real checkpoint folders: config, one shard, tokenizer."""

    def write(folder: Path, config: K2Config, seed: int = 0) -> Path:
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        weights = _random_weights(config, seed)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps(config.to_json(), indent=1))
        _tokenizer().save(folder)
        return folder

    return write


@pytest.fixture(scope="session")
def small_config() -> K2Config:
    """K2's network with 3 layers, 8 experts and a vocabulary of bytes."""
    return SMALL


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with random INT4 weights and a tokenizer of single bytes; not to be written to."""
    import torch

    from k2lab.model.export import write_checkpoint
    from k2lab.text.tokenizer import Tokenizer
    from k2lab.train.store import Trainable
    from k2lab.train.vocabulary import PATTERN, SPECIALS

    folder = tmp_path_factory.mktemp("small")
    ranks = {bytes([byte]): byte for byte in range(256)}
    specials = {name: 256 + distance for name, distance in SPECIALS}
    lab = {"name": "small", "system": None, "declare_tools": False, "temperature": 0}
    Tokenizer(ranks, specials, pattern=PATTERN, lab=lab).save(folder)
    with torch.no_grad():
        write_checkpoint(folder, SMALL, Trainable(SMALL).export())
    return folder


def _tiny_config(**changes: Any) -> K2Config:
    return replace(
        K2_NANO,
        **{
            "vocab_size": VOCABULARY,
            "hidden_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": changes.get("num_attention_heads", 4),
            "q_lora_rank": 32,
            "kv_lora_rank": 32,
            "qk_nope_head_dim": 16,
            "qk_rope_head_dim": 8,
            "v_head_dim": 12,
            "intermediate_size": 96,
            "moe_intermediate_size": 32,
            "n_routed_experts": 16,
            "num_experts_per_tok": 4,
            "max_position_embeddings": 512,
            "rope_scaling": None,
            "bos_token_id": VOCABULARY - 256,
            "eos_token_id": VOCABULARY - 254,
            "pad_token_id": VOCABULARY - 1,
            "dtype": "float32",
            "quantization_config": None,
        }
        | changes,
    )


def _random_weights(config: K2Config, seed: int = 0) -> "dict[str, Tensor]":
    return {spec.key: _random(spec, config, seed) for spec in tensors(config)}


def _random(spec: TensorSpec, config: K2Config, seed: int) -> "Tensor":
    import torch

    from k2lab.tensors.int4 import pack

    dtype = {"F32": torch.float32, "BF16": torch.bfloat16, "I32": torch.int32}[spec.dtype]
    scrambled = zlib.crc32(f"{seed} {spec.key}".encode())
    if spec.key.endswith(".weight_shape"):
        inner, width = config.moe_intermediate_size, config.hidden_size
        down = ".down_proj." in spec.key
        return torch.tensor((width, inner) if down else (inner, width), dtype=dtype)
    if spec.key.endswith(".weight_packed"):
        rows, words = spec.shape
        return pack(_bits((rows, words * 8), scrambled) % 16 - 8)  # −8 among them
    noise = (_bits(spec.shape, scrambled) % 2**16).double() / 2**15 - 1  # uniform, −1 … 1
    if spec.key.endswith(".weight_scale"):
        return ((noise + 1.5) * 0.02).to(dtype)
    if spec.key.endswith("e_score_correction_bias"):
        return (noise * 0.1).to(dtype)
    if len(spec.shape) == 1:
        return (1 + 0.1 * noise).to(dtype)
    return (noise * (3 / spec.shape[-1]) ** 0.5).to(dtype)


def _bits(shape: tuple[int, ...], seed: int) -> "Tensor":
    """Scrambled whole numbers 0 … 2³¹ − 1 (int64), a function of place and seed alone."""
    import torch

    x = (torch.arange(math.prod(shape), dtype=torch.int64) + seed % 2**31 * 1_000_003) & 0x7FFFFFFF
    for factor, shift in ((0x45D9F3B, 16), (0x119DE1F, 15), (0x3C6EF37, 16)):
        x = ((x ^ (x >> shift)) * factor) & 0x7FFFFFFF
    return (x ^ (x >> 16)).reshape(shape)


def _tokenizer() -> "Tokenizer":
    from k2lab.train.vocabulary import learn

    texts = ("What is three times fourteen? The answer is forty-two.", "Ärger über 12 Äpfel.")
    return learn(texts, frozenset({"Ada"}), ranks=VOCABULARY - 256)
