"""The steps of a run that prepare its integer files: calibration inputs, what stays in float, weights trained under their rounding.

An int8-static file is made from the trained weights where there are some, every other file from the fine-tuned ones. All are held to the
fine-tuned network: how a file came by its integers does not change what it must answer.
"""

import difflib
from functools import cached_property
from typing import Final

import msgspec
from safetensors.torch import load_file
from torch.export import ExportedProgram

from edgecompress.errors import ConfigError
from edgecompress.network.batches import Batch
from edgecompress.network.exported import to_program
from edgecompress.network.weights import save_state
from edgecompress.options import limits_of, parse_layer_schemes, select_outputs
from edgecompress.pipeline.steps_model import SMALL_NETWORK, ModelSteps
from edgecompress.quantization.calibration import load_calibration, save_calibration
from edgecompress.quantization.mixed_precision import plan_precision
from edgecompress.quantization.qat_module import with_constants
from edgecompress.quantization.quantize import quantize
from edgecompress.records import PrecisionPlan, QatResult, QuantizeResult, QuantSpec, read
from edgecompress.recovery.qat import TRAINED, QatOptions, qat
from edgecompress.runs import FILES, key

CALIBRATION: Final = "calibration.safetensors"
WEIGHTS: Final = "qat.safetensors"
CHECKPOINT: Final = "qat.checkpoint.safetensors"
FLOAT: Final = ("fp32", "fp16")


class QuantizationSteps(ModelSteps):
    """The steps between the fine-tuned network and its artifacts."""

    @property
    def trained(self) -> bool:
        """Whether int8-static files have weights of their own."""
        return self.options.qat_epochs > 0 and TRAINED in {scheme for _, scheme in select_outputs(self.options)}

    @cached_property
    def compressed_program(self) -> ExportedProgram:
        return to_program(self.compressed, self.recipe.example_inputs, name=self.recipe.name)

    @cached_property
    def trained_program(self) -> ExportedProgram:
        """The program with the weights of quantization-aware training."""
        return with_constants(self.compressed_program, load_file(self.run.path(WEIGHTS)))

    def layers_of(self, scheme: str) -> dict[str, str]:
        """Return the schemes of layers that differ from the file's: those given by hand, and in int8-static files those found."""
        if scheme in FLOAT:
            return {}
        plan = read(self.run.path(FILES["quantize"]), QuantizeResult).precision
        found = plan.schemes if plan and plan.scheme == scheme else {}
        return {**(self.plan().schemes if scheme == TRAINED else {}), **found, **parse_layer_schemes(self.options)}

    def quantize(self) -> QuantizeResult:
        self.finetune()
        o = self.options
        schemes = tuple(dict.fromkeys(scheme for _, scheme in select_outputs(o)))
        planned = o.mixed_precision and TRAINED in schemes
        by_hand = parse_layer_schemes(o)
        kept = {**self.plan().schemes, **by_hand}

        def make() -> QuantizeResult:
            self._check_names(by_hand)
            data = self.data("calibration")
            if data is None:
                raise ConfigError(f"{self.recipe.source}: no data to calibrate and verify on; add calibration_data() or give --data")
            inputs, result = quantize(
                self.compressed,
                data,
                schemes=schemes,
                example_inputs=self.recipe.example_inputs,
                samples=o.calibration_samples,
                seed=o.seed,
            )
            save_calibration(inputs, self.run.path(CALIBRATION))
            return msgspec.structs.replace(result, precision=self._plan(inputs, kept) if planned else None)

        mixed = (planned, kept, o.min_int8_agreement) if planned or kept else ()
        made_from = key(self.run.digest("finetune"), self.source, schemes, o.calibration_samples, o.seed, *mixed)
        return self._step("quantize", made_from, QuantizeResult, make, files=(CALIBRATION,))

    def qat(self) -> QatResult:
        """Train the weights of int8-static files.

        Raises:
            ConfigError: No epochs asked for, no training data, or no int8-static file to train for.
        """
        self.quantize()
        o = self.options
        if not self.trained:
            wrong = "no int8-static file is asked for" if o.qat_epochs else "0 epochs"
            raise ConfigError(f"quantization-aware training: {wrong}; give --qat-epochs 3, say, and scheme int8-static")

        def make() -> QatResult:
            data = self.data("train")
            if data is None:
                raise ConfigError(f"{self.recipe.source}: no training data for --qat-epochs; add train_data() or give --data")
            checkpoint = self.run.path(CHECKPOINT)
            constants, result = qat(
                self.compressed,
                data,
                example_inputs=self.recipe.example_inputs,
                calibration=load_calibration(self.run.path(CALIBRATION)),
                quant=QuantSpec(scheme=TRAINED, layers=self.layers_of(TRAINED)),
                eval_data=self.data("eval"),
                options=QatOptions(
                    epochs=o.qat_epochs,
                    samples=o.epoch_samples,
                    batch_size=o.batch_size,
                    threads=1 if self.plan().macs_before < SMALL_NETWORK else 0,
                    seed=o.seed,
                ),
                checkpoint_path=checkpoint,
                track=self.track,
            )
            save_state(constants, self.run.path(WEIGHTS))
            checkpoint.unlink(missing_ok=True)
            return result

        asked = (o.qat_epochs, o.epoch_samples, o.batch_size, o.seed)
        made_from = key(self.source, self.run.digest("finetune"), self.run.digest("quantize"), asked)
        return self._step("qat", made_from, QatResult, make, files=(WEIGHTS,))

    def _plan(self, inputs: Batch, by_hand: dict[str, str]) -> PrecisionPlan:
        limits = limits_of(TRAINED, self.options)
        program = self.compressed_program
        return plan_precision(program, inputs, scheme=TRAINED, limits=limits, fixed=by_hand, track=self.track)

    def _check_names(self, by_hand: dict[str, str]) -> None:
        known = [name for name, _ in self.compressed.named_modules() if name]
        for name in by_hand:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=3)
                meant = f"did you mean {', '.join(near)}?" if near else "see `edgecompress analyze`"
                raise ConfigError(f"--layer-scheme {name}: no such layer; {meant}")
