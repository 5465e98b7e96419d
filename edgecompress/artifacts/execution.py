"""What proves an artifact: run it in its own runtime, compare with the eager model, let it pass or not."""

from pathlib import Path

from edgecompress.devices import open_device
from edgecompress.devices.layouts import to_artifact_layout, to_model_layout
from edgecompress.devices.runners.execute import compute_outputs
from edgecompress.devices.runners.protocol import RunnerReply
from edgecompress.errors import ConfigError, DeviceError, ParityError, ToolchainError
from edgecompress.network.batches import Batch
from edgecompress.network.parity import describe_shortfalls, measure_parity
from edgecompress.records import Artifact, ConversionReply, Parity, TensorSpec
from edgecompress.targets import Gate


def run_artifact(
    path: Path,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    batch: Batch,
    *,
    threads: int = 2,
    timeout_s: float = 600.0,
    python: str | None = None,
) -> tuple[Batch, str]:
    """Return each of the artifact's outputs `(n, …)` on `batch`, both in the model's layout, and which runtime computed them.

    Args:
        inputs, outputs: As the manifest tells them; () for outputs that are no images.
        python: The interpreter whose runtime is meant; this one when None.

    Raises:
        ConfigError: The runtime refuses the file, or the inputs do not fit it.
        ToolchainError: The runtime died, took too long, or is not there.
    """
    arrays = to_artifact_layout(batch, inputs)
    told: list[RunnerReply] = []
    try:
        with open_device("local://") as device:
            found = compute_outputs(
                device,
                path,
                arrays,
                threads=threads,
                timeout_s=timeout_s,
                python=python,
                on_reply=told.append,
            )
    except (ConfigError, DeviceError) as error:  # this machine is no device to its user
        kind = ToolchainError if isinstance(error, DeviceError) else ConfigError
        raise kind(str(error).removeprefix("local://: ")) from error
    return to_model_layout(found, outputs), told[0].results[0].backend


def require_parity(parity: Parity, limits: Gate, *, subject: str, remedy: str = "export it again") -> None:
    """Let an artifact pass, or not.

    Raises:
        ParityError: A number is beyond its limit; names both.
    """
    if failed := describe_shortfalls(parity, limits):
        raise ParityError(f"{subject}: departs from the model: {failed}; {remedy}")


def require_interpreter(python: str) -> None:
    """Refuse an interpreter that is not there.

    Raises:
        ConfigError: It is no file.
    """
    if not Path(python).is_file():
        raise ConfigError(f"{python}: no such interpreter; give the Python of an environment that has the other runtime")


def check_other_runtime(
    path: Path,
    manifest: Artifact | ConversionReply,
    python: str,
    inputs: Batch,
    reference: Batch,
    limits: Gate,
    *,
    subject: str,
) -> str:
    """Hold an artifact that agrees with its model here to the same limits in another interpreter's runtime; return what was found.

    Raises:
        ConfigError: No such interpreter.
        ParityError: That runtime computes it wrongly.
        ToolchainError: It has no runtime for the file, refused it, or died of it.
    """
    require_interpreter(python)
    try:
        outputs, runtime = run_artifact(path, manifest.inputs, manifest.outputs, inputs, python=str(Path(python).absolute()))
    except ConfigError as error:  # here it runs: nothing that was given is wrong
        raise ToolchainError(f"{subject} in {python}: {error}, or take another scheme") from error
    named = f"{subject} in {runtime}"
    try:
        parity = measure_parity(outputs, reference)
    except ParityError as error:
        raise ParityError(f"{named}: {error}") from error
    remedy = "here it agrees, so that runtime computes it wrongly: update the runtime there or take another scheme"
    require_parity(parity, limits, subject=named, remedy=remedy)
    told = f"top-1 agreement {parity.top1_agreement:.2%}" if parity.top1_agreement is not None else f"SQNR {parity.sqnr_db:.1f} dB"
    return f"also verified in {runtime}: {told} on {parity.samples} samples"
