"""The steps of a run in order, each on what the one before left in the run folder. Asking for a step runs whatever is missing before it."""

from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from statistics import median

import msgspec
from torch.export import ExportedProgram

from edgecompress import data as datasets
from edgecompress.artifacts.execution import manifest_path
from edgecompress.artifacts.gate import Departs
from edgecompress.artifacts.publish import Converting, Description, Evidence, artifact_name, export
from edgecompress.artifacts.routes import by_route
from edgecompress.data.recipe import Recipe
from edgecompress.devices.bench import bench
from edgecompress.errors import EdgeCompressError, ParityError, ToolchainError, UnsupportedError
from edgecompress.files import write_atomic
from edgecompress.network import batches
from edgecompress.network.batches import Batch
from edgecompress.network.exported import to_program
from edgecompress.network.outputs import scores_of
from edgecompress.network.reference import keep_reference
from edgecompress.network.surgery import forward
from edgecompress.network.weights import fingerprint
from edgecompress.options import limits_of, select_outputs
from edgecompress.pipeline.context import OnStep, ignore
from edgecompress.pipeline.steps_quantize import CALIBRATION, QuantizationSteps
from edgecompress.progress import Track, silent
from edgecompress.quantization.calibration import load_calibration
from edgecompress.quantization.quantize import spec
from edgecompress.records import Artifact, BenchmarkResult, ExportResult, RefusedArtifact, read, to_json
from edgecompress.recovery.qat import TRAINED
from edgecompress.reporting.document import Report
from edgecompress.reporting.report import report
from edgecompress.runs import FILES, Run, keep_result, key, read_records, stopwatch
from edgecompress.targets import SCHEMES

LOCAL = "local://"


