"""Where nobody asked for a budget, one that cannot be reached is no error: the plan saves half of what can be saved."""

import pytest
import torch
from torch import nn

from edgecompress.data import Samples
from edgecompress.data.recipe import recipe_from_model
from edgecompress.errors import ConfigError
from edgecompress.options import Options
from edgecompress.pipeline.context import open_context
from edgecompress.pipeline.runner import run as run_steps
from edgecompress.runs import open_run


class Recurrent(nn.Module):
    """A network whose multiply-adds mostly lie in a layer that no method factorizes."""

    def __init__(self, outputs=32):
        super().__init__()
        self.lstm, self.head = nn.LSTM(8, 32, batch_first=True), nn.Linear(32, outputs)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


def plan(folder, network, **asked):
    torch.manual_seed(0)
    x = torch.randn(60, 5, 8)
    recipe = recipe_from_model(network.eval(), (x[:1],), name="net", train_data=Samples(x, None, source="noise"))
    with open_run(folder / "run", name="net", recipe="python") as run:
        run.set_options(Options(epochs=1, **asked))
        return run_steps(open_context(run, recipe), "plan")


def test_layers_that_hardly_count_are_left_alone(tmp_path):
    made = plan(tmp_path, Recurrent())
    assert made.layers == ()
    assert "the default, 0.35 of the MACs, cannot be reached, 0.99 at the least; 1.00 was taken" in made.notes


def test_half_of_what_can_be_saved_is_saved(tmp_path):
    made = plan(tmp_path, Recurrent(256))
    assert 0.8 < made.macs / made.macs_before < 0.95
    assert any(note.startswith("the default, 0.35 of the MACs, cannot be reached, 0.") for note in made.notes)


def test_a_budget_that_was_asked_for_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"MACs ratio 0\.35: the lowest this network reaches is 0\.9\d+; ask for at least"):
        plan(tmp_path, Recurrent(), macs_ratio=0.35)
