"""Files: they load in other tools, are whole or not there, and say what is wrong with them."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy

from cnnlayers import checkpoint
from cnnlayers.checkpoint import load, save
from cnnlayers.layers import BatchNorm, Conv, Linear, Sequential


def network(seed=0):
    return Sequential(Conv(3, 4, 3, rng=seed), BatchNorm(4), Sequential(Linear(4, 2, rng=seed)))


def same(a, b):
    """The same names, and the same bits under each."""
    return {n: x.tobytes() for n, x in a.state_dict().items()} == {n: x.tobytes() for n, x in b.state_dict().items()}


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "model.safetensors"
    save(network(1), path)
    return path


def test_what_is_saved_is_loaded(tmp_path, rng):
    net = network(1)
    net[1](rng.standard_normal((5, 4)).astype(np.float32))
    path = tmp_path / "model.safetensors"
    assert save(net, path) is None
    other = network(2)
    assert load(other, str(path)) is other
    assert same(other, net)
    assert int(other.state_dict()["1.num_batches_tracked"]) == 1
    assert os.listdir(tmp_path) == ["model.safetensors"]


def test_other_tools_read_the_file(saved):
    torch = pytest.importorskip("torch")
    read = safetensors.numpy.load_file(saved)
    assert set(read) == set(network().state_dict())
    assert read["1.num_batches_tracked"].shape == ()
    nn = torch.nn
    twin = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sequential(nn.Linear(4, 2)))
    from safetensors.torch import load_file, save_file

    twin.load_state_dict(load_file(saved))
    with torch.no_grad():
        twin[0].weight.mul_(2)
    save_file(twin.state_dict(), saved)
    net = load(network(2), saved)
    np.testing.assert_array_equal(net.params["0.weight"], network(1).params["0.weight"] * 2)


def written(path, dtype, arrays):
    """Write a safetensors file by hand, every array under one of the format's dtypes; `arrays`: (shape, bytes)."""
    header, at = {}, 0
    for name, (shape, data) in arrays.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    body = b"".join(data for _, data in arrays.values())
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)


def upper_halves(a):
    return (np.ascontiguousarray(a, "<f4").view("<u4") >> 16).astype("<u2")


BITS = {
    "BF16": upper_halves,
    "F16": lambda a: a.astype("<f2"),
    "F32": lambda a: a.astype("<f4"),
    "F64": lambda a: a.astype("<f8"),
    "I8": lambda a: a.astype("i1"),
    "U16": lambda a: a.astype("<u2"),
}


@pytest.mark.parametrize("own", ["float16", "float32", "float64", "bfloat16"])
@pytest.mark.parametrize("stored", BITS)
def test_every_stored_dtype_is_cast_to_the_layers(tmp_path, monkeypatch, stored, own):
    values = {"weight": np.array([[0.0, 1.0, 2.0], [3.0, 64.0, 100.0]]), "bias": np.array([1.0, 5.0])}
    if stored[0] != "U":
        values["weight"][0, 1] = -96.0
    if own == "bfloat16":
        dtype = pytest.importorskip("ml_dtypes").bfloat16
    else:  # nothing but NumPy is needed
        dtype = np.dtype(own)
        monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    written(tmp_path / "m", stored, {n: (a.shape, BITS[stored](a).tobytes()) for n, a in values.items()})
    layer = Linear(3, 2).map_arrays(lambda a: a.astype(dtype))
    assert load(layer, tmp_path / "m") is layer
    for name, a in layer.params.items():
        assert a.dtype == dtype
        np.testing.assert_array_equal(a.astype(np.float64), values[name])


def test_every_bfloat16_is_read_exactly(tmp_path):
    bits = np.arange(2**16, dtype="<u2")
    written(
        tmp_path / "m", "BF16", {"a": ((2**8, 2**8), bits.tobytes()), "empty": ((0, 3), b""), "one": ((), b"\x80?")}
    )
    arrays, _ = checkpoint.load_arrays(tmp_path / "m")
    assert (arrays["a"].shape, arrays["a"].dtype) == ((2**8, 2**8), np.float32)
    np.testing.assert_array_equal(arrays["a"].ravel().view(np.uint32) >> 16, bits)
    assert not (arrays["a"].view(np.uint32) & 0xFFFF).any()
    assert arrays["empty"].shape == (0, 3)
    assert (arrays["one"].shape, float(arrays["one"])) == ((), 1.0)


def test_a_bfloat16_network_is_saved_and_loaded(tmp_path):
    dtype = pytest.importorskip("ml_dtypes").bfloat16
    net = network(1).map_arrays(lambda a: a.astype(dtype) if a.dtype == np.float32 else a)
    save(net, tmp_path / "m")
    assert b'"BF16"' in (tmp_path / "m").read_bytes()
    again = load(network(2).map_arrays(lambda a: a.astype(dtype) if a.dtype == np.float32 else a), tmp_path / "m")
    assert same(again, net)
    wide = load(network(2), tmp_path / "m")
    np.testing.assert_array_equal(wide.params["0.weight"], net.params["0.weight"].astype(np.float32))


