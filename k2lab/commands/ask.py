"""Commands that ask the model, and that look at what a run recorded."""

from pathlib import Path
from typing import Any

from k2lab.commands.form import (
    DONE,
    FAILED,
    Options,
    add,
    add_group,
    add_json,
    add_model,
    positive,
    show,
)
from k2lab.console import as_json, as_record, follow
from k2lab.errors import InputError

PAGE = b"<!doctype html>"  # with which every page begins


def add_commands(commands: Any) -> None:
    """`lab`, `run`, `trace`."""
    add(
        commands,
        "lab",
        open_lab,
        "open JupyterLab on the course; further options are passed on to it",
    )

    run = add(commands, "run", _run, "ask one question and watch the model think")
    run.add_argument("question")
    add_model(run)
    choice = run.add_mutually_exclusive_group()
    choice.add_argument("--greedy", action="store_true", help="always the likeliest token")
    choice.add_argument("--seed", type=int, help="sample at temperature 1 from this seed")
    run.add_argument("--max-tokens", type=positive, default=1024, help="default: 1024")
    add_json(run, "print one event a line as JSON")
    where = run.add_argument_group("where the weights go")
    where.add_argument(
        "--placement", choices=("auto", "resident", "sharded", "tiered"), default="auto",
        help="on one device, layers over several, or experts from disk (default: what fits)",
    )  # fmt: skip
    where.add_argument("--device", help="such as cpu or cuda:0 (default: all GPUs, or the CPU)")
    where.add_argument("--device-budget", metavar="BYTES", help="of weights, such as 20GiB")
    where.add_argument("--host-budget", metavar="BYTES", default=0, help="of experts in memory")
    where.add_argument("--unit", choices=("expert", "layer"), default="expert")
    where.add_argument("--prefetch", action="store_true", help="fetch what may be asked for next")

    traces = add_group(commands, "trace", "look at recorded runs", "WHAT")
    about = add(traces, "info", _trace_info, "what a .k2trace file holds")
    about.add_argument("file", metavar="FILE", type=Path)
    add_json(about)
    check = add(traces, "verify", _trace_verify, "whether a journal is as it was written")
    check.add_argument("file", metavar="JOURNAL", type=Path)
    check.add_argument("--key", metavar="HEX", help="public key to trust (default: your own)")
    check.add_argument("--checkpoint", metavar="FILE", type=Path, help="one kept elsewhere")
    add_json(check)
    page = add(traces, "html", _trace_html, "write it as one HTML file with the linked views")
    page.add_argument("file", metavar="FILE", type=Path)
    page.add_argument("out", metavar="OUT", type=Path)
    beside = "traces to compare it with, such as its branches"
    page.add_argument("--beside", metavar="FILE", type=Path, nargs="+", default=[], help=beside)


def open_lab(options: Options) -> int:
    """JupyterLab on the course, with the options that this command line does not know."""
    from k2lab.classroom import open_course

    return open_course(Path.cwd(), options.rest)


def _run(options: Options) -> int:
    import k2lab
    from k2lab.engine.events import Stopped
    from k2lab.engine.sampling import Sampler, greedy, sampled

    if not options.question.strip():
        raise InputError(
            f"The question {options.question!r}.",
            expected="some words.",
            mend='Write it as in k2lab run "What is 3 * 14?".',
        )
    sampler: Sampler | None = greedy if options.greedy else None
    if options.seed is not None:
        sampler = sampled(temperature=1.0, seed=options.seed)
    lab = k2lab.load(
        options.model,
        options.placement,
        device=options.device,
        device_budget=options.device_budget,
        host_budget=options.host_budget,
        unit=options.unit,
        prefetch=options.prefetch,
    )
    events = lab.events(options.question, sampler=sampler, max_tokens=options.max_tokens)
    reason = "error"
    for event in events if options.json else follow(events):
        if options.json:
            print(as_json({"event": type(event).__name__, **as_record(event)}), flush=True)
        if isinstance(event, Stopped):
            reason = event.reason
    return FAILED if reason == "error" else DONE


def _trace_info(options: Options) -> int:
    import k2lab
    from k2lab.trace.figures import figures

    show(figures(k2lab.open(options.file)), options)
    return DONE


def _trace_verify(options: Options) -> int:
    from k2lab.agent.journal import verify
    from k2lab.agent.keys import Key

    trusted = [Key.own().public if options.key is None else _public(options.key)]
    verdict = verify(options.file, trusted=trusted, checkpoint=options.checkpoint)
    told = as_record(verdict)
    told["problems"] = list(verdict.problems) if options.json else "; ".join(verdict.problems)
    show({"whole": verdict.whole, **told}, options)
    return DONE if verdict.whole else FAILED


def _public(key: str) -> str:
    """A public key as journals write it."""
    from k2lab.agent.keys import KEY_BYTES

    try:
        data = bytes.fromhex(key)
    except ValueError:
        data = b""
    if len(data) != KEY_BYTES:
        raise InputError(
            f"The key {key!r:.80}.",
            expected=f"a public key: {2 * KEY_BYTES} hexadecimal digits.",
            mend="Copy it from `signed_by`, or leave it out to trust your own key.",
        )
    return data.hex()


def _trace_html(options: Options) -> int:
    import k2lab

    out = options.out
    if out.is_file() and _begin(out) not in (PAGE, b""):
        raise InputError(
            f"{out} is there already and is no page.",
            expected="a new file, or a page to write anew.",
            mend="Name another file; traces to compare it with come after --beside.",
        )
    beside = [k2lab.open(each) for each in options.beside]
    print(k2lab.open(options.file).to_html(out, beside=beside))
    return DONE


def _begin(file: Path) -> bytes:
    """As many bytes of a file as tell a page."""
    with file.open("rb") as stream:
        return stream.read(len(PAGE))
