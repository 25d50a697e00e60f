"""The names of Stanford's CS231n assignments, on NumPy and CuPy: put this module where a notebook expects the course's.

    import sys, cnnlayers.cs231n
    for name in ("layers", "fast_layers", "layer_utils", "classifiers.cnn"):
        sys.modules[f"cs231n.{name}"] = cnnlayers.cs231n

Then `from cs231n.layers import *` gives the functions below, in a checkout of the assignment's own folder. The modules
here bear the course's names as well. Signatures, dictionaries, returns and defaults are the course's, caches opaque.
https://cs231n.github.io
"""

from cnnlayers.cs231n import fast_layers, layer_utils, layers
from cnnlayers.cs231n.classifiers.cnn import ThreeLayerConvNet
from cnnlayers.cs231n.fast_layers import *  # noqa: F403
from cnnlayers.cs231n.layer_utils import *  # noqa: F403
from cnnlayers.cs231n.layers import *  # noqa: F403

__all__ = ["ThreeLayerConvNet"]
__all__ += layers.__all__
__all__ += layer_utils.__all__
__all__ += fast_layers.__all__
