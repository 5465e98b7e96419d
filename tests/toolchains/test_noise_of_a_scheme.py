"""Noise that a scheme alone explains is allowed where the user's metric, measured on the file, allows it, and nowhere else."""

import pytest
import torch
from torch import nn

from edgecompress.artifacts.gate import Divergence
from edgecompress.artifacts.judge import Judge
from edgecompress.artifacts.publish import Description, Evidence, export_artifact
from edgecompress.data.metrics import make_metric
from edgecompress.errors import FidelityError
from edgecompress.network.batches import structure_of
from edgecompress.network.surgery import forward
from edgecompress.quantization.quantize import quant_spec
from edgecompress.records.outputs import OutputSpec
from edgecompress.targets import SCHEMES

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.* is deprecated:DeprecationWarning")
SPECS = (OutputSpec(kind="values", name="position"),)


def share_within(distance):
    """Return the metric that says how many positions are found within a distance."""
    return make_metric(lambda y, wanted: {"found": float(((y - wanted).abs() < distance).double().mean())})


def export(folder, distance=None):
    """Export a network whose inputs have outliers, so that 8 bits leave its answers 10 to 20 dB."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    x = torch.randn(200, 8)
    far = torch.cat([x[:60], 30 * torch.randn(4, 8).sign()])
    dense = forward(model, (x,))
    metric = None if distance is None else share_within(distance)
    return export_artifact(
        model,
        (x[:1],),
        folder=folder,
        about=Description(name="net", variant="dense"),
        format="torchscript",
        quant=quant_spec("int8-static", 64, {}),
        limits=SCHEMES["int8-static"].gate,
        evidence=Evidence(inputs=(x,)),
        judge=Judge(SPECS, dense, metric, None if metric is None else dense[0], structure_of(model, (x[:1],))),
        calibration=(far,),
    )


def test_noise_that_the_metric_allows_is_published_and_told(tmp_path):
    made = export(tmp_path, 1.0)
    assert 10 < made.parity.sqnr_db < SCHEMES["int8-static"].gate.min_sqnr_db
    assert made.metrics["found"] > 0.98
    (note,) = (note for note in made.notes if "the metric allows it" in note)
    assert note.startswith(f"SQNR {made.parity.values_sqnr_db:.1f} dB")
    assert "int8-static itself costs this" in note


@pytest.mark.slow
def test_noise_that_the_metric_forbids_is_refused(tmp_path):
    with pytest.raises((Divergence, FidelityError)):
        export(tmp_path, 1e-3)
    assert (tmp_path / "net-dense-int8-static.ptl.rejected").exists()


@pytest.mark.slow
def test_without_a_metric_noise_has_a_limit(tmp_path):
    with pytest.raises(Divergence, match="the scheme hurts"):
        export(tmp_path)
