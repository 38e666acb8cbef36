"""Optimisers without the compiler's import are torch's in every step and state."""

from __future__ import annotations

import pytest
import torch

from pyro_vaes.core.choices import OPTIMIZERS
from pyro_vaes.inference.optimizers import without_compiler


def trained(kind, **options):
    """Parameters and state after steps, a new group and a reload of the state in between."""
    torch.manual_seed(0)
    first, second = (torch.randn(5, 3, requires_grad=True) for _ in range(2))
    optimizer = kind([first], lr=0.1, weight_decay=0.01, **options)
    losses = []
    for step in range(6):
        if step == 2:
            optimizer.add_param_group({"params": [second], "lr": 0.01})
        if step == 4:
            optimizer.load_state_dict(optimizer.state_dict())

        def closure():
            optimizer.zero_grad()
            loss = (first - second).pow(4).sum()
            loss.backward()
            return loss

        losses.append(optimizer.step(closure).item())
    kept = [tensor for state in optimizer.state.values() for tensor in state.values()]
    return [first, second, *map(torch.as_tensor, losses), *kept]


@pytest.mark.parametrize("name", OPTIMIZERS.values())
@pytest.mark.parametrize("foreach", [False, True])
def test_steps_and_state_are_those_of_torch(name, foreach):
    theirs = getattr(torch.optim, name)
    ours = without_compiler(theirs)
    assert issubclass(ours, theirs) and ours.__name__ == name
    assert without_compiler(theirs) is ours
    pairs = zip(trained(ours, foreach=foreach), trained(theirs, foreach=foreach), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_a_step_leaves_no_graph_behind_it():
    weight = torch.ones(2, requires_grad=True)
    weight.grad = torch.ones(2)
    optimizer = without_compiler(torch.optim.Adam)([weight], lr=0.1)
    optimizer.step()
    assert torch.is_grad_enabled() and weight.requires_grad and weight.grad_fn is None
