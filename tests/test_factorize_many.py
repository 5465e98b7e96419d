"""Laws of factorizing many layers: the same factors here, in worker processes and from the cache; nothing is lost or believed wrongly."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from edgecompress.errors import ConfigError, ToolchainError, UnsupportedError
from edgecompress.factorizations import Moments, cache, factorize, options_of, parallel, relative_error, svd
from edgecompress.factorizations.parallel import Job, factorize_all, measure_all
from edgecompress.models import replace

HASTY = {"starts": 1, "sweeps": 2}


def some_jobs():
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 6, 3, stride=2, padding=1, padding_mode="reflect", bias=False)
    moments = Moments(torch.eye(7, dtype=torch.float64)[None] * torch.arange(1, 8), torch.linspace(0, 1, 7, dtype=torch.float64)[None])
    return [
        Job("big", nn.Linear(40, 30).eval(), "svd", (7,)),
        Job("conv", conv, "tucker2", (3, 4)),
        Job("conv", conv, "grouped_svd", (3,), {"slices": 4}),
        Job("double", nn.Conv1d(6, 9, 3, groups=3, dtype=torch.float64), "channel_svd", (2,)),
        Job("half", nn.Linear(9, 5, dtype=torch.bfloat16), "svd", (2,)),
        Job("read", nn.Linear(7, 6), "svd", (2,), {}, moments),
        Job("hasty", nn.Conv2d(6, 6, 3), "cp3", (9,), HASTY),
        Job("up", nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1), "channel_svd", (3,)),
        Job("train", nn.Conv3d(3, 4, 2), "tensor_train", (2, 2, 2, 2)),
    ]


@pytest.fixture
def everything_is_kept(monkeypatch):
    monkeypatch.setattr(parallel, "QUICK_S", -1.0)
    monkeypatch.setattr(parallel, "SLOW_S", -1.0)


@pytest.fixture
def workers_at_once(monkeypatch):
    monkeypatch.setattr(parallel, "PATIENCE_S", 0.0)


def assert_same(made, wanted):
    assert len(made) == len(wanted)
    for one, other in zip(made, wanted, strict=True):
        assert (one.relative_error, one.note) == (other.relative_error, other.note)
        assert str(one.compact) == str(other.compact)
        assert [m.training for m in one.compact.modules()] == [m.training for m in other.compact.modules()]
        assert all(p.requires_grad for p in one.compact.parameters())
        torch.testing.assert_close(one.compact.state_dict(), other.compact.state_dict(), rtol=0, atol=0)


def entries(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_each_job_gets_what_factorize_gives_it_in_the_order_of_the_jobs():
    jobs = some_jobs()
    for job, made in zip(jobs, factorize_all(jobs, cache=""), strict=True):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            alone = factorize(job.layer, job.method, job.rank, name=job.name, options=job.options, moments=job.moments)
        torch.testing.assert_close(made.compact.state_dict(), alone.state_dict(), rtol=0, atol=0)
        assert made.relative_error == relative_error(job.layer, job.method, alone)
        assert [f"{job.name}: {made.note}"] * bool(made.note) == [str(w.message) for w in told]
    assert [bool(made.note) for made in factorize_all(jobs, cache="")] == [job.name == "hasty" for job in jobs]


def test_worker_processes_and_the_cache_give_the_same_bits_as_this_process(workers_at_once, everything_is_kept, tmp_path):
    jobs = some_jobs()
    here = factorize_all(jobs, processes=1, cache=tmp_path)
    assert len(entries(tmp_path)) == len(jobs)
    assert_same(factorize_all(jobs, processes=2, cache=""), here)
    assert_same(factorize_all(jobs, cache=tmp_path), here)
    fits = [made[1:] for made in here]
    assert measure_all(jobs, processes=2, cache="") == measure_all(jobs, cache=tmp_path) == fits


def test_workers_write_the_cache_themselves(workers_at_once, tmp_path):
    jobs = [Job("", nn.Linear(500, 500), "svd", (r,)) for r in (200, 100)]
    measure_all(jobs, processes=2, cache=tmp_path)
    assert len(entries(tmp_path)) == 2


def test_a_layer_of_which_other_things_hang_goes_to_workers_all_the_same(workers_at_once):
    jobs = some_jobs()[:2]
    here = factorize_all(jobs, cache="")
    for job in jobs:
        job.layer.register_forward_hook(lambda *_: None)
        job.layer.lock = threading.Lock()  # cannot be pickled
    assert_same(factorize_all(jobs, processes=2, cache=""), here)


def test_layers_and_random_numbers_of_the_caller_stay_as_they_were():
    jobs = some_jobs()
    before = [{k: v.clone() for k, v in job.layer.state_dict().items()} for job in jobs]
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    factorize_all(jobs, cache="")
    torch.testing.assert_close(torch.rand(3), wanted, rtol=0, atol=0)
    torch.testing.assert_close([job.layer.state_dict() for job in jobs], before, rtol=0, atol=0)


@pytest.mark.parametrize("size", [1, 2])
def test_progress_counts_each_job_once_wherever_its_result_came_from(size, tmp_path, everything_is_kept):
    jobs = some_jobs()
    factorize_all(jobs[:size], cache=tmp_path)
    counted = []

    def track(iterable, description, total):
        for item in iterable:
            counted.append((description, total))
            yield item

    factorize_all(jobs, cache=tmp_path, track=track)
    assert counted == [("factorizing", len(jobs))] * len(jobs)
    assert factorize_all([], cache="") == []


def of_integers(layer):
    layer.weight = nn.Parameter(torch.ones_like(layer.weight, dtype=torch.int8), requires_grad=False)
    return layer


def wrong(name, *job):
    return [Job("fine", nn.Linear(4, 4), "svd", (2,)), Job(name, *job), Job("well", nn.Linear(5, 4), "svd", (2,))]


@pytest.mark.parametrize("processes", [1, 2])
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
        ((of_integers(nn.Linear(6, 5)), "svd", (2,)), ConfigError, "^bad: its weights are int8"),
    ],
    ids=["rank", "form", "kind", "method", "option", "value", "meta", "integer"],
)
def test_an_error_has_the_name_of_its_layer_from_wherever_it_comes(job, kind, message, processes, workers_at_once, tmp_path):
    for folder in ("", tmp_path):
        with pytest.raises(kind, match=message):
            factorize_all(wrong("bad", *job), processes=processes, cache=folder)


def test_the_death_of_a_worker_is_an_error_with_the_names_of_the_layers_it_may_have_been(workers_at_once):
    torch.manual_seed(0)
    jobs = [Job(f"layer{i}", nn.Linear(600, 600), "svd", (200,)) for i in range(20)]

    def track(iterable, description, total):
        for i, item in enumerate(iterable):
            if i == 0:
                os.kill(next(p.pid for p in multiprocessing.active_children() if p.name.startswith("LokyProcess")), signal.SIGKILL)
            yield item

    with pytest.raises(
        ToolchainError, match=r"^layer\d+ or layer\d+: a worker process died .* set LOKY_MAX_CPU_COUNT=1 for one layer at a time$"
    ):
        factorize_all(jobs, processes=2, cache="", track=track)
    assert_same(
        factorize_all(jobs[:2], processes=2, cache=""), factorize_all(jobs[:2], processes=1, cache="")
    )  # the next call has new ones


INTERRUPTED = """
import torch
from torch import nn
from edgecompress.factorizations import parallel
from edgecompress.factorizations.parallel import Job, factorize_all

