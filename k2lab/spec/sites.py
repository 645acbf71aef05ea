"""The table of sites: every place in the network that a tap can watch or edit.

What it is not: no tensor and no tap; `model/k2.py` calls the tap at each of these names, in the
order of this table. Every value has a leading batch axis that `axes` does not list.
Source: symbols of the DeepSeek-V2 and DeepSeek-V3 reports (arXiv 2405.04434, 2412.19437).
"""

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from types import SimpleNamespace
from typing import Any, Literal

from k2lab.errors import SiteError
from k2lab.spec.config import K2Config

Axis = Literal[
    "token",
    "source",  # tokens attended to: those in the cache, then those of this call
    "head",
    "hidden",
    "nope",  # qk_nope_head_dim
    "rope",  # qk_rope_head_dim
    "latent",  # kv_lora_rank
    "value",  # v_head_dim
    "expert",  # n_routed_experts
    "slot",  # num_experts_per_tok
    "vocab",
]

Tap = Callable[[str, Any], Any]
"""`tap(site, tensor) -> tensor`, called at every site: what it returns is used instead.

One that says what it looks at (`looking_at`) may be spared the other sites; one that only watches
may say so (`noting`), and be told instead of called.
"""

Notes = Mapping[str, Callable[[Any], None]]
"""What is told the value of a site, by the site's name: see `noting`."""

Where = Literal["once", "layer", "moe"]
"""Once in the network, in every layer, or in every layer with routed experts."""


@dataclass(frozen=True, slots=True)
class Site:
    """A named place; `{i}` in the name stands for the layer, counted from 0."""

    name: str
    axes: tuple[Axis, ...]
    meaning: str
    symbol: str  # as in the reports, in TeX
    where: Where


SITES: tuple[Site, ...] = (
    Site("embed", ("token", "hidden"), "token embedding", r"h^0_t", "once"),
    Site(
        "layers.{i}.input",
        ("token", "hidden"),
        "residual stream before attention",
        r"h_t",
        "layer",
    ),
    Site(
        "layers.{i}.self_attn.q_nope",
        ("token", "head", "nope"),
        "query part without position",
        r"q^C_{t,i}",
        "layer",
    ),
    Site(
        "layers.{i}.self_attn.q_rope",
        ("token", "head", "rope"),
        "query part with position, after rotation",
        r"q^R_{t,i}",
        "layer",
    ),
    Site(
        "layers.{i}.self_attn.latent",
        ("token", "latent"),
        "compressed keys and values after their norm, as cached",
        r"c^{KV}_t",
        "layer",
    ),
    Site(
        "layers.{i}.self_attn.k_rope",
        ("token", "rope"),
        "key part with position, after rotation, shared by all heads, as cached",
        r"k^R_t",
        "layer",
    ),
    Site(
        "layers.{i}.self_attn.scores",
        ("head", "token", "source"),
        "attention logits before softmax, scaled, -inf where masked",
        r"q_{t,i}^\top k_{j,i} \cdot \mathrm{scale}",
        "layer",
    ),
    Site(
        "layers.{i}.self_attn.weights",
        ("head", "token", "source"),
        "attention weights after softmax",
        r"\mathrm{Softmax}_j(q_{t,i}^\top k_{j,i} \cdot \mathrm{scale})",
        "layer",
    ),
    Site(
        "layers.{i}.self_attn.heads",
        ("token", "head", "value"),
        "output of each head before the output projection",
        r"o_{t,i}",
        "layer",
    ),
    Site(
        "layers.{i}.self_attn.output",
        ("token", "hidden"),
        "attention output, before it is added to the residual stream",
        r"W^O [o_{t,1}; \dots; o_{t,n_h}]",
        "layer",
    ),
    Site(
        "layers.{i}.middle",
        ("token", "hidden"),
        "residual stream between attention and feed-forward",
        r"u_t",
        "layer",
    ),
    Site(
        "layers.{i}.mlp.router.logits",
        ("token", "expert"),
        "match of the token with each expert's centroid, before the sigmoid",
        r"u_t^\top e_i",
        "moe",
    ),
    Site(
        "layers.{i}.mlp.router.scores",
        ("token", "expert"),
        "affinity, after the sigmoid",
        r"s_{i,t}",
        "moe",
    ),
    Site(
        "layers.{i}.mlp.router.choice",
        ("token", "expert"),
        "affinity plus balancing bias, -inf outside the kept groups; decides the choice only",
        r"s_{i,t} + b_i",
        "moe",
    ),
    Site(
        "layers.{i}.mlp.router.experts",
        ("token", "slot"),
        "ids of the chosen experts, falling choice score",
        r"\mathrm{TopK}(s_{i,t} + b_i)",
        "moe",
    ),
    Site(
        "layers.{i}.mlp.router.weights",
        ("token", "slot"),
        "mixing weights of the chosen experts, routed_scaling_factor included",
        r"g_{i,t}",
        "moe",
    ),
    Site(
        "layers.{i}.mlp.shared_experts.output",
        ("token", "hidden"),
        "output of the shared experts, which see every token",
        r"\mathrm{FFN}^{(s)}(u_t)",
        "moe",
    ),
    Site(
        "layers.{i}.mlp.experts.rows",
        ("token", "slot", "hidden"),
        "output of each chosen expert, not weighted and not summed",
        r"\mathrm{FFN}^{(r)}_i(u_t)",
        "moe",
    ),
    Site(
        "layers.{i}.mlp.output",
        ("token", "hidden"),
        "feed-forward output, before it is added to the residual stream",
        r"h'_t - u_t",
        "layer",
    ),
    Site("norm", ("token", "hidden"), "residual stream after the last norm", r"h_t", "once"),
    Site("logits", ("token", "vocab"), "score of each next token", r"W^{head} h_t", "once"),
)
"""All sites, in the order in which a forward pass reaches them."""


