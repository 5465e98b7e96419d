"""Factorization jobs, fixtures for the cache and worker processes, and comparisons of results."""

import pytest
import torch
from torch import nn

from edgecompress.factorizations import Moments, parallel
from edgecompress.factorizations.parallel import FactorizationJob

FEW_SWEEPS = {"starts": 1, "sweeps": 2}


def example_jobs():
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 6, 3, stride=2, padding=1, padding_mode="reflect", bias=False)
    moments = Moments(torch.eye(7, dtype=torch.float64)[None] * torch.arange(1, 8), torch.linspace(0, 1, 7, dtype=torch.float64)[None])
    return [
        FactorizationJob("big", nn.Linear(40, 30).eval(), "svd", (7,)),
        FactorizationJob("conv", conv, "tucker2", (3, 4)),
        FactorizationJob("conv", conv, "grouped_svd", (3,), {"slices": 4}),
        FactorizationJob("double", nn.Conv1d(6, 9, 3, groups=3, dtype=torch.float64), "channel_svd", (2,)),
        FactorizationJob("half", nn.Linear(9, 5, dtype=torch.bfloat16), "svd", (2,)),
        FactorizationJob("read", nn.Linear(7, 6), "svd", (2,), {}, moments),
        FactorizationJob("hasty", nn.Conv2d(6, 6, 3), "cp3", (9,), FEW_SWEEPS),
        FactorizationJob("up", nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1), "channel_svd", (3,)),
        FactorizationJob("train", nn.Conv3d(3, 4, 2), "tensor_train", (2, 2, 2, 2)),
    ]


@pytest.fixture
def cache_every_fit(monkeypatch):
    monkeypatch.setattr(parallel, "MIN_CACHED_S", -1.0)
    monkeypatch.setattr(parallel, "MIN_FACTORS_CACHED_S", -1.0)


@pytest.fixture
def start_workers_at_once(monkeypatch):
    monkeypatch.setattr(parallel, "WORKER_START_S", 0.0)


def assert_same_factors(made, wanted):
    assert len(made) == len(wanted)
    for one, other in zip(made, wanted, strict=True):
        assert (one.relative_error, one.note) == (other.relative_error, other.note)
        assert str(one.compact) == str(other.compact)
        assert [m.training for m in one.compact.modules()] == [m.training for m in other.compact.modules()]
        assert all(p.requires_grad for p in one.compact.parameters())
        torch.testing.assert_close(one.compact.state_dict(), other.compact.state_dict(), rtol=0, atol=0)


def cache_entries(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())
