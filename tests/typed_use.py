"""How a user's typed code calls the library: tests/wheel_check.py has mypy check it with the wheel. It is not run."""

import numpy as np

from cnnlayers import functional as F
from cnnlayers import layers, optim

x = np.zeros((2, 3, 8, 8), np.float32)

y = F.max_pool(x, 2)
print(y.shape, y.mean())
y, indices = F.max_pool(x, (2, 2), stride=2, return_indices=True)
print(indices.shape)
y, ctx = F.max_pool_forward(x, 3, padding="same", ties="split")
print(y.shape, ctx.nbytes)
(y, indices), ctx = F.max_pool_forward(x, 3, padding=((0, 1), (1, 0)), return_indices=True)
print(F.max_pool_backward(y, ctx).shape)
print(F.avg_pool(x, np.int64(2), ceil_mode=True).shape, F.pad(x, 1, "reflect").shape)
net = layers.Sequential(layers.Conv(3, 4, 3, padding="same", rng=0), layers.ReLU(), layers.MaxPool(2))
print(net(x).shape, optim.SGD(net.params, lr=0.1).lr)

F.max_pool(x, kernel_size="two")  # type: ignore[arg-type]
F.max_pool(x, 2, ties="last")  # type: ignore[call-overload]
F.avg_pool(x, "2")  # type: ignore[arg-type]
F.avg_pool(x, 2, data_format="NHWC")  # type: ignore[arg-type]
F.pad(x, 1, "mirror")  # type: ignore[arg-type]
layers.MaxPool("two")  # type: ignore[arg-type]
