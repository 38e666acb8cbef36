"""A drop-in for ``pyro.infer.SVI`` with the same results and less overhead.

At every step Pyro pays for effect handlers, validation, a loss read site by site, and one optimiser
per tensor. :class:`FastSVI` uses one fused optimiser, validates the first step only, and can record
a step's tensor operations and gradients once, to replay or compile them without Pyro.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import pyro
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.util import torch_item
from pyro.optim import PyroOptim
from torch import Tensor

from pyro_vaes.core.choices import MODES, Mode
from pyro_vaes.inference.adapters import (
    Arguments,
    MetParameters,
    argument_of,
    arguments_of,
    as_objective,
    given_traces,
    is_number,
    name_of,
    refusal_of,
)
from pyro_vaes.inference.elbo import ELBO, NotReparameterizedError
from pyro_vaes.inference.guarding import Keeper, NotRecordableError, reason_of
from pyro_vaes.inference.joint_optimizer import capturable, joint_optimizer
from pyro_vaes.inference.many_samples import ManySamples
from pyro_vaes.inference.recording import GraphStep, TracedStep, UnknownParameterError, cleared
from pyro_vaes.inference.watching import Watch

__all__ = ["FastSVI"]

_MOST_PROGRAMS = 32  # recordings of one SVI: each costs a second, and memory
_MOST_NUMBERS = 8  # different plain numbers among the arguments, each seen once
_MOST_CHANGES = 3  # steps in a row in which something that is read has changed
_DEVICES = ("cpu", "cuda")
# Attributes that are no part of a copy.
_OWN = ("_joint", "_objective", "_params", "_programs", "_settings", "_sightings", "_watch")


class FastSVI(SVI):
    """Stochastic variational inference, the same estimator and updates as ``SVI``, faster.

    With a reparameterised guide and ``Trace_ELBO``, ``RenyiELBO`` or an objective of this library a
    step can be recorded; others run in eager mode through the loss's own ``loss_and_grads``.

    - ``eager``: Pyro's handlers at every step, one fused optimiser. At one seed, the updates of
      ``SVI`` to float rounding.
    - ``traced``: the step's operations, on the same noise, recorded once for each shape of the
      arguments and replayed; ``compiled``: and compiled by Inductor.
    - ``cuda_graph``: the recorded step, optimiser included, captured as one CUDA graph; ``traced``
      if the optimiser is not ``capturable`` or numbers come from the host.
    - ``auto``: ``traced``.

    A recorded step reads parameters, buffers and weights of the objective by reference, so
    schedules may change them. If an attribute, closure, global, class or hook that the model
    reads is changed, the step is recorded again. A step that cannot be replayed (arrays or objects
    as arguments, values or shapes that depend on the data, numbers that change at every step) runs
    in eager mode, with one warning; ``mode`` is the mode in use. Files and clocks are not watched.

    >>> svi = pv.FastSVI(vae.model, vae.guide, Adam({"lr": 1e-3}), mode="traced")
    >>> losses = [svi.step(torch.randn(10, 4)) for _ in range(3)]

    Args:
        model: a Pyro model.
        guide: a Pyro guide.
        optim: a ``pyro.optim`` optimiser or scheduler with its arguments, per-parameter ones
            honoured; or a callable that makes a ``torch.optim`` optimiser from parameter groups.
        loss: a Pyro loss; ``Trace_ELBO()`` if None.
        mode: one of the above.
        clip_norm: largest global norm of the gradient; None for no limit. (Pyro's own
            ``clip_args`` limit each tensor by itself and are honoured too.)
        combine: called with parameters and loss between gradients and step; may change the
            gradients and returns the loss. For processes that sum theirs.

    Raises:
        ValueError: for an unknown mode, or ``cuda_graph`` without CUDA.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        optim: PyroOptim | Callable[[Any], torch.optim.Optimizer],
        loss: Any = None,
        loss_and_grads: Callable[..., Any] | None = None,
        num_samples: int = 0,
        num_steps: int = 0,
        *,
        mode: Mode = "auto",
        clip_norm: float | None = None,
        combine: Callable[[Sequence[Tensor], Tensor], Tensor] | None = None,
        **options: Any,
    ) -> None:
        if mode not in MODES:
            raise ValueError(f"Expected mode to be one of {', '.join(MODES)}; got {mode!r}.")
        if mode == "cuda_graph" and not torch.cuda.is_available():
            raise ValueError("Expected a CUDA device for mode 'cuda_graph'; found none.")
        joint_optimizer(optim)  # Refuses what is none.
        self.loss_object = loss = Trace_ELBO() if loss is None else loss
        # The parent requires a PyroOptim.
        theirs = optim if isinstance(optim, PyroOptim) else PyroOptim(optim, {})
        super().__init__(
            model, guide, theirs, loss, loss_and_grads, num_samples, num_steps, **options
        )
        self.optim = optim
        self.mode: Mode = "traced" if mode == "auto" else mode
        self.clip_norm = clip_norm
        self.combine = combine
        self._validated = False
        self._begin()
        if self._objective is None:
            reason = f"{name_of(self.loss_object)} computes its own gradients"
            self._fall_back(NotRecordableError(reason), said=mode == "auto")

    def _begin(self) -> None:
        self._programs: dict[Any, TracedStep] = {}
        self._objective = as_objective(self.loss_object)
        self._reparameterized = False  # Not known before the first step.
        self._take_optimizer()
        self._forget()

    def _take_optimizer(self) -> None:
        self._joint = joint_optimizer(self.optim)
        self._joint.captured |= self.mode == "cuda_graph"
        self._params: dict[str, Tensor] = {}  # As last used.
        self._stepped: set[int] = set()  # Parameters that took an eager step before a graph.
        if self._joint.separate and self.mode != "eager":
            reason = f"{type(self.optim).__name__} steps in its own way"
            self._fall_back(NotRecordableError(reason))

    def __getstate__(self) -> dict[str, Any]:
        """A copy has the options of the original, and makes its own recordings."""
        return {name: value for name, value in vars(self).items() if name not in _OWN}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._begin()

    def _forget(self) -> None:
        self._programs.clear()
        self._made = 0  # Recordings so far.
        self._changes = 0  # Steps in a row before which something that they read changed.
        self._watch: Watch | None = None  # The places that are read, since the last change.
        self._sightings: set[Any] = set()  # Keys of arguments with numbers, not recorded yet.
        self._settings = self._settings_now()

    @property
    def optimizer(self) -> torch.optim.Optimizer | None:
        """The optimiser over all parameters; None before the first step."""
        return self._joint.optimizer

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """Takes one gradient step; returns the loss before it, in nats summed over the batch.

        A float; a tuple of floats if the loss returns one (``ReweightedWakeSleep``).
        """
        loss: Any = self.update(*args, **kwargs)
        if isinstance(loss, tuple):
            return type(loss)(map(torch_item, loss))
        loss = float(loss)
        if loss != loss:
            warnings.warn("Encountered NaN: loss", stacklevel=2)
        return loss

    # Whatever the caller's mode: without gradients a step would change nothing.
    @torch.inference_mode(False)
    @torch.enable_grad()
    def update(self, *args: Any, **kwargs: Any) -> Tensor:
        """Like :meth:`step`, but the loss stays a tensor on its device, without waiting for it."""
        if self.mode != "eager":
            arguments = arguments_of(args, kwargs)
            recorded = self._recorded(arguments, args, kwargs)
            if recorded is not None:
                self._changes = 0
                return recorded(arguments.tensors)
        return self._eager_update(args, kwargs)

    def evaluate_loss(self, *args: Any, **kwargs: Any) -> Any:
        """The loss without a step, in nats summed over the batch."""
        with self._validation():
            return super().evaluate_loss(*args, **kwargs)

    def prepare(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """Finds the parameters and makes the optimiser, without a step and without randomness.

        Runs model and guide once, with validation. Needed only to restore an optimiser's state.
        """
        met: dict[str, Tensor] = {}
        keeper = Keeper()
        with (
            torch.random.fork_rng(),
            torch.no_grad(),
            self._validation(),
            MetParameters(met),
            keeper,
        ):
            self.loss(self.model, self.guide, *args, **kwargs)
        keeper.restore()
        if self._objective is not None:
            # Pyro runs the model once more to find it, which in a step would draw noise.
            self._objective.max_plate_nesting = self.loss_object.max_plate_nesting
        self._take_in(met)
        if self.optimizer is None:
            raise ValueError("Expected a model or guide with parameters to train; got none.")
        return self.optimizer

    def retrace(self) -> None:
        """Forgets the recorded steps: the next one runs the model and guide again."""
        self._forget()
        self._reparameterized = False

    # --- eager -------------------------------------------------------------------------------

    def _eager_update(self, args: Any, kwargs: Any) -> Any:
        met: dict[str, Tensor] = {}
        with self._validation(), MetParameters(met):
            loss = self._loss_and_grads(args, kwargs)
        self._take_in(met)
        params = list({id(p): p for p in met.values() if p.requires_grad}.values())
        if self.mode == "cuda_graph":
            self._stepped |= set(map(id, params))
        loss = self._apply_gradients(loss, params)
        grads = [param.grad for param in params if param.grad is not None]
        if grads:
            torch._foreach_zero_(grads)
        for grad in grads:
            cleared(grad)
        return loss

    def _take_in(self, met: dict[str, Tensor]) -> None:
        """Gives new or replaced parameters to the optimiser."""
        # Only those of this model and guide: the store may hold other models' parameters.
        fresh = {name: p for name, p in met.items() if self._params.get(name) is not p}
        if fresh:
            if fresh.keys() & self._params.keys():
                self._programs.clear()
            self._params |= fresh
            self._joint.adopt(fresh.values())

    def _loss_and_grads(self, args: Any, kwargs: Any) -> Any:
        self._follow_settings()
        objective = self._objective
        if objective is None:
            loss = self.loss_and_grads(self.model, self.guide, *args, **kwargs)
            return loss if isinstance(loss, tuple) else torch.as_tensor(loss).detach()
        if objective is self.loss_object:
            value = objective.tensor_loss(self.model, self.guide, *args, **kwargs)
        else:
            pairs = objective._get_traces(self.model, self.guide, args, kwargs)
            try:
                value = objective.loss_of(pairs if self._reparameterized else (pairs := [*pairs]))
            except NotReparameterizedError as error:
                return self._as_pyro_does(error, pairs, args, kwargs)
            # Found by running the model once more; the user's loss must not draw for it again.
            self.loss_object.max_plate_nesting = objective.max_plate_nesting
        self._reparameterized = True
        if value.requires_grad:
            value.backward(retain_graph=getattr(self.loss_object, "retain_graph", None))
        return value.detach()

    def _as_pyro_does(self, error: Exception, pairs: Any, args: Any, kwargs: Any) -> Tensor:
        """The gradients of Pyro's own loss from the refused traces, on the same noise."""
        self._fall_back(error)
        self.loss_object.max_plate_nesting = cast(Any, self._objective).max_plate_nesting
        self._objective = None
        with given_traces(self.loss_object, pairs):
            return torch.as_tensor(self.loss_and_grads(self.model, self.guide, *args, **kwargs))

    def _settings_now(self) -> tuple[Any, ...]:
        loss = self.loss_object
        names = ("num_particles", "vectorize_particles", "alpha")
        users = self.model, self.guide, self.optim, self.loss_and_grads
        return *users, *(getattr(loss, name, None) for name in names)

    def _follow_settings(self) -> None:
        """Takes over another model, guide, optimiser or loss, or other options of the loss."""
        before, now = self._settings, self._settings_now()
        if before == now:
            return
        self._forget()
        if before[2] is not now[2]:
            self._take_optimizer()
        if before[3] != now[3]:
            self._objective = None
            self._fall_back(NotRecordableError("another loss_and_grads has been set"))
        elif self._objective is not None:
            self._objective = as_objective(self.loss_object)

    def _fall_back(self, error: Exception, mode: Mode = "eager", said: bool = False) -> None:
        if self.mode != "eager" and not said:
            wish = "captured as a CUDA graph" if self.mode == "cuda_graph" else self.mode
            warnings.warn(
                f"FastSVI continues in {mode} mode: the step could not be {wish} "
                f"({reason_of(error)}).",
                stacklevel=2,
            )
        if self.mode == "cuda_graph":
            # As in the other mode, in which the run will be resumed.
            self._joint.leave_graphs()
        self._programs.clear()
        self.mode = mode

    @contextmanager
    def _validation(self) -> Iterator[None]:
        """Pyro's validation as the user set it in the first step, none afterwards."""
        if self._validated:
            with pyro.validation_enabled(False):
                yield
        else:
            yield
            self._validated = True

    # --- recorded ----------------------------------------------------------------------------

    def _recorded(self, arguments: Arguments, args: Any, kwargs: Any) -> TracedStep | None:
        """The recording of a step with such arguments; None for an eager step."""
        self._follow_settings()
        refusal = refusal_of(self.model, arguments, args, kwargs)
        if refusal is not None:
            self._fall_back(NotRecordableError(refusal))
            return None
        key = arguments.key, torch.get_default_dtype(), *map(torch.is_autocast_enabled, _DEVICES)
        recorded = self._programs.get(key)
        if recorded is not None and recorded.stale:
            del self._programs[key]
            recorded = None
        if recorded is None:
            if not self._worth_recording(key, arguments, args, kwargs):
                return None
            recorded = self._program(key, arguments)
        elif recorded.changed is not None:
            self._programs.clear()
            self._changed(recorded.changed)
            return None
        if recorded is None or not recorded.at_hand:
            return None
        if self.mode == "cuda_graph" and recorded.hooked:
            self._fall_back(NotRecordableError("a gradient has hooks"), "traced")
            return None
        return recorded

    def _worth_recording(self, key: Any, arguments: Arguments, args: Any, kwargs: Any) -> bool:
        """Whether to record: rare arguments cost more than they save."""
        if arguments.numbers and key not in self._sightings:
            self._sightings.add(key)
            if len(self._sightings) > _MOST_NUMBERS:
                name = argument_of(self.model, args, kwargs, is_number)
                reason = f"argument {name} is another number at each step: pass it as a tensor"
                self._fall_back(NotRecordableError(reason))
            return False
        if not self._trained() or (self.mode == "cuda_graph" and self._lacks_state()):
            # Made inside a graph, the optimiser's state would be reset at each replay.
            return False
        changed = self._watch.changed() if self._watch is not None else None
        if changed is not None:
            self._changed(changed)
            return False
        if self._made < _MOST_PROGRAMS:
            return True
        if not self._programs:
            self._fall_back(NotRecordableError(f"{self._made} recordings have been outdated"))
        elif self._made == _MOST_PROGRAMS:
            self._made += 1
            warnings.warn(
                f"FastSVI has recorded {_MOST_PROGRAMS} steps with arguments of different shapes "
                "or values; those with others run in eager mode.",
                stacklevel=2,
            )
        return False

    def _changed(self, name: str) -> None:
        """What a step reads has changed: once or now and then, or at every step."""
        self._watch = self._watch_now()
        self._changes += 1
        if self._changes >= _MOST_CHANGES:
            reason = f"{name!r} changes from step to step: pass it as an argument"
            self._fall_back(NotRecordableError(reason))

    def _watch_now(self) -> Watch:
        return Watch(model=self.model, guide=self.guide, loss=vars(self._objective))

    def _program(self, key: Any, arguments: Arguments) -> TracedStep | None:
        if self.mode == "cuda_graph" and not capturable(self.optimizer):
            name = type(self.optimizer).__name__
            self._fall_back(ValueError(f"{name} is not capturable"), "traced")
        kind = GraphStep if self.mode == "cuda_graph" else TracedStep
        met: dict[str, Tensor] = {}

        def loss(*inputs: Tensor) -> Tensor:
            objective = cast("ELBO | ManySamples", self._objective)
            bound = functools.partial(objective.tensor_loss, self.model, self.guide)
            with MetParameters(met):
                return arguments.call(lambda args, kwargs: bound(*args, **kwargs), inputs)

        self._made += 1
        try:
            recorded = kind(
                loss,
                self._trained(),
                met,
                self._apply_gradients,
                arguments.tensors,
                self._watch_now(),
                self.mode == "compiled",
            )
        except UnknownParameterError:
            # Frozen at first and unfrozen since: recorded after an eager step has added it.
            return None
        except Exception as error:
            # A step that a graph cannot hold may still be recorded.
            self._fall_back(error, "traced" if kind is GraphStep else "eager")
            return self._program(key, arguments) if kind is GraphStep else None
        self._sightings.discard(key)
        self._programs[key] = recorded
        return recorded

    # --- the one optimiser -------------------------------------------------------------------

    def _trained(self) -> list[Tensor]:
        """The parameters used so far, each once."""
        return list({id(p): p for p in self._params.values() if p.requires_grad}.values())

    def _lacks_state(self) -> bool:
        """Whether a parameter has no optimiser state yet: at the first step, or if unfrozen."""
        state = cast(torch.optim.Optimizer, self.optimizer).state
        # Some optimisers keep none.
        return any(not state.get(p) and id(p) not in self._stepped for p in self._trained())

    def _apply_gradients(self, loss: Tensor, params: Sequence[Tensor]) -> Tensor:
        """Takes the step; returns the loss, of all processes if there are several."""
        if self.combine is not None:
            loss = self.combine(params, loss)
        self._joint.clip(params)
        if self.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(params, self.clip_norm)
        if params:
            self._joint.step(params)
        return loss
