"""The artifacts run on the device as often as asked, and every latency is kept."""

from edgecompress.devices.runners.execute import measure_latencies
from edgecompress.devices.statistics import median
from edgecompress.records import BenchmarkOptions, to_json
from edgecompress.targets import SUFFIXES


def test_latency(device, runner_options, artifacts, request, golden, add_summary_line):
    repetitions = request.config.getoption("--repetitions")
    results = []
    for suffix in SUFFIXES:
        files = [path for path in artifacts if path.suffix == suffix]
        if files:
            texts = {name: str(runner_options[name] or "") for name in ("python", "runner")}
            results += measure_latencies(
                device, files, BenchmarkOptions(threads=runner_options["threads"], repetitions=repetitions, **texts)
            )
    if path := request.config.getoption("--results"):
        path.write_bytes(to_json(results))
    for result in results:
        assert 0 < len(result.latency_ms) <= repetitions
        measured = f"{result.artifact}: median {median(result.latency_ms):.3f} ms on {result.device.model}, {result.backend}"
        compared = golden.check_latency(result)
        add_summary_line(f"{measured}; {compared}" if compared else measured)
