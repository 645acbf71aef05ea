"""The command that plans: what a machine can do with a model, before anything is loaded."""

from typing import Any

from k2lab.commands.form import DONE, Options, add, add_json, config, positive, show, without


def add_commands(commands: Any) -> None:
    """`plan`."""
    plan = add(commands, "plan", _plan, "bytes per tier, tokens per second and what binds them")
    plan.add_argument("model", nargs="?", metavar="k2-nano | k2-thinking | DIR")
    plan.add_argument("--gpu", metavar="8xH200 | 80GiB", help="default: this machine's CPU")
    plan.add_argument("--ram", metavar="BYTES", help="default: what is free here")
    plan.add_argument("--disk-bw", metavar="BYTES", help="per second, such as 7GB")
    plan.add_argument("--link-bw", metavar="BYTES", help="host to GPU, per second (default: 55GB)")
    plan.add_argument("--context", type=positive, metavar="TOKENS", help="default: 4096, or all")
    plan.add_argument("--device-budget", metavar="BYTES", help="of weights on the device")
    plan.add_argument("--unit", choices=("expert", "layer"), default="expert")
    plan.add_argument("--hit-rate", type=float, metavar="SHARE", help="default: even routing's")
    add_json(plan)


def _plan(options: Options) -> int:
    import torch

    from k2lab.evals.machine import described, measured
    from k2lab.spec.amounts import nbytes
    from k2lab.weights.memory import free
    from k2lab.weights.planner import Wish, plan

    if options.link_bw is not None and options.gpu is None:
        raise without("--link-bw", "--gpu")

    def given(amount: str | None) -> int | None:
        return None if amount is None else nbytes(amount)

    name, model, folder = config(options.model)
    disk, ram = given(options.disk_bw), given(options.ram)
    if options.gpu is None:
        machine = measured(model, folder, disk=disk, memory=ram)
    else:
        host = free(torch.device("cpu")) if ram is None else ram
        link = given(options.link_bw)
        machine = described(options.gpu, host=host, disk=disk, link=link)
    wish = Wish(
        context=options.context or min(4096, model.max_position_embeddings),
        unit=options.unit,
        weights=given(options.device_budget),
        hit_rate=options.hit_rate,
    )
    show(
        {"model": name, "machine": machine, "wish": wish, "plan": plan(model, machine, wish)},
        options,
    )
    return DONE
