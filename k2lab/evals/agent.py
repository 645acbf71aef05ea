"""The agent under load: all that must hold, counted, in one report."""

import resource
import sys
import time
from dataclasses import dataclass

from k2lab.evals.injections import Injections, injections
from k2lab.evals.kills import SCENES, Kills, kills
from k2lab.evals.mutants import Mutants, mutants
from k2lab.evals.storm import storm

STRUCK = 0.2  # of the steps of each storm must have a fault, else it shows too little


@dataclass(frozen=True, slots=True)
class Storms:
    """Runs of many steps under seeded faults, all together."""

    seeds: int
    steps: int  # turns with calls
    calls: int  # entries that were wanted
    kept_once: int
    lost: int
    twice: int
    wrong: int
    thoughts_lost: int
    struck: dict[str, int]  # faults, by kind
    least_struck: float  # the smallest share of steps with a fault
    answered: int  # runs that ended with an answer


@dataclass(frozen=True, slots=True)
class Agent:
    """The report."""

    storms: Storms
    kills: dict[str, Kills]  # by scene
    mutants: Mutants
    injections: Injections
    seconds: float
    peak_bytes: int  # of this process, resident

    @property
    def whole(self) -> bool:
        """Whether all holds that must."""
        storms, mutants, attacked = self.storms, self.mutants, self.injections.carried_out
        return (
            storms.kept_once == storms.calls
            and storms.answered == storms.seeds
            and storms.thoughts_lost == 0
            and storms.least_struck >= STRUCK
            and all(each.whole for each in self.kills.values())
            and self.kills["narrow"].compacted > self.kills["narrow"].points
            and mutants.raised == mutants.retracted == mutants.split == 0
            and attacked.accuracy == 0
        )


def agent(
    *, seeds: int = 20, steps: int = 300, mutants_tried: int = 10**6, every: int = 1
) -> Agent:
    """The whole report: storms of `steps` steps, a kill at every n-th point, damaged turns."""
    began = time.perf_counter()
    found = [storm(seed, steps) for seed in range(seeds)]
    storms = Storms(
        seeds=seeds,
        steps=sum(each.steps for each in found),
        calls=sum(each.calls for each in found),
        kept_once=sum(each.kept_once for each in found),
        lost=sum(each.lost for each in found),
        twice=sum(each.twice for each in found),
        wrong=sum(each.wrong for each in found),
        thoughts_lost=sum(each.thoughts_lost for each in found),
        struck={kind: sum(each.struck[kind] for each in found) for kind in found[0].struck},
        least_struck=min(sum(each.struck.values()) / each.steps for each in found),
        answered=sum(each.reason == "answer" for each in found),
    )
    killed = {
        scene: kills(scene, range(0, played.points, every)) for scene, played in SCENES.items()
    }
    damaged, attacked = mutants(mutants_tried), injections()
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return Agent(storms, killed, damaged, attacked, time.perf_counter() - began, peak)
