"""Commands about checkpoints: what they are, whether they are whole, and how to write them."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from k2lab.commands.form import (
    DONE,
    Options,
    add,
    add_json,
    add_model,
    config,
    positive,
    show,
    without,
)
from k2lab.console import as_json
from k2lab.errors import InputError

CUTS = ("layers", "experts", "vocabulary")  # of a synthetic checkpoint


def add_commands(commands: Any) -> None:
    """`info`, `verify`, `export`."""
    info = add(commands, "info", _info, "sizes and costs, computed from the config")
    info.add_argument("model", nargs="?", metavar="k2-nano | k2-thinking | DIR")
    add_json(info)

    verify = add(commands, "verify", _verify, "check a checkpoint folder without running it")
    verify.add_argument("folder", metavar="DIR", type=Path)
    add_json(verify, "print one check a line as JSON")

    export = add(commands, "export", _export, "write a checkpoint for other programs")
    export.add_argument("folder", metavar="DIR", type=Path, help="a new folder")
    export.add_argument(
        "--format",
        choices=("transformers", "native"),
        help="bfloat16 for DeepseekV3ForCausalLM (default), or as it is (always of --synthetic)",
    )
    source = export.add_mutually_exclusive_group()
    add_model(source)
    source.add_argument(
        "--synthetic",
        metavar="k2-thinking | k2-nano | DIR",
        help="random weights of this model's shape instead of a copy",
    )
    export.add_argument("--layers", type=positive, metavar="N", help="of --synthetic: the first N")
    export.add_argument("--experts", type=positive, metavar="N", help="of each layer")
    export.add_argument("--vocabulary", type=positive, metavar="N", help="tokens")


def _info(options: Options) -> int:
    from k2lab.spec import costs

    name, model, folder = config(options.model)
    counts = costs.parameters(model)
    figures: dict[str, Any] = {
        "name": name,
        "model_type": model.model_type,
        "layers": model.num_hidden_layers,
        "moe_layers": len(model.moe_layers),
        "routed_experts": model.n_routed_experts,
        "experts_per_token": model.num_experts_per_tok,
        "vocabulary": model.vocab_size,
        "context": model.max_position_embeddings,
        "parameters_total": counts.total,
        "parameters_active": counts.active,
        "parameters": {k: v for k, v in asdict(counts).items() if k not in ("total", "active")},
        "bytes_on_disk": costs.bytes_on_disk(model),
        "cache_bytes_per_token": costs.cache_bytes_per_token(model),
        "cache_bytes_full_context": costs.cache_bytes_per_token(model)
        * model.max_position_embeddings,
        "flops_per_token": costs.flops_per_token(model, context=0),
        "folder": None if folder is None else str(folder),
    }
    show(figures, options)
    return DONE


def _verify(options: Options) -> int:
    from k2lab.model.verify import verify

    for passed in verify(options.folder):
        if options.json:
            print(as_json(passed))
        else:
            print(f"ok  {passed.check:10} {passed.detail}", flush=True)
    return DONE


def _export(options: Options) -> int:
    import k2lab.model.export as export
    from k2lab.paths import asset

    if options.synthetic is not None:
        print(_synthetic(options))
        return DONE
    for name in CUTS:
        if getattr(options, name) is not None:
            raise without(f"--{name}", "--synthetic")
    source = asset("k2-nano") if options.model is None else options.model
    write = {"native": export.export_native, "transformers": export.export_transformers}
    print(write[options.format or "transformers"](source, options.folder))
    return DONE


def _synthetic(options: Options) -> Path:
    """The folder, its bytes shown on a terminal while they are written."""
    from tqdm import tqdm

    from k2lab.model.synthetic import cut, write_synthetic
    from k2lab.spec.costs import bytes_on_disk

    if options.format == "transformers":
        raise InputError(
            "--format transformers beside --synthetic.",
            expected="native: random weights are written in the form of the model they imitate.",
            mend="Leave it out, and export the folder that is written.",
        )
    shape = config(options.synthetic)[1]
    layers = shape.num_hidden_layers if options.layers is None else options.layers
    shape = cut(shape, layers, experts=options.experts, vocabulary=options.vocabulary)
    size = bytes_on_disk(shape)
    with tqdm(total=size, unit="B", unit_scale=True, disable=None, desc=options.folder.name) as bar:
        return write_synthetic(shape, options.folder, bar.update)
