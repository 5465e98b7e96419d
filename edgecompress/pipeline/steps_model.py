"""The steps of a run that make the model: from the dense network to the compressed, fine-tuned one.

Planning, decomposing and fine-tuning may be done in several stages, each of which starts from the network of the one before
(planning/stages.py). The last one's records and weights are the run's own; those before keep theirs under `stages/NUMBER/`.
"""

from functools import cached_property
from typing import Any

import msgspec
from safetensors.torch import load_file
from torch import Tensor, nn

from edgecompress import records
from edgecompress.errors import ConfigError
from edgecompress.factorizations.decompose import decompose
from edgecompress.network.analyze import analyze
from edgecompress.network.attention import closed
from edgecompress.network.batches import Batch
from edgecompress.network.outputs import scores_of
from edgecompress.network.surgery import forward
from edgecompress.network.weights import load_into, save_state
from edgecompress.options import budget_of, cost_scheme_of, parse_fixed_layers, parse_method
from edgecompress.pipeline.steps_cost import CostSteps
from edgecompress.planning import stages
from edgecompress.planning.plan import plan
from edgecompress.records import CompressionPlan, read
from edgecompress.recovery.finetune import FinetuneOptions, finetune
from edgecompress.runs import file_of, key
from edgecompress.targets import TARGETS

DECOMPOSED, WEIGHTS = "decomposed.safetensors", "weights.safetensors"
CHECKPOINT = "finetune.checkpoint.safetensors"
JUDGED = 2000  # inputs that a drop of accuracy is measured on
SMALL_NETWORK = 100_000_000  # MACs; below it threads wait for each other as long as they compute, and far longer on a busy machine


