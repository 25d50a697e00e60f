"""How an op is registered with PyTorch: its schema, its kernel on arrays, its fake implementation, its gradient."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._functorch.autograd_function import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction

from cnnlayers import backends
from cnnlayers.functional.call_plan import CallPlan, Context

from ..arrays import array_of, fresh_tensor_of, on_stream_of
from .batching import Rule, batched

Tensors = tuple[torch.Tensor | None, ...]

LIBRARY = torch.library.Library("cnnlayers", "DEF")
OPS: dict[str, Op] = {}  # every op, by its name


class Op:
    """An op of the library. `run` computes on arrays, in the schema's order; `fake` does so on fake tensors."""

    def __init__(self, schema: str, run: Callable[..., Any], fake: Callable[..., Any], rule: Rule) -> None:
        self.name = schema.partition("(")[0]
        OPS[self.name] = self
        LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
        self.overload: Any = getattr(torch.ops.cnnlayers, self.name).default
        arguments = self.overload._schema.arguments
        self.defaults = tuple(a.default_value for a in arguments)
        self.has_format = arguments[-1].name == "data_format"
        self.tensors = tuple(i for i, a in enumerate(arguments) if "Tensor" in str(a.type))
        self.several = len(self.overload._schema.returns) > 1

        def kernel(*args: Any) -> Any:
            return self._on_arrays(run, self.filled(args))

        LIBRARY.impl(self.name, kernel, "CompositeExplicitAutograd")
        torch.library.register_fake(f"cnnlayers::{self.name}", lambda *a: fake(*self.filled(a)), lib=LIBRARY)
        torch.library.register_vmap(f"cnnlayers::{self.name}", self._batched(rule), lib=LIBRARY)

    def __call__(self, *args: Any) -> Any:
        return self.overload(*args)

    def filled(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """All arguments: PyTorch leaves those at their default away."""
        return args if len(args) == len(self.defaults) else args + self.defaults[len(args) :]

    def _on_arrays(self, run: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        first = next(args[i] for i in self.tensors if args[i] is not None)
        if first.is_cpu:
            return self._converted(run, args, first)
        with on_stream_of(first):
            return self._converted(run, args, first)

    def _converted(self, run: Callable[..., Any], args: tuple[Any, ...], first: torch.Tensor) -> Any:
        given: list[Any] = [tuple(a) if type(a) is list else a for a in args]
        inputs = []
        for i in self.tensors:
            if given[i] is not None:
                given[i] = array_of(given[i])
                inputs.append(given[i])
        found = run(*given)
        if not self.several:
            return fresh_tensor_of(found, inputs)
        return tuple(first.new_empty(0) if a is None else fresh_tensor_of(a, inputs) for a in found)

    def _batched(self, rule: Rule) -> Callable[..., Any]:
        def run(info: Any, dims: tuple[Any, ...], *args: Any) -> Any:
            known = {i: dims[i] for i in self.tensors if i < len(dims) and dims[i] is not None}
            return batched(self, rule, info.batch_size, known, self.filled(args))

        return run

    def wants_gradient(self, args: tuple[Any, ...]) -> bool:
        """Whether autograd must record a call."""
        if torch.is_grad_enabled():
            for i in self.tensors:
                if i < len(args) and args[i] is not None and args[i].requires_grad:
                    return True
        return False

    def below_autograd(self, keyset: Any, args: tuple[Any, ...]) -> Any:
        """The op without autograd's part, on a level of torch.func or in plain use."""
        with torch._C._AutoDispatchBelowAutograd():
            return self.overload.redispatch(keyset & torch._C._after_autograd_keyset, *args)

    def differentiable(
        self, save: Callable[[Any, tuple[Any, ...], Any], None], backward: Callable[..., Tensors]
    ) -> Callable[..., Any]:
        """Register the op's gradient. `save(ctx, inputs, outputs)` keeps what `backward(ctx, *gradients)` needs, which
        gives the gradient of every input, None for options. Outputs after the first have no gradient."""
        node = _node_of(self, save, backward)

        def kernel(keyset: Any, *args: Any) -> Any:
            self.refuse_forward_mode(args)
            return node(keyset, args) if self.wants_gradient(args) else self.below_autograd(keyset, args)

        LIBRARY.impl(self.name, kernel, "Autograd", with_keyset=True)
        return node

    def recorded_as(self, forward: Op, node: Callable[..., Any]) -> None:
        """Where autograd must record a call of this op, `forward` runs, which also gives what backward needs; `node` is
        what its `differentiable` gave. Both ops have the same arguments, but for ones at the end of forward's."""

        def kernel(keyset: Any, *args: Any) -> Any:
            self.refuse_forward_mode(args)
            return node(keyset, args)[0] if self.wants_gradient(args) else self.below_autograd(keyset, args)

        LIBRARY.impl(self.name, kernel, "Autograd", with_keyset=True)

    def refuse_second_derivative(self, op: str) -> None:
        """This op is the gradient of `op` and has none itself: asking for one is an error."""

        def refuse(ctx: Any, *gradients: Any) -> Tensors:
            raise RuntimeError(
                f"{op} of cnnlayers.torch has no second derivative: use torch.nn.functional for what is derived twice"
                f" (cnnlayers.torch.revert gives the model back)"
            )

        self.differentiable(lambda ctx, inputs, outputs: None, refuse)

    def refuse_forward_mode(self, args: tuple[Any, ...]) -> None:
        """PyTorch would take the tangent for zero."""
        if forward_ad._current_level < 0:
            return
        for i in self.tensors:
            if i < len(args) and args[i] is not None and forward_ad.unpack_dual(args[i]).tangent is not None:
                raise RuntimeError(
                    f"{self.name} of cnnlayers.torch has no forward-mode derivative (jvp, jacfwd, hessian): use"
                    " torch.nn.functional for it (cnnlayers.torch.revert gives the model back)"
                )


def context(op: str, like: Any, spec: Any = None, y_shape: Any = None, **saved: Any) -> Context:
    """What `op`'s forward keeps of an x with the owner and dtype of `like`; y has like's shape unless one is given."""
    shape = tuple(like.shape if y_shape is None else y_shape)
    return Context(CallPlan(op, backends.of(like), like.dtype, shape, spec), saved)


def dtype_holder(dy: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor | None:
    """Stands in a backward op for a parameter of which it needs the dtype alone; None without the parameter."""
    return None if dtype is None else dy.new_empty(0, dtype=dtype)


def with_forward(
    op: str, inputs: str, outputs: int, run: Callable[..., Any], fake: Callable[..., Any], rules: Sequence[Rule]
) -> tuple[Op, Op]:
    """`op`, and `<op>_forward` of the same inputs, which gives the other outputs too: what backward needs. `run`,
    `fake`: of the latter; `rules`: of both."""
    y_alone = Op(f"{op}({inputs}) -> Tensor", lambda *a: run(*a)[0], lambda *a: fake(*a)[0], rules[0])
    return y_alone, Op(f"{op}_forward({inputs}) -> ({', '.join(['Tensor'] * outputs)})", run, fake, rules[1])


def differentiable_by_x(
    op: Op,
    gradient: Op,
    saved: Callable[[Any, Any], Any] = lambda inputs, outputs: inputs[:1],
    options: Callable[[Any], Any] = lambda inputs: inputs[1:],
    forward: Op | None = None,
) -> None:
    """Register the gradient of an op in its first input, x alone: `gradient(dy, *saved, *options)` gives it.

    saved(inputs, outputs): the tensors that are kept, x unless given. options(inputs): all inputs but the first unless
    given. forward: the op that runs where autograd records a call, if it is another (see `recorded_as`).
    """

    def save(ctx: Any, inputs: tuple[Any, ...], outputs: Any) -> None:
        ctx.save_for_backward(*saved(inputs, outputs))
        ctx.options = options(inputs)

    def derive(ctx: Any, dy: torch.Tensor | None, *_: Any) -> Tensors:
        dx = None if dy is None else gradient(dy, *ctx.saved_tensors, *ctx.options)
        return dx, *(None,) * (ctx.number - 1)

    node = (forward or op).differentiable(save, derive)
    if forward is not None:
        op.recorded_as(forward, node)
    gradient.refuse_second_derivative(op.name)


def second_output(inputs: Any, outputs: Any) -> Any:
    """What `differentiable_by_x` saves of an op whose forward gives y and one array for backward."""
    return outputs[1:2]


def _node_of(op: Op, save: Callable[..., None], backward: Callable[..., Tensors]) -> Callable[..., Any]:
    """A call of `op` as a node of autograd's graph.

    torch.autograd.Function does not run inside torch.func's transforms when it is applied below the dispatcher; its
    single-level form does, which torch.func itself uses for each level.
    """

    def forward(ctx: Any, keyset: Any, *args: Any) -> Any:
        with _recording_lower_levels():
            outputs = op.below_autograd(keyset, args)
        args = op.filled(args)
        ctx.number = len(args)
        ctx.set_materialize_grads(False)
        if op.several:
            ctx.mark_non_differentiable(*outputs[1:])
        save(ctx, args, outputs)
        return outputs

    def derive(ctx: Any, *gradients: Any) -> Any:
        return (None, *backward(ctx, *gradients))

    methods = {"forward": staticmethod(forward), "backward": staticmethod(derive)}
    node: Any = type(f"cnnlayers_{op.name}_", (_SingleLevelFunction,), methods)

    def apply(keyset: Any, args: tuple[Any, ...]) -> Any:
        if not torch._C._are_functorch_transforms_active():
            return node.apply(keyset, *args)
        with enable_single_level_autograd_function():
            return node.apply(keyset, *args)

    return apply


@contextlib.contextmanager
def _recording_lower_levels() -> Any:
    """A node's forward runs without recording, but torch.func's outer levels must go on doing so."""
    if not torch._C._are_functorch_transforms_active():
        yield
        return
    with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
        yield