def test_pytorchs_bfloat16_file(tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    twin = torch.nn.Linear(3, 2).to(torch.bfloat16)
    save_file(twin.state_dict(), tmp_path / "m")
    layer = load(Linear(3, 2), tmp_path / "m")
    np.testing.assert_array_equal(layer.params["weight"], twin.weight.detach().float().numpy())


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2"])
def test_a_stored_dtype_that_numpy_lacks_is_named(tmp_path, dtype):
    layer = Linear(3, 2, rng=0)
    written(tmp_path / "m", dtype, {"weight": ((2, 3), bytes(6)), "bias": ((2,), bytes(2))})
    with pytest.raises(
        ValueError, match=rf"m stores '(weight|bias)' as {dtype} \(2 of 2.*save it as F16, BF16, F32 or F64"
    ):
        load(layer, tmp_path / "m")
    assert same(layer, Linear(3, 2, rng=0))


def test_arrays_in_any_order_of_memory(tmp_path):
    net = Sequential(Linear(3, 2, rng=0))
    net.map_arrays(np.asfortranarray)
    save(net, tmp_path / "m")
    assert same(load(Sequential(Linear(3, 2)), tmp_path / "m"), Sequential(Linear(3, 2, rng=0)))


def test_a_relative_path_and_another_suffix(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(network(1), "model.bin")
    assert same(load(network(2), "model.bin"), network(1))


@pytest.mark.skipif(os.name != "posix", reason="POSIX permissions and links")
def test_links_and_permissions_are_kept(saved, tmp_path):
    saved.chmod(0o640)
    link = tmp_path / "link"
    link.symlink_to(saved)
    save(network(2), link)
    assert link.is_symlink()
    assert same(load(network(), saved), network(2))
    assert stat.S_IMODE(saved.stat().st_mode) == 0o640
    mask = os.umask(0)
    os.umask(mask)
    save(network(2), tmp_path / "new")
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o666 & ~mask


class Torn:
    """A file that takes half of what is written and then has no room."""

    def __init__(self, *args):
        self.file = os.fdopen(os.open(args[0], os.O_CREAT | os.O_WRONLY), "wb")

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    def write(self, data):
        self.file.write(data[: len(data) // 2])
        raise OSError(28, "No space left on device")


def raising(error):
    def function(*args):
        raise error

    return function


@pytest.mark.parametrize(
    ("name", "replaced", "error"),
    [
        ("os.replace", raising(PermissionError("no")), PermissionError),
        ("os.replace", raising(KeyboardInterrupt()), KeyboardInterrupt),
        ("os.fsync", raising(OSError("no")), OSError),
        ("open", Torn, OSError),
    ],
)
def test_an_error_while_saving_leaves_the_old_file(saved, tmp_path, monkeypatch, name, replaced, error):
    with monkeypatch.context() as patch:
        patch.setattr(os if name.startswith("os.") else checkpoint, name.removeprefix("os."), replaced, raising=False)
        with pytest.raises(error):
            save(network(2), saved)
        with pytest.raises(error):
            save(network(2), tmp_path / "another")
    assert os.listdir(tmp_path) == [saved.name]
    assert same(load(network(), saved), network(1))


def test_the_data_is_on_disk_before_the_name(saved, monkeypatch):
    done = []
    for name in ("fsync", "replace"):
        function = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, f=function, n=name: (done.append(n), f(*a))[1])
    save(network(2), saved)
    assert done == ["fsync", "replace", "fsync"][: 3 if os.name == "posix" else 2]


SAVER = """
import sys
import numpy as np
from cnnlayers.checkpoint import save
from cnnlayers.layers import Linear
layers = [Linear(500, 400).map_arrays(lambda a, i=i: np.full_like(a, i)) for i in (1, 2)]
print("ready", flush=True)
while True:
    for layer in layers:
        save(layer, sys.argv[1])
"""


@pytest.mark.skipif(os.name != "posix", reason="kill -9")
def test_a_killed_save_leaves_a_whole_file(tmp_path, rng):
    path = tmp_path / "model.safetensors"
    save(Linear(500, 400).map_arrays(np.ones_like), path)
    for _ in range(4):
        with subprocess.Popen([sys.executable, "-c", SAVER, str(path)], stdout=subprocess.PIPE, cwd=tmp_path) as child:
            assert child.stdout.readline() == b"ready\n"
            with pytest.raises(subprocess.TimeoutExpired):
                child.wait(float(rng.uniform(0.01, 0.1)))
            child.send_signal(signal.SIGKILL)
        values = {float(v) for a in load(Linear(500, 400), path).params.values() for v in (a.min(), a.max())}
        assert values in ({1.0}, {2.0})


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.safetensors"):
        load(network(), tmp_path / "nowhere.safetensors")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        save(network(), tmp_path / "nowhere" / "model.safetensors")
    with pytest.raises(OSError):
        save(network(), tmp_path)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:7],
        lambda data: data[:40],
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: b"\xff" * len(data),
        lambda data: data.replace(b"F32", b"Q32"),
        lambda data: data.replace(b'"shape":[4', b'"shape":[5'),
        lambda data: b"PK\x03\x04" + data[4:],
    ],
)
def test_a_damaged_file_is_named(saved, damage):
    saved.write_bytes(damage(saved.read_bytes()))
    net = network(2)
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        load(net, saved)
    assert same(net, network(2))


def test_a_file_of_another_network_is_named(saved):
    net = Sequential(Conv(3, 5, 3, rng=2), BatchNorm(4))
    with pytest.raises(ValueError, match=r"model\.safetensors: .*unknown: 2\.0\..*; 0\.weight must have") as e:
        load(net, saved)
    for said in ("2.0.weight", "2.0.bias", "0.bias must have shape (5,), got (4,)"):
        assert said in str(e.value)
    np.testing.assert_array_equal(net.params["0.weight"], Conv(3, 5, 3, rng=2).params["weight"])
