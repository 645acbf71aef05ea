"""What the protocol itself holds: the tensors of a part, and word of their assignments."""

import copy

import torch

from k2lab.weights.store import namespace


def test_a_part_holds_its_tensors_and_nothing_else() -> None:
    part = namespace({"o_proj.weight": torch.ones(2), "bias": torch.zeros(2)})
    assert [*vars(part)] == ["o_proj", "bias"]
    assert [*vars(copy.deepcopy(part))] == ["o_proj", "bias"]


def test_each_assignment_leaves_another_mark() -> None:
    part = namespace({"o_proj.weight": torch.ones(2)})
    marks = [part.mark]
    part.o_proj = torch.zeros(2)
    marks.append(part.mark)
    part.o_proj.add_(1)  # the tensor is the same: who reads its memory sees it
    assert part.mark is marks[-1]
    del part.o_proj
    marks.append(part.mark)
    assert len({*map(id, marks)}) == 3
