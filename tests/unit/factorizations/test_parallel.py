"""Laws of factorizing many layers: this process and worker processes return the same factors, and no result is lost."""

import multiprocessing
import os
import pickle
import select
import signal
import subprocess
import sys
import threading
import time
import warnings

import pytest
import torch
from support.factor_jobs import assert_same_factors, cache_entries, example_jobs
from torch import nn

from edgecompress.errors import ConfigError, ToolchainError, UnsupportedError
from edgecompress.factorizations import factorize, parallel, relative_error
from edgecompress.factorizations.parallel import FactorizationJob, factorize_all, measure_errors


def test_each_job_gets_the_result_of_factorize_in_the_order_of_the_jobs():
    jobs = example_jobs()
    for job, made in zip(jobs, factorize_all(jobs, cache=""), strict=True):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            alone = factorize(job.layer, job.method, job.rank, name=job.name, options=job.options, moments=job.moments)
        torch.testing.assert_close(made.compact.state_dict(), alone.state_dict(), rtol=0, atol=0)
        assert made.relative_error == relative_error(job.layer, job.method, alone)
        assert [f"{job.name}: {made.note}"] * bool(made.note) == [str(w.message) for w in told]
    assert [bool(made.note) for made in factorize_all(jobs, cache="")] == [job.name == "hasty" for job in jobs]


def test_worker_processes_and_the_cache_return_the_same_bits_as_this_process(start_workers_at_once, cache_every_fit, tmp_path):
    jobs = example_jobs()
    here = factorize_all(jobs, processes=1, cache=tmp_path)
    assert len(cache_entries(tmp_path)) == len(jobs)
    assert_same_factors(factorize_all(jobs, processes=2, cache=""), here)
    assert_same_factors(factorize_all(jobs, cache=tmp_path), here)
    fits = [made[1:] for made in here]
    assert measure_errors(jobs, processes=2, cache="") == measure_errors(jobs, cache=tmp_path) == fits


def test_workers_write_the_cache_themselves(start_workers_at_once, tmp_path):
    jobs = [FactorizationJob("", nn.Linear(500, 500), "svd", (r,)) for r in (200, 100)]
    measure_errors(jobs, processes=2, cache=tmp_path)
    assert len(cache_entries(tmp_path)) == 2


def test_a_layer_with_hooks_and_extra_attributes_can_be_sent_to_workers(start_workers_at_once):
    jobs = example_jobs()[:2]
    here = factorize_all(jobs, cache="")
    for job in jobs:
        job.layer.register_forward_hook(lambda *_: None)
        job.layer.lock = threading.Lock()  # cannot be pickled
    assert_same_factors(factorize_all(jobs, processes=2, cache=""), here)


def test_layers_and_random_numbers_of_the_caller_stay_as_they_were():
    jobs = example_jobs()
    before = [{k: v.clone() for k, v in job.layer.state_dict().items()} for job in jobs]
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    factorize_all(jobs, cache="")
    torch.testing.assert_close(torch.rand(3), wanted, rtol=0, atol=0)
    torch.testing.assert_close([job.layer.state_dict() for job in jobs], before, rtol=0, atol=0)


@pytest.mark.parametrize("size", [1, 2])
def test_progress_counts_each_job_once(size, tmp_path, cache_every_fit):
    jobs = example_jobs()
    factorize_all(jobs[:size], cache=tmp_path)
    counted = []

    def track(iterable, description, total):
        for item in iterable:
            counted.append((description, total))
            yield item

    factorize_all(jobs, cache=tmp_path, track=track)
    assert counted == [("factorizing", len(jobs))] * len(jobs)
    assert factorize_all([], cache="") == []


def to_integers(layer):
    layer.weight = nn.Parameter(torch.ones_like(layer.weight, dtype=torch.int8), requires_grad=False)
    return layer