class Pipeline(QuantizationSteps):
    """All steps of a run: those that make the model, and those that publish, measure and report its artifacts."""

    def __init__(self, run: Run, recipe: Recipe, *, track: Track = silent, on_step: OnStep = ignore) -> None:
        super().__init__(run, recipe, track=track, on_step=on_step)
        self.failures: list[EdgeCompressError] = []
        self.measured: tuple[BenchmarkResult, ...] = ()

    def export(self) -> ExportResult:
        """Publish every artifact of the target, with the dense fp32 model in each of its formats to compare with; measure them here.

        An artifact that is refused does not keep the others back: its error is in `failures` and in the result.
        """
        self.quantize()
        if self.trained:
            self.qat()
        jobs = [("compressed", f, s) for f, s in select_outputs(self.options)]
        jobs = [("dense", f, "fp32") for f in dict.fromkeys(f for _, f, _ in jobs)] + jobs
        made: list[Artifact] = []
        refused: list[RefusedArtifact] = []
        with stopwatch() as spent:
            for variant, format_name, scheme in self.track(jobs, "exporting", len(jobs)):
                try:
                    made.append(self._artifact(variant, format_name, scheme))
                except (ParityError, UnsupportedError, ToolchainError) as error:
                    self.failures.append(error)
                    name = artifact_name(self.recipe.name, variant, format_name, scheme)
                    refused.append(_refusal(name, error))
            keep_reference(self._artifacts, self.evidence.inputs, {"dense": self.dense, "compressed": self.compressed})
        result = ExportResult(artifacts=tuple(made), refused=tuple(refused))
        write_atomic(self.run.path(FILES["export"]), to_json(result))
        self.on_step("export", result, spent[0], False)
        if made:
            self.measured = self._measure(made)
        self.report()
        return result

    def bench(
        self,
        *,
        device: str = LOCAL,
        artifacts: tuple[Path, ...] = (),
        runner: Path | None = None,
        repetitions: int = 0,
        compare: bool = False,
    ) -> tuple[BenchmarkResult, ...]:
        """Measure artifacts, all of the run's by default, interleaved, as often as its options say; keep each result under `results/`."""
        o = self.options
        paths = artifacts or tuple(self._artifacts / a.path for a in read(self.run.path(FILES["export"]), ExportResult).artifacts)
        results = bench(
            paths,
            device=device,
            threads=o.threads,
            repetitions=repetitions or o.repetitions,
            runner=runner,
            compare=compare,
            track=self.track,
        )
        return tuple(self._kept(result)[0] for result in results)

    def report(self) -> Report:
        """Write report.html and report.json from whatever the folder holds."""
        return report(self.run.folder, **read_records(self.run.folder))

    # Helpers

    @property
    def _artifacts(self) -> Path:
        return self.run.path("artifacts")

    @cached_property
    def evidence(self) -> Evidence:
        """Real inputs to prove artifacts on: evaluation data, or calibration data where there is none."""
        data = self.data("eval")
        data = self.data("calibration") if data is None else data
        inputs, labels = self._fetch(data, self.options.verify_samples, drawn=False, labelled=self._scored)
        return Evidence(inputs=inputs, labels=labels, data=datasets.describe(data))

    @property
    def _scored(self) -> bool:
        """Whether labels say how often the model is right; those of others may be anything, e.g. images."""
        return scores_of(forward(self.dense, self.recipe.example_inputs)) is not None

    @cached_property
    def dense_program(self) -> ExportedProgram:
        return to_program(self.dense, self.recipe.example_inputs, name=self.recipe.name)

    @cached_property
    def dense_outputs(self) -> Batch:
        return forward(self.dense, self.evidence.inputs)

    @cached_property
    def compressed_outputs(self) -> Batch:
        return forward(self.compressed, self.evidence.inputs)

    def _measure(self, made: list[Artifact]) -> tuple[BenchmarkResult, ...]:
        """Measure on this machine, all formats one after the other, unless just these files were measured already."""
        made_from = key([a.sha256 for a in made], self.options.threads, self.options.repetitions)
        if not self.run.is_done("bench", made_from):
            with stopwatch() as spent:
                results = bench(
                    [self._artifacts / a.path for a in made],
                    device=LOCAL,
                    threads=self.options.threads,
                    repetitions=self.options.repetitions,
                    track=self.track,
                )
                names = [self._kept(result)[1] for result in results]
            self.run.finish("bench", made_from, tuple(names), spent[0])
        return tuple(read(self.run.path(name), BenchmarkResult) for name in self.run.record.steps["bench"].files)

    def _kept(self, result: BenchmarkResult) -> tuple[BenchmarkResult, str]:
        """Write a result under `results/<device>/`, never over another one; return it with its path in the run folder."""
        path = keep_result(self.run.folder, result)
        return result, str(path.relative_to(self.run.folder))

    def _medians(self, paths: Sequence[Path]) -> list[float]:
        results = bench(paths, device=LOCAL, threads=self.options.threads, repetitions=self.options.repetitions)
        return [median(result.latency_ms) for result in results]

    def _artifact(self, variant: str, format_name: str, scheme: str) -> Artifact:
        dense = variant == "dense"
        trained = not dense and self.trained and scheme == TRAINED
        layers = {} if dense else self.layers_of(scheme)
        limits, how = limits_of(scheme, self.options), self._how(format_name, scheme)
        weights = "" if dense else self.run.digest("qat" if trained else "finetune")
        calibrated = SCHEMES[scheme].calibrated
        # By whom and within which limits it is converted changes no file.
        lasting = msgspec.structs.replace(how, python="", timeout_s=0.0, memory_gb=0.0)
        told = (self.recipe.preprocessing, self.recipe.labels)
        asked = (variant, format_name, scheme, layers, limits, self.options.verify_samples, told, lasting)
        made_from = key(self.source, weights, self.run.digest("quantize") if calibrated else "", asked)
        path = self._artifacts / artifact_name(self.recipe.name, variant, format_name, scheme)
        step = f"artifacts/{path.name}"
        if self.run.is_done(step, made_from):
            return read(manifest_path(path), Artifact)
        with stopwatch() as spent:
            model = self.dense if dense else self.compressed
            calibration = load_calibration(self.run.path(CALIBRATION)) if calibrated else None
            make = partial(
                export,
                model,
                self.recipe.example_inputs,
                about=Description(
                    name=self.recipe.name,
                    variant=variant,
                    preprocessing=self.recipe.preprocessing,
                    labels=self.recipe.labels,
                    plan_sha256="" if dense else self.run.digest("plan"),
                    weights_sha256=weights if trained else fingerprint(model),
                ),
                format=format_name,
                quant=spec(scheme, 0 if calibration is None else batches.size(calibration), layers),
                limits=limits,
                evidence=self.evidence,
                program=self.dense_program if dense else self.trained_program if trained else self.compressed_program,
                reference=self.dense_outputs if dense else self.compressed_outputs,
                calibration=calibration,
                track=self.track,
            )
            made = by_route(
                how.route,
                lambda route, folder: make(how=msgspec.structs.replace(how, route=route), folder=folder),
                folder=self._artifacts,
                medians=self._medians,
            )
        self.run.finish(step, made_from, (step, f"{step}.json"), spent[0])
        return made

    def _how(self, format_name: str, scheme: str) -> Converting:
        """Return how a file is converted: of the run's options those that its format and scheme know."""
        o, tflite = self.options, format_name == "tflite"
        return Converting(
            route=o.tflite_route if tflite else "",
            layout="NCHW" if tflite and o.layout == "NCHW" else "NHWC",
            io="int8" if tflite and o.io == "int8" and scheme == "int8-static" else "float32",
            bytecode_version=(o.bytecode_version or None) if format_name == "torchscript" else None,
            timeout_s=o.convert_timeout_s,
            memory_gb=o.convert_memory_gb,
            also_python=o.also_python if tflite else "",
        )


def _refusal(path: str, error: EdgeCompressError) -> RefusedArtifact:
    kind = ParityError if isinstance(error, Departs) else type(error)
    departure = error.departure if isinstance(error, Departs) else None
    return RefusedArtifact(path=path, error=kind.__name__, reason=str(error), departure=departure)
