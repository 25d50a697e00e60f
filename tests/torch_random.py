"""Random modules of torch.nn and inputs for them: every option, rank and dtype that PyTorch's modules take."""

from __future__ import annotations

import random
from typing import Any

Case = tuple[tuple[Any, ...], dict[str, Any], tuple[int, ...]]  # positional arguments, options, the input's shape


class Draw:
    """Draws modules' arguments; `n` is the number of spatial axes that the module's name counts."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def of(self, *choices: Any) -> Any:
        return self.random.choice(choices)

    def size(self, n: int, low: int, high: int) -> Any:
        """An int, a tuple of one int, or one an axis."""
        entries = tuple(self.random.randint(low, high) for _ in range(n))
        return self.of(entries[0], entries[:1], entries, entries)

    def shape(self, n: int, channels: int | None = None) -> tuple[int, ...]:
        """Of images, one without its batch's axis at times, with an axis of no cells at times."""
        spatial = [self.random.randint(1, 9) if self.random.random() < 0.95 else 0 for _ in range(n)]
        shape = (self.of(0, 1, 2, 3), self.of(0, 1, 2, 4) if channels is None else channels, *spatial)
        return shape[self.of(0, 0, 0, 1) :]

    # ------------------------------------------------------------------------------------------------ pools and pads
    def MaxPool(self, n: int) -> Case:
        dilation = self.of(1, 1, self.size(n, 1, 2))
        # PyTorch writes out of bounds where a dilated window meets padding alone.
        padding = self.of(0, 1, self.size(n, 0, 2)) if dilation == 1 else 0
        args = self.size(n, 1, 4), self.of(None, self.size(n, 1, 3)), padding, dilation
        return args, {"ceil_mode": self.of(True, False), "return_indices": self.of(True, False, False)}, self.shape(n)

    def AvgPool(self, n: int) -> Case:
        options = {"ceil_mode": self.of(True, False), "count_include_pad": self.of(True, False)}
        if n > 1:
            options["divisor_override"] = self.of(None, None, 3, -2)
        args = self.size(n, 1, 4), self.of(None, self.size(n, 1, 3)), self.of(0, 1, self.size(n, 0, 2))
        return args, options, self.shape(n)

    def AdaptiveAvgPool(self, n: int) -> Case:
        return (self.of(1, 3, tuple(self.of(None, 0, 1, 2, 5, 12) for _ in range(n))),), {}, self.shape(n)

    AdaptiveMaxPool = AdaptiveAvgPool

    def _sides(self, n: int, low: int) -> Any:
        return self.of(self.random.randint(0, 3), tuple(self.random.randint(low, 3) for _ in range(2 * n)))

    def ConstantPad(self, n: int) -> Case:
        shape = self.of(self.shape(n), (2, *self.shape(n)), self.shape(n)[-n:])
        return (self._sides(n, -2), self.of(0, 1.5, -2, None)), {}, shape

    def ZeroPad(self, n: int) -> Case:
        (padding, _), options, shape = self.ConstantPad(n)
        return (padding,), options, shape

    def ReflectionPad(self, n: int) -> Case:
        return (self._sides(n, -2),), {}, self.shape(n)

    ReplicationPad = ReflectionPad

    def CircularPad(self, n: int) -> Case:
        # PyTorch leaves cells undefined where it wraps and crops one axis.
        return (self._sides(n, 0),), {}, self.shape(n)

    # --------------------------------------------------------------------------------------------------------- norms
    def BatchNorm(self, n: int) -> Case:
        channels = self.of(1, 3)
        options = {"affine": self.of(True, True, False), "track_running_stats": self.of(True, True, False)}
        options |= {"momentum": self.of(None, 0.1, 0.0, 1.0), "eps": self.of(1e-5, 1e-3)}
        shape = (self.of(0, 1, 2, 3), channels, *self.shape(n)[-n:])
        return (channels,), options, self.of(shape, (4, channels)) if n == 1 else shape

    def InstanceNorm(self, n: int) -> Case:
        channels = self.of(1, 3)
        return (channels,), {"affine": self.of(True, False)}, self.shape(n, self.of(channels, channels, 2))

    def GroupNorm(self, _: int) -> Case:
        groups = self.of(1, 2, 3)
        channels = groups * self.of(1, 1, 2)
        spatial = [self.of(1, 1, 2, 3) for _ in range(self.of(0, 1, 2, 3, 4, 5))]
        return (groups, channels), {"affine": self.of(True, False)}, (self.of(0, 1, 2, 3), channels, *spatial)

    def LayerNorm(self, _: int) -> Case:
        shape = tuple(self.of(0, 1, 2, 3, 4, 4, 4) for _ in range(self.of(1, 2, 3, 4, 5, 6, 7)))
        normalized = shape[-self.random.randint(1, len(shape)) :]
        return (normalized,), {"elementwise_affine": self.of(True, False), "eps": self.of(1e-5, 1e-2)}, shape

    def RMSNorm(self, _: int) -> Case:
        args, options, shape = self.LayerNorm(0)
        return args, options | {"eps": self.of(None, None, 1e-3)}, shape

    def LocalResponseNorm(self, _: int) -> Case:
        shape = tuple(self.of(1, 2, 3, 4) for _ in range(self.of(2, 3, 4, 5, 6, 7)))
        options = {"alpha": self.of(1e-4, 0.1), "beta": self.of(0.75, 0.5), "k": self.of(1.0, 2.0)}
        return (self.random.randint(1, 5),), options, shape
