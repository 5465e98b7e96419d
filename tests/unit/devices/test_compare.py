"""`bench --compare`: confidence intervals, noisy results, and the rule by which results may be compared."""

import io
import json
import math
import re

import msgspec
import numpy as np
import pytest
from rich.console import Console
from support import report_records as records
from support.runs import complaint

from edgecompress.cli.views import artifacts as views
from edgecompress.devices.bench import bench
from edgecompress.devices.cooling import cool_down
from edgecompress.devices.statistics import comparable, differing_conditions, find_noise, mad, medians_of_repeats, ratio, speed_up
from edgecompress.errors import ConfigError, DeviceError
from edgecompress.planning.latency_tables.table import describe_conditions, table_for_result
from edgecompress.records import BenchmarkResult, DeviceInfo, OpTime
from edgecompress.records.run_records import RunRecords
from edgecompress.reporting.make_report import make_report
from edgecompress.reporting.render import render_report
from edgecompress.runs import store_result

QUIET = BenchmarkResult(
    session="s",
    artifact="a.tflite",
    artifact_sha256="0",
    size_bytes=1,
    device=DeviceInfo(url="local://", serial="x", cores=4),
    runner="r",
    backend="b 1",
    threads=1,
    load_ms=1.0,
    first_ms=1.0,
    warmup_ms=(),
    latency_ms=(1.0,) * 100,
    peak_rss_bytes=1,
    started_at="2026-01-01T00:00:00+00:00",
    temperature_c=(40.0, 42.0),
    load_average=(0.1, 0.5),
    frequencies_mhz=((1800.0, 600.0), (600.0, 1800.0)),
    governors=("schedutil", "schedutil"),
    throttled=False,
    busy_elsewhere=0.1,
)


def changed(**changes):
    return msgspec.structs.replace(QUIET, **changes)


def synthetic(generator, *, blocks=20, rounds=5, factor=1.0, second=1.0):
    """Return results of two files that share drift and disturbances, with random effects of each loading and alternating order."""
    n = blocks * rounds
    turns = np.resize((False, True, True, False), blocks)
    shared = 1 + 0.2 * np.linspace(0, 1, n) + 0.3 * np.repeat(generator.random(blocks) < 0.3, rounds)
    both = []
    for scale, is_second in ((1.0, turns), (factor, ~turns)):
        luck = np.repeat(generator.normal(1, 0.02, blocks), rounds)
        values = scale * np.where(np.repeat(is_second, rounds), second, 1.0) * shared * luck * (1 + 0.02 * generator.exponential(size=n))
        both.append(changed(latency_ms=tuple(values.tolist()), rounds=(rounds,) * blocks))
    return both


@pytest.mark.parametrize("factor", [1.0, 0.5, 1.05])
def test_the_interval_holds_the_true_ratio_in_19_of_20_runs_under_drift_and_lucky_loadings(factor):
    generator = np.random.default_rng(0)
    found = [ratio(b, a) for a, b in (synthetic(generator, factor=factor) for _ in range(20))]
    assert sum(interval.low <= factor <= interval.high for interval in found) >= 19
    assert all(interval.high - interval.low < 0.3 * factor for interval in found)


def test_a_real_difference_is_outside_the_interval():
    a, b = synthetic(np.random.default_rng(1), factor=0.8)
    interval = ratio(b, a)
    assert interval.low <= interval.ratio <= interval.high < 1


def bursts(generator, n):
    """Return a mask of slow stretches of random length, as beside a process that works at times."""
    slow, shown = np.zeros(n, bool), 0
    while shown < n:
        length = int(generator.integers(1, 120))
        slow[shown : shown + length] = True
        shown += length + 60
    return slow


def test_the_interval_of_a_file_against_itself_holds_1_in_98_of_100_runs_under_bursts_of_load_and_order_effects():
    generator, held, runs = np.random.default_rng(2), 0, 300
    for _ in range(runs):
        a, b = synthetic(generator, rounds=10, second=0.99)
        slow = bursts(generator, 400)
        hit = np.where(slow & (generator.random(400) < 0.5), 1 + generator.exponential(0.5, 400), 1.0)
        found = ratio(
            changed(latency_ms=tuple(b.latency_ms * hit[1::2]), rounds=b.rounds),
            changed(latency_ms=tuple(a.latency_ms * hit[::2]), rounds=a.rounds),
        )
        held += found.low <= 1 <= found.high
    assert held >= 0.98 * runs


