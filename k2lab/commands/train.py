"""The command that trains K2-nano."""

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from k2lab.commands.form import DONE, Options, add, add_json, counting, positive, show
from k2lab.console import as_json

if TYPE_CHECKING:
    from k2lab.evals.microworld import Report
    from k2lab.train.rl import Gain
    from k2lab.train.sft import Training

CARD_SEED = 9787  # of the unseen tasks behind CARD.md
CALLS = 300  # of each long queue
CHOICE_SEED = 2027  # of those that decide whether a stage is kept


def add_commands(commands: Any) -> None:
    """`train`."""
    train = add(commands, "train", _train, "train K2-nano from nothing, or go on where it stopped")
    train.add_argument("--steps", type=positive, help="default: those of the plans")
    train.add_argument("--work", metavar="DIR", type=Path, default=Path("k2-nano-training"))
    train.add_argument("--start", metavar="DIR", type=Path, help="go on from a finished model")
    train.add_argument("--out", metavar="DIR", type=Path, help="write model and card here")
    train.add_argument("--rl", type=positive, metavar="N", help="steps of reinforcement after it")
    train.add_argument("--eval", type=positive, default=480, help="tasks behind the card")
    train.add_argument("--chains", type=counting, default=20, help="long queues (default: 20)")
    train.add_argument("--experts", type=counting, default=100, help="tasks to count experts in")
    add_json(train, "print one progress report a line as JSON")


def _train(options: Options) -> int:
    from k2lab.train.nano import STAGES, train
    from k2lab.train.plan import until
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

    for folder in filter(None, (options.work, options.out)):
        folder.mkdir(parents=True, exist_ok=True)  # where that fails, hours have not gone by yet
    stages = STAGES if options.steps is None else until(STAGES, options.steps)
    training = train(options.work, stages, report, start=options.start)
    if options.out is not None:
        _finish(training, options)
    return DONE


def _finish(training: "Training", options: Options) -> None:
    """Write the trained model, measure it, write its card."""
    import k2lab
    from k2lab.evals import experts, limits, microworld
    from k2lab.train.card import Measured, write_card

    if options.rl:
        _reinforce(training, options)
    with TemporaryDirectory(prefix="k2lab-bf16-") as place:
        parent = _measured(training, Path(place), options.eval, CARD_SEED, rounded=False)
    report = _measured(training, options.out, options.eval, CARD_SEED)
    show(report, options)
    lab, chains, used = k2lab.load(options.out), None, None
    if options.chains:
        done = microworld.results(
            lab, options.chains, CARD_SEED, families=["queue"], queue_length=CALLS
        )
        chains = microworld.report(done, CARD_SEED)
        show(chains, options)
    if options.experts:
        uses = experts.uses(lab, lab.about, options.experts, CARD_SEED)
        used = experts.report(uses, lab.about, CARD_SEED)
        show(used, options)
    measured = Measured(report, chains, CALLS, used, parent, limits.answers(lab))
    write_card(training, measured, options.out)


def _reinforce(training: "Training", options: Options) -> None:
    """The reinforcement stage; its weights are kept where they answer more tasks."""
    from k2lab.train.rl import RLPlan, reinforce

    with TemporaryDirectory(prefix="k2lab-rl-") as place:
        folder, before = Path(place), training.store.snapshot()
        first = _measured(training, folder, options.eval, CHOICE_SEED).overall
        reinforce(training, RLPlan(steps=options.rl), lambda gain: _say(gain, options))
        training.save(options.work)
        second = _measured(training, folder, options.eval, CHOICE_SEED).overall
    better = second.accuracy > first.accuracy
    if not better:
        training.store.restore(before)
    training.notes.append(
        f"Reinforcement, {options.rl} steps: {first.accuracy:.1%} of {first.n} tasks right before "
        f"it, {second.accuracy:.1%} after; "
        f"{'kept' if better else 'left out of these weights, since it did not help'}."
    )


def _measured(
    training: "Training", folder: Path, tasks: int, seed: int, *, rounded: bool = True
) -> "Report":
    """The report on the model as it is, written to `folder`; experts are INT4 where `rounded`."""
    import k2lab
    from k2lab.evals.microworld import microworld
    from k2lab.model.export import write_checkpoint

    config = training.config if rounded else replace(training.config, quantization_config=None)
    training.tokenizer.save(folder)
    write_checkpoint(folder, config, training.store.export(rounded=rounded))
    return microworld(k2lab.load(folder), tasks, seed)


def _say(gain: "Gain", options: Options) -> None:
    if options.json:
        print(as_json(gain), flush=True)
    else:
        print(
            f"reinforcement step {gain.step:4}  right {gain.solved:.1%}  reward {gain.reward:.3f}  "
            f"tasks that taught {gain.taught}  fine-tuning loss {gain.ptx_loss:.4f}",
            flush=True,
        )
