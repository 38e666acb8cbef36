"""One optimiser over all parameters, instead of Pyro's one per parameter.

The user's ``pyro.optim`` object still holds the state, as under ``SVI``: one torch optimiser per
parameter in its ``optim_objs``, which shares the parameter's state with the joint one. So it can be
saved, loaded, scheduled and given to several SVIs.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Container, Iterable, Sequence
from typing import Any, cast

import pyro
import torch
from pyro.optim import PyroOptim
from pyro.optim.lr_scheduler import PyroLRScheduler
from pyro.optim.optim import _load_state_dict, is_scheduler
from torch import Tensor

from pyro_vaes.inference.optimizers import lay_out

__all__ = ["JointOptimizer", "capturable", "fused_options", "joint_optimizer"]


# Options that change how a step is computed, not its result.
_MEANS = ("fused", "foreach", "capturable")
_USUAL = (PyroOptim.__call__, PyroLRScheduler.__call__)
_joint: weakref.WeakKeyDictionary[PyroOptim, JointOptimizer] = weakref.WeakKeyDictionary()


def joint_optimizer(optim: PyroOptim | Callable[[Any], torch.optim.Optimizer]) -> JointOptimizer:
    """The joint optimiser of a ``pyro.optim`` object, always the same for one object."""
    if isinstance(optim, torch.optim.Optimizer) or not callable(optim):
        raise ValueError(
            "Expected a pyro.optim optimiser, or a function that makes a torch.optim one from "
            f"parameters; got {type(optim).__name__}. Try lambda params: Adam(params, lr=1e-3)."
        )
    if not isinstance(optim, PyroOptim):
        return JointOptimizer(optim)
    if optim not in _joint:
        _joint[optim] = JointOptimizer(weakref.ref(optim))
    return _joint[optim]


class JointOptimizer:
    """See the module.

    Args:
        source: makes a torch optimiser from parameter groups; or a reference to Pyro's object.

    Attributes:
        optimizer: the joint one; None before the first parameter.
        captured: whether its steps are captured in a CUDA graph.
        version: counts regroupings, which invalidate captured steps.
    """

    def __init__(self, source: Any) -> None:
        self._source = source
        self.optimizer: torch.optim.Optimizer | None = None
        self.captured = False
        self.version = 0
        self._known: dict[int, Tensor] = {}
        # For each parameter its own optimiser and that one's options when last compared.
        self._own: dict[int, tuple[torch.optim.Optimizer, dict[str, Any]]] = {}
        self._options: list[dict[str, Any]] = []  # The same of the joint one's groups.

    @property
    def separate(self) -> bool:
        """Whether the user's object has its own way to step, which a joint one cannot follow."""
        optim = self._pyro
        return optim is not None and type(optim).__call__ not in _USUAL

    @property
    def _pyro(self) -> PyroOptim | None:
        isref = isinstance(self._source, weakref.ref)
        return cast(PyroOptim, self._source()) if isref else None

    def adopt(self, params: Iterable[Tensor]) -> None:
        """Adds parameters that are new, each with its own options."""
        # One tensor may be announced under two names (a VampPrior holds its posterior's).
        fresh = {id(p): p for p in params if id(p) not in self._known}
        if not fresh or self.separate:
            return
        self._known |= fresh
        self.version += 1
        optim = self._pyro
        if optim is None:
            self._add_to_users(list(fresh.values()))
            return
        for param in fresh.values():
            self._own[id(param)] = _own_of(optim, param, self._load), {}
        self._regroup()
        for param in fresh.values():
            self._share(param)

    def step(self, params: Sequence[Tensor]) -> None:
        """Takes a step in these parameters, not in others."""
        if self.separate:
            cast(Any, self._pyro)(set(params))
            return
        optimizer = self._joint
        self._follow()
        met = {id(p) for p in params}
        others = [p for i, p in self._known.items() if i not in met and p.grad is not None]
        grads = [p.grad for p in others]
        for param in others:
            param.grad = None
        lay_out(params)
        optimizer.step()
        for param, grad in zip(others, grads, strict=True):
            param.grad = grad
        self._publish(met)

    def clip(self, params: Sequence[Tensor]) -> None:
        """Limits gradients by ``clip_args``, each tensor by itself."""
        optim = self._pyro
        if optim is not None and not self.separate:
            for param in params:
                clip = optim.grad_clip.get(param)
                if clip is not None:
                    clip(param)

    def leave_graphs(self) -> None:
        """Turns it into the optimiser that it would be without graphs."""
        self.captured = False
        for group in self.optimizer.param_groups if self.optimizer else []:
            if isinstance(group.get("lr"), Tensor):  # Some optimisers have none.
                group["lr"] = float(group["lr"])
            if "capturable" in group:
                group["capturable"] = False

    # --- the joint one -------------------------------------------------------------------------

    def _add(self, groups: list[dict[str, Any]]) -> None:
        if self.optimizer is not None:
            for group in groups:
                self.optimizer.add_param_group(group)
        else:
            optim = self._pyro
            if optim is None:
                self.optimizer = self._source(groups)
            else:
                constructor: Any = optim.pt_optim_constructor
                self.optimizer = constructor(groups, **self._means(self._known.values()))
                self.optimizer.register_load_state_dict_post_hook(self._loaded)
        self._point_at_rates()

    def _add_to_users(self, params: list[Tensor]) -> None:
        """Adds to the optimiser that the user's function made, which may have its own groups."""
        if self.optimizer is None:
            self._add([{"params": params}])
            return
        first = next(iter(self._known.values()))
        for group in self.optimizer.param_groups:
            if any(p is first for p in group["params"]):
                group["params"].extend(params)  # Schedulers know the initial groups only.
                return
        self._add([{"params": params}])

    def _means(self, params: Any) -> dict[str, bool]:
        constructor: Any = cast(PyroOptim, self._pyro).pt_optim_constructor
        means = fused_options(constructor, params)
        if self.captured and "capturable" in inspect.signature(constructor).parameters:
            means["capturable"] = True
        return means

    def _regroup(self) -> None:
        """Groups the parameters by the options of their own optimisers."""
        wanted: dict[str, dict[str, Any]] = {}
        for i, (own, _) in self._own.items():
            options = _options_of(own)
            self._own[i] = own, options
            asked = {k: v for k, v in options.items() if k not in _MEANS or v}
            group = wanted.setdefault(repr(sorted(asked.items())), {**asked, "params": []})
            group["params"].append(self._known[i])
        before = self.optimizer.param_groups if self.optimizer else []
        groups = list(wanted.values())
        for i, group in enumerate(groups):
            if i < len(before):  # In place: schedules and graphs refer to these groups.
                _update(before[i], group)
        if len(groups) < len(before):
            del before[len(groups) :]
        new = groups[len(before) :]
        if new:
            if self.optimizer is not None:
                new = [{**self._means(group["params"]), **group} for group in new]
            self._add(new)
        self._point_at_rates()
        self._remember()

    def _point_at_rates(self) -> None:
        """Turns learning rates into tensors, which a graph reads and a schedule may change."""
        optimizer = self.optimizer
        if optimizer is None or not self.captured or not capturable(optimizer):
            return
        for group in optimizer.param_groups:
            if not isinstance(group["lr"], Tensor):
                device = group["params"][0].device
                group["lr"] = torch.tensor(group["lr"], dtype=torch.float32, device=device)

    # --- the optimisers of single parameters -----------------------------------------------------

    def _follow(self) -> None:
        """Takes over changes made in the user's optimisers, or in the joint one."""
        if self._pyro is None:
            return
        self._publish()
        if any(_differs(own.param_groups[0], seen) for own, seen in self._own.values()):
            self.version += 1
            self._regroup()

    def _publish(self, met: Container[int] | None = None) -> None:
        """Passes on changes in the joint one, such as a rate set in it, or decayed by its step.

        Args:
            met: ids of the parameters that took the step, which alone decays; all if None.
        """
        if self._pyro is None:
            return
        apart = False
        groups = self._joint.param_groups
        for group, seen in zip(groups, self._options, strict=True):
            changed = [k for k in seen if group.get(k) is not seen[k] and group[k] != seen[k]]
            for key in changed:
                seen[key] = group[key]
            for param in group["params"] if changed else []:
                if met is not None and id(param) not in met:
                    apart = True
                    continue
                own, options = self._own[id(param)]
                for key in changed:
                    own.param_groups[0][key] = options[key] = group[key]
        if apart:
            self.version += 1
            self._regroup()

    @property
    def _joint(self) -> torch.optim.Optimizer:
        assert self.optimizer is not None
        return self.optimizer

    def _remember(self) -> None:
        groups = self._joint.param_groups
        self._options = [
            {k: v for k, v in group.items() if k not in ("params", *_MEANS)} for group in groups
        ]
        for seen in self._options:
            if isinstance(seen.get("lr"), Tensor):
                del seen["lr"]

    def _share(self, param: Tensor) -> None:
        """Makes the joint one use the state of the parameter's own optimiser."""
        own = self._own[id(param)][0]
        state = own.state[param]
        group = next(g for g in self._joint.param_groups if any(p is param for p in g["params"]))
        if isinstance(state.get("step"), Tensor) and (
            group.get("fused") or group.get("capturable")
        ):
            state["step"] = state["step"].to(param.device, torch.float32)
        self._joint.state[param] = state

    def _load(self, param: Tensor) -> None:
        """Follows a state loaded into the parameter's own optimiser."""
        if self.optimizer is not None and id(param) in self._own:
            self._share(param)

    def _loaded(self, optimizer: torch.optim.Optimizer) -> None:
        """Follows a state loaded into the joint optimiser."""
        for i, (own, _) in self._own.items():
            own.state[self._known[i]] = optimizer.state[self._known[i]]
        self._remember()