@pytest.mark.parametrize(
    ("rounds", "why"), [((100,), "loaded 1×"), ((25,) * 4, "loaded 4×"), ((), "does not tell its rounds"), ((7,), "does not tell")]
)
def test_too_few_loadings_have_a_ratio_without_an_interval(rounds, why):
    found = ratio(changed(rounds=rounds), changed(rounds=rounds))
    assert (found.ratio, found.low, found.high) == (1.0, None, None)
    assert why in found.why


def test_a_clock_that_is_too_coarse_is_said():
    with pytest.raises(ConfigError, match="too coarse"):
        ratio(QUIET, changed(latency_ms=(0.0,) * 100))


OF_DEVICE = {"url": "adb://y", "serial": "y", "model": "m", "soc": "c", "abi": "a", "os": "o", "emulated": True, "governor": "powersave"}
CHANGES = [
    *({"device": msgspec.structs.replace(QUIET.device, **{field: value})} for field, value in OF_DEVICE.items()),
    *({field: value} for field, value in {"session": "t", "backend": "b 2", "runner": "r 2", "threads": 2, "cpu_mask": "f0"}.items()),
]
STILL_COMPARABLE = [
    {},
    {"temperature_c": (50.0, 60.0), "load_average": (2.0, 3.0), "started_at": "2026-01-02T00:00:00+00:00"},
    {"device": msgspec.structs.replace(QUIET.device, name="board", labels=("arm",), temperature_c=60.0, free_bytes=1, state="busy")},
]


def shown(table):
    text = io.StringIO()
    Console(file=text, width=300).print(table)
    return text.getvalue()


@pytest.mark.parametrize("change", [*CHANGES, *STILL_COMPARABLE], ids=str)
def test_statistics_report_and_command_line_agree_on_what_may_be_compared(change):
    dense = changed(artifact="resnet20-dense-fp32.tflite")
    fast = changed(artifact="resnet20-fp32.tflite", artifact_sha256="1", latency_ms=(0.5,) * 100, **change)
    reason = comparable(dense, fast)
    assert (reason is None) == (change in STILL_COMPARABLE)
    assert comparable(fast, dense) == reason
    report = reported(dense, fast)
    row = next(row for group in report.groups for row in group.rows if row.artifact == fast.artifact)
    artifacts = [records.artifact(result.artifact, sha256=result.artifact_sha256) for result in (dense, fast)]
    told = [shown(views.tabulate_results([dense, fast])), shown(views.tabulate_artifacts(artifacts, [dense, fast]))]
    if reason is None:
        assert speed_up(dense, fast) == row.speed_up == 2.0
        assert ratio(fast, dense).ratio == 0.5
        assert all("2.0×" in text for text in told)
    else:
        assert row.speed_up is None
        assert row.speed_reason == f"no ratio: the dense fp32 file was measured {reason}"
        assert not any("2.0×" in text for text in told)
        for divide in (speed_up, ratio):
            with pytest.raises(ConfigError, match=f"was measured {reason} than .*; measure both in one"):
                divide(dense, fast)


@pytest.mark.parametrize("change", [*CHANGES, *STILL_COMPARABLE], ids=str)
def test_a_cost_table_holds_for_every_board_of_one_kind_in_any_session(change):
    table, there = table_for_result(QUIET), changed(**change)
    differing = set(differing_conditions(table, there))
    changed_fields = {field for field in OF_DEVICE if "device" in change and getattr(change["device"], field) == OF_DEVICE[field]}
    of_table = {"backend", "threads", "cpu_mask"} & set(change) | {"model", "soc", "abi"} & changed_fields
    serial_alone = {"serial"} & changed_fields  # a device that tells nothing else is a kind of its own
    assert bool(differing) == bool(of_table | serial_alone)
    assert (describe_conditions(table) == describe_conditions(table_for_result(there))) == (not differing)  # plans keep the text


