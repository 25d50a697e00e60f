"""The rules of who may import what, read off the sources, and of the array functions that portable code may use."""

from __future__ import annotations

import ast
import functools
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {
    "cnnlayers": ROOT / "cnnlayers",
    "cnnlayers.backends": ROOT / "backends",
    "cnnlayers.kernels": ROOT / "kernels",
}

# "Imports run one way": each part imports only what is right of its arrow, or right of that one's.
DIRECTION = {
    "cli": {"train"},
    "train": {"models"},
    "models": {"layers"},
    "layers": {"functional"},
    "functional": {"specs", "kernels", "backends"},
    "cs231n": {"functional", "models"},
    "kernels": {"specs", "backends"},
}
# The lower floors import these and nothing else of the library.
ONLY = {
    "specs": set(),
    "backends": set(),
    "kernels": {"specs", "backends"},
    "functional": {"arguments", "specs", "kernels", "backends"},
}
REQUIRED = {"numpy", "safetensors", "rich", "threadpoolctl"}
HEAVY = ["cupy", "numba", "matplotlib", "torch", "sklearn", "scipy", "mpi4py", "keras"]

# The array API standard 2024.12, less what CuPy 14's root lacks (vecdot, unstack), read off CuPy 14.2.
STANDARD = """
abs acos acosh add all any argmax argmin argsort asin asinh astype atan atan2 atanh bitwise_and bitwise_invert
bitwise_left_shift bitwise_or bitwise_right_shift bitwise_xor broadcast_arrays broadcast_to can_cast ceil clip concat
conj copysign cos cosh count_nonzero cumulative_prod cumulative_sum diff divide empty_like equal exp expand_dims expm1
finfo flip floor floor_divide full_like greater greater_equal hypot iinfo imag isdtype isfinite isinf isnan less
less_equal log log10 log1p log2 logaddexp logical_and logical_not logical_or logical_xor matmul matrix_transpose max
maximum mean meshgrid min minimum moveaxis multiply negative nextafter nonzero not_equal ones_like permute_dims positive
pow prod real reciprocal remainder repeat reshape result_type roll round searchsorted sign signbit sin sinh sort sqrt
square squeeze stack std subtract sum take take_along_axis tan tanh tensordot tile tril triu trunc unique_all
unique_counts unique_inverse unique_values var where zeros_like
bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float32 float64 complex64 complex128
e inf nan newaxis pi
"""
# New arrays come from Backend.empty, zeros, full, arange and array: CuPy's functions take no device.
CREATION = "arange empty eye from_dlpack full linspace ones zeros"


def sources(*folders: str) -> Iterator[tuple[str, Path]]:
    """(module name, file) of every module in these packages."""
    for package in folders:
        for path in sorted(FOLDERS[package].rglob("*.py")):
            parts = path.relative_to(FOLDERS[package]).with_suffix("").parts
            yield ".".join((package, *parts)).removesuffix(".__init__"), path


@functools.cache
def modules() -> set[str]:
    return {name for name, _ in sources(*FOLDERS)}


def part(module: str) -> str:
    """The part of the library a module belongs to: "functional" for cnnlayers.functional.avg_pool."""
    return module.split(".")[1] if "." in module else ""


