"""Optimisers: they change a layer's parameters in place, from the gradients of its last backward.

An optimiser is given `layer.params` (names -> live arrays) once and `layer.grads` at every step. Both are checked by
name and shape before anything is updated, so a refused step leaves the weights and the optimiser's own state as they
were. Or it is given Tensors of `cnnlayers.autograd` once, and `step()` reads their gradients. The formulas are
PyTorch's, weight decay included (it is added to the gradient). State dictionaries are flat, names -> arrays, so that
they go into a safetensors file as they are.

float16 and bfloat16 parameters are updated in float32: the optimiser's own arrays are float32, so is the arithmetic,
and the new parameter alone is rounded. In float16 itself the square of a gradient below 2e-4 and Adam's eps are 0. A
step smaller than half the spacing of a parameter's values is still lost: train in float32 where that matters.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy

from cnnlayers import backends, kernels
from cnnlayers.autograd import Tensor
from cnnlayers.backends import Backend
from cnnlayers.functional.arrays import Array, accumulator_dtype, cast, is_complex
from cnnlayers.layers.base import Parameters, was_replaced
from cnnlayers.optim_checks import by_name, check_mapping, number, real_numbers
from cnnlayers.specs.arguments import flag

__all__ = ["SGD", "Adam", "Optimizer"]


def _wide(b: Backend, dtype: Any) -> Any:
    """The dtype in which a parameter is updated."""
    return dtype if dtype == b.xp.float32 or is_complex(b, dtype) else accumulator_dtype(b, dtype)


class Optimizer:
    """What the optimisers share: the parameters, the checks, and their own arrays.

    A subclass names its arrays in `slots`, one set a parameter, and defines `_update`.

    Parameters
    ----------
    params : dict of str to array, dict of str to Tensor, or list of Tensor
        `layer.params`; or Tensors that require a gradient, as `autograd.parameters(layer)` gives them. Floating or
        complex, any shapes. They are changed in place.
    lr : float
        Learning rate, at least 0. The attribute `lr` may be changed between steps.
    weight_decay : float
        Added to the gradient: g + weight_decay * p.
    """

    slots: tuple[str, ...] = ()
    _kernel = ""  # the step of kernels.TABLE that does what `_update` does

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        if "_kernel" not in vars(cls) and {"_update", "_update_real"} & vars(cls).keys():
            cls._kernel = ""  # an update rule of its own

    def __init__(
        self, params: Mapping[str, Array] | Mapping[str, Tensor] | Iterable[Tensor], lr: float, weight_decay: float
    ) -> None:
        self._layer = params.layer if isinstance(params, Parameters) else None
        named = by_name(params)
        if not named:
            raise ValueError("params is empty: an optimiser needs at least one parameter, as layer.params gives them")
        self._tensors = {name: p for name, p in named.items() if isinstance(p, Tensor)}
        self.params: dict[str, Array] = {n: p.data if isinstance(p, Tensor) else p for n, p in named.items()}
        self._check_tensors()
        self.lr = number(lr, "lr", 0.0)
        self.weight_decay = number(weight_decay, "weight_decay", 0.0)
        self.steps = 0
        self._state: dict[str, Array] = {}
        for name, p in self.params.items():
            b = self._owner(name)
            if backends.dtype_name(b, p) not in (*backends.FLOATS, *backends.COMPLEX):
                raise TypeError(f"parameter {name!r} must be floating or complex, got {p.dtype}")
            if isinstance(p, numpy.generic):
                raise TypeError(f"parameter {name!r} must be an array, which can be changed in place, got {p!r}")
            for slot in self.slots:
                self._state[f"{slot}.{name}"] = b.zeros(tuple(p.shape), _wide(b, p.dtype))

    def _owner(self, name: str) -> Backend:
        return backends.of(self.params[name], name=f"parameter {name!r}")

    def _check_tensors(self) -> None:
        """Raise where only some parameters are Tensors, or one cannot have a gradient, or stands there twice."""
        if self._tensors and len(self._tensors) < len(self.params):
            raise TypeError("params must all be Tensors, or all be arrays")
        names: dict[int, str] = {}
        for name, tensor in self._tensors.items():
            if tensor._source is not tensor:
                reason = "was computed" if tensor.requires_grad else "does not require a gradient"
                raise ValueError(
                    f"parameter {name!r} is a Tensor that {reason}: an optimiser changes Tensors that were made with"
                    " requires_grad=True"
                )
            if id(tensor) in names:
                raise ValueError(f"parameter {name!r} is the same Tensor as {names[id(tensor)]!r}")
            names[id(tensor)] = name

    def zero_grad(self) -> None:
        """Set the Tensors' gradients to None, so that the next backward begins anew.

        There is nothing to do where the parameters are arrays.
        """
        for tensor in self._tensors.values():
            tensor.grad = None

    def _gradients(self, grads: Mapping[str, Array] | None) -> Mapping[str, Array]:
        """What a step uses: `grads`, or those of the Tensors that have one."""
        if grads is not None or not self._tensors:
            self._check(grads, self.params)
            return grads or {}
        found = {name: t.grad for name, t in self._tensors.items() if t.requires_grad and t.grad is not None}
        if not found:
            raise RuntimeError(
                "no Tensor has a gradient: call backward of a loss that was computed from them, then step"
            )
        self._check(found, found)
        return found

    @backends.quiet
    def step(self, grads: Mapping[str, Array] | None = None) -> None:
        """Update the parameters from their gradients.

        Parameters
        ----------
        grads : dict of str to array, or None
            With params' names and shapes, as `layer.grads` has them. None where the parameters are Tensors: then
            their `grad`. Tensors without a gradient, or that require none any longer, stay as they are; Adam's count of
            steps, which it corrects its start by, is that of all parameters.

        Raises
        ------
        ValueError
            A missing, unknown or misshapen gradient.
        TypeError
            A gradient of another owner or not of real numbers.
        RuntimeError
            Other arrays stand in the place of these parameters (after `to` or `map_arrays`), or no Tensor has a
            gradient.
        KernelUnavailable
            In kernel mode "require", where the CPU's kernel cannot update a parameter. Where it raises, nothing has
            changed.
        """
        self._check_in_use()
        grads = self._gradients(grads)
        lr = number(self.lr, "lr", 0.0)
        launch = self._kernel and kernels.find(self._kernel, backends.of(next(iter(self.params.values()))), None)
        if launch and kernels.current_mode() == "require":
            for name in grads:
                b = self._owner(name)
                kernels.find(self._kernel, b, None, *self._arrays(b, name, grads[name]))
        self.steps += 1
        numbers = self._kernel_numbers(lr) if launch else ()
        for name in grads:
            b = self._owner(name)
            p, g, *own = self._arrays(b, name, grads[name])
            if launch and b.name == "numpy" and launch(numbers, p, g, *own):
                continue
            wide = cast(b, p, g.dtype)
            self._update(b, name, wide, g + self.weight_decay * wide if self.weight_decay else g, lr)
            if wide is not p:
                p[...] = cast(b, wide, p.dtype)

    def _arrays(self, b: Backend, name: str, g: Array) -> list[Array]:
        """A parameter, its gradient in the dtype of the update, and the optimiser's own arrays."""
        p = self.params[name]
        return [p, cast(b, g, _wide(b, p.dtype)), *[self._state[f"{slot}.{name}"] for slot in self.slots]]

    def _kernel_numbers(self, lr: float) -> tuple[Any, ...]:
        """What the kernel takes besides arrays. It adds the weight decay itself."""
        raise NotImplementedError

    def _check_in_use(self) -> None:
        """RuntimeError where a parameter is an array that its layer no longer uses (after `to` or `map_arrays`)."""
        if self._tensors:
            stale = [name for name, p in self.params.items() if self._tensors[name].data is not p]
        elif self._layer is None:
            stale = [name for name, p in self.params.items() if was_replaced(p)]
        else:
            live = self._layer.params
            stale = [name for name, p in self.params.items() if live.get(name) is not p]
        if stale:
            of_layer = "" if self._tensors else " of the layer"
            raise RuntimeError(
                f"parameter {stale[0]!r}{of_layer} is another array now ({len(stale)} of {len(self.params)} are): a"
                f" step would change the old one, which nothing uses. After to() or map_arrays() make a new"
                f" {type(self).__name__}(layer.params, ...); its load_state_dict(old.state_dict()) keeps the progress"
            )

    def _check(self, grads: Mapping[str, Array] | None, expected: Iterable[str]) -> None:
        check_mapping(grads, "grads", "layer.grads")
        assert grads is not None
        missing = sorted(str(name) for name in expected if grads.get(name) is None)
        unknown = sorted(str(name) for name in grads if name not in self.params)
        if missing or unknown:
            text = [f"no gradient for {', '.join(missing)}"] * bool(missing)
            text += [f"no parameter for {', '.join(unknown)}"] * bool(unknown)
            raise ValueError(
                f"{'; '.join(text)}: give layer.grads after a backward of the layer whose params these are"
            )
        for name in expected:
            p, g = self.params[name], grads[name]
            if type(g) is type(p) is numpy.ndarray and g.dtype == p.dtype and g.shape == p.shape:
                continue
            if backends.of(grads[name], name=f"the gradient of {name!r}") != self._owner(name):
                raise TypeError(
                    f"the gradient of {name!r} lives elsewhere than its parameter: make a new optimiser after to()"
                )
            kind = backends.dtype_name(self._owner(name), grads[name])
            fits = kind in backends.COMPLEX and is_complex(self._owner(name), p.dtype)
            if not fits and kind not in (*backends.FLOATS, *backends.INTEGERS):
                raise TypeError(f"the gradient of {name!r} must be of real numbers, got {kind}")
            if tuple(grads[name].shape) != tuple(p.shape):
                raise ValueError(
                    f"the gradient of {name!r} must have shape {tuple(p.shape)}, got {tuple(grads[name].shape)}"
                )

    def _update(self, b: Backend, name: str, p: Array, g: Array, lr: float) -> None:
        raise NotImplementedError(f"{type(self).__name__} has no update rule: define _update, as SGD does")

    def state_dict(self) -> dict[str, Array]:
        """What resuming needs: `steps`, and `<slot>.<parameter>` for each of the optimiser's arrays.

        Returns
        -------
        dict of str to numpy.ndarray
            Copies on the host.
        """
        host = {name: backends.to_numpy(a).copy() for name, a in self._state.items()}
        return {"steps": backends.to_numpy([self.steps]), **host}

    def _numbers(self, name: str, value: Any) -> numpy.ndarray:
        """An array of a state on the host. TypeError for complex numbers where the optimiser's own are real."""
        own = self._state.get(name)
        if own is not None and is_complex(backends.of(own), own.dtype):
            return backends.to_numpy(value)
        return real_numbers(f"{name} of the state", value)

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        """Take over what `state_dict` gave.

        Parameters
        ----------
        state : dict of str to array
            The arrays are copied, and cast to float32 or float64.

        Raises
        ------
        ValueError
            Missing, unknown or misshapen entries.
        TypeError
            An entry that is no array of real numbers. Where it raises, nothing has changed.
        """
        check_mapping(state, "state", "state_dict()")
        expected = {"steps": (1,)} | {name: tuple(a.shape) for name, a in self._state.items()}
        host = {str(name): self._numbers(str(name), a) for name, a in state.items()}
        given = {name: tuple(a.shape) for name, a in host.items()}
        wrong = sorted(n for n in expected.keys() | given.keys() if expected.get(n) != given.get(n))
        if wrong:
            text = ", ".join(f"{n} {given.get(n, 'missing')} (expected {expected.get(n, 'nothing')})" for n in wrong)
            raise ValueError(f"this is no state of {type(self).__name__} over these parameters: {text}")
        steps = host.pop("steps")
        if steps.dtype.kind not in "iu" or steps[0] < 0:
            raise ValueError(f"steps of the state must be a whole number of at least 0, got {steps[0]}")
        for name, a in self._state.items():
            b = backends.of(a)
            a[...] = b.array(host[name], a.dtype)
        self.steps = int(steps[0])

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.params)} parameters, lr={self.lr:g})"


