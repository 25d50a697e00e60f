"""What first calls cost: `python -m cnnlayers.bench.first_calls [OP ...]`.

Each op runs in processes of its own, with one thread. *Cold*: nothing has been compiled. *Warm*: the code is on disk.
Both are CPU seconds of the first call, the import of Numba included; *start* are those of the warm process before the
call: Python, NumPy and this library. Other work on the machine makes all three longer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

BOTH = "y, ctx = F.{0}_forward(x, {1}); F.{0}_backward(y, ctx)"
NETWORK = {  # the ops of a small network, forward and backward
    "conv": BOTH.format("conv", "w, b, 1, 1"),
    "batch_norm": BOTH.format("batch_norm", "b, b, training=True"),
    "relu": BOTH.format("relu", ""),
    "max_pool": BOTH.format("max_pool", "2"),
    "adaptive_avg_pool": BOTH.format("adaptive_avg_pool", "1"),
    "softmax_cross_entropy": "F.softmax_cross_entropy_forward(x[:, :, 0, 0], labels)",
}
OTHERS = {
    "max_pool 3x3 stride 2": BOTH.format("max_pool", "3, 2, 1"),
    "avg_pool": BOTH.format("avg_pool", "2"),
    "lp_pool": BOTH.format("lp_pool", "2"),
    "pad": BOTH.format("pad", "1, 'reflect'"),
    "group_norm": BOTH.format("group_norm", "4, b, b"),
    "layer_norm": BOTH.format("layer_norm", "(32,)"),
    "gelu": BOTH.format("gelu", ""),
    "softmax": BOTH.format("softmax", ""),
    "conv stride 2": BOTH.format("conv", "w, b, 2, 1"),
    "conv forward": "F.conv(x, w, b, 1, 1)",
    "max_pool forward": "F.max_pool(x, 2)",
}
PROGRAM = """
import json, sys, time
import numpy as np
from cnnlayers import functional as F
rng = np.random.default_rng(0)
x = rng.standard_normal((8, 16, 32, 32)).astype("float32")
w, b = rng.standard_normal((16, 16, 3, 3)).astype("float32"), np.ones(16, "float32")
labels = np.arange(8)
started = time.process_time()
exec(sys.argv[1])
print(json.dumps([started, time.process_time() - started]))
"""


def seconds(code: str, folder: str) -> tuple[float, float]:
    """The CPU seconds of a process before a call and for it, with compiled code in this folder."""
    env = os.environ | {"CNNLAYERS_CACHE_DIR": folder, "CNNLAYERS_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    ran = subprocess.run([sys.executable, "-c", PROGRAM, code], env=env, stdout=subprocess.PIPE, check=True)
    started, called = json.loads(ran.stdout)
    return started, called


def main(names: list[str]) -> None:
    cases = NETWORK | OTHERS
    names = names or ["all of a network", *cases]
    unknown = [name for name in names if name not in ("all of a network", *cases)]
    if unknown:
        sys.exit(f"no such op: {', '.join(unknown)}; there are: all of a network, {', '.join(cases)}")
    print(f"{'first call':<24}{'cold':>8}{'warm':>8}{'start':>8}   files")
    for name in names:
        code = cases.get(name, "\n".join(NETWORK.values()))
        with tempfile.TemporaryDirectory() as folder:
            _, cold = seconds(code, folder)
            start, warm = min(seconds(code, folder) for _ in range(3))
            print(f"{name:<24}{cold:8.2f}{warm:8.2f}{start:8.2f}{len(list(Path(folder).iterdir())):8d}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