EVERY = frozenset(site.name for site in SITES)
"""The names of all rows."""

AFTER = ("norm", "logits")
"""The sites after the last layer."""


def expand(config: K2Config) -> tuple[str, ...]:
    """The concrete names of this model's sites, in the order of a forward pass."""
    first, *inside = (site for site in SITES if site.name not in AFTER)
    names = [first.name]
    for layer in range(config.num_hidden_layers):
        moe = config.is_moe(layer)
        names += (site.name.format(i=layer) for site in inside if moe or site.where != "moe")
    return (*names, *AFTER)


def match(pattern: str, config: K2Config) -> tuple[str, ...]:
    """The concrete names that the shell-style pattern matches, in the order of a forward pass.

    `*` also matches dots, so `layers.3.*` is everything in layer 3. Nothing matched: SiteError.
    """
    names = expand(config)
    found = tuple(name for name in names if fnmatchcase(name, pattern))
    if found:
        return found
    nearest = difflib.get_close_matches(pattern, names, n=3, cutoff=0.3)
    raise SiteError(
        f"No site of this model matches {pattern!r}.",
        expected="A name such as 'layers.3.mlp.router.scores', or a pattern such as "
        f"'layers.*.input', with layers 0 to {config.num_hidden_layers - 1}.",
        mend=f"The nearest names are {', '.join(nearest)}."
        if nearest
        else "List the names with k2lab.spec.sites.expand(config).",
    )


def names(prefix: str) -> SimpleNamespace:
    """Attributes for the sites under a concrete prefix: `names("layers.3.mlp").experts_rows`."""
    layer = prefix.split(".")[1]
    every = (site.name.format(i=layer) for site in SITES)
    leaves = [name.removeprefix(f"{prefix}.") for name in every if name.startswith(f"{prefix}.")]
    return SimpleNamespace(**{leaf.replace(".", "_"): f"{prefix}.{leaf}" for leaf in leaves})


def looking_at(tap: Tap, sites: Iterable[str], *, arrays: bool = False) -> Tap:
    """The tap, which now says what it looks at: names of rows of the table, `{i}` in place of i.

    It must return any other value as it is: it may not be asked. With `arrays` it takes NumPy's
    arrays as well as tensors.
    """
    tap.sites, tap.arrays = frozenset(sites), arrays  # type: ignore[attr-defined]
    return tap


def rows(tap: Tap) -> frozenset[str]:
    """The rows of the table that the tap looks at: all, unless it says which (`looking_at`)."""
    return getattr(tap, "sites", EVERY)


def takes_arrays(tap: Tap) -> bool:
    """Whether the tap says that it takes arrays as well as tensors."""
    return getattr(tap, "arrays", False)


def untouched(site: str, value: Any) -> Any:
    """The value itself: the tap of a run that nobody watches."""
    return value


looking_at(untouched, (), arrays=True)


def noting(tap: Tap, notes: Notes, *, after: Tap = untouched) -> Tap:
    """The tap, which now says that all it does is what `after` does, and then to watch these sites.

    For one token a network may call `after` alone, and tell `notes[site]` what came of it: an array
    without batch and token axes, which may be kept, since nobody writes to it any more.
    """
    tap.notes, tap.after = notes, after  # type: ignore[attr-defined]
    return tap


def parts(tap: Tap) -> tuple[Tap, Notes]:
    """What of the tap must be called, and what may be told afterwards instead (`noting`)."""
    return getattr(tap, "after", tap), getattr(tap, "notes", {})


def describe(name: str) -> Site:
    """The table's row for a concrete name, such as `layers.3.input`; SiteError for another text."""
    first, _, rest = name.partition(".")
    layer, _, tail = rest.partition(".")
    general = f"layers.{{i}}.{tail}" if first == "layers" and layer.isdecimal() else name
    for site in SITES:
        if site.name == general and "{" not in name:
            return site
    raise SiteError(
        f"{name!r} is not the name of a site.",
        expected="A concrete name, such as 'layers.3.mlp.router.scores'.",
        mend="See the table in k2lab.spec.sites.SITES.",
    )