def imported(name: str, path: Path, tree: ast.AST | None = None) -> Iterator[str]:
    """Every module that a file imports, functions' own imports too, by its full name."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(tree or ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *filter(None, [node.module])])
            for alias in node.names:
                full = f"{origin}.{alias.name}"
                yield full if full in modules() else origin


@functools.cache
def edges() -> dict[str, set[str]]:
    """Which part of the library imports which others."""
    found: dict[str, set[str]] = {}
    for name, path in sources(*FOLDERS):
        ours = {part(m) for m in imported(name, path) if m.partition(".")[0] == "cnnlayers"}
        found.setdefault(part(name), set()).update(ours - {part(name), ""})
    return found


def test_imports_run_one_way() -> None:
    graph = {name: set(reached) for name, reached in edges().items() if name}
    for name, reached in DIRECTION.items():
        graph.setdefault(name, set()).update(reached)
    list(graphlib.TopologicalSorter(graph).static_order())  # CycleError names the parts of a circle


@pytest.mark.parametrize("name", ONLY)
def test_the_lower_floors_import_only_what_is_below_them(name: str) -> None:
    assert edges()[name] <= ONLY[name]


def test_the_reader_of_imports_sees_them() -> None:
    assert edges()["functional"] >= {"backends", "specs", "kernels"}
    assert edges()["kernels"] == {"specs", "backends"}


def test_specs_need_only_the_standard_library() -> None:
    found = [(name, path) for name, path in sources("cnnlayers") if part(name) == "specs"]
    assert len(found) > 4
    others = {m.partition(".")[0] for name, path in found for m in imported(name, path)} - {"cnnlayers"}
    assert others <= set(sys.stdlib_module_names)


def top_level(path: Path) -> ast.Module:
    """A file without the bodies of its functions: what importing it runs."""

    class WithoutFunctions(ast.NodeTransformer):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
            return None

        visit_AsyncFunctionDef = visit_FunctionDef

    tree = WithoutFunctions().visit(ast.parse(path.read_text()))
    guarded = [n for n in ast.walk(tree) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test)]
    for node in guarded:
        node.body = [ast.Pass()]
    return tree


@pytest.mark.parametrize(
    ("name", "path"), list(sources("cnnlayers", "cnnlayers.backends")), ids=lambda v: v if type(v) is str else ""
)
def test_importing_a_module_needs_no_extra(name: str, path: Path) -> None:
    roots = {m.partition(".")[0] for m in imported(name, path, top_level(path))}
    allowed = REQUIRED | ({"torch"} if part(name) == "torch" else set())
    allowed |= {"keras"} if name == "cnnlayers.keras.ops" else set()  # what install() imports, once Keras is there
    assert roots - set(sys.stdlib_module_names) - {"cnnlayers"} <= allowed


def test_importing_cnnlayers_imports_no_heavy_library() -> None:
    names = ["cnnlayers", *(n for n in sorted(modules()) if part(n) in ("functional", "layers", "backends"))]
    code = f"import sys, {', '.join(names)}; print([m for m in {HEAVY} if m in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (ran.stdout, ran.stderr) == ("[]\n", "")


# ---------------------------------------------------------------------------------- portable code is array-API code
PORTABLE = [(name, path) for name, path in sources("cnnlayers") if part(name) == "functional"]
portable = pytest.mark.parametrize(("name", "path"), PORTABLE, ids=lambda v: v if type(v) is str else "")


def test_the_sources_without_their_other_folders_say_so(tmp_path: Path) -> None:
    (tmp_path / "cnnlayers").mkdir()
    text = (ROOT / "cnnlayers" / "__init__.py").read_text()
    (tmp_path / "cnnlayers" / "__init__.py").write_text(text)
    line = [sys.executable, "-S", "-c", "import cnnlayers"]  # -S: without the links of an editable installation
    said = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True).stderr
    assert f"ImportError: {tmp_path / 'cnnlayers'} is a part of the sources" in said
    assert "pip install -e ." in said


def is_namespace(node: ast.expr) -> bool:
    """`xp`, or `something.xp`."""
    return (isinstance(node, ast.Name) and node.id == "xp") or (isinstance(node, ast.Attribute) and node.attr == "xp")


def read_off_xp(tree: ast.AST) -> Iterator[ast.Attribute]:
    return (n for n in ast.walk(tree) if isinstance(n, ast.Attribute) and is_namespace(n.value))


@portable
def test_portable_code_uses_only_standard_names_that_cupy_has(name: str, path: Path) -> None:
    allowed = {*STANDARD.split(), "asarray"}
    tree = ast.parse(path.read_text())
    found = {f"{n.attr} (line {n.lineno})" for n in read_off_xp(tree) if n.attr not in allowed}
    assert not found, f"not in the array API, or not in CuPy 14's root, or Backend's own: {sorted(found)}"


@portable
def test_portable_code_passes_no_keyword_that_cupy_lacks(name: str, path: Path) -> None:
    tree = ast.parse(path.read_text())
    ours = set(read_off_xp(tree))
    for call in (n for n in ast.walk(tree) if isinstance(n, ast.Call) and n.func in ours):
        keywords = {k.arg for k in call.keywords}
        assert not keywords & {"device", "stable", "descending", "out"}, f"line {call.lineno}: {keywords}"
        if call.func.attr == "asarray":
            assert "copy" in keywords, f"line {call.lineno}: host numbers become an array by Backend.array"


def test_the_namespace_has_what_the_list_says() -> None:
    strict = pytest.importorskip("array_api_strict")
    assert [n for n in (STANDARD + CREATION).split() if not hasattr(strict, n)] == []
    assert not set(STANDARD.split()) & set(CREATION.split())


def test_portable_code_does_not_know_numpy() -> None:
    # blas: products on the CPU are its own matter; rows: statistics are reduced across ranks on the host
    users = {name for name, path in PORTABLE if "numpy" in {m.partition(".")[0] for m in imported(name, path)}}
    assert users <= {"cnnlayers.functional.blas", "cnnlayers.functional.norm_math"}


def test_what_needs_pytorch_says_how_to_get_it() -> None:
    code = "import sys; sys.modules['torch'] = None\ntry: import cnnlayers.torch\nexcept ImportError as e: print(e)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said == "cnnlayers.torch needs PyTorch: pip install 'cnnlayers[torch]'\n"
