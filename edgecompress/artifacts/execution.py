"""Run an artifact in its own runtime on this machine."""

from pathlib import Path
from typing import Final

from edgecompress.devices import open_device
from edgecompress.devices.layouts import to_artifact_layout, to_model_layout
from edgecompress.devices.runners.execute import compute_outputs
from edgecompress.devices.runners.protocol import RunnerReply
from edgecompress.devices.runners.runner_process import RunnerProcess
from edgecompress.errors import ConfigError, DeviceError, ToolchainError
from edgecompress.network.batches import Batch
from edgecompress.records import TensorSpec

START_TIMEOUT_S: Final = 600.0
SAMPLE_TIMEOUT_S: Final = 60.0  # A network of this machine's memory takes no longer in a runtime that works.


def run_artifact(
    path: Path,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    batch: Batch,
    *,
    threads: int = 2,
    timeout_s: float | None = None,
    python: str | None = None,
    process: RunnerProcess | None = None,
) -> tuple[Batch, str]:
    """Return the artifact's outputs on `batch`, each `(n, …)` in the model's layout, and the name of the runtime.

    Args:
        inputs, outputs: The manifest's tensors; () stands for outputs that are no images.
        batch: Inputs in the model's layout.
        timeout_s: Limit of the whole run; None allows ten minutes, and a minute more for each sample.
        python: Interpreter that has the runtime; None for this one.
        process: A runner that runs already, by this interpreter; None starts one.

    Raises:
        ConfigError: The runtime refuses the file, or the inputs do not fit it.
        ToolchainError: The runtime is missing, died or took too long.
    """
    arrays = to_artifact_layout(batch, inputs)
    limit_s = START_TIMEOUT_S + SAMPLE_TIMEOUT_S * len(arrays[0]) if timeout_s is None else timeout_s
    told: list[RunnerReply] = []
    try:
        with open_device("local://") as device:
            found = compute_outputs(
                device,
                path,
                arrays,
                threads=threads,
                timeout_s=limit_s,
                python=python,
                on_reply=told.append,
                process=process,
            )
    except (ConfigError, DeviceError) as error:  # users do not know this machine as a device
        kind = ToolchainError if isinstance(error, DeviceError) else ConfigError
        raise kind(str(error).removeprefix("local://: ")) from error
    return to_model_layout(found, outputs), told[0].results[0].backend


def require_interpreter(python: str) -> None:
    """Raise an error unless the interpreter exists.

    Raises:
        ConfigError: The path is no file.
    """
    if not Path(python).is_file():
        raise ConfigError(f"{python}: no such interpreter; give the Python of an environment that has the other runtime")
