"""Every op as a trio: `op` (inference, saves nothing), `op_forward` (gives `y, ctx`), `op_backward(dy, ctx)`."""

import importlib
import pkgutil

for _m in pkgutil.iter_modules(__path__):  # interim while families are being written
    try:
        _mod = importlib.import_module(f"{__name__}.{_m.name}")
    except ImportError:
        continue
    for _n in dir(_mod):
        if _n.endswith("_forward") and not _n.startswith("_"):
            _o = _n.removesuffix("_forward")
            for _k in (_o, _n, _o + "_backward"):
                if hasattr(_mod, _k):
                    globals()[_k] = getattr(_mod, _k)
