"""Samplers that propose the next trial. Every process proposes the same trial N from the same seed and results."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.samplers import BaseSampler, NSGAIISampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from edgecompress.records import Axis

TPE_RANDOM_TRIALS: Final = 10  # TPE needs some random trials to learn from.
NSGA2_POPULATION: Final = 12  # Trials cost minutes, so generations are small.

SAMPLERS: Final[dict[str, Callable[[int], BaseSampler]]] = {
    "tpe": lambda seed: TPESampler(seed=seed, n_startup_trials=TPE_RANDOM_TRIALS),
    "nsga2": lambda seed: NSGAIISampler(seed=seed, population_size=NSGA2_POPULATION),
}


def to_distributions(space: Mapping[str, Axis]) -> dict[str, BaseDistribution]:
    """Return the distributions that Optuna draws the axes from."""
    return {
        name: CategoricalDistribution(axis.values) if axis.values else FloatDistribution(axis.low, axis.high)
        for name, axis in space.items()
    }


class ReseededSampler(BaseSampler):
    """A sampler that is seeded anew for each trial by its number; a sampler seeded once would repeat itself after every restart."""

    def __init__(self, name: str, seed: int) -> None:
        self._make, self._seed = SAMPLERS[name], seed
        self._inner = self._make(seed)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        drawn = np.random.SeedSequence((self._seed, trial.number)).generate_state(1)
        self._inner = self._make(int(drawn[0]))
        self._inner.before_trial(study, trial)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._inner.infer_relative_search_space(study, trial)

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        return self._inner.sample_relative(study, trial, search_space)

    def sample_independent(self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution) -> Any:
        return self._inner.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        self._inner.after_trial(study, trial, state, values)
