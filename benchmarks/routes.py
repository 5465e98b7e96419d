"""Compare the TFLite files of two toolchains: how much time `--tflite-route auto` loses by taking the first file that passes.

Every network of the conversion matrix is converted undecomposed, in fp32 and int8-static, by litert-torch and by onnx2tf. The two files
of one network and scheme are measured interleaved on one thread. --quick takes ResNet-20 only.

Rows: median milliseconds of litert-torch's file over onnx2tf's (≤ 1.15: beyond it `auto` should look at both).
"""

import os
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rows import Rows, parse

from edgecompress import toolchains
from edgecompress.artifacts.converter_process import run_converter
from edgecompress.devices.bench import bench
from edgecompress.devices.statistics import median, ratio
from edgecompress.errors import UnsupportedError
from edgecompress.network import batches
from edgecompress.network.exported import to_program, write_program
from edgecompress.quantization.calibration import save_calibration
from edgecompress.records import ConversionRequest
from edgecompress.targets import SCHEMES, TFLITE_TOOLCHAINS

sys.path.insert(0, str(toolchains.REPOSITORY / "tests"))
from support.matrix_networks import DENSE, NETWORKS, made

QUICK = ("resnet20",)
CALIBRATION_SAMPLES = 32
REPETITIONS = 300
BOUND = 1.15


def requests_for(name: str, folder: Path) -> Iterator[ConversionRequest]:
    """Write a network and its calibration inputs; yield the request of each route, the two of one scheme after each other."""
    given = made(name, DENSE)
    assert given is not None
    program, calibration = folder / f"{name}.pt2", folder / f"{name}.safetensors"
    write_program(to_program(given.model, batches.take_samples(given.inputs, slice(1)), name=name), program)
    save_calibration(batches.take_samples(given.calibration, slice(CALIBRATION_SAMPLES)), calibration)
    for scheme in ("fp32", "int8-static"):
        for route in TFLITE_TOOLCHAINS:
            yield ConversionRequest(
                program=str(program),
                output=str(folder / f"{name}-{scheme}-{route}.tflite"),
                scheme=scheme,
                route=route,
                calibration=str(calibration) if SCHEMES[scheme].calibrated else "",
            )


def convert_file(request: ConversionRequest) -> Path | None:
    """Write a file and return its path; print why and return None where the route does not take the network."""
    try:
        run_converter("tflite", request)
    except UnsupportedError as error:
        print(f"# {error}", file=sys.stderr)
        return None
    return Path(request.output)


def main() -> None:
    given = parse(__doc__ or "", networks="names of networks, separated by commas [all]")
    rows = Rows(given.write)
    names = QUICK if given.quick else given.networks.split(",") if given.networks else tuple(NETWORKS)
    if unknown := set(names) - NETWORKS.keys():
        sys.exit(f"--networks: no {', '.join(sorted(unknown))}; there are {', '.join(NETWORKS)}")
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count()) as pool:
        asked = [request for name in names for request in requests_for(name, Path(folder))]
        files = list(pool.map(convert_file, asked))
        for request, ours, theirs in zip(asked[::2], files[::2], files[1::2], strict=True):
            if ours and theirs:
                first, second = bench([theirs, ours], repetitions=REPETITIONS, compare=True)
                peer = median(first.latency_ms)
                row = f"ms, {Path(request.program).stem} in {request.scheme}: litert-torch's file over onnx2tf's"
                rows.add(row, ours=peer * ratio(second, first).ratio, peer=peer, bound=BOUND)
    rows.end()


if __name__ == "__main__":
    main()
