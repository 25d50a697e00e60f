"""A whole training step of a small network: forward, loss, backward, SGD with momentum.

The learning rate is so small that no weight changes in float32: every run computes on the same numbers, and the
gradients of two implementations can be compared after any number of steps. On a GPU the step is captured in a CUDA
graph once and replayed, its memory in a pool of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cnnlayers import functional as F
from cnnlayers import layers, optim
from cnnlayers.models import ResNet, ThreeLayerConvNet

from .problem import CLASSES, Problem

LR, MOMENTUM = 1e-30, 0.9


def lenet(shape: tuple[int, ...]) -> layers.Sequential:
    """LeCun et al.'s network of 1998 as it is written today: two 5×5 convolutions, three linear layers."""
    channels, height, width = shape
    cells = 16 * (height // 4 - 2) * (width // 4 - 2)
    return layers.Sequential(
        layers.Conv(channels, 6, 5, padding=2, rng=0),
        layers.ReLU(),
        layers.MaxPool(2),
        layers.Conv(6, 16, 5, rng=1),
        layers.ReLU(),
        layers.MaxPool(2),
        layers.Flatten(),
        layers.Linear(cells, 120, rng=2),
        layers.ReLU(),
        layers.Linear(120, 84, rng=3),
        layers.ReLU(),
        layers.Linear(84, CLASSES, rng=4),
    )


MODELS: dict[str, Callable[[tuple[int, ...]], layers.Layer]] = {
    "three_layer_step": lambda shape: ThreeLayerConvNet(shape, CLASSES, rng=0),
    "lenet_step": lenet,
    "resnet8_step": lambda shape: ResNet(8, shape, CLASSES, rng=0),
}


def model(problem: Problem) -> layers.Layer:
    """The case's network, where the problem's arrays are: the same weights each time."""
    return MODELS[problem.case.op](problem.case.shape[1:]).to(problem.b.name)


def step(problem: Problem) -> Callable[[int], Any]:
    """A step of this library's network: gives the loss and the gradients by name, in the parameters' order."""
    net = model(problem)
    sgd = optim.SGD(net.params, LR, MOMENTUM)
    x, labels = problem.inputs[0], problem.gradients[0]
    one = problem.b.xp.ones((), x.dtype)  # made here: a graph can copy nothing from the host

    def run(i: int) -> tuple[Any, ...]:
        loss, ctx = F.softmax_cross_entropy_forward(net(x), labels)
        net.backward(F.softmax_cross_entropy_backward(one, ctx), needs_dx=False)
        gradients = net.grads
        sgd.step(gradients)
        return (loss, *(gradients[name] for name in sgd.params))

    return captured(problem, run) if problem.b.name == "cupy" else run


def captured(problem: Problem, run: Callable[[int], Any]) -> Callable[[int], Any]:
    """`run(0)` as a CUDA graph: a call replays it on the default stream and gives the arrays that it fills."""
    cuda = problem.b.xp.cuda
    pool = cuda.MemoryPool()  # nobody else is given memory that the graph writes to
    stream = cuda.Stream(non_blocking=True)
    cuda.Device().synchronize()  # the arrays were made on another stream
    with cuda.using_allocator(pool.malloc), stream:
        for _ in range(3):
            run(0)
        stream.synchronize()
        stream.begin_capture()
        results = run(0)
        graph = stream.end_capture()

    def replay(i: int, pool: Any = pool) -> Any:  # as long as this lives, the pool does
        graph.launch(cuda.Stream.null)
        return results

    return replay
