"""The ops of `cnnlayers.functional` as PyTorch's own: `torch.ops.cnnlayers.*`, registered by importing this package.

| name             | gives                                                                              |
| ---------------- | ---------------------------------------------------------------------------------- |
| `<op>`           | y alone; where a gradient is wanted it runs `<op>_forward`                         |
| `<op>_forward`   | y and the arrays that backward needs besides the inputs (ops that have such)        |
| `<op>_backward`  | the gradients, from dy, what was saved, and plain options                          |

Every op has a fake implementation (shapes and dtypes for meta tensors, torch.compile and torch.export), a gradient and
a batching rule for vmap. Results are contiguous and share no memory with the inputs. Options are plain: sizes are lists
of ints (one entry stands for all spatial axes), padding is one entry, one an axis or two an axis (before, after), and
`auto_pad` is the name of a padding that depends on the sizes ("same", "full", ...).
"""

from . import activations, batch_norm, convs, norms, pools, windows

__all__ = ["activations", "batch_norm", "convs", "norms", "pools", "windows"]
