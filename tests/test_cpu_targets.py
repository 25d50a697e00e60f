"""The same bits on every CPU: the kernels compiled for AVX2 and for AVX-512, with one thread and with more."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from cnnlayers.kernels.cpu import jit

if jit.unavailable():
    pytest.skip(str(jit.unavailable()), allow_module_level=True)
if platform.machine() not in ("x86_64", "AMD64"):
    pytest.skip("the two targets are x86's", allow_module_level=True)

CODE = """
import hashlib, json
import numpy as np
import cnnlayers.functional as F

rng = np.random.default_rng(0)
found = {}

def note(name, op, shape, *args, dtypes=("float32", "float16"), **options):
    for dtype in dtypes:
        x = rng.standard_normal(shape).astype(dtype)
        y, ctx = getattr(F, op + "_forward")(x, *args, **options)
        gradients = getattr(F, op + "_backward")(rng.standard_normal(y.shape).astype(dtype), ctx)
        arrays = [y, *(gradients if isinstance(gradients, tuple) else (gradients,))]
        bits = b"".join(a.tobytes() for a in arrays if a is not None)
        found[f"{name} {dtype}"] = hashlib.sha256(bits).hexdigest()

def parameters(number):
    return rng.standard_normal((2, number)).astype("float32")

for shape in ((4, 6, 11, 13), (40, 70), (20, 6, 3)):
    note(f"batch norm {shape}", "batch_norm", shape, *parameters(shape[1]), training=True)
last = {"data_format": "channels_last"}
note("batch norm, channels last", "batch_norm", (4, 11, 13, 6), *parameters(6), training=True, **last)
note("batch norm, many rows", "batch_norm", (3, 40, 60, 61), *parameters(40), training=True)
note("group norm", "group_norm", (5, 12, 5, 7), 4, *parameters(12))
note("group norm, channels last", "group_norm", (5, 5, 7, 12), 4, *parameters(12), **last)
note("group norm of short rows", "group_norm", (60, 12, 5, 7), 4, *parameters(12))
note("global average", "adaptive_avg_pool", (30, 20, 7, 7), 1)
note("average pool, channels last", "avg_pool", (3, 9, 11, 20), 3, 2, 1, **last)
note("instance norm", "instance_norm", (4, 6, 9, 9), *parameters(6))
note("layer norm", "layer_norm", (60, 333), 333, *parameters(333))
note("rms norm", "rms_norm", (60, 5000), 5000, parameters(5000)[0])
for mode in ("constant", "edge", "reflect", "wrap"):
    note(f"pad {mode}", "pad", (3, 4, 9, 21), 2, mode)
    note(f"pad {mode}, channels last", "pad", (3, 9, 21, 20), ((2, -1), (0, 3)), mode, **last)
for op in ("relu", "leaky_relu", "gelu", "sigmoid", "tanh"):
    note(op, op, (3, 2001))
note("gelu tanh", "gelu", (3, 2001), "tanh")
for op in ("gelu", "sigmoid", "tanh"):
    note(op, op, (3, 2001), dtypes=("float64",))
note("softmax", "softmax", (5, 77, 9))
note("softmax of rows", "softmax", (50, 77))
note("softmax of short rows", "softmax", (50, 10))
for classes in (10, 77):
    note(f"cross-entropy, {classes} classes", "softmax_cross_entropy", (50, classes), np.arange(50) % classes)
note("max pool", "max_pool", (3, 4, 20, 21), 3, 2, 1)
note("average pool", "avg_pool", (3, 4, 20, 21), 3, 2, 1)
note("average pool, stride 1", "avg_pool", (3, 4, 20, 21), 3, 1, 1, count_include_pad=False)
note("average pool, stride 3", "avg_pool", (3, 4, 20, 21), 3, 3, 1)
note("average pool of long windows", "avg_pool", (2, 3, 50, 61), 20, 3)
note("average pool of pairs", "avg_pool", (3, 4, 20, 21), 2)
note("average pool of many channels last", "avg_pool", (3, 9, 11, 70), 3, 2, 1, count_include_pad=False, **last)
note("adaptive average pool", "adaptive_avg_pool", (3, 4, 20, 70), 3)
note("adaptive max pool", "adaptive_max_pool", (3, 4, 14, 14), 6)
for p in (1.0, 2.0, 3.0, 2.5):
    note(f"lp pool {p}", "lp_pool", (3, 4, 20, 21), 3, p, 2, 1)
def weights(*shape):
    return rng.standard_normal(shape).astype("float32"), rng.standard_normal(shape[0]).astype("float32")

note("convolution, a first layer", "conv", (2, 3, 40, 41), *weights(64, 3, 7, 7), 2, 3)
note("convolution, stride 2", "conv", (2, 24, 30, 29), *weights(40, 24, 3, 3), 2, 1)
note("convolution, depthwise", "conv", (3, 16, 28, 28), *weights(16, 1, 3, 3), 1, 1, 1, 16)
note("convolution, depthwise, stride 2", "conv", (3, 16, 28, 27), *weights(16, 1, 3, 3), 2, 1, 1, 16)
print(json.dumps(found))
"""
TARGETS = {"AVX2": "haswell", "AVX-512": "skylake-avx512"}


def hashes(cpu: str, threads: str, cache: Path) -> dict[str, str]:
    """A hash of the results of each op, by a process whose kernels are compiled for a CPU."""
    import numba.core.registry

    features = numba.core.registry.cpu_target.target_context.codegen().magic_tuple()[2]
    if cpu == "haswell":
        features = ",".join(f"-{f[1:]}" if "avx512" in f or "amx" in f else f for f in features.split(","))
    env = os.environ | {
        "NUMBA_CPU_NAME": cpu, "NUMBA_CPU_FEATURES": features, "CNNLAYERS_NUM_THREADS": threads,
        "CNNLAYERS_KERNELS": "require", "CNNLAYERS_CACHE_DIR": str(cache),
    }  # fmt: skip
    command = [sys.executable, "-W", "error", "-c", CODE]
    ran = subprocess.run(command, env=env, capture_output=True, text=True, timeout=900)
    assert ran.returncode == 0, ran.stderr
    result: dict[str, str] = json.loads(ran.stdout)
    return result


def _has_avx512() -> bool:
    from llvmlite import binding

    return bool(binding.get_host_cpu_features().get("avx512f"))


@pytest.mark.whole  # two targets are compiled
@pytest.mark.skipif(not _has_avx512(), reason="this CPU has no AVX-512")
def test_avx2_and_avx512_give_the_same_bits(tmp_path: Path) -> None:
    narrow, wide = (hashes(cpu, threads, tmp_path) for cpu, threads in zip(TARGETS.values(), ("1", "3"), strict=True))
    assert [name for name in narrow if narrow[name] != wide[name]] == []
    assert len(narrow) == 101