def test_measurements_in_one_place_are_repeats_in_any_session():
    assert comparable(QUIET, changed(session="t")) == "in another session"
    assert comparable(QUIET, changed(session="t"), any_session=True) is None
    assert comparable(QUIET, changed(session="t", threads=2), any_session=True) == "with another number of threads"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"latency_ms": (1.0, 1.25) * 48}, "spread by 11%"),
        ({"latency_ms": (*(1.0,) * 50, *(1.1,) * 50)}, r"drifted by \+10%"),
        ({"busy_elsewhere": 1.5}, "others kept 1.5 of 4"),
        ({"busy_elsewhere": None, "load_average": (3.0, 3.0)}, "load average 3.0 on 4"),
        ({"temperature_c": (40.0, 55.0)}, "warmed from 40 to 55"),
        ({"frequencies_mhz": ((1800.0,), (1200.0,))}, "from 1800 to 1200 MHz"),
        ({"governors": ("performance", "powersave")}, "governor changed from performance to powersave"),
        ({"throttled": True}, "throttled itself"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_disturbance_makes_a_result_noisy_and_is_named(change, why):
    assert find_noise(QUIET) == ()
    (found,) = find_noise(changed(**change))
    assert re.search(why, found)


def test_an_unknown_condition_does_not_make_a_result_noisy():
    unknown = {"temperature_c": (None, None), "load_average": (None, None), "busy_elsewhere": None, "throttled": None}
    assert find_noise(changed(**unknown, frequencies_mhz=((), ()), governors=("", ""))) == ()


def test_mad_is_the_median_distance_from_the_median():
    assert mad((1.0, 2.0, 4.0, 100.0, 3.0)) == 1.0


def test_repeated_runs_of_one_file_in_one_place_are_found_by_age():
    other = {"session": "t", "started_at": "2025-01-01T00:00:00+00:00", "latency_ms": (2.0,)}
    results = [QUIET, changed(**other), changed(**{**other, "session": "u", "threads": 2}), changed(artifact="b.tflite")]
    assert medians_of_repeats(results) == {"a.tflite on local://": (2.0, 1.0)}


def test_compare_measures_each_loading_in_a_block_and_no_result_is_overwritten(edgecompress, tiny, tmp_path):
    path = tiny / "tiny.tflite"
    answer = edgecompress("bench", path, path, "--compare", "--repetitions", "60", "--warmup", "0.01", "--cpu-mask", "1", "--json")
    assert answer.code == 0, answer.err
    results = msgspec.json.decode(answer.out, type=list[BenchmarkResult])
    assert [result.rounds for result in results] == [(3,) * 20] * 2
    assert [len(result.latency_ms) for result in results] == [60, 60]
    assert results[0].cpu_mask == "1"
    assert len(results[0].runner_sha256) == 64
    assert ratio(results[1], results[0]).blocks == 20
    kept = [BenchmarkResult(**json.loads(file.read_bytes())).latency_ms for file in tmp_path.glob("results/*/*.json")]
    assert sorted(map(tuple, kept)) == sorted(result.latency_ms for result in results)


def test_the_table_shows_the_interval_and_the_noise(edgecompress, tiny):
    path = tiny / "tiny.tflite"
    answer = edgecompress("bench", path, path, "--compare", "--repetitions", "60", "--warmup", "0")
    assert answer.code == 0, answer.err
    assert "99% interval" in answer.out
    assert answer.out.count("[") == 1
    assert ("noisy" in answer.out) == ("noisy: " in answer.err)


def test_results_of_one_name_stand_side_by_side(tmp_path):
    paths = {store_result(tmp_path, QUIET) for _ in range(3)}
    assert len(paths) == 3
    assert all(path.is_file() for path in paths)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["tiny.tflite", "--compare"], "at least two of one format"),
        (["tiny.tflite", "tiny.ptl", "--compare"], "at least two of one format"),
        (["tiny.tflite", "--cpu-mask", "0"], "not a hexadecimal number above 0"),
        (["tiny.tflite", "--cpu-mask", "cpu1"], "not a hexadecimal number above 0"),
        (["tiny.tflite", "--cpu-mask", "8000000000000001"], "are not there"),
        (["tiny.tflite", "--warmup", "-1"], "at least 0; "),
        (["tiny.tflite", "--warmup", "nan"], "at least 0; "),
        (["tiny.tflite", "--cooldown-c", "0"], "above 0 and below 150"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options_that_cannot_be_met_are_refused(edgecompress, tiny, options, said, monkeypatch):
    names = [tiny / word if word.startswith("tiny") else word for word in options]
    answer = edgecompress("bench", *names)
    assert answer.code == 2
    assert said in complaint(answer)


class Warm:
    """A device of which only the temperature matters: it cools down by a degree each time it is asked."""

    url = "adb://warm"

    def __init__(self, *temperatures):
        self.temperatures = iter(temperatures)

    def info(self):
        return DeviceInfo(url=self.url, serial="warm", temperature_c=next(self.temperatures))


def test_a_warm_device_is_waited_for_with_a_bar():
    seen = []

    def track(iterable, description, total=None):
        for item in iterable:
            seen.append((description, total))
            yield item

    assert cool_down(Warm(40.0, 39.0, 38.0, 37.0), 37.0, step_s=0.001, limit_s=1, track=track) == ""
    assert seen == [("cooling adb://warm from 40 to 37 °C", 1000)] * 3


def test_a_cool_device_is_not_waited_for():
    assert cool_down(Warm(36.0), 37.0) == ""


def test_a_device_without_a_sensor_gets_a_note():
    assert "no temperature" in cool_down(Warm(None), 37.0)


def test_a_device_that_stays_warm_is_given_up():
    with pytest.raises(DeviceError, match=r"still at 50 °C after 0.01 s"):
        cool_down(Warm(*[50.0] * 1000), 37.0, step_s=0.001, limit_s=0.01)


def test_torch_tells_times_per_op_and_tflite_says_why_not(tiny):
    torch, tflite = bench([tiny / "tiny.ptl", tiny / "tiny.tflite"], repetitions=3, warmup_s=0.0, profile=True)
    assert all(isinstance(op, OpTime) and op.ms > 0 and math.isfinite(op.calls) for op in torch.profile)
    assert any("conv" in op.name for op in torch.profile)
    assert tflite.profile == ()
    assert any("no times per op" in note for note in tflite.notes)


def reported(*results):
    artifacts = tuple(
        records.artifact(f"{name}.tflite", sha256=digest) for name, digest in (("resnet20-dense-fp32", "0"), ("resnet20-fp32", "1"))
    )
    return make_report(RunRecords(artifacts=artifacts, results=results), run="r", created_at="", version="0")


def test_the_report_shows_intervals_noise_conditions_and_the_spread_of_sessions():
    base, fast = synthetic(np.random.default_rng(2), factor=0.5)
    base = msgspec.structs.replace(base, artifact="resnet20-dense-fp32.tflite", noisy=("times drifted",))
    fast = msgspec.structs.replace(fast, artifact="resnet20-fp32.tflite", artifact_sha256="1")
    later = msgspec.structs.replace(base, session="t", started_at="2025-12-31", latency_ms=(5.0,), rounds=(1,))
    made = reported(base, fast, later)
    rows = {row.artifact: row for row in made.groups[0].rows}
    low, high = rows["resnet20-fp32.tflite"].speed_interval
    assert low <= 2 <= high
    assert low <= rows["resnet20-fp32.tflite"].speed_up <= high
    assert rows["resnet20-dense-fp32.tflite"].latency.noisy == ("times drifted",)
    entries = dict(entry for part in made.conditions for entry in part.entries)
    assert entries["Noise"] == "times drifted"
    assert entries["Fastest processor before → after"] == "1800 → 1800 MHz"
    assert (entries["Throttled"], entries["Loadings of each file"]) == ("no", "20")
    assert any("2 sessions" in note.text for note in made.notes)
    page = render_report(made)
    assert f"{low:.2f}–{high:.2f}×" in page
    assert ", noisy" in page


def test_the_report_makes_no_ratio_of_runs_on_other_processors():
    base = msgspec.structs.replace(QUIET, artifact="resnet20-dense-fp32.tflite")
    fast = msgspec.structs.replace(QUIET, artifact="resnet20-fp32.tflite", artifact_sha256="1", cpu_mask="f0")
    rows = {row.artifact: row for group in reported(base, fast).groups for row in group.rows}
    assert rows["resnet20-fp32.tflite"].speed_up is None
    assert "on other processors" in rows["resnet20-fp32.tflite"].speed_reason
