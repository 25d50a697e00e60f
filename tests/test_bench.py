"""What the benchmark measures and says: cases, least bytes, comparisons, clocks, the table, pictures, peers."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import types
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cnnlayers import backends
from cnnlayers import functional as F
from cnnlayers.bench import cases, clock, peers, plots, report
from cnnlayers.bench.cases import BACKWARD, FORWARD, INFERENCE, STEP, Case
from cnnlayers.bench.clock import Block, Copy, EventClock, HostClock, Product, Timing
from cnnlayers.bench.contest import Contestant, Ours, Refused, error, same_bits
from cnnlayers.bench.measure import OURS, Row, Settings, measure
from cnnlayers.bench.problem import Problem, problem
from cnnlayers.bench.traffic import FORMULAS, Counts, least_bytes, operations

from . import standin_cupy

NUMPY = backends.Backend("numpy", np, "cpu")
FAST = Settings(seconds=1e-4, rounds=1, repeats=1)
POOL = Case("max_pool", (2, 3, 8, 8), "2×2", {"kernel_size": 2})


class Impatient(HostClock):
    """No pauses: nothing here is a figure."""

    settle = 0.0


def row(ours: float = 1e-3, theirs: float = 2e-3, part: str = FORWARD, **changes: Any) -> Row:
    """A row of a max pool that was measured beside PyTorch."""
    made = Row(changes.pop("case", POOL), part, bandwidth=1e9)
    made.times = {OURS: Timing(ours, ours, ours, 9), "pytorch": Timing(theirs, theirs, theirs, 9)}
    made.errors = {"pytorch": 0.0}
    for name, value in changes.items():
        setattr(made, name, value)
    return made


# --------------------------------------------------------------------------------------------------------------- cases
@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_cases_are_ops_of_the_library_each_once(device: str) -> None:
    found = cases.chosen(device)
    assert all(hasattr(F, f"{case.op}_forward") for case in found if case.op not in cases.NETWORKS + cases.KERAS)
    names = [(case.name, case.dtype, case.group) for case in found]
    assert len(set(names)) == len(names)
    assert set(cases.PEERS) >= {case.group for case in found}
    assert {name for names in cases.PEERS.values() for name in names or ()} <= set(peers.PEERS)


def test_the_cases_have_every_kind_of_call() -> None:
    breadth = list(cases.BREADTH)
    ops = {case.op for case in breadth}
    assert ops >= {"max_pool", "lp_pool", "adaptive_max_pool", "conv", "conv_transpose", "gelu", "instance_norm"}
    assert {len(case.shape) for case in breadth} == {2, 3, 4, 5}
    assert {case.dtype for case in breadth} == {"float32", "float16"}
    assert {case.op for case in breadth if case.channels_last} >= {"max_pool", "batch_norm", "conv", "pad"}
    assert any(case.options.get("groups", 1) > 1 for case in breadth)
    assert {case.shape[2:] for case in cases.SMALL if len(case.shape) == 4} == {(8, 8), (16, 16)}
    assert {case.op for case in cases.STEPS} == set(cases.NETWORKS)


def test_the_gpus_cases_come_in_three_dtypes() -> None:
    found = {c.dtype for c in cases.GPU if (c.op, c.title) == ("max_pool", "2×2 s2")}
    assert found == {"float32", "float16", "bfloat16"}


def test_the_sweep_goes_from_ten_thousand_to_a_hundred_million() -> None:
    sizes = {c.op: [] for c in cases.SWEEP}
    for c in cases.SWEEP:
        sizes[c.op].append(math.prod(c.shape))
    assert all(found == [10**power for power in range(4, 9)] for found in sizes.values())


def test_choosing() -> None:
    assert {c.op for c in cases.chosen("cpu", ["pad", "relu"])} == {"pad", "relu"}
    small = cases.chosen("cpu", quick=True)
    assert max(math.prod(c.shape) for c in small) <= 2 * 10**6
    assert all(small.count(c) == 1 for c in small)
    with pytest.raises(ValueError, match="no case named 'pool'; there are max_pool, avg_pool"):
        cases.chosen("cpu", ["pool"])


# -------------------------------------------------------------------------------------------------------- least bytes
@pytest.mark.parametrize(
    ("op", "options", "part", "single", "half"),
    [  # bytes an output of a pool, an element of a norm
        ("max_pool", cases.POOL2, FORWARD, 21, 11),
        ("max_pool", cases.POOL2, INFERENCE, 20, 10),
        ("max_pool", cases.POOL2, BACKWARD, 21, 11),
        ("max_pool", cases.POOL1, BACKWARD, 9, 5),
        ("avg_pool", cases.POOL2, BACKWARD, 20, 10),
        ("batch_norm", cases.BN, FORWARD, 8, 4),
        ("batch_norm", cases.BN, BACKWARD, 12, 6),
    ],
)
def test_least_bytes(op: str, options: dict, part: str, single: float, half: float) -> None:
    y_shape = (2, 3, 4, 4) if options is cases.POOL2 else (2, 3, 8, 8)
    for dtype, expected in (("float32", single), ("float16", half)):
        case = Case(op, (2, 3, 8, 8), options=options, dtype=dtype)
        assert least_bytes(case, part, y_shape) == expected * math.prod(y_shape)


def test_a_convolution_is_counted_in_operations() -> None:
    case = Case("conv", (2, 4, 5, 5), weight=(6, 2, 3, 3), options={"groups": 2})
    assert least_bytes(case, FORWARD, (2, 6, 3, 3)) is None
    assert operations(case, FORWARD, (2, 6, 3, 3)) == 2 * (2 * 6 * 9) * (2 * 9)
    assert operations(case, BACKWARD, (2, 6, 3, 3)) == 4 * (2 * 6 * 9) * (2 * 9)
    assert operations(POOL, FORWARD, (2, 3, 4, 4)) is None
    transposed = Case("conv_transpose", (2, 4, 3, 3), weight=(4, 6, 2, 2), options={"stride": 2})
    assert operations(transposed, FORWARD, (2, 6, 6, 6)) == 2 * (2 * 4 * 9) * (6 * 4)


def test_every_op_but_convolution_has_a_formula() -> None:
    ops = {case.op for case in (*cases.CPU, *cases.GPU)}
    assert ops - set(FORMULAS) == {"conv", "conv_transpose", *cases.NETWORKS, *cases.KERAS}
    assert all(set(formula(Counts(8, 4, 4))) == {INFERENCE, FORWARD, BACKWARD} for formula in FORMULAS.values())


# ---------------------------------------------------------------------------------------------------------- comparing
def test_errors() -> None:
    a = np.array([1.0, -4.0], np.float32)
    assert error(NUMPY, [a, a], [a, a + np.float32(0.5)]) == pytest.approx(0.5 / 3.5)
    assert error(NUMPY, [a], [a[:1]]) == math.inf
    assert error(NUMPY, [a], [a, a]) == math.inf
    assert math.isnan(error(NUMPY, [a * np.float32(np.nan), a], [a, a]))
    assert error(NUMPY, [a[:0]], [a[:0]]) == 0
    assert error(NUMPY, [a * 0], [a * 0]) == 0


def test_bits() -> None:
    a = np.array([0.0, np.nan], np.float32)
    assert same_bits(NUMPY, [a], [a.copy()])
    assert not same_bits(NUMPY, [a, a], [a, np.array([-0.0, np.nan], np.float32)])
    assert same_bits(NUMPY, [a.astype(np.float16)[::-1]], [a.astype(np.float16)[::-1]])


def tiny(case: Case) -> Case:
    """A quick case, smaller still."""
    n, *rest = case.shape
    if case.group in ("small", "step"):
        return case
    options = {**case.options}
    if "kernel_size" in options:
        options["kernel_size"] = min(12, options["kernel_size"])
    return replace(case, shape=(min(n, 4), rest[0], *(min(length, 12) for length in rest[1:])), options=options)


@pytest.mark.parametrize(
    "case",
    [case for case in cases.chosen("cpu", quick=True) if case.group != "keras"],  # tests/test_keras.py has those
    ids=lambda case: f"{case.name}, {case.group}",
)
def test_every_case_agrees_with_every_peer_installed(case: Case) -> None:
    found = [p for p in peers.found("cpu")[0] if case.group == "tutorial" or p.name not in ("naive", "im2col")]
    made = problem(tiny(case), NUMPY)
    for part in case.parts:
        measured = measure(made, part, found, Impatient(), FAST)
        assert not report.troubles(measured)
        assert measured.errors
        assert all(measured.times[name].median > 0 for name in (OURS, *measured.errors))


@pytest.mark.parametrize("part", [FORWARD, BACKWARD])
@pytest.mark.parametrize(
    "case",
    [
        Case("max_pool", (2, 3, 7, 6), options={"kernel_size": 3, "stride": 2, "padding": 1}),
        Case("avg_pool", (2, 3, 7, 6), options={"kernel_size": 3, "stride": 1, "padding": 1}),
        Case("conv", (2, 3, 7, 6), options={"stride": 2, "padding": 1}, weight=(4, 3, 3, 3)),
    ],
    ids=lambda value: getattr(value, "op", value),
)
def test_the_tutorials_code_is_right_where_windows_overlap(case: Case, part: str) -> None:
    tutorials = [peers.PEERS[name].make() for name in ("naive", "im2col")]
    measured = measure(problem(case, NUMPY), part, tutorials, Impatient(), FAST)
    assert set(measured.errors) == {"naive", "im2col"}
    assert not measured.mismatches


def test_the_tutorials_code_refuses_what_would_not_end() -> None:
    large = Case("max_pool", (32, 64, 112, 112), options=cases.POOL2)
    empty = Problem(large, NUMPY, [np.empty(large.shape, np.float32)], {}, [np.empty(0)], (32, 64, 56, 56))
    with pytest.raises(Refused, match="6,422,528 steps"):
        peers.PEERS["naive"].make().call(empty, FORWARD)
    with pytest.raises(Refused, match="98 MiB"):
        peers.PEERS["im2col"].make().call(empty, FORWARD)
    with pytest.raises(Refused, match="no such op"):
        peers.PEERS["naive"].make().call(problem(Case("relu", (2, 3)), NUMPY), FORWARD)


def test_half_types_and_channels_last() -> None:
    pytest.importorskip("torch")
    pytest.importorskip("ml_dtypes")
    found, _ = peers.found("cpu", ["pytorch", "pytorch-channels-last"])
    for dtype in ("float16", "bfloat16"):
        measured = measure(problem(Case("avg_pool", (2, 3, 8, 8), options=cases.POOL2, dtype=dtype), NUMPY),
                           BACKWARD, found, Impatient(), FAST)  # fmt: skip
        assert set(measured.errors) == {"pytorch", "pytorch-channels-last"}
        assert not measured.mismatches
    last = Case("max_pool", (2, 3, 8, 10), options=cases.POOL2 | cases.LAST)
    made = problem(last, NUMPY)
    assert made.inputs[0].shape == (2, 8, 10, 3)
    assert not report.troubles(measure(made, BACKWARD, found, Impatient(), FAST))


def test_memory_kept_beside_pytorchs() -> None:
    pytest.importorskip("torch")
    found, _ = peers.found("cpu", ["pytorch"])
    kept = measure(problem(POOL, NUMPY), BACKWARD, found, Impatient(), FAST).kept
    outputs = 2 * 3 * 4 * 4
    assert kept == {OURS: outputs, "pytorch": 4 * 4 * outputs + 8 * outputs}


class Wrong(Contestant):
    """A peer that is off by a thousandth."""

    name = "pytorch-wrong"

    def call(self, problem: Problem, part: str) -> Any:
        y = F.max_pool(problem.inputs[0], **problem.case.options) * np.float32(1.001)
        return lambda i: (y,)


class Broken(Contestant):
    """A peer that breaks."""

    name = "pytorch-broken"

    def call(self, problem: Problem, part: str) -> Any:
        raise RuntimeError("no\nkernel image")


def test_a_mismatch_and_a_failure_are_shown() -> None:
    measured = measure(problem(POOL, NUMPY), FORWARD, [Wrong(), Broken()], Impatient(), FAST)
    assert measured.mismatches == ["pytorch-wrong"]
    assert "WRONG" in report.cells(measured)
    wrong, broken = report.troubles(measured)
    assert "our result is not pytorch-wrong's: error 0.001" in wrong
    assert broken.endswith("pytorch-broken failed: RuntimeError: no kernel image")
    assert set(measured.times) == {OURS, "pytorch-wrong"}


def test_other_bits_are_shown() -> None:
    class Drifting(Ours):
        def arrays(self, problem: Problem, part: str, result: Any) -> list[Any]:
            self.runs = getattr(self, "runs", 0) + 1
            return [result[0] + np.float32(self.runs)]

    from cnnlayers.bench.measure import _repeats

    made, drifting = problem(POOL, NUMPY), Drifting(OURS)
    call = drifting.call(made, FORWARD)
    first = drifting.arrays(made, FORWARD, call(0))
    assert not _repeats(made, drifting, call, FORWARD, first, 3)
    assert _repeats(made, Ours(OURS), call, FORWARD, [call(0)[0]], 3)
    assert any("did not give the same bits" in said for said in report.troubles(row(same_bits=False, repeated=3)))


# -------------------------------------------------------------------------------------------------------------- clocks
def test_contestants_take_turns_and_the_slow_are_run_less(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    now = [0.0]  # a clock that only the contestants move

    def pass_time(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(clock, "time", types.SimpleNamespace(perf_counter=lambda: now[0], sleep=pass_time))

    class Sleeper(Contestant):
        def __init__(self, name: str, seconds: float) -> None:
            self.name, self.seconds = name, seconds

        @contextlib.contextmanager
        def session(self) -> Any:
            log.append(self.name)
            yield

    def call(sleeper: Sleeper) -> Any:
        return sleeper, lambda i: pass_time(sleeper.seconds)

    calls = {s.name: call(s) for s in (Sleeper("quick", 2**-10), Sleeper("slow", 2**-5))}
    found = clock.interleaved(Impatient(), calls, 1, 50 * 2**-10, rounds=5)
    assert [name for name, _ in itertools.groupby(log)] == ["quick", "slow"] * 4 + ["quick"]
    assert found["slow"].runs == clock.SLOW_ROUNDS
    assert found["quick"].runs == 5 * 5  # half of each round's ten calls' time
    assert found["quick"].p20 == found["quick"].median == found["quick"].p80 == 2**-10
    assert found["slow"].median == 2**-5


def test_summary_of_blocks() -> None:
    found = clock._summary([Block([1.0, 2.0], [0.5]), Block([3.0, 4.0, 5.0], [0.7], True)])
    assert found == Timing(3.0, pytest.approx(1.8), pytest.approx(4.2), 5, pytest.approx(0.6), True, 1.0)


def test_events() -> None:
    with standin_cupy.installed() as cupy:
        b = backends.of(cupy.zeros(1))
        events = EventClock(b)
        flushed: list[int] = []
        events.flush = lambda: flushed.append(1)  # type: ignore[method-assign]
        seen: list[int] = []
        block = events.block(Contestant(), lambda i: seen.append(i), 3, 5)
        assert len(block.times) == len(block.host) == 5
        assert block.host_bound  # the stand-in does its work at once, so no queue is ever ahead
        assert seen == [0, 1, 2, 0, 1] * 3
        assert len(flushed) == 5 * 3 + (2 + 4 + 8) * 5
        waiting = Contestant()
        waiting.by_events = False
        assert len(events.block(waiting, lambda i: None, 1, 4).times) == 4


def test_the_cache_is_filled_with_clean_data() -> None:
    """A memset, then a read of something else that is larger than the cache."""
    with standin_cupy.installed() as cupy:
        b = backends.of(cupy.zeros(1))
        events = EventClock(b)
        assert events.read.nbytes == events.set.nbytes >= 2 * b.device.attributes["L2CacheSize"]
        events.set[...], events.read[...] = 7, 2
        events.flush()
        assert not events.set.any()
        assert float(events.sum) == 2 * events.read.size


def test_the_queue_is_filled_until_the_host_keeps_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    with standin_cupy.installed() as cupy:
        events = EventClock(backends.of(cupy.zeros(1)))
        asked: list[int] = []

        def queued(call: Any, copies: int, runs: int, ahead: int) -> Block:
            asked.append(ahead)
            return Block([1.0] * runs, [0.1] * runs, ahead < 20)

        monkeypatch.setattr(events, "_queued", queued)
        assert not events.block(Contestant(), lambda i: None, 1, 5).host_bound
        assert asked == [10, 20]


def test_the_limit_is_measured_in_turn_with_the_rows() -> None:
    settings = replace(FAST, copy=Copy(NUMPY, 1 << 22), product=Product(NUMPY, 64))
    measured = measure(problem(POOL, NUMPY), FORWARD, [], Impatient(), settings)
    assert 1e8 < measured.bandwidth < 1e13
    assert set(measured.times) == {OURS}
    assert measured.share() == pytest.approx(measured.bytes_a_second / measured.bandwidth)
    conv = Case("conv", (2, 4, 5, 5), weight=(6, 4, 3, 3))
    measured = measure(problem(conv, NUMPY), FORWARD, [], Impatient(), settings)
    assert math.isnan(measured.bandwidth)
    assert set(measured.times) == {OURS}
    assert 1e7 < measured.peak < 1e15
    assert measured.share() == pytest.approx(measured.operations / measured.times[OURS].median / measured.peak)
    assert measure(problem(POOL, NUMPY), FORWARD, [], Impatient(), FAST).share() is None


def test_the_copy_copies() -> None:
    copy = Copy(NUMPY, 10_000_000)
    copy.run(0)
    assert copy.nbytes == 20_000_000
    assert copy.target.all()
    assert copy.bandwidth(Timing(0.5, 0, 1, 3)) == 40_000_000


def test_the_product_multiplies() -> None:
    product = Product(NUMPY, 64)
    product.run(0)
    assert product.operations == 2 * 64**3
    assert product.operations_a_second(Timing(0.5, 0, 1, 3)) == 4 * 64**3


def test_copies_of_a_gpus_working_set() -> None:
    assert problem(POOL, NUMPY).copies == 1
    assert problem(POOL, NUMPY, cache=POOL_BYTES).copies == 4
    made = problem(POOL, NUMPY, cache=1 << 20)
    assert (made.copies, len(made.gradients)) == (8, 8)
    assert not np.array_equal(made.inputs[0], made.inputs[1])


POOL_BYTES = 4 * math.prod(POOL.shape)


# ----------------------------------------------------------------------------------------------------------- the table
def test_ratio_and_share() -> None:
    found = row(least_bytes=600_000.0)
    assert found.share() == pytest.approx(0.6)
    assert found.share("pytorch") == pytest.approx(0.3)
    assert found.ratio("pytorch") == 2
    assert found.share("jax") is None


def test_the_reference_is_the_fastest_pytorch() -> None:
    found = row()
    found.times |= {"pytorch-compile": Timing(5e-4, 0, 0, 9), "jax": Timing(1e-4, 0, 0, 9)}
    assert found.reference == "pytorch-compile"
    assert report._others(found) == "pytorch 2.0, jax 0.10"
    assert report.cells(found)[4] == "0.500"


@pytest.mark.parametrize(
    ("value", "said"),
    [(1234.5, "1,234"), (12.345, "12.3"), (0.01234, "0.0123"), (1.0, "1.00"), (0, "0"), (None, "–"), (math.inf, "inf")],
)
def test_numbers(value: float | None, said: str) -> None:
    assert report.number(value) == said


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_the_table_fits_a_hundred_columns(device: str) -> None:
    heading = report.heading()
    assert len(heading) <= 100
    assert "target" not in heading
    for case in cases.chosen(device):
        wide = report.line(report.cells(row(case=case, ours=1.2345, theirs=12.34, part=INFERENCE, least_bytes=6e5)))
        assert len(wide) <= 100
        assert wide.startswith(f"{case.name} ")
        assert wide[: heading.index("ratio") + len("ratio")].endswith(" 10.00")
    assert all(len(line) <= 120 for line in report.LEGEND)


def test_the_spread_and_the_check() -> None:
    found = row()
    found.times[OURS] = Timing(1.0, 0.9, 1.3, 9)
    assert report.cells(found)[5] == "± 20%"
    assert report.cells(found)[-1] == "ok"
    assert report.cells(row(errors={"pytorch": 1.0}))[-1] == "WRONG"
    assert report.cells(row(same_bits=False, repeated=2))[-1] == "DIFFER"
    assert report.cells(row(errors={}, repeated=2))[-1] == "same"


def test_a_busy_machine_is_said_to_be() -> None:
    assert report.busy({"load": 3.2, "cores": 2}) == [
        "the machine is busy (load 3.2 on 2 cores): figures may be far off"
    ]
    assert report.busy({"load": 0.5, "cores": 2}) == report.busy({"load": None, "cores": 2}) == []
    steady, unsteady = [row(bandwidth=2e9), row(bandwidth=2.1e9)], [row(bandwidth=2e9), row(bandwidth=4e9)]
    assert report._doubts(steady) == []
    assert report._doubts(unsteady)[0].startswith("the copy ran at 2 to 4 GB/s")
    unsteady = [row(peak=4e10), row(peak=9e10)]
    assert report._doubts(unsteady)[0].startswith("the matrix product ran at 40 to 90 GFLOP/s")


def test_the_summary() -> None:
    found = [row(theirs=1e-3), row(part=BACKWARD, theirs=4e-3), row(case=cases.SMALL[0], theirs=9e-3)]
    found.append(row(case=replace(cases.MAIN[0], shape=(1, 1, 4, 4)), ours=1e-3, theirs=1e-3, least_bytes=5e5))
    said = report.summary(found)
    # (1 + 4) / 2 = 2.5 for the two parts of one case, 1 for the other
    assert said[0].startswith(
        "main: 1.58 times PyTorch's speed (geometric mean of 2 cases, all parts together), lowest 1.00"
    )
    assert said[1].startswith("small: 9.00 times PyTorch's speed (geometric mean of 1 rows), lowest 9.00 (max_pool")
    assert said[3].startswith("share of the limit, memory: 50 % (geometric mean), lowest 50 % (max_pool")
    assert said[4] == "pytorch: 2.45 times its speed, over 4 rows"
    found[0].times[OURS] = Timing(1, 1, 1, 1, 2, True)
    assert any("1 rows: the host" in line for line in report.summary(found))
    assert report.summary([]) == []


def test_json_and_markdown() -> None:
    facts = {"device": "Chip", "date": "today", "commit": None, "command": "cnnlayers bench", "threads": 2,
             "copy_bytes_a_second": 1e10, "peak_operations_a_second": 1e11, "versions": {"numpy": "2"}}  # fmt: skip
    found = row(errors={"pytorch": math.inf}, least_bytes=6e5)
    record = json.loads(report.as_json([found], facts, ["said"], False))
    assert record["complete"] is False
    (kept,) = record["rows"]
    assert kept["name"] == "max_pool 2×2, 2×3×8²"
    assert kept["times"]["pytorch"] == {
        "median": 0.002, "p20": 0.002, "p80": 0.002, "runs": 9, "host": None, "host_bound": False, "least": 0.0,
    }  # fmt: skip
    assert (kept["ratio"], kept["errors"], kept["mismatches"]) == (2.0, {"pytorch": None}, ["pytorch"])
    text = report.markdown([found], facts, ["a line"])
    assert "# Chip" in text
    assert "copy bandwidth 10.0 GB/s" in text
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1


# ------------------------------------------------------------------------------------------------------------ pictures
FACTS = {"device": "Chip", "date": "today", "commit": "abc", "threads": 2, "copy_bytes_a_second": 1e10,
         "versions": {"cnnlayers": "0", "torch": "2"}}  # fmt: skip


def test_pictures_of_a_whole_run() -> None:
    pytest.importorskip("matplotlib")
    case = POOL
    rows = [row(case=case, part=part, least_bytes=6e5) for part in (FORWARD, BACKWARD)]
    rows[1].kept = {OURS: 0, "pytorch": 10**7}
    rows += [row(case=case, part=p, least_bytes=6e5, theirs=5e-4) for case in cases.SWEEP for p in case.parts]
    rows += [row(case=case, part=FORWARD) for case in (cases.BREADTH[0], cases.SMALL[0])]
    drawn = plots.pictures(rows, FACTS)
    assert set(drawn) == {"", "-ratios", "-breadth", "-small", "-bandwidth", "-memory", "-sizes"}
    assert all(png.startswith(b"\x89PNG") for png in drawn.values())
    assert plots.table(rows) == {"max_pool 2×2  2×3×8²": {FORWARD: rows[0], BACKWARD: rows[1]}}


def test_pictures_of_what_there_is() -> None:
    pytest.importorskip("matplotlib")
    alone = row(times={OURS: Timing(1e-3, 0, 0, 1)})
    assert plots.pictures([alone], FACTS) == {}
    assert set(plots.pictures([alone, row(case=cases.STEPS[0], part=STEP)], FACTS)) == set()
    assert set(plots.pictures([row()], FACTS)) == {"-ratios"}


# --------------------------------------------------------------------------------------------------------------- peers
def test_peers_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    find = peers.importlib.util.find_spec
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None if name == "jax" else find(name))
    assert peers.absence("jax", "cpu") == "jax is not installed: pip install jax"
    found, absent = peers.found("cpu")
    assert "jax" in absent
    assert "jax" not in [peer.name for peer in found]
    with pytest.raises(ValueError, match="peer 'jax' cannot be used: jax is not installed: pip install jax"):
        peers.found("cpu", ["numpy", "jax"])
    with pytest.raises(ValueError, match="there is no peer 'tensorflow'; there are none, pytorch"):
        peers.found("cpu", ["tensorflow"])
    with pytest.raises(ValueError, match="it runs on the cpu alone"):
        peers.found("gpu", ["naive"])
    assert peers.found("cpu", ["none"]) == ([], {})


def test_a_peer_is_called_what_it_is() -> None:
    for name in peers.PEERS:
        if peers.absence(name, "cpu") is None:
            assert peers.PEERS[name].make().name == name
