"""`bench()` on this machine: its results, its options, and artifacts that cannot be measured."""

import inspect

import msgspec
import pytest

from edgecompress.devices.bench import bench
from edgecompress.devices.evaluate import evaluate
from edgecompress.devices.statistics import median, speed_up
from edgecompress.errors import ConfigError
from edgecompress.records import BenchmarkOptions, BenchmarkResult, DeviceInfo, from_json, to_json
from edgecompress.records.evaluation import EvaluationOptions

RESULT = BenchmarkResult(
    session="s",
    artifact="a",
    artifact_sha256="0",
    size_bytes=1,
    device=DeviceInfo(url="local://", serial="x"),
    runner="r",
    backend="b 1",
    threads=1,
    load_ms=1.0,
    first_ms=1.0,
    warmup_ms=(),
    latency_ms=(4.0, 1.0, 2.0),
    peak_rss_bytes=1,
    started_at="",
)


def test_results_come_in_the_order_given_and_each_format_has_its_session(tiny):
    names = ["tiny.tflite", "tiny.ptl", "tiny-int8.tflite"]
    seen = []

    def track(iterable, description, total=None):
        seen.append((description, total))
        return iter(iterable)

    results = bench([tiny / name for name in names], repetitions=3, warmup_s=0.0, track=track)
    assert [result.artifact for result in results] == names
    assert results[0].session == results[2].session != results[1].session
    assert seen == [("measuring on local://", 2)]
    assert speed_up(results[0], results[2]) == median(results[0].latency_ms) / median(results[2].latency_ms)
    with pytest.raises(ConfigError, match="another"):
        speed_up(results[0], results[1])
    assert from_json(to_json(results[1]), BenchmarkResult, source="x") == results[1]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: [], "no artifacts"),
        (lambda folder: [folder / "missing.tflite"], "no such artifact"),
        (lambda folder: [folder / "tiny.tflite.json"], "no such artifact"),
        (lambda folder: [changed(folder / "tiny.tflite")], "changed after export"),
        (lambda folder: [without_manifest(folder / "tiny.ptl")], "does not tell its input shapes"),
    ],
)
def test_what_cannot_be_measured_is_refused(tiny, spoil, message):
    with pytest.raises(ConfigError, match=message):
        bench(spoil(tiny))


@pytest.mark.parametrize("option", [{"threads": 0}, {"repetitions": 0}, {"timeout_s": 0.0}, {"warmup_s": -1.0}])
def test_an_option_out_of_range_is_refused(tiny, option):
    with pytest.raises(ConfigError, match=rf"{next(iter(option))} .*: must be (at least|above) [01]; the default is"):
        bench([tiny / "tiny.tflite"], **option)


@pytest.mark.parametrize(("function", "record"), [(bench, BenchmarkOptions), (evaluate, EvaluationOptions)])
def test_a_function_takes_every_option_of_its_record_with_the_same_default(function, record):
    parameters, usual = inspect.signature(function).parameters, record()
    assert set(record.__struct_fields__) <= set(parameters)
    for name in record.__struct_fields__:
        assert (parameters[name].default or None) == (getattr(usual, name) or None), name


def changed(path):
    path.write_bytes(path.read_bytes() + b"\0")
    return path


def without_manifest(path):
    path.with_name(f"{path.name}.json").unlink()
    return path


@pytest.mark.parametrize(
    "change",
    [{"session": "t"}, {"threads": 2}, {"backend": "b 2"}, {"device": DeviceInfo(url="adb://y", serial="y")}],
    ids=lambda change: next(iter(change)),
)
def test_unlike_results_have_no_ratio(change):
    with pytest.raises(ConfigError, match="another"):
        speed_up(RESULT, msgspec.structs.replace(RESULT, **change))


def test_speed_up_is_the_ratio_of_medians():
    assert speed_up(RESULT, msgspec.structs.replace(RESULT, latency_ms=(1.0, 0.5, 9.0))) == 2.0


def test_nothing_has_no_median():
    with pytest.raises(ConfigError, match="median of nothing"):
        median(())
