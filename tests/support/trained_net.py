"""The small network that laws of plans, budgets, sensitivities and stages share: trained once, and left as it is by all of them."""

import pytest
import torch

from edgecompress.network.analyze import analyze
from support.networks import Net, digits, trained

IMAGE = (torch.zeros(1, 1, 8, 8),)


@pytest.fixture(scope="session")
def net():
    return trained(Net())


@pytest.fixture(scope="session")
def stats(net):
    return analyze(net, IMAGE, measure=False)


@pytest.fixture(scope="session")
def inputs():
    """Inputs to calibrate with."""
    return (digits()[0].inputs[:192],)
