"""A drop-in for ``pyro.infer.SVI`` that does the same work in fewer, larger pieces.

Textbook Pyro pays at every step for its effect handlers, for validation, for reading the loss site
by site and for one optimiser for each tensor. :class:`FastSVI` runs one fused optimiser over all
parameters, validates the first step only, and can record a step's tensor operations once (with
their gradients) and replay them without Pyro, or compile them.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import pyro
import torch
from pyro.infer import SVI, RenyiELBO, Trace_ELBO
from pyro.optim import PyroOptim
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_vaes.core.choices import MODES, Mode
from pyro_vaes.inference.elbo import ELBO, NotReparameterizedError
from pyro_vaes.inference.many_samples import ManySamples
from pyro_vaes.inference.recording import Captured, Fill, Recorded, signature, split_tensors

__all__ = ["FastSVI"]


class FastSVI(SVI):
    """Stochastic variational inference, the same estimator and updates as ``SVI``, faster.

    Works for any model and guide. With a reparameterised guide and ``Trace_ELBO``, ``RenyiELBO`` or
    an objective of this library a step can be recorded; any other loss, and another guide, run in
    eager mode through the loss's own ``loss_and_grads``.

    - ``eager``: Pyro's handlers at every step, one fused optimiser. At one seed, the updates of
      ``SVI`` to float rounding.
    - ``traced``: the step's operations are recorded once for each shape of the arguments and
      replayed; the same operations on the same noise.
    - ``compiled``: the recorded operations compiled by Inductor, on the same noise.
    - ``cuda_graph``: the recorded step, optimiser included, captured as one CUDA graph; what a
      graph cannot hold (numbers fetched from the host, an optimiser without ``capturable``) goes on
      recorded.
    - ``auto``: ``traced``.

    A recorded step sees parameters, buffers and weights of the objective by reference, so a
    schedule may change their values. Python-side state is frozen into it: after switching a module
    between training and evaluation behaviour, or changing a plain number, call :meth:`retrace`. A
    parameter that is frozen or thawed is noticed.

    Args:
        model: a Pyro model.
        guide: a Pyro guide.
        optim: a ``pyro.optim`` optimiser or scheduler with its arguments, per-parameter ones
            honoured; or a callable that makes a ``torch.optim`` optimiser from parameter groups.
        loss: a Pyro loss; ``Trace_ELBO()`` if None.
        mode: one of the above.
        clip_norm: largest global norm of the gradient; None for no limit. (Pyro's own
            ``clip_args`` limit each tensor by itself and are honoured too.)
        combine: called with parameters and loss between gradients and step; may change the former's
            gradients and returns the loss. For processes that add up theirs.

    Raises:
        ValueError: for an unknown mode, or ``cuda_graph`` without CUDA.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        optim: PyroOptim | Callable[[Any], torch.optim.Optimizer],
        loss: Any = None,
        mode: Mode = "auto",
        clip_norm: float | None = None,
        combine: Callable[[Sequence[Tensor], Tensor], Tensor] | None = None,
    ) -> None:
        if mode not in MODES:
            raise ValueError(f"Expected mode to be one of {', '.join(MODES)}; got {mode!r}.")
        if mode == "cuda_graph" and not torch.cuda.is_available():
            raise ValueError("Expected a CUDA device for mode 'cuda_graph'; found none.")
        # The parent insists on a PyroOptim and does nothing else that we need.
        self.model, self.guide, self.optim = model, guide, optim
        self.loss_object = Trace_ELBO() if loss is None else loss
        self.mode: Mode = "traced" if mode == "auto" else mode
        self.clip_norm = clip_norm
        self.combine = combine
        self.optimizer: torch.optim.Optimizer | None = None
        self._objective = _as_objective(self.loss_object)
        self._programs: dict[Any, Recorded] = {}
        self._params: dict[str, Tensor] = {}
        self._clips: list[tuple[Tensor, dict[str, Any]]] = []
        self._groups: dict[str, dict[str, Any]] = {}  # The optimiser's, by their options.
        self._stepped: set[int] = set()  # Parameters that took an eager step before a graph.
        self._validated = False
        self._reparameterized = False  # Not known before the first step.

    def step(self, *args: Any, **kwargs: Any) -> float:
        """Takes one gradient step; returns the loss before it, in nats summed over the batch."""
        loss = float(self.update(*args, **kwargs))
        if loss != loss:
            warnings.warn("Encountered NaN: loss", stacklevel=2)
        return loss

    def update(self, *args: Any, **kwargs: Any) -> Tensor:
        """Like :meth:`step`, but the loss stays a tensor on its device: nothing waits for it."""
        if self._objective is None or self.optimizer is None or self.mode == "eager":
            return self._eager_update(args, kwargs)
        if self.mode == "cuda_graph" and self._lacks_state():
            # Made inside a graph, the optimiser's state would be made anew at each replay.
            return self._eager_update(args, kwargs)
        tensors, fill = split_tensors(args, kwargs)
        recorded = self._program(args, kwargs, tensors, fill)
        return self._eager_update(args, kwargs) if recorded is None else recorded(tensors)

    def evaluate_loss(self, *args: Any, **kwargs: Any) -> float:
        """The loss without a step, in nats summed over the batch."""
        with torch.no_grad(), self._validation():
            return float(self.loss_object.loss(self.model, self.guide, *args, **kwargs))

    def prepare(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """Finds the parameters and makes the optimiser, without a step and without randomness.

        Runs the model and guide once, with Pyro's validation. Not needed before :meth:`step`;
        useful where the optimiser's state is to be restored first.
        """
        with torch.random.fork_rng(), torch.no_grad(), self._validation(), _Params(self._params):
            self.loss_object.loss(self.model, self.guide, *args, **kwargs)
        if self._objective is not None:
            # Pyro finds it by running the model once more, which in a step would draw noise.
            self._objective.max_plate_nesting = self.loss_object.max_plate_nesting
        self._adopt()
        if self.optimizer is None:
            raise ValueError("Expected a model or guide with parameters to train; got none.")
        return self.optimizer

    def retrace(self) -> None:
        """Forgets the recorded steps: the next one runs the model and guide again."""
        self._programs.clear()
        self._reparameterized = False

    # --- eager -------------------------------------------------------------------------------

    def _eager_update(self, args: Any, kwargs: Any) -> Tensor:
        met: dict[str, Tensor] = {}
        with self._validation(), _Params(met):
            loss = self._loss_and_grads(args, kwargs)
        # Only what this model and guide announce: the store may hold other models' parameters.
        if met.keys() - self._params.keys():
            self._params |= met
            self._adopt()
        if self.mode == "cuda_graph":
            for param in self._trained():
                if (
                    param.grad is None
                ):  # As in a recording, where what has no part in the loss has 0.
                    param.grad = torch.zeros_like(param)
                self._stepped.add(id(param))
        return self._apply_gradients(loss)

    def _loss_and_grads(self, args: Any, kwargs: Any) -> Tensor:
        if self._objective is not None:
            generator = None if self._reparameterized else torch.get_rng_state()
            try:
                loss = self._objective.tensor_loss(self.model, self.guide, *args, **kwargs)
            except NotReparameterizedError as error:
                if self._objective is self.loss_object:
                    raise
                # Pyro's own loss knows what to do with such a guide: let it, on the same noise.
                self._fall_back(error)
                self._objective = None
                if generator is not None:
                    torch.set_rng_state(generator)
            else:
                self._reparameterized = True
                if loss.requires_grad:
                    loss.backward()
                return loss.detach()
        return torch.as_tensor(
            self.loss_object.loss_and_grads(self.model, self.guide, *args, **kwargs)
        )

    def _fall_back(self, error: Exception, mode: Mode = "eager") -> None:
        if self.mode != "eager":
            reason = str(error).strip().split("\n")[0]
            wish = "captured as a CUDA graph" if self.mode == "cuda_graph" else self.mode
            warnings.warn(
                f"FastSVI goes on in {mode} mode: the step could not be {wish} ({reason}).",
                stacklevel=2,
            )
        if self.mode == "cuda_graph" and self.optimizer is not None:
            # As it would have been made for the other mode, in which the run will be resumed.
            for group in self.optimizer.param_groups:
                if isinstance(group.get("lr"), Tensor):  # Some optimisers have none.
                    group["lr"] = float(group["lr"])
                if "capturable" in group:
                    group["capturable"] = False
        self.mode = mode

    @contextmanager
    def _validation(self) -> Iterator[None]:
        """Pyro's checks as the user set them in the first step, none afterwards."""
        if self._validated:
            with pyro.validation_enabled(False):
                yield
        else:
            yield
            self._validated = True

    # --- recorded ----------------------------------------------------------------------------

    def _program(
        self, args: Any, kwargs: Any, tensors: list[Tensor], fill: Fill
    ) -> Recorded | None:
        key = (signature(args), signature(tuple(sorted(kwargs.items()))))
        recorded = self._programs.get(key)
        if recorded is not None and not recorded.stale:
            return recorded
        self._programs.pop(key, None)
        if not self._trained():
            return None
        if self.mode == "cuda_graph" and not _capturable(self.optimizer):
            name = type(self.optimizer).__name__
            self._fall_back(ValueError(f"{name} is not capturable"), "traced")
        kind = Captured if self.mode == "cuda_graph" else Recorded
        met: dict[str, Tensor] = {}

        def loss(*inputs: Tensor) -> Tensor:
            objective = cast("ELBO | ManySamples", self._objective)
            filled, by_name = fill(inputs)
            with _Params(met):
                return objective.tensor_loss(self.model, self.guide, *filled, **by_name)

        try:
            recorded = kind(
                loss, self._trained(), self._apply_gradients, tensors, self.mode == "compiled"
            )
        except Exception as error:
            # What a graph cannot hold may still be recorded.
            self._fall_back(error, "traced" if kind is Captured else "eager")
            return self._program(args, kwargs, tensors, fill) if kind is Captured else None
        if met.keys() - self._params.keys():
            # Frozen from the start and thawed since: recorded once an eager step has taken it in.
            return None
        self._programs[key] = recorded
        return recorded

    # --- the one optimiser -------------------------------------------------------------------

    def _trained(self) -> list[Tensor]:
        groups = self.optimizer.param_groups if self.optimizer else []
        return [p for group in groups for p in group["params"] if p.requires_grad]

    def _lacks_state(self) -> bool:
        """Whether the optimiser is still to meet a parameter: its first step, or a thawed one."""
        state = cast(torch.optim.Optimizer, self.optimizer).state
        # Some optimisers keep none.
        return any(p not in state and id(p) not in self._stepped for p in self._trained())

    def _adopt(self) -> None:
        """Gives every parameter seen so far to the optimiser, grouped by its options."""
        known = {
            id(p)
            for g in (self.optimizer.param_groups if self.optimizer else [])
            for p in g["params"]
        }
        # One tensor may be announced under two names (a VampPrior holds its posterior's).
        fresh: dict[str, Tensor] = {}
        for name, param in self._params.items():
            if id(param) not in known:
                known.add(id(param))
                fresh[name] = param
        if not fresh:
            return
        groups: dict[str, dict[str, Any]] = {}
        for name, param in fresh.items():
            options = self._options(name, param)
            key = repr(sorted(options.items()))
            if key in self._groups:  # Schedulers know the groups that they began with.
                self._groups[key]["params"].append(param)
                continue
            groups.setdefault(key, {"params": [], **options})["params"].append(param)
        if self.optimizer is None:
            self.optimizer = self._make(list(groups.values()))
        else:
            for group in groups.values():
                self.optimizer.add_param_group(group)
            self._point_at_rates(self.optimizer)
        for key, group in groups.items():
            # A user's own optimiser may have grouped them otherwise, or left some out.
            first = group["params"][0]
            for there in self.optimizer.param_groups:
                if any(param is first for param in there["params"]):
                    self._groups[key] = there

    def _options(self, name: str, param: Tensor) -> dict[str, Any]:
        if not isinstance(self.optim, PyroOptim):
            return {}
        clips = self.optim._get_grad_clip_args(param)  # type: ignore[arg-type]
        if clips:
            self._clips.append((param, clips))
        return dict(self.optim._get_optim_args(param))  # type: ignore[arg-type]

    def _make(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        if not isinstance(self.optim, PyroOptim):
            optimizer = self.optim(groups)
            self._point_at_rates(optimizer)
            return optimizer
        constructor: Any = self.optim.pt_optim_constructor
        options = fused_options(constructor, self._params.values())
        if self.mode == "cuda_graph" and "capturable" in inspect.signature(constructor).parameters:
            options["capturable"] = True
        optimizer = constructor(groups, **options)
        self._point_at_rates(optimizer)
        scheduler = getattr(self.optim, "pt_scheduler_constructor", None)
        if scheduler is not None:
            # Pyro's scheduler steps whatever stands in optim_objs: let it be the one we have.
            schedule = scheduler(optimizer, **self.optim.kwargs)  # type: ignore[attr-defined]
            self.optim.optim_objs = {"all": schedule}
        return cast(torch.optim.Optimizer, optimizer)

    def _point_at_rates(self, optimizer: torch.optim.Optimizer) -> None:
        """Makes rates tensors: a graph reads them where they are, and they can be scheduled."""
        if self.mode == "cuda_graph" and _capturable(optimizer):
            for group in optimizer.param_groups:
                if not isinstance(group["lr"], Tensor):
                    device = group["params"][0].device
                    group["lr"] = torch.tensor(group["lr"], dtype=torch.float32, device=device)

    def _apply_gradients(self, loss: Tensor) -> Tensor:
        """Takes the step; returns the loss, of all processes if there are several."""
        if self.optimizer is None:
            return loss
        if self.combine is not None:
            loss = self.combine(self._trained(), loss)
        for param, clips in self._clips:
            if param.grad is not None:
                PyroOptim._clip_grad(param, **clips)
        if self.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self._trained(), self.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss


def _capturable(optimizer: torch.optim.Optimizer | None) -> bool:
    """Whether a graph can hold the optimiser's steps: it counts on the device, and never waits."""
    assert optimizer is not None
    stateless = isinstance(optimizer, torch.optim.SGD)
    return all(
        group.get("capturable") or (stateless and group.get("fused"))
        for group in optimizer.param_groups
    )


def _as_objective(loss: Any) -> ELBO | ManySamples | None:
    """The loss as an objective that can be recorded; None if it must run its own way."""
    if isinstance(loss, ELBO):
        return loss
    if type(loss) not in (Trace_ELBO, RenyiELBO):
        return None
    options = {
        "num_particles": loss.num_particles,
        "max_plate_nesting": loss.max_plate_nesting,
        "vectorize_particles": loss.vectorize_particles,
        "strict_enumeration_warning": loss.strict_enumeration_warning,
    }
    return ELBO(**options) if type(loss) is Trace_ELBO else ManySamples(loss.alpha, **options)


class _Params(Messenger):
    """Adds the parameters met inside to ``params``; lighter than a trace, as every step has one."""

    def __init__(self, params: dict[str, Tensor]) -> None:
        super().__init__()
        self.params = params

    def _pyro_post_param(self, msg: Any) -> None:
        # The last of a name counts: an autoguide sets itself up in its first call, and replaces
        # what it announced there.
        self.params[msg["name"]] = msg["value"].unconstrained()


def fused_options(constructor: Any, params: Any) -> dict[str, bool]:
    """Asks for the fused implementation of an optimiser, else the foreach one, where they exist."""
    names = inspect.signature(constructor).parameters
    floating = all(p.is_floating_point() for p in params)
    devices = {p.device.type for p in params}
    if "fused" in names and floating and devices <= {"cpu", "cuda", "mps"}:
        return {"fused": True}
    return {"foreach": True} if "foreach" in names else {}
