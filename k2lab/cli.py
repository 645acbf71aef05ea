"""The command line: thin, each command a call into the package and a way to print its result.

Figures print as a table, or with `--json` as JSON (`run`: one event a line). An error that k2lab
raises on purpose is printed as its three parts, with exit code 2.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from k2lab import __version__
from k2lab.console import as_json, as_record, follow, print_figures
from k2lab.errors import InputError, K2LabError

if TYPE_CHECKING:
    from k2lab.spec.config import K2Config
    from k2lab.train.sft import Training

Options = argparse.Namespace
Command = Callable[[Options], int]

DONE, FAILED, REFUSED, INTERRUPTED = 0, 1, 2, 130
"""Exit codes: as wished · the run or check went wrong · a K2LabError · ^C."""

CARD_SEED = 2026  # of the unseen tasks behind CARD.md


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code of the command that the arguments name."""
    # Before torch is loaded: its waiting threads must sleep, or shared cores slow down tenfold.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    parser = command_line()
    options, rest = parser.parse_known_args(arguments)
    if rest and options.command is not _lab:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    options.rest = rest
    try:
        code: int = options.command(options)
    except K2LabError as error:
        print(f"found:    {error.found}", file=sys.stderr)
        print(f"expected: {error.expected}", file=sys.stderr)
        print(f"mend:     {error.mend}", file=sys.stderr)
        return REFUSED
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    return code


def _lab(options: Options) -> int:
    from k2lab.classroom import open_course

    return open_course(Path.cwd(), options.rest)


def _run(options: Options) -> int:
    import k2lab
    from k2lab.engine.events import Stopped
    from k2lab.engine.sampling import Sampler, greedy, sampled

    lab = k2lab.load(options.model)
    sampler: Sampler | None = greedy if options.greedy else None
    if options.seed is not None:
        sampler = sampled(temperature=1.0, seed=options.seed)
    events = lab.events(options.question, sampler=sampler, max_tokens=options.max_tokens)
    reason = "error"
    for event in events if options.json else follow(events):
        if options.json:
            print(as_json({"event": type(event).__name__, **as_record(event)}), flush=True)
        if isinstance(event, Stopped):
            reason = event.reason
    return FAILED if reason == "error" else DONE


def _info(options: Options) -> int:
    from k2lab.spec import costs

    name, config, folder = _config(options.model)
    counts = costs.parameters(config)
    figures: dict[str, Any] = {
        "name": name,
        "model_type": config.model_type,
        "layers": config.num_hidden_layers,
        "moe_layers": len(config.moe_layers),
        "routed_experts": config.n_routed_experts,
        "experts_per_token": config.num_experts_per_tok,
        "vocabulary": config.vocab_size,
        "context": config.max_position_embeddings,
        "parameters_total": counts.total,
        "parameters_active": counts.active,
        "parameters": {k: v for k, v in asdict(counts).items() if k not in ("total", "active")},
        "bytes_on_disk": costs.bytes_on_disk(config),
        "cache_bytes_per_token": costs.cache_bytes_per_token(config),
        "cache_bytes_full_context": costs.cache_bytes_per_token(config)
        * config.max_position_embeddings,
        "flops_per_token": costs.flops_per_token(config, context=0),
        "folder": None if folder is None else str(folder),
    }
    _show(figures, options)
    return DONE


def _verify(options: Options) -> int:
    from k2lab.model.verify import verify

    for passed in verify(options.folder):
        if options.json:
            print(as_json(passed))
        else:
            print(f"ok  {passed.check:10} {passed.detail}", flush=True)
    return DONE


def _eval_microworld(options: Options) -> int:
    import k2lab
    from k2lab.evals.microworld import report, results

    lab = k2lab.load(options.model)
    done = _counted(results(lab, options.n, options.seed), options.n)
    _show(report(done, options.seed), options)
    return DONE


def _bench_decode(options: Options) -> int:
    from k2lab.evals.bench import decode

    folder = _config(options.model)[2]
    if folder is None:
        raise InputError(
            f"{options.model} is here as a config only.",
            expected="a checkpoint with weights.",
            mend="Name a checkpoint folder.",
        )
    figures = decode(folder, tokens=options.tokens, repeats=options.repeats)
    _show(figures, options)
    return DONE


def _bench_train(options: Options) -> int:
    from k2lab.paths import asset
    from k2lab.train.bench import speed

    _show(speed(options.model or asset("k2-nano"), steps=options.steps), options)
    return DONE


def _train(options: Options) -> int:
    from k2lab.train.nano import train
    from k2lab.train.sft import Plan, Progress

    def report(progress: Progress) -> None:
        if options.json:
            print(as_json(progress), flush=True)
        else:
            speed = progress.tokens / max(progress.seconds, 1e-9)
            print(
                f"step {progress.step:6}  loss {progress.loss:.4f}  {speed:6.0f} tokens/s  "
                f"load {progress.load:.2f}  largest logit {progress.largest_logit:.1f}",
                flush=True,
            )

    plan = Plan() if options.steps is None else Plan(steps=options.steps)
    training = train(options.work, plan, report)
    if options.out is not None:
        _finish(training, options)
    return DONE


