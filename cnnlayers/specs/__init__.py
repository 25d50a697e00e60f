"""Arguments and shapes: every size is checked, and every output shape worked out, here and nowhere else.

A spec is a frozen dataclass of plain integers: it needs no array library, is made before anything is computed, and is
what a context keeps. Spatial sizes are named by axis; `x` is (N, C, *spatial) in "channels_first" and (N, *spatial, C)
in "channels_last". Only the standard library is used; arrays of these numbers are made where they are needed.
"""

from .arguments import Layout, Pair, Shape
from .conv import Conv, conv_window, transposed_window
from .norm import Norm, Rows
from .padding import PAD_MODES, Pad, pad_spec
from .pooling import Average, LpPool, MaxPoolSpec, adaptive_window, max_pool_spec, pool_window, unpool_window
from .windows import AdaptiveAxis, AdaptiveWindow, Axis, Window, effective, out_length, taps, window_taps

__all__ = ["Layout", "Pair", "Shape"]
__all__ += ["AdaptiveAxis", "AdaptiveWindow", "Axis", "Window", "effective", "out_length", "taps", "window_taps"]
__all__ += ["Average", "LpPool", "MaxPoolSpec", "adaptive_window", "max_pool_spec", "pool_window", "unpool_window"]
__all__ += ["PAD_MODES", "Conv", "Norm", "Pad", "Rows", "conv_window", "pad_spec", "transposed_window"]