class SGD(Optimizer):
    """Stochastic gradient descent: v = momentum * v + g; p -= lr * v.

    With `nesterov`: p -= lr * (g + momentum * v).

    Parameters
    ----------
    params : dict of str to array, dict of str to Tensor, or list of Tensor
        `layer.params`; or Tensors that require a gradient, as `autograd.parameters(layer)` gives them. Floating or
        complex, any shapes. They are changed in place.
    lr : float
        Learning rate, at least 0. The attribute `lr` may be changed between steps.
    momentum : float
        At least 0.
    weight_decay : float
        At least 0; g is the gradient plus weight_decay * p.
    nesterov : bool
        Nesterov's momentum; needs a momentum above 0.

    Raises
    ------
    ValueError
        A negative number, Nesterov without momentum; no parameters, a Tensor that was computed, or stands there twice.
    TypeError
        Parameters that are no arrays or Tensors, or of another dtype.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnlayers import optim
    >>> weight = np.array([1.0, -2.0])
    >>> sgd = optim.SGD({"weight": weight}, lr=0.5, momentum=0.0)
    >>> sgd.step({"weight": np.array([1.0, -1.0])})
    >>> weight
    array([ 0.5, -1.5])

    References
    ----------
    torch.optim.SGD without dampening; Sutskever et al. 2013, "On the importance of initialization and momentum in deep
    learning"
    """

    slots = ("velocity",)
    _kernel = "sgd_update"

    def __init__(
        self,
        params: Mapping[str, Array] | Mapping[str, Tensor] | Iterable[Tensor],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        *,
        nesterov: bool = False,
    ) -> None:
        self.momentum = number(momentum, "momentum", 0.0)
        self.nesterov = flag(nesterov, "nesterov")
        if self.nesterov and self.momentum == 0.0:
            raise ValueError("nesterov needs a momentum above 0, got 0")
        super().__init__(params, lr, weight_decay)

    def _kernel_numbers(self, lr: float) -> tuple[Any, ...]:
        return lr, float(self.weight_decay), float(self.momentum), self.nesterov

    def _update(self, b: Backend, name: str, p: Array, g: Array, lr: float) -> None:
        v = self._state[f"velocity.{name}"]
        v *= self.momentum
        v += g
        p -= lr * (g + self.momentum * v if self.nesterov else v)