def jobs_with_one_wrong(name, *job):
    return [
        FactorizationJob("fine", nn.Linear(4, 4), "svd", (2,)),
        FactorizationJob(name, *job),
        FactorizationJob("well", nn.Linear(5, 4), "svd", (2,)),
    ]


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("job", "kind", "message"),
    [
        ((nn.Linear(6, 5), "svd", (9,)), ConfigError, r"^bad: rank \(9,\) for svd; each must be between 1 and \(5,\)$"),
        ((nn.Linear(6, 5), "tucker2", (2, 2)), UnsupportedError, "^bad: .*Tucker-2.*; leave it out or use another method$"),
        ((nn.ReLU(), "svd", (2,)), UnsupportedError, "^bad: ReLU is neither a Linear nor a convolution"),
        ((nn.Linear(6, 5), "magic", (2,)), ConfigError, "^bad: unknown method 'magic'; choose from"),
        ((nn.Linear(6, 5), "svd", (2,), {"sweeps": 3}), ConfigError, "^bad: svd: unknown option 'sweeps'; it has none$"),
        ((nn.Conv2d(6, 5, 3), "grouped_svd", (2,), {"slices": 4}), ConfigError, "^bad: slices=4: does not divide the 6 input channels"),
        ((nn.Linear(6, 5, device="meta"), "svd", (2,)), ConfigError, "^bad: it is on the meta device"),
        ((to_integers(nn.Linear(6, 5)), "svd", (2,)), ConfigError, "^bad: its weights are int8"),
    ],
    ids=["rank", "form", "kind", "method", "option", "value", "meta", "integer"],
)
def test_an_error_names_its_layer_in_this_process_and_in_workers(job, kind, message, processes, start_workers_at_once, tmp_path):
    for folder in ("", tmp_path):
        with pytest.raises(kind, match=message):
            factorize_all(jobs_with_one_wrong("bad", *job), processes=processes, cache=folder)


def test_the_death_of_a_worker_is_an_error_that_names_the_layers_in_work(start_workers_at_once):
    torch.manual_seed(0)
    jobs = [FactorizationJob(f"layer{i}", nn.Linear(600, 600), "svd", (200,)) for i in range(20)]

    def track(iterable, description, total):
        for i, item in enumerate(iterable):
            if i == 0:
                os.kill(next(p.pid for p in multiprocessing.active_children() if p.name.startswith("LokyProcess")), signal.SIGKILL)
            yield item

    with pytest.raises(
        ToolchainError, match=r"^layer\d+ or layer\d+: a worker process died .* set LOKY_MAX_CPU_COUNT=1 for one layer at a time$"
    ):
        factorize_all(jobs, processes=2, cache="", track=track)
    assert_same_factors(
        factorize_all(jobs[:2], processes=2, cache=""), factorize_all(jobs[:2], processes=1, cache="")
    )  # the next call has new ones


@pytest.mark.parametrize("disk_is_full", [False, True])
def test_workers_return_factors_in_files_and_only_small_messages_in_the_pipe(disk_is_full, tmp_path):
    atomic = select.PIPE_BUF  # bytes that are written at once or not at all
    job = FactorizationJob("wide", nn.Linear(600, 600), "svd", (200,))
    handed = tmp_path / "handed"
    if disk_is_full:
        handed.write_text("no folder")
    answer = parallel._run_packed_job(3, parallel._pack_job(job), "", None, handed)
    assert len(pickle.dumps(answer)) < atomic
    taken = parallel._collect_factors(handed, 3, job)
    torch.testing.assert_close(taken.state_dict(), factorize_all([job], cache="")[0].compact.state_dict(), rtol=0, atol=0)


INTERRUPTED_PROGRAM = """
import torch
from torch import nn
from edgecompress.factorizations import parallel
from edgecompress.factorizations.parallel import FactorizationJob, factorize_all

def track(iterable, description, total):
    for i, item in enumerate(iterable):
        print("one is done", flush=True)
        yield item

parallel.WORKER_START_S = 0.0
layer = nn.Linear(1000, 1000)
factorize_all([FactorizationJob(str(i), layer, "svd", (300,)) for i in range(400)], processes=2, cache="", track=track)
"""


def test_an_interrupt_stops_the_workers_too():
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED_PROGRAM], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    with process:
        assert process.stdout.readline() == "one is done\n"
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=300)
    assert process.returncode == -signal.SIGINT, err
    for _ in range(5000):  # the last of them are on their way out
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.01)
    pytest.fail("processes are left")


def test_warnings_other_than_fit_warnings_are_shown_as_before():
    with pytest.warns(UserWarning, match="something else"), parallel._collect_fit_warnings() as notes:
        warnings.warn("something else", UserWarning, stacklevel=1)
    assert notes == []
