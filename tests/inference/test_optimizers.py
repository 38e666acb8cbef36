"""Optimisers without the compiler's import are torch's in every step and state."""

from __future__ import annotations

import pytest
import torch

from pyro_vaes.core.choices import OPTIMIZERS
from pyro_vaes.inference.optimizers import lay_out, without_compiler


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


def test_gradients_are_laid_out_as_their_parameters():
    turned = torch.empty(3, 2).mT.requires_grad_()  # Column by column.
    plain, none, sparse = (torch.zeros(2, 3, requires_grad=True) for _ in range(3))
    turned.grad, plain.grad = torch.arange(6.0).view(2, 3), torch.arange(6.0).view(3, 2).mT
    sparse.grad = torch.eye(2, 3).to_sparse()
    same = plain.grad.clone()
    lay_out([turned, plain, none, sparse])
    assert turned.grad.stride() == turned.stride() and plain.grad.stride() == plain.stride()
    assert torch.equal(turned.grad, torch.arange(6.0).view(2, 3)) and torch.equal(plain.grad, same)
    assert none.grad is None and sparse.grad.is_sparse
