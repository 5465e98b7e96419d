"""The outputs of an artifact on the device are those of this machine."""

import numpy as np
import pytest

from edgecompress.devices import open_device
from edgecompress.devices.manifests import read_manifest
from edgecompress.devices.runners.execute import compute_outputs

SAMPLES = 4
FLOAT_TOLERANCE = 1e-5  # kernels of different CPUs add in different orders
INTEGER_TOLERANCE = 1 / 128  # an int8 output may be one quantization step away, a 255th of its range or a little more


def test_outputs_are_the_hosts(device, runner_options, artifact, golden):
    generator = np.random.default_rng(0)
    inputs = [generator.uniform(-1, 1, (SAMPLES, *shape[1:])).astype(np.float32) for shape in input_shapes(artifact)]
    with open_device("local://") as host:
        expected = compute_outputs(host, artifact, inputs)
    tolerance = INTEGER_TOLERANCE if is_integer(artifact) else FLOAT_TOLERANCE
    outputs = compute_outputs(device, artifact, inputs, **runner_options)
    for here, there in zip(expected, outputs, strict=True):
        assert np.abs(here - there).max() <= tolerance * np.ptp(here)
    golden.check_outputs(artifact, outputs, tolerance=tolerance)


def is_integer(artifact):
    manifest = read_manifest(artifact)
    return "int8" in (manifest.quant.scheme if manifest else artifact.name)


def input_shapes(artifact):
    if artifact.parent.name == "golden":
        return [(1, 1, 8, 8)]
    manifest = read_manifest(artifact)
    if manifest is None:
        pytest.fail(f"{artifact}: no manifest beside it, so its input shapes are not known; export it with edgecompress")
    return [tensor.shape for tensor in manifest.inputs]
