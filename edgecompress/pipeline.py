"""The steps of a run in order, each on what the one before left in the run folder. Asking for a step runs whatever is missing before it."""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from safetensors.torch import load_file
from torch import Tensor, nn

from edgecompress import data as datasets
from edgecompress import records
from edgecompress.attention import closed, opened
from edgecompress.errors import ConfigError, EdgeCompressError, ParityError, ToolchainError, UnsupportedError
from edgecompress.files import stamp, write_atomic
from edgecompress.models import forward
from edgecompress.options import Options, fixed_layers, method_of, outputs
from edgecompress.progress import Track, silent
from edgecompress.recipe import Data, Recipe, call
from edgecompress.records import Artifact, BenchmarkResult, CompressionPlan, ExportResult, Record, RefusedArtifact, read, to_json
from edgecompress.reporting.document import Report
from edgecompress.runs import FILES, Run, keep_result, key, read_records, stopwatch
from edgecompress.targets import SCHEMES, TARGETS, Scheme
from edgecompress.verbs.analyze import analyze
from edgecompress.verbs.bench import bench
from edgecompress.verbs.decompose import decompose
from edgecompress.verbs.export import Evidence, artifact_name, export
from edgecompress.verbs.finetune import FinetuneOptions, finetune
from edgecompress.verbs.plan import plan
from edgecompress.verbs.quantize import quantize, spec
from edgecompress.verbs.report import report
from edgecompress.verification import keep_reference, manifest_path
from edgecompress.weights import check_dense, fingerprint, load_into, read_state, save_state

R = TypeVar("R", bound=Record)
OnStep = Callable[[str, Record, float, bool], None]
CHECKPOINT = "finetune.checkpoint.safetensors"
LOCAL = "local://"
SMALL_NETWORK = 100_000_000  # MACs; below it threads wait for each other as long as they compute, and far longer on a busy machine


def _ignore(*_: object) -> None:
    """Nobody wants to know."""


