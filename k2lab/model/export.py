"""Writing checkpoints in the layout of Hugging Face: config, tokenizer, safetensors, sums.

`export_native` gives a copy as it is (INT4 experts). `export_transformers` gives one that
`DeepseekV3ForCausalLM` and servers without this INT4 format read: every weight in bfloat16, which
takes 3.5 times the room at K2's size. Not here: what is in the tensors (`spec/keys.py`).
"""

import errno
import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from k2lab.errors import InputError
from k2lab.spec.config import K2Config
from k2lab.spec.costs import bytes_on_disk
from k2lab.spec.keys import shard_of, tensors
from k2lab.tensors.shards import INDEX, SINGLE, Shards, check
from k2lab.tensors.stored import plain, raw
from k2lab.weights.dense import SCALE

SINGLE_LIMIT = 2**31  # bytes up to which all tensors go into one file
SUMS = "SHA256SUMS"
PART = ".part"  # in a folder, what is being written
CARDS = ("CARD.md", "README.md")  # what tells people about a checkpoint
FORM = """\
> All weights of this copy are in bfloat16, written by `k2lab export`. What follows is the card of
> the checkpoint that they come from: its sizes and its measured figures are of that one.

"""
READ_BYTES = 2**20  # of a file at once while it is summed
PEER_MODEL_TYPE = "deepseek_v3"  # the name under which transformers knows this architecture


def export_native(source: Path, target: Path) -> Path:
    """`target`, holding the checkpoint's files as they are."""
    config = K2Config.from_json(source)
    check(Shards(source), config)
    with written_whole(target) as part:
        _check_room(config, target, part)
        for file in _files(source):
            shutil.copyfile(file, part / file.name)
        write_sums(part)
    return target


def export_transformers(source: Path, target: Path) -> Path:
    """`target`, holding the checkpoint in bfloat16 as `DeepseekV3ForCausalLM` reads it."""
    shards, config = Shards(source), K2Config.from_json(source)
    check(shards, config)
    flat = replace(config, model_type=PEER_MODEL_TYPE, quantization_config=None, dtype="bfloat16")
    with written_whole(target) as part:
        _check_room(flat, target, part)
        for file in _files(source):
            if file.name in CARDS:
                text = _card(file.read_text(encoding="utf-8", errors="replace"))
                (part / file.name).write_text(text, encoding="utf-8")
            elif file.suffix != ".safetensors" and file.name not in ("config.json", INDEX, SUMS):
                shutil.copyfile(file, part / file.name)
        write_checkpoint(part, flat, _plain(shards, flat))
    return target


@contextmanager
def written_whole(folder: Path) -> Iterator[Path]:
    """A place inside `folder`, new or empty, for files that come to be its own once all are there.

    InputError where the folder holds something. Writing that is broken off leaves nothing behind.
    config.json comes last, so that at no time there is half a checkpoint under the folder's name.
    """
    new = not folder.exists()
    if not new and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(
            f"{folder} is there already and is not an empty folder.",
            expected="a new or empty folder.",
            mend="Name another folder, or remove this one.",
        )
    part = folder / PART
    part.mkdir(parents=True)
    try:
        yield part
        for file in sorted(part.iterdir(), key=lambda file: file.name == "config.json"):
            file.rename(folder / file.name)
    finally:
        shutil.rmtree(part, ignore_errors=True)
        if new:
            with suppress(OSError):  # it holds the checkpoint
                folder.rmdir()


def no_room(size: int, free: int, folder: Path, mend: str) -> InputError:
    """The refusal of a checkpoint of `size` bytes where the disk has `free` to spare."""
    return InputError(
        f"A checkpoint of {size:,} bytes for {folder}, where {max(free, 0):,} are to spare.",
        expected="room for all of its files.",
        mend=mend,
    )


def _check_room(config: K2Config, folder: Path, part: Path) -> None:
    size, free = bytes_on_disk(config), shutil.disk_usage(part).free
    if size > free:
        raise no_room(size, free, folder, "Choose another disk.")


def write_checkpoint(folder: Path, config: K2Config, named: Iterable[tuple[str, Tensor]]) -> Path:
    """`folder` with config.json, the tensors and the sums of all files now in it.

    Up to 2 GiB go into one file; more into one shard per layer as Kimi K2 lays them out, for which
    tensors of a shard must follow each other. One shard is in memory at a time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(config.to_json(), indent=2, sort_keys=True)
    (folder / "config.json").write_text(text + "\n")
    if bytes_on_disk(config) <= SINGLE_LIMIT:
        _save(dict(named), folder / SINGLE)
    else:
        _write_shards(folder, config, named)
    write_sums(folder)
    return folder


def write_sums(folder: Path) -> None:
    """Write SHA256SUMS for all other files of the folder, as `sha256sum -c` reads it."""
    lines = [f"{sha256(file)}  {file.name}\n" for file in _files(folder) if file.name != SUMS]
    (folder / SUMS).write_text("".join(lines))


def sha256(file: Path) -> str:
    """The SHA-256 sum of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _card(text: str) -> str:
    """A card that begins with the form of this copy, without sizes and sums of other files."""
    text = re.sub(r"^## Files\n.*?(?=^## |\Z)", "", text, flags=re.DOTALL | re.MULTILINE)
    facts = re.match(r"---\n.*?^---\n+", text, flags=re.DOTALL | re.MULTILINE)
    begin = facts.end() if facts else 0  # what a hub reads stands before all else
    return f"{text[:begin]}{FORM}{text[begin:]}"


def _plain(shards: Shards, config: K2Config) -> Iterator[tuple[str, Tensor]]:
    """The tensors that a config without quantisation implies, coded ones expanded."""
    for spec in tensors(config):
        if spec.key in shards:
            value = shards.read(spec.key)
            dtype = torch.float32 if spec.dtype == "F32" else torch.bfloat16
            scale = shards.read(spec.key + SCALE) if spec.key + SCALE in shards else None
            yield spec.key, plain(raw(value), scale, dtype)
        else:
            words = shards.read(f"{spec.key}_packed")
            yield spec.key, plain(words, shards.read(f"{spec.key}_scale"), torch.bfloat16)


def _write_shards(folder: Path, config: K2Config, named: Iterable[tuple[str, Tensor]]) -> None:
    places: dict[str, str] = {}
    held: dict[str, Tensor] = {}
    rest: dict[str, Tensor] = {}  # the last shard: embedding, norm and head, met at both ends
    last = shard_of("lm_head.weight", config)
    current = ""
    total = 0
    for key, value in named:
        name = places[key] = shard_of(key, config)
        total += value.nbytes
        if name == last:
            rest[key] = value
            continue
        if name != current and held:
            _save(held, folder / current)
            held = {}
        current = name
        held[key] = value
    if held:
        _save(held, folder / current)
    _save(rest, folder / last)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _save(named: dict[str, Tensor], file: Path) -> None:
    contiguous = {key: value.contiguous() for key, value in named.items()}
    try:
        save_file(contiguous, file, metadata={"format": "pt"})
    except SafetensorError as error:  # the disk is full, or would not write
        raise OSError(errno.EIO, str(error), str(file)) from error
    file.chmod(0o644)  # the library leaves it to its owner alone


def _files(folder: Path) -> list[Path]:
    """The files of a checkpoint folder in the order of their names; hidden ones are nobody's."""
    return sorted(
        file for file in folder.iterdir() if file.is_file() and not file.name.startswith(".")
    )
