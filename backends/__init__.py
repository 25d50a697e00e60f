"""Which arrays, and where: the backend is chosen here, found from an array, and crossed by two explicit transfers.

An op runs where its arrays live (`of`); the selected backend (`current`) only says where *new* arrays are made. Nothing
here imports CuPy before it is asked for.
"""

from .arrays import (
    PLAIN,
    all_numpy,
    asarray,
    ignoring,
    native,
    of,
    on_device_of,
    owner_key,
    packed,
    plain,
    quiet,
    share_memory,
    to_numpy,
    unpacked,
)
from .block import Block, Exclusive, assigned
from .dtypes import COMPLEX, FLOATS, INTEGERS, dtype_name, name_of_dtype
from .memory import available_memory, new_result, result, workspace
from .plans import PLANS, planned, size_of
from .random import check_rng, philox_key, uniform
from .selection import Backend, BackendUnavailable, available, current, use, using
from .threads import (
    BOARD,
    Waits,
    board,
    is_small_product,
    num_threads,
    run_chunks,
    single_threaded_blas,
    wait_in,
    wake,
)

__all__ = ["Backend", "BackendUnavailable", "available", "current", "use", "using"]
__all__ += ["asarray", "native", "of", "on_device_of", "owner_key", "share_memory", "to_numpy"]
__all__ += ["PLAIN", "all_numpy", "ignoring", "packed", "plain", "quiet", "unpacked"]
__all__ += ["COMPLEX", "FLOATS", "INTEGERS", "dtype_name", "name_of_dtype"]
__all__ += ["PLANS", "available_memory", "new_result", "planned", "result", "size_of", "workspace"]
__all__ += ["check_rng", "philox_key", "uniform"]
__all__ += ["Block", "Exclusive", "assigned", "num_threads", "run_chunks", "single_threaded_blas"]
__all__ += ["BOARD", "Waits", "board", "is_small_product", "wait_in", "wake"]