class Pipeline:
    """One run folder, its recipe, and the steps. Results are read from disk when their inputs are unchanged.

    Args:
        on_step: Called after each step with its name, record, seconds, and whether it was reused.
    """

    def __init__(self, run: Run, recipe: Recipe, *, track: Track = silent, on_step: OnStep = _ignore) -> None:
        self.run = run
        self.recipe = recipe
        self.track = track
        self.on_step = on_step
        self.failures: list[EdgeCompressError] = []
        self.measured: tuple[BenchmarkResult, ...] = ()

    @property
    def options(self) -> Options:
        return self.run.record.options

    # What the steps work on

    @cached_property
    def dense(self) -> nn.Module:
        """The trained model, checked, its attention in ordinary Linears, in eval mode; checkpoints are of the user's own."""
        model = call(self.recipe.model, f"{self.recipe.source}: model()")
        check_dense(model, subject=self.recipe.source)
        if self.options.weights:
            path = Path(self.options.weights)
            load_into(model, read_state(path), source=str(path))
            check_dense(model, subject=str(path))
        return opened(model).eval()

    @cached_property
    def compressed(self) -> nn.Module:
        """The decomposed model with its fine-tuned weights."""
        made = self.plan()
        self.finetune()
        model, _ = decompose(self.dense, made, fit=False)
        load_into(model, load_file(self.run.path("weights.safetensors")), source="weights.safetensors")
        return model.eval()

    def data(self, split: str) -> Any:
        """The recipe's dataset for "train", "eval" or "calibration", or what `--data` gives; None when there is none."""
        if self.options.data:
            shape = tuple(self.recipe.example_inputs[0].shape[1:])
            kind: datasets.Split = "eval" if split == "eval" else "train"
            return datasets.load(Path(self.options.data), kind, preprocessing=self.recipe.preprocessing, input_shape=shape)
        functions: dict[str, Data | None] = {
            "train": self.recipe.train_data,
            "eval": self.recipe.eval_data,
            "calibration": self.recipe.calibration_data or self.recipe.train_data or self.recipe.eval_data,
        }
        function = functions[split]
        return None if function is None else call(function, f"{self.recipe.source}: {split}_data()")

    @cached_property
    def source(self) -> str:
        """Hash of the dense model and the data options; every step depends on it."""
        shapes = [tuple(x.shape) for x in self.recipe.example_inputs]
        data = Path(self.options.data) if self.options.data else None
        if data is not None and not data.exists():
            raise ConfigError(f"{data}: no such file or folder; give --data an ImageFolder, an .npz or idx files")
        files = [] if data is None else stamp(data)
        return key(self.recipe.sources_sha256, fingerprint(self.dense), shapes, self.options.data, files)

    # The steps

    def analyze(self) -> records.ModelStats:
        return self._step(
            "analyze",
            key(self.source),
            records.ModelStats,
            lambda: analyze(self.dense, self.recipe.example_inputs, name=self.recipe.name, track=self.track),
        )

    def plan(self) -> CompressionPlan:
        stats, o = self.analyze(), self.options
        unrepaired = (self.recipe.train_data is None and not o.data) or o.epochs == 0
        multiple = TARGETS[o.target].rank_multiple
        fixed, form = fixed_layers(o), method_of(o)

        def make() -> CompressionPlan:
            made = plan(
                self.dense,
                stats,
                macs_ratio=o.macs_ratio,
                method=form.method,
                options=form.options,
                layers=fixed,
                inputs=self._planning_inputs(),
                data_aware=o.data_aware,
                rank_multiple=multiple,
                min_agreement=o.min_agreement if unrepaired else None,
                track=self.track,
            )
            left = tuple(f"{name}: {reason}; its projections stay as they are" for name, reason in closed(self.dense).items())
            return msgspec.structs.replace(made, notes=(*left, *made.notes))

        guard = o.min_agreement if unrepaired else None
        asked = (o.macs_ratio, o.method, sorted(fixed.items()), o.sensitivity_samples, multiple, guard, o.seed, *self._fitted_to)
        return self._step("plan", key(self.source, asked), CompressionPlan, make)

    def decompose(self) -> records.DecomposeResult:
        made, o = self.plan(), self.options

        def make() -> records.DecomposeResult:
            inputs = self._planning_inputs() if o.data_aware else None
            model, result = decompose(self.dense, made, inputs=inputs, track=self.track)
            save_state(model.state_dict(), self.run.path("decomposed.safetensors"))
            return result

        made_from = key(self.source, self.run.digest("plan"), *self._fitted_to)
        return self._step("decompose", made_from, records.DecomposeResult, make, files=("decomposed.safetensors",))

    def finetune(self) -> records.FinetuneResult:
        self.decompose()
        made, o = self.plan(), self.options

        def make() -> records.FinetuneResult:
            model, _ = decompose(self.dense, made, fit=False)
            load_into(model, load_file(self.run.path("decomposed.safetensors")), source="decomposed.safetensors")
            train = self.data("train")
            asked = FinetuneOptions(
                epochs=o.epochs if made.layers and train is not None else 0,
                samples=o.epoch_samples,
                batch_size=o.batch_size,
                optimizer=o.optimizer,
                learning_rate=o.learning_rate,
                threads=1 if made.macs_before < SMALL_NETWORK else 0,
                seed=o.seed,
            )
            checkpoint = self.run.path(CHECKPOINT)
            model, result = finetune(
                model,
                train if train is not None else self.data("calibration"),
                teacher=self.dense,
                eval_data=self.data("eval"),
                options=asked,
                checkpoint_path=checkpoint,
                track=self.track,
            )
            save_state(model.state_dict(), self.run.path("weights.safetensors"))
            checkpoint.unlink(missing_ok=True)
            return result

        asked = (o.epochs, o.epoch_samples, o.batch_size, o.optimizer, o.learning_rate, o.seed)
        made_from = key(self.source, self.run.digest("decompose"), asked)
        return self._step("finetune", made_from, records.FinetuneResult, make, files=("weights.safetensors",))

    def quantize(self) -> records.QuantizeResult:
        self.finetune()
        o = self.options
        schemes = tuple(dict.fromkeys(scheme for _, scheme in outputs(o)))

        def make() -> records.QuantizeResult:
            data = self.data("calibration")
            if data is None:
                raise ConfigError(f"{self.recipe.source}: no data to calibrate and verify on; add calibration_data() or give --data")
            inputs, result = quantize(self.compressed, data, schemes=schemes, samples=o.calibration_samples, seed=o.seed)
            save_state({"input_0": inputs}, self.run.path("calibration.safetensors"))
            return result

        made_from = key(self.run.digest("finetune"), self.source, schemes, o.calibration_samples, o.seed)
        return self._step("quantize", made_from, records.QuantizeResult, make, files=("calibration.safetensors",))

    def export(self) -> ExportResult:
        """Publish every artifact of the target, with the dense fp32 model in each of its formats to compare with; measure them here.

        An artifact that is refused does not keep the others back: its error is in `failures` and in the result.
        """
        self.quantize()
        jobs = [("compressed", f, s) for f, s in outputs(self.options)]
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
                    refused.append(RefusedArtifact(path=name, error=type(error).__name__, reason=str(error)))
            keep_reference(self._artifacts, self.evidence.inputs, {"dense": self.dense, "compressed": self.compressed})
        result = ExportResult(artifacts=tuple(made), refused=tuple(refused))
        write_atomic(self.run.path(FILES["export"]), to_json(result))
        self.on_step("export", result, spent[0], False)
        if made:
            self.measured = self._measure(made)
        self.report()
        return result

    def bench(self, *, device: str = LOCAL, artifacts: tuple[Path, ...] = (), runner: Path | None = None) -> tuple[BenchmarkResult, ...]:
        """Measure artifacts, all of the run's by default, interleaved; keep each result under `results/`."""
        o = self.options
        paths = artifacts or tuple(self._artifacts / a.path for a in read(self.run.path(FILES["export"]), ExportResult).artifacts)
        results = bench(paths, device=device, threads=o.threads, repetitions=o.repetitions, runner=runner, track=self.track)
        return tuple(self._kept(result)[0] for result in results)

    def report(self) -> Report:
        """Write report.html and report.json from whatever the folder holds."""
        return report(self.run.folder, **read_records(self.run.folder))

    # Helpers

    @property
    def _fitted_to(self) -> tuple[Any, ...]:
        """What the factors depend on beside the plan and the weights."""
        o = self.options
        return (("data-aware", o.sensitivity_samples, o.seed),) if o.data_aware else ()

    def _planning_inputs(self) -> Tensor | None:
        """Real inputs to measure sensitivities on and to fit to; None where there are none.

        Raises:
            ConfigError: There are none and factors are to be fitted to them.
        """
        data = self.data("calibration")
        if data is None and self.options.data_aware:
            raise ConfigError(f"{self.recipe.source}: no data for --data-aware; add calibration_data(), give --data, or leave it out")
        return None if data is None else self._fetch(data, self.options.sensitivity_samples)[0]

    @property
    def _artifacts(self) -> Path:
        return self.run.path("artifacts")

    @cached_property
    def evidence(self) -> Evidence:
        """Real inputs to prove artifacts on: evaluation data, or calibration data where there is none."""
        data = self.data("eval")
        data = self.data("calibration") if data is None else data
        inputs, labels = self._fetch(data, self.options.verify_samples, seed=None)
        return Evidence(inputs=inputs, labels=labels, data=datasets.describe(data))

    @cached_property
    def dense_outputs(self) -> Tensor:
        return forward(self.dense, self.evidence.inputs)

    @cached_property
    def compressed_outputs(self) -> Tensor:
        return forward(self.compressed, self.evidence.inputs)

    def _fetch(self, data: Any, n: int, seed: int | None = 0) -> tuple[Tensor, Tensor | None]:
        shape = tuple(self.recipe.example_inputs[0].shape[1:])
        return datasets.fetch(data, n, seed=None if seed is None else self.options.seed, input_shape=shape)

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

    def _artifact(self, variant: str, format_name: str, scheme: str) -> Artifact:
        o = self.options
        limits = limits_of(scheme, o)
        route = o.tflite_route if format_name == "tflite" else ""
        path = self._artifacts / artifact_name(self.recipe.name, variant, format_name, scheme)
        described = (self.recipe.preprocessing, self.recipe.labels)
        weights = self.run.digest("finetune") if variant == "compressed" else ""
        asked = (variant, format_name, scheme, route, limits, o.verify_samples, described)
        made_from = key(self.source, weights, self.run.digest("quantize") if SCHEMES[scheme].calibrated else "", asked)
        step = f"artifacts/{path.name}"
        if self.run.is_done(step, made_from):
            return read(manifest_path(path), Artifact)
        with stopwatch() as spent:
            calibration = load_file(self.run.path("calibration.safetensors"))["input_0"] if SCHEMES[scheme].calibrated else None
            made = export(
                self.dense if variant == "dense" else self.compressed,
                self.recipe.example_inputs,
                folder=self._artifacts,
                name=self.recipe.name,
                variant=variant,
                format=format_name,
                quant=spec(scheme, 0 if calibration is None else len(calibration)),
                limits=limits,
                evidence=self.evidence,
                reference=self.dense_outputs if variant == "dense" else self.compressed_outputs,
                calibration=calibration,
                route=route,
                preprocessing=self.recipe.preprocessing,
                labels=self.recipe.labels,
                plan_sha256=self.run.digest("plan") if variant == "compressed" else "",
                weights_sha256=fingerprint(self.dense if variant == "dense" else self.compressed),
            )
        self.run.finish(step, made_from, (step, f"{step}.json"), spent[0])
        return made

    def _step(self, name: str, made_from: str, kind: type[R], make: Callable[[], R], *, files: tuple[str, ...] = ()) -> R:
        path = self.run.path(FILES[name])
        if self.run.is_done(name, made_from):
            record = read(path, kind)
            self._told(name, record, self.run.record.steps[name].seconds, True)
            return record
        with stopwatch() as spent:
            record = make()
        write_atomic(path, to_json(record))
        self.run.finish(name, made_from, (path.name, *files), spent[0])
        self._told(name, record, spent[0], False)
        return record

    def _told(self, name: str, record: Record, seconds: float, reused: bool) -> None:
        """Tell of each step once, however often later steps ask for it."""
        told: set[str] = self.__dict__.setdefault("told", set())
        if name not in told:
            told.add(name)
            self.on_step(name, record, seconds, reused)


def limits_of(scheme: str, options: Options) -> Scheme:
    """Return the gate of a scheme with the run's own thresholds."""
    limits = SCHEMES[scheme]
    if scheme == "fp32":
        return msgspec.structs.replace(limits, max_rel=options.max_rel)
    return msgspec.structs.replace(limits, min_agreement=options.min_int8_agreement) if scheme.startswith("int8") else limits