def _own_of(
    optim: PyroOptim, param: Tensor, loaded: Callable[[Tensor], None]
) -> torch.optim.Optimizer:
    """The parameter's optimiser in the user's object, made as Pyro does."""
    if param not in optim.optim_objs:
        optim.optim_objs[param] = optim._get_optim(param)  # type: ignore[arg-type]
        optim.grad_clip[param] = optim._get_grad_clip(param)  # type: ignore[arg-type]
        name = pyro.get_param_store().param_name(param)
        state = optim._state_waiting_to_be_consumed.pop(name, None)
        if state is not None:
            _load_state_dict(optim.optim_objs[param], state)
    own: Any = optim.optim_objs[param]
    own = own.optimizer if is_scheduler(own) else own
    # The joint one steps instead; torch's schedulers check this flag.
    own._opt_called = True
    own.register_load_state_dict_post_hook(lambda _: loaded(param))
    return cast(torch.optim.Optimizer, own)


def _options_of(own: torch.optim.Optimizer) -> dict[str, Any]:
    return {k: v for k, v in own.param_groups[0].items() if k != "params"}


def _differs(group: dict[str, Any], seen: dict[str, Any]) -> bool:
    if len(group) != len(seen) + 1:
        return True
    return any(group[k] is not v and group[k] != v for k, v in seen.items())


def _update(group: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Updates a group's options and members; a rate that is a tensor is filled in place."""
    rate = group.get("lr")
    if isinstance(rate, Tensor):
        rate.fill_(wanted["lr"])
        wanted = {k: v for k, v in wanted.items() if k != "lr"}
    group.update(wanted)


def capturable(optimizer: torch.optim.Optimizer | None) -> bool:
    """Whether a graph can hold the optimiser's steps: it counts steps on the device."""
    assert optimizer is not None
    stateless = isinstance(optimizer, torch.optim.SGD)
    return all(
        group.get("capturable") or (stateless and group.get("fused"))
        for group in optimizer.param_groups
    )


def fused_options(constructor: Any, params: Any) -> dict[str, bool]:
    """Options for the fused implementation of an optimiser, else the foreach one, if any."""
    names = inspect.signature(constructor).parameters
    params = list(params)
    floating = all(p.is_floating_point() for p in params)
    devices = {p.device.type for p in params}
    if "fused" in names and floating and devices <= {"cpu", "cuda", "mps"}:
        return {"fused": True}
    return {"foreach": True} if "foreach" in names else {}