def track(iterable, description, total):
    for i, item in enumerate(iterable):
        print("one is done", flush=True)
        yield item

parallel.PATIENCE_S = 0.0
layer = nn.Linear(1000, 1000)
factorize_all([Job(str(i), layer, "svd", (300,)) for i in range(400)], processes=2, cache="", track=track)
"""


def test_an_interrupt_stops_the_workers_too():
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    with process:
        assert process.stdout.readline() == "one is done\n"
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT, err
    for _ in range(500):  # the last of them are on their way out
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.01)
    pytest.fail("processes are left")


# The cache


def key(layer, method="svd", rank=(2,), options=None, moments=None):
    return cache.key_of(layer, method, rank, msgspec.structs.asdict(options_of(method, options)), moments)


def test_a_second_call_fits_nothing(everything_is_kept, tmp_path, monkeypatch):
    jobs = some_jobs()[:1]
    first = factorize_all(jobs, cache=tmp_path)
    monkeypatch.setattr(svd, "fit", lambda *_: pytest.fail("was fitted again"))
    renamed = [jobs[0]._replace(name="another")]
    assert_same(factorize_all(renamed, cache=tmp_path), first)
    assert measure_all(renamed, cache=tmp_path) == [first[0][1:]]


def test_all_that_a_fit_depends_on_is_in_the_key_and_nothing_else():
    def conv(seed=0, bias=True, **other):
        torch.manual_seed(seed)
        return nn.Conv2d(*(4, 6, 3), bias=bias, **other)

    eye = Moments(torch.eye(36, dtype=torch.float64)[None], torch.zeros(1, 36, dtype=torch.float64))
    torch.manual_seed(0)
    other_bias = conv()
    with torch.no_grad():
        other_bias.bias.add_(1)
    keys = [
        key(conv()),
        key(conv(seed=1)),
        key(conv(bias=False)),
        key(other_bias),
        key(conv().double()),
        *(key(conv(**{name: 2})) for name in ("stride", "padding", "dilation", "groups")),
        key(conv(padding=2, padding_mode="reflect")),
        key(conv(), "channel_svd"),
        key(conv(), "channel_svd", moments=eye),
        key(conv(), "channel_svd", moments=eye._replace(mean=eye.mean + 1)),
        key(conv(), rank=(3,)),
        key(conv(), "cp3"),
        key(conv(), "cp3", options={"seed": 1}),
        key(nn.ConvTranspose2d(4, 6, 3)),
    ]
    assert len(set(keys)) == len(keys)
    hooked = conv().eval()
    hooked.register_forward_hook(lambda *_: None)
    assert key(hooked) == key(conv()) == key(conv().to(memory_format=torch.channels_last))
    assert key(conv(), "cp3", options={"seed": 0}) == key(conv(), "cp3")


@pytest.mark.parametrize(
    ("quick", "slow", "call", "files", "tensors"),
    [
        (1e9, 1e9, factorize_all, 0, 0),
        (1e9, 1e9, measure_all, 0, 0),
        (-1.0, 1e9, factorize_all, 1, 3),
        (-1.0, 1e9, measure_all, 1, 0),
        (-1.0, -1.0, measure_all, 1, 3),
    ],
)
def test_quick_fits_are_not_kept_and_factors_only_if_they_were_asked_for_or_slow(quick, slow, call, files, tensors, tmp_path, monkeypatch):
    monkeypatch.setattr(parallel, "QUICK_S", quick)
    monkeypatch.setattr(parallel, "SLOW_S", slow)
    jobs = some_jobs()[:1]
    call(jobs, cache=tmp_path)
    found = entries(tmp_path)
    assert (len(found), sum(len(load_file(path)) for path in found)) == (files, tensors)
    assert_same(factorize_all(jobs, cache=tmp_path), factorize_all(jobs, cache=""))
    assert measure_all(jobs, cache=tmp_path) == measure_all(jobs, cache="")


@settings(max_examples=120, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_damaged_entry_is_never_believed(data):
    layer, where = some_jobs()[0].layer, Path(os.environ["EDGECOMPRESS_CACHE"]) / "damaged"
    compact = factorize(layer, "svd", (2,))
    known, fit = key(layer), cache.Fit(0.25, "a note")
    cache.store(where, known, fit, compact)
    (path,) = entries(where)
    whole = path.read_bytes()
    cut = data.draw(st.integers(0, len(whole) - 1))
    broken = data.draw(
        st.sampled_from([whole[:cut], whole[:cut] + bytes([whole[cut] ^ data.draw(st.integers(1, 255))]) + whole[cut + 1 :]])
    )
    path.write_bytes(broken)
    empty = factorize(layer, "svd", (2,), fit=False)
    found = cache.load(where, known)
    assert found in (None, fit)
    if found is not None and cache.fill(where, known, empty):
        torch.testing.assert_close(empty.state_dict(), compact.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("damage", ["empty", "foreign", "renamed", "another-shape", "folder-of-files"])
def test_an_entry_that_is_none_is_a_miss_and_written_anew(damage, everything_is_kept, tmp_path):
    job = some_jobs()[0]
    wanted = factorize_all([job], cache=tmp_path)
    (path,) = entries(tmp_path)
    good = {name: tensor.clone() for name, tensor in load_file(path).items()}  # not the mapped file, it is about to change
    if damage == "empty":
        path.write_bytes(b"")
    elif damage == "foreign":
        save_file({"weight": torch.zeros(3)}, path, {"relative_error": "0.0", "note": "", "factors": "", "seal": ""})
    elif damage == "renamed":
        factorize_all([job._replace(rank=(3,))], cache=tmp_path)
        (other,) = (p for p in entries(tmp_path) if p != path)
        other.replace(path)
    elif damage == "another-shape":
        folder = tmp_path / "factorizations"
        cache.store(folder, path.stem, cache.Fit(wanted[0].relative_error, ""), factorize(job.layer, "svd", (3,)))
    else:
        path.write_bytes(b"\xff" * 100_000)
    assert_same(factorize_all([job], cache=tmp_path), wanted)
    torch.testing.assert_close(load_file(path), good, rtol=0, atol=0)
    assert cache.load(tmp_path / "factorizations", path.stem) == wanted[0][1:]


@pytest.mark.parametrize("how", ["argument", "environment"])
def test_an_empty_name_means_no_cache(how, everything_is_kept, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EDGECOMPRESS_CACHE", "" if how == "environment" else str(tmp_path / "environment"))
    factorize_all(some_jobs()[:1], cache="" if how == "argument" else None)
    assert entries(tmp_path) == []


def test_the_cache_is_where_the_environment_says_and_by_default_where_this_user_keeps_caches(everything_is_kept, tmp_path, monkeypatch):
    monkeypatch.setenv("EDGECOMPRESS_CACHE", str(tmp_path))
    factorize_all(some_jobs()[:1])
    assert len(entries(tmp_path / "factorizations")) == 1
    monkeypatch.delenv("EDGECOMPRESS_CACHE")
    monkeypatch.setattr(cache, "user_cache_path", lambda name: tmp_path / "user" / name)
    assert cache.folder_of(None) == tmp_path / "user" / "edgecompress" / "factorizations"


def test_a_cache_that_cannot_be_written_costs_no_result(everything_is_kept, tmp_path):
    (tmp_path / "file").write_text("in the way")
    jobs = some_jobs()
    assert_same(factorize_all(jobs, cache=tmp_path / "file"), factorize_all(jobs, cache=""))


def test_the_oldest_go_first_when_the_cache_is_full_and_what_is_used_is_not_old(tmp_path):
    for i in range(10):
        cache.store(tmp_path, f"{i:064}", cache.Fit(i / 10, ""), None)
        os.utime(cache._path(tmp_path, f"{i:064}"), ns=(i, i))
    cache.load(tmp_path, f"{0:064}")
    size = sum(path.stat().st_size + cache.ENTRY_BYTES for path in entries(tmp_path))
    cache.trim(tmp_path, size)
    assert len(entries(tmp_path)) == 10
    cache.trim(tmp_path, size // 2)
    left = [int(path.stem) for path in entries(tmp_path)]
    assert left == [0, 7, 8, 9]  # 10 × 0.9 / 2, rounded down


def test_many_at_once_write_and_read_and_trim_one_cache_without_harm(tmp_path):
    layer = some_jobs()[0].layer
    forms = {key(layer, rank=(r,)): factorize(layer, "svd", (r,)) for r in (2, 3, 4)}
    empty = {name: factorize(layer, "svd", (r,), fit=False) for name, r in zip(forms, (2, 3, 4), strict=True)}

    def work(i):
        name = list(forms)[i % 3]
        cache.store(tmp_path, name, cache.Fit(0.5, "note"), forms[name])
        if i % 7 == 0:
            cache.trim(tmp_path, 40_000)
        return cache.load(tmp_path, name)

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(work, range(120))) <= {None, cache.Fit(0.5, "note")}
    for name, form in forms.items():
        cache.store(tmp_path, name, cache.Fit(0.5, "note"), form)
        assert cache.fill(tmp_path, name, empty[name])
        torch.testing.assert_close(empty[name].state_dict(), form.state_dict(), rtol=0, atol=0)
    assert len(entries(tmp_path)) == 3


def test_cached_factors_work_in_a_model(everything_is_kept, tmp_path):
    model = nn.Sequential(nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 4))
    job = Job("0", model[0], "svd", (10,))
    x = torch.randn(3, 12)
    wanted = model(x)
    for _ in range(2):
        trial = nn.Sequential(*model)
        replace(trial, "0", factorize_all([job], cache=tmp_path)[0].compact)
        torch.testing.assert_close(trial(x), wanted)
        trial(x).sum().backward()
        assert all(p.grad is not None for p in trial[0].parameters())


def test_warnings_that_are_no_notes_go_where_they_went_before():
    with pytest.warns(UserWarning, match="something else"), parallel._noting() as notes:
        warnings.warn("something else", UserWarning, stacklevel=1)
    assert notes == []