class Adam(Optimizer):
    """Adam: m = β₁ m + (1 - β₁) g; v = β₂ v + (1 - β₂) g²; p -= lr * m̂ / (sqrt(v̂) + eps).

    m̂ = m / (1 - β₁ᵗ) and v̂ = v / (1 - β₂ᵗ) after t steps.

    Parameters
    ----------
    params : dict of str to array, dict of str to Tensor, or list of Tensor
        `layer.params`; or Tensors that require a gradient, as `autograd.parameters(layer)` gives them. Floating or
        complex, any shapes. They are changed in place.
    lr : float
        Learning rate, at least 0. The attribute `lr` may be changed between steps.
    betas : tuple of float
        (β₁, β₂), each in [0, 1).
    eps : float
        At least 0.
    weight_decay : float
        At least 0; g is the gradient plus weight_decay * p.

    Raises
    ------
    ValueError
        A negative number, betas outside [0, 1); no parameters, a Tensor that was computed, or stands there twice.
    TypeError
        Parameters that are no arrays or Tensors, or of another dtype.

    Notes
    -----
    A complex parameter is two real ones, as PyTorch has it.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnlayers import optim
    >>> from cnnlayers.autograd import Tensor
    >>> weight = Tensor([1.0, -2.0], requires_grad=True)
    >>> adam = optim.Adam([weight], lr=0.1)
    >>> (weight * weight).sum().backward()
    >>> adam.step()
    >>> weight.data
    array([ 0.9, -1.9])

    References
    ----------
    torch.optim.Adam; Kingma and Ba 2015, https://arxiv.org/abs/1412.6980
    """

    slots = ("mean", "square")
    _kernel = "adam_update"

    def __init__(
        self,
        params: Mapping[str, Array] | Mapping[str, Tensor] | Iterable[Tensor],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        if not isinstance(betas, tuple | list) or len(betas) != 2:
            raise ValueError(f"betas must be a pair of numbers, got {betas!r}")
        self.betas = (number(betas[0], "betas[0]", 0.0, 1.0), number(betas[1], "betas[1]", 0.0, 1.0))
        self.eps = number(eps, "eps", 0.0)
        super().__init__(params, lr, weight_decay)

    def _corrected(self, lr: float) -> tuple[float, float]:
        """The factor of the mean, and the divisor of the square's root."""
        first, second = self.betas
        return lr / (1.0 - first**self.steps), math.sqrt(1.0 - second**self.steps)

    def _kernel_numbers(self, lr: float) -> tuple[Any, ...]:
        (first, second), (size, correction) = self.betas, self._corrected(lr)
        return size, float(self.weight_decay), first, 1.0 - first, second, 1.0 - second, correction, float(self.eps)

    def _update(self, b: Backend, name: str, p: Array, g: Array, lr: float) -> None:
        mean, square = self._state[f"mean.{name}"], self._state[f"square.{name}"]
        if is_complex(b, p.dtype):  # two real parameters, as PyTorch has it
            g = cast(b, g, p.dtype)
            for part in ("real", "imag"):
                p_part, g_part, mean_part, square_part = (getattr(a, part) for a in (p, g, mean, square))
                self._update_real(b, p_part, g_part, mean_part, square_part, lr)
        else:
            self._update_real(b, p, g, mean, square, lr)

    def _update_real(self, b: Backend, p: Array, g: Array, mean: Array, square: Array, lr: float) -> None:
        first, second = self.betas
        mean *= first
        mean += (1.0 - first) * g
        square *= second
        square += (1.0 - second) * g * g
        size, correction = self._corrected(lr)
        p -= size * mean / (b.xp.sqrt(square) / correction + self.eps)
