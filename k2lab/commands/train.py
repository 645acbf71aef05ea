"""The command that trains K2-nano."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from k2lab.commands.form import DONE, Options, add, add_json, positive, show
from k2lab.console import as_json

if TYPE_CHECKING:
    from k2lab.train.sft import Training

CARD_SEED = 2026  # of the unseen tasks behind CARD.md


def add_commands(commands: Any) -> None:
    """`train`."""
    train = add(commands, "train", _train, "train K2-nano from nothing, or go on where it stopped")
    train.add_argument("--steps", type=positive, help="default: those of the plan")
    train.add_argument("--work", metavar="DIR", type=Path, default=Path("k2-nano-training"))
    train.add_argument(
        "--start",
        metavar="DIR",
        type=Path,
        help="a finished model to go on from",
    )
    train.add_argument("--out", metavar="DIR", type=Path, help="write model and card here")
    train.add_argument("--eval", type=positive, default=480, help="tasks behind the card")
    add_json(train, "print one progress report a line as JSON")


def _train(options: Options) -> int:
    from k2lab.train.nano import PLAN, train
    from k2lab.train.sft import Progress

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

    plan = PLAN if options.steps is None else replace(PLAN, steps=options.steps)
    training = train(options.work, plan, report, start=options.start)
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
    show(measured, options)
    write_card(training, measured, options.out)
