"""A PyTorch model moved to this library, in two ways.

    python examples/move_pytorch_model.py

1. `convert` puts the library's pooling, padding and norms into a copy of the model. It stays a PyTorch model.
2. The same network is built of `cnnlayers.layers`, and takes over the weights, renamed. After that PyTorch is not
   needed.

Needs PyTorch: pip install 'cnnlayers[torch]'.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import cnnlayers
from cnnlayers import layers

# The names that the PyTorch model's attributes have, and the places of the same layers in the Sequential below.
PLACES = {"conv1": "0", "norm1": "1", "conv2": "4", "norm2": "5", "fc": "9"}


def moved_to_layers() -> layers.Sequential:
    """The layers of `Net`, in the order in which its forward calls them, with the same arguments."""
    return layers.Sequential(
        layers.Conv(3, 8, 3, padding=1),
        layers.BatchNorm(8),
        layers.ReLU(),
        layers.MaxPool(2),
        layers.Conv(8, 16, 3, padding=1),
        layers.GroupNorm(4, 16),
        layers.ReLU(),
        layers.GlobalAvgPool(),
        layers.Flatten(),
        layers.Linear(16, 10),
    )


def renamed(state: Mapping[str, Any]) -> dict[str, Any]:
    """A state dict with the names of `moved_to_layers`: "conv1.weight" becomes "0.weight". Of two models of nothing but
    Sequentials the names agree, and this is not needed."""
    split = {name: name.rpartition(".") for name in state}
    return {f"{PLACES[module]}.{array}": state[name] for name, (module, _, array) in split.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    try:
        import torch
        from torch import nn
    except ImportError:
        raise SystemExit(
            "PyTorch is not installed, so there is nothing to move: pip install 'cnnlayers[torch]'"
        ) from None
    from cnnlayers.torch import convert

    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.norm1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
            self.conv2, self.norm2 = nn.Conv2d(8, 16, 3, padding=1), nn.GroupNorm(4, 16)
            self.pool, self.fc = nn.MaxPool2d(2), nn.Linear(16, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.pool(torch.relu(self.norm1(self.conv1(x))))
            x = torch.relu(self.norm2(self.conv2(x)))
            return self.fc(x.mean(dim=(2, 3)))

    theirs = Net()
    x = torch.randn(4, 3, 16, 16)
    theirs(x)  # in training: the running statistics are no longer their initial ones
    theirs.eval()
    expected = theirs(x)

    converted = convert(theirs)
    replaced = [
        name for name, module in converted.named_modules() if type(module) is not type(theirs.get_submodule(name))
    ]
    difference = (converted(x) - expected).abs().max().item()
    print(f"1. converted modules {', '.join(replaced)}: largest difference {difference:.1e}")
    assert difference < 1e-5

    with tempfile.TemporaryDirectory() as folder:
        net = moved_to_layers()
        net.load_state_dict(renamed(theirs.state_dict()))
        file = Path(folder, "moved.safetensors")
        cnnlayers.save(net, file)
        net = cnnlayers.load(moved_to_layers(), file).eval()  # as in a process without PyTorch
    y = net(x.numpy())
    difference = float(np.abs(y - expected.detach().numpy()).max())
    print(f"2. as layers on NumPy: largest difference {difference:.1e}")
    assert difference < 1e-5

    dy = torch.randn_like(expected)
    expected.backward(dy)
    net(x.numpy())
    net.backward(dy.numpy())
    gradients = renamed({name: p.grad.numpy() for name, p in theirs.named_parameters()})
    differences = [abs(net.grads[name] - gradient).max() for name, gradient in gradients.items()]
    print(f"   gradients of {len(differences)} parameters: largest difference {max(differences):.1e}")
    assert max(differences) < 1e-4


if __name__ == "__main__":
    main()