class ModelSteps(CostSteps):
    """The steps up to the fine-tuned network. Results are read from disk when their inputs are unchanged."""

    @cached_property
    def compressed(self) -> nn.Module:
        """The decomposed model with its fine-tuned weights."""
        self.finetune()
        return self._network(self.options.stages)

    # The steps

    def analyze(self) -> records.ModelStats:
        return self._step(
            "analyze",
            key(self.source),
            records.ModelStats,
            lambda: analyze(self.dense, self.recipe.example_inputs, name=self.recipe.name, track=self.track),
        )

    def plan(self) -> CompressionPlan:
        """Plan the last stage; those before it are planned, decomposed and fine-tuned first.

        Raises:
            ConfigError: Several stages, and nothing to fine-tune on between them.
        """
        if self.options.stages > 1 and self._unrepaired:
            raise ConfigError(f"{self.recipe.source}: no training data for --stages; add train_data(), give --data, or ask for one stage")
        for number in range(1, self.options.stages):
            self._planned(number)
            self._decomposed(number)
            self._finetuned(number)
        return self._planned(self.options.stages)

    def decompose(self) -> records.DecomposeResult:
        self.plan()
        return self._decomposed(self.options.stages)

    def finetune(self) -> records.FinetuneResult:
        self.decompose()
        return self._finetuned(self.options.stages)

    # One stage, those before it being done

    def _planned(self, number: int) -> CompressionPlan:
        stats, o = self.analyze(), self.options
        left = stages.remaining_fraction(number, o.stages, o.weakening)
        guard = o.min_agreement if self._unrepaired else None
        multiple = TARGETS[o.target].rank_multiple
        fixed, form = parse_fixed_layers(o), parse_method(o)

        def make() -> CompressionPlan:
            before = self._before(number)
            made = plan(
                stages.restore_dense(self._network(number - 1), self.dense, before),
                stats,
                budget=budget_of(o),
                costs=self.costs(stats),
                scheme=cost_scheme_of(o),
                allocator=o.allocator,
                method=form.method,
                options=form.options,
                layers=fixed,
                inputs=self._planning_inputs(),
                judged=self._judged() if o.max_drop else None,
                data_aware=o.data_aware,
                mixed_precision=o.mixed_precision,
                rank_multiple=multiple,
                min_agreement=guard,
                stage=stages.Stage(left, stages.current_forms(before)),
                track=self.track,
            )
            notes = [f"{name}: {reason}; its projections stay as they are" for name, reason in closed(self.dense).items()]
            if number > 1:
                notes.append(f"stage {number}: errors and losses are against the network fine-tuned in stage {number - 1}")
            return msgspec.structs.replace(made, notes=(*notes, *made.notes))

        budget = (budget_of(o), *self.costs_from, o.allocator, o.method, sorted(fixed.items()))
        budget = (*budget, "mixed precision") if o.mixed_precision and self.costs_from else budget
        asked = (*budget, o.sensitivity_samples, multiple, guard, o.seed, *self._fitted_to)
        share = (left,) if o.stages > 1 else ()
        return self._step(self._of(number, "plan"), key(self.source, asked, *share, *self._started_from(number)), CompressionPlan, make)

    def _decomposed(self, number: int) -> records.DecomposeResult:
        made, o = self._planned(number), self.options
        factors = self._of(number, DECOMPOSED)

        def make() -> records.DecomposeResult:
            inputs = self._planning_inputs() if o.data_aware else None
            before = self._before(number)
            changed = stages.changed_layers(made, before)
            network = stages.restore_dense(self._network(number - 1), self.dense, stages.previous_forms(before, changed))
            model, result = decompose(network, changed, inputs=inputs, track=self.track)
            save_state(model.state_dict(), self.run.path(factors))
            return stages.add_kept_layers(result, made)

        made_from = key(self.source, self._digest(number, "plan"), *self._fitted_to, *self._started_from(number))
        return self._step(self._of(number, "decompose"), made_from, records.DecomposeResult, make, files=(factors,))

    def _finetuned(self, number: int) -> records.FinetuneResult:
        made, o = self._planned(number), self.options
        factors, weights = self._of(number, DECOMPOSED), self._of(number, WEIGHTS)
        seed = o.seed + number - 1  # a seed draws the same samples in every call

        def make() -> records.FinetuneResult:
            model, _ = decompose(self.dense, made, fit=False)
            load_into(model, load_file(self.run.path(factors)), source=factors)
            train = self.data("train")
            asked = FinetuneOptions(
                epochs=o.epochs if made.layers and train is not None else 0,
                samples=o.epoch_samples,
                batch_size=o.batch_size,
                optimizer=o.optimizer,
                learning_rate=o.learning_rate,
                threads=1 if made.macs_before < SMALL_NETWORK else 0,
                seed=seed,
            )
            checkpoint = self.run.path(self._of(number, CHECKPOINT))
            model, result = finetune(
                model,
                train if train is not None else self.data("calibration"),
                teacher=self.dense,
                example_inputs=self.recipe.example_inputs,
                eval_data=self.data("eval"),
                options=asked,
                checkpoint_path=checkpoint,
                track=self.track,
            )
            save_state(model.state_dict(), self.run.path(weights))
            checkpoint.unlink(missing_ok=True)
            return result

        asked = (o.epochs, o.epoch_samples, o.batch_size, o.optimizer, o.learning_rate, seed)
        made_from = key(self.source, self._digest(number, "decompose"), asked)
        return self._step(self._of(number, "finetune"), made_from, records.FinetuneResult, make, files=(weights,))

    # Helpers

    def _of(self, number: int, name: str) -> str:
        """Return the name of a stage's step or file."""
        return name if number == self.options.stages else f"stages/{number}/{name}"

    def _digest(self, number: int, step: str) -> str:
        return self.run.digest(self._of(number, step))

    def _started_from(self, number: int) -> tuple[str, ...]:
        """Return what the steps of a stage depend on beside the plan and the dense network."""
        return (self._digest(number - 1, "finetune"),) if number > 1 else ()

    def _before(self, number: int) -> tuple[records.LayerPlan, ...]:
        """Return the layers that are factorized already when a stage begins, as they are."""
        if number == 1:
            return ()
        return read(self.run.path(file_of(self._of(number - 1, "plan"))), CompressionPlan).layers

    def _network(self, number: int) -> nn.Module:
        """Return the network fine-tuned in a stage; of stage 0, which there is none of, the dense one."""
        if number == 0:
            return self.dense
        made = read(self.run.path(file_of(self._of(number, "plan"))), CompressionPlan)
        weights = self._of(number, WEIGHTS)
        model, _ = decompose(self.dense, made, fit=False)
        load_into(model, load_file(self.run.path(weights)), source=weights)
        return model.eval()

    @property
    def _unrepaired(self) -> bool:
        """Whether nothing is trained after a decomposition."""
        return (self.recipe.train_data is None and not self.options.data) or self.options.epochs == 0

    @property
    def _fitted_to(self) -> tuple[Any, ...]:
        """What the factors depend on beside the plan and the weights."""
        o = self.options
        return (("data-aware", o.sensitivity_samples, o.seed),) if o.data_aware else ()

    def _judged(self) -> tuple[Batch, Tensor | None] | None:
        """Real inputs, with labels where they say how often the network is right, to measure a drop on; None where there are none."""
        data = self.data("calibration")
        scored = scores_of(forward(self.dense, self.recipe.example_inputs)) is not None
        return None if data is None else self._fetch(data, JUDGED, labelled=scored)

    def _planning_inputs(self) -> Batch | None:
        """Real inputs to measure sensitivities on and to fit to; None where there are none.

        Raises:
            ConfigError: There are none and factors are to be fitted to them.
        """
        data = self.data("calibration")
        if data is None and self.options.data_aware:
            raise ConfigError(f"{self.recipe.source}: no data for --data-aware; add calibration_data(), give --data, or leave it out")
        return None if data is None else self._fetch(data, self.options.sensitivity_samples, labelled=False)[0]
