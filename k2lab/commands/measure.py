"""Commands that measure: accuracy by `eval`, speed by `bench`."""

from typing import Any

from k2lab.commands.form import (
    DONE,
    FAILED,
    Options,
    add,
    add_group,
    add_json,
    add_model,
    checkpoint,
    counted,
    positive,
    show,
    without,
)


def add_commands(commands: Any) -> None:
    """`eval` and `bench`."""
    suites = add_group(commands, "eval", "measure accuracy", "SUITE")
    world = add(suites, "microworld", _eval_microworld, "tasks with exact answers and tools")
    world.add_argument("--n", type=positive, default=200, help="tasks (default: 200)")
    world.add_argument("--seed", type=int, default=1, help="of the tasks (default: 1)")
    world.add_argument("--families", nargs="+", metavar="FAMILY", help="default: all")
    world.add_argument("--queue-length", type=positive, metavar="N", help="numbers in each queue")
    add_model(world)
    add_json(world)

    experts = add(suites, "experts", _eval_experts, "load of experts, thinking against acting")
    experts.add_argument("--n", type=positive, default=60, help="tasks (default: 60)")
    experts.add_argument("--seed", type=int, default=1, help="of the tasks (default: 1)")
    add_model(experts)
    add_json(experts)

    benches = add_group(commands, "bench", "measure speed", "WHAT")
    decode = add(benches, "decode", _bench_decode, "tokens per second beside transformers")
    decode.add_argument("--tokens", type=positive, default=128, help="per repeat (default: 128)")
    decode.add_argument("--repeats", type=positive, default=5, help="default: 5")
    add_model(decode)
    add_json(decode)

    training = add(benches, "train", _bench_train, "training speed beside transformers")
    training.add_argument("--steps", type=positive, default=6, help="timed (default: 6)")
    add_model(training, "a folder with shape and tokenizer (default: K2-nano)")
    add_json(training)

    tiers = add(benches, "offload", _bench_offload, "tokens per second from disk")
    tiers.add_argument("--tokens", type=positive, default=16, help="per figure (default: 16)")
    tiers.add_argument("--alone", action="store_true", help="leave out the peer")
    tiers.add_argument("--device", default="cpu", help="that computes (default: cpu)")
    add_model(tiers)
    add_json(tiers)

    agent = add(benches, "agent", _bench_agent, "calls in a storm, kills, mutants, injections")
    agent.add_argument("--seeds", type=positive, default=20, help="storms (default: 20)")
    agent.add_argument("--steps", type=positive, default=300, help="of each (default: 300)")
    agent.add_argument("--mutants", type=positive, default=1_000_000, help="default: 1000000")
    agent.add_argument("--every", type=positive, default=1, help="kill at every n-th point")
    add_json(agent)

    widgets = add(benches, "widgets", _bench_widgets, "opening and moving a K2-size run")
    widgets.add_argument("--tokens", type=positive, default=32_768, help="default: 32768")
    widgets.add_argument("--repeats", type=positive, default=3, help="of opening (default: 3)")
    add_json(widgets)

    looking = add(
        benches, "watching", _bench_watching, "cost of capture and live view, first picture"
    )
    looking.add_argument("--repeats", type=positive, default=300, help="turns (default: 300)")
    add_model(looking)
    add_json(looking)


def _eval_microworld(options: Options) -> int:
    import k2lab
    from k2lab.evals.microworld import report, results

    if options.queue_length is not None and "queue" not in (options.families or ["queue"]):
        raise without("--queue-length", "the family queue")
    lab = k2lab.load(options.model)
    found = results(
        lab,
        options.n,
        options.seed,
        families=options.families,
        queue_length=options.queue_length,
    )
    done = counted(found, options.n)
    show(report(done, options.seed), options)
    return DONE


def _eval_experts(options: Options) -> int:
    import k2lab
    from k2lab.evals.experts import report, uses

    lab = k2lab.load(options.model)
    done = counted(uses(lab, lab.about, options.n, options.seed), options.n)
    show(report(done, lab.about, options.seed), options)
    return DONE


def _bench_decode(options: Options) -> int:
    from k2lab.evals.bench import decode

    folder = checkpoint(options.model)
    figures = decode(folder, tokens=options.tokens, repeats=options.repeats)
    show(figures, options)
    return DONE


def _bench_train(options: Options) -> int:
    from k2lab.paths import asset
    from k2lab.train.bench import speed

    show(speed(options.model or asset("k2-nano"), steps=options.steps), options)
    return DONE


def _bench_offload(options: Options) -> int:
    from k2lab.evals.offload import offload

    folder = checkpoint(options.model)
    figures = offload(folder, tokens=options.tokens, peer=not options.alone, device=options.device)
    show(figures, options)
    return DONE


def _bench_watching(options: Options) -> int:
    from k2lab.evals.watching import watching

    show(watching(folder=options.model, repeats=options.repeats), options)
    return DONE


def _bench_agent(options: Options) -> int:
    from k2lab.evals.agent import agent

    figures = agent(
        seeds=options.seeds,
        steps=options.steps,
        mutants_tried=options.mutants,
        every=options.every,
    )
    show(figures, options)
    return DONE if figures.whole else FAILED


def _bench_widgets(options: Options) -> int:
    from k2lab.evals.drawing import drawing

    show(drawing(tokens=options.tokens, repeats=options.repeats), options)
    return DONE