def _finish(training: "Training", options: Options) -> None:
    """Write the trained model, measure it, write its card."""
    import k2lab
    from k2lab.evals.microworld import microworld
    from k2lab.model.export import write_checkpoint
    from k2lab.train.card import write_card

    training.tokenizer.save(options.out)
    write_checkpoint(options.out, training.config, training.store.export())
    measured = microworld(k2lab.load(options.out), options.eval, CARD_SEED)
    _show(measured, options)
    write_card(training, measured, options.out)


def _export(options: Options) -> int:
    import k2lab.model.export as export
    from k2lab.paths import asset

    source = asset("k2-nano") if options.model is None else options.model
    write = {"native": export.export_native, "transformers": export.export_transformers}
    print(write[options.format](source, options.folder))
    return DONE


def _config(name: str | None) -> "tuple[str, K2Config, Path | None]":
    """Name, config and folder (None: no weights here) of a shipped model or a checkpoint folder."""
    from k2lab.paths import asset
    from k2lab.spec.config import K2Config

    if name == "k2-thinking":
        return name, K2Config.from_json(asset(name)), None
    if name in (None, "k2-nano"):
        folder = asset("k2-nano")
        return "k2-nano", K2Config.from_json(folder), folder
    folder = Path(str(name))
    return folder.resolve().name, K2Config.from_json(folder), folder


def _show(figures: Any, options: Options) -> None:
    if options.json:
        print(as_json(figures))
    else:
        print_figures(figures)


def _counted(done: Iterable[Any], n: int) -> Iterator[Any]:
    """The results, their number shown on a terminal while they come."""
    for number, result in enumerate(done, 1):
        if sys.stderr.isatty():
            print(f"\r{number}/{n}", end="\n" if number == n else "", file=sys.stderr, flush=True)
        yield result


def _positive(text: str) -> int:
    """A whole number above 0, for argparse."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def command_line() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="k2lab", description="A laboratory for the Kimi K2 Thinking architecture."
    )
    parser.add_argument("--version", action="version", version=f"k2lab {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Command, text: str, *, to: Any = commands) -> Any:
        made = to.add_parser(name, help=text, description=text)
        made.set_defaults(command=command)
        return made

    def add_json(made: Any, text: str = "print JSON") -> None:
        made.add_argument("--json", action="store_true", help=text)

    def add_model(made: Any, text: str = "a checkpoint folder (default: K2-nano)") -> None:
        made.add_argument("--model", metavar="DIR", type=Path, help=text)

    add("lab", _lab, "open JupyterLab on the course; further options are passed on to it")

    run = add("run", _run, "ask one question and watch the model think")
    run.add_argument("question")
    add_model(run)
    choice = run.add_mutually_exclusive_group()
    choice.add_argument("--greedy", action="store_true", help="always the likeliest token")
    choice.add_argument("--seed", type=int, help="sample at temperature 1 from this seed")
    run.add_argument("--max-tokens", type=_positive, default=1024, help="default: 1024")
    add_json(run, "print one event a line as JSON")

    info = add("info", _info, "sizes and costs, computed from the config")
    info.add_argument("model", nargs="?", metavar="k2-nano | k2-thinking | DIR")
    add_json(info)

    verify = add("verify", _verify, "check a checkpoint folder without running it")
    verify.add_argument("folder", metavar="DIR", type=Path)
    add_json(verify, "print one check a line as JSON")

    suites = add("eval", _run, "measure accuracy").add_subparsers(required=True, metavar="SUITE")
    world = add("microworld", _eval_microworld, "tasks with exact answers and tools", to=suites)
    world.add_argument("--n", type=_positive, default=200, help="tasks (default: 200)")
    world.add_argument("--seed", type=int, default=1, help="of the tasks (default: 1)")
    add_model(world)
    add_json(world)

    benches = add("bench", _run, "measure speed").add_subparsers(required=True, metavar="WHAT")
    decode = add("decode", _bench_decode, "tokens per second beside transformers", to=benches)
    decode.add_argument("--tokens", type=_positive, default=128, help="per repeat (default: 128)")
    decode.add_argument("--repeats", type=_positive, default=5, help="default: 5")
    add_model(decode)
    add_json(decode)

    training = add("train", _bench_train, "training speed beside transformers", to=benches)
    training.add_argument("--steps", type=_positive, default=6, help="timed (default: 6)")
    add_model(training, "a folder with shape and tokenizer (default: K2-nano)")
    add_json(training)

    train = add("train", _train, "train K2-nano from nothing, or go on where it stopped")
    train.add_argument("--steps", type=_positive, help="default: those of the plan")
    train.add_argument("--work", metavar="DIR", type=Path, default=Path("k2-nano-training"))
    train.add_argument("--out", metavar="DIR", type=Path, help="write model and card here")
    train.add_argument("--eval", type=_positive, default=480, help="tasks behind the card")
    add_json(train, "print one progress report a line as JSON")

    export = add("export", _export, "write a checkpoint for other programs")
    export.add_argument("folder", metavar="DIR", type=Path, help="a new folder")
    export.add_argument(
        "--format",
        choices=("transformers", "native"),
        default="transformers",
        help="bfloat16 for DeepseekV3ForCausalLM (default), or INT4 as it is",
    )
    add_model(export)
    return parser
