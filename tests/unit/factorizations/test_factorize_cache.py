"""Laws of the cache of fits: no layer is fitted twice, and damaged entries are not used."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from support.factor_jobs import assert_same_factors, cache_entries, example_jobs
from torch import nn

from edgecompress.factorizations import Moments, cache, factorize, parallel, parse_options
from edgecompress.factorizations.methods import svd
from edgecompress.factorizations.parallel import FactorizationJob, factorize_all, measure_errors
from edgecompress.network.surgery import replace_module


def key_of_job(layer, method="svd", rank=(2,), options=None, moments=None):
    return cache.fit_key(layer, method, rank, msgspec.structs.asdict(parse_options(method, options)), moments)


def test_a_second_call_fits_nothing(cache_every_fit, tmp_path, monkeypatch):
    jobs = example_jobs()[:1]
    first = factorize_all(jobs, cache=tmp_path)
    monkeypatch.setattr(svd, "fit", lambda *_: pytest.fail("was fitted again"))
    renamed = [jobs[0]._replace(name="another")]
    assert_same_factors(factorize_all(renamed, cache=tmp_path), first)
    assert measure_errors(renamed, cache=tmp_path) == [first[0][1:]]


def test_the_cache_key_depends_on_everything_that_a_fit_does_and_nothing_else():
    def conv(seed=0, bias=True, **other):
        torch.manual_seed(seed)
        return nn.Conv2d(*(4, 6, 3), bias=bias, **other)

    eye = Moments(torch.eye(36, dtype=torch.float64)[None], torch.zeros(1, 36, dtype=torch.float64))
    torch.manual_seed(0)
    other_bias = conv()
    with torch.no_grad():
        other_bias.bias.add_(1)
    keys = [
        key_of_job(conv()),
        key_of_job(conv(seed=1)),
        key_of_job(conv(bias=False)),
        key_of_job(other_bias),
        key_of_job(conv().double()),
        *(key_of_job(conv(**{name: 2})) for name in ("stride", "padding", "dilation", "groups")),
        key_of_job(conv(padding=2, padding_mode="reflect")),
        key_of_job(conv(), "channel_svd"),
        key_of_job(conv(), "channel_svd", moments=eye),
        key_of_job(conv(), "channel_svd", moments=eye._replace(mean=eye.mean + 1)),
        key_of_job(conv(), rank=(3,)),
        key_of_job(conv(), "cp3"),
        key_of_job(conv(), "cp3", options={"seed": 1}),
        key_of_job(nn.ConvTranspose2d(4, 6, 3)),
    ]
    assert len(set(keys)) == len(keys)
    hooked = conv().eval()
    hooked.register_forward_hook(lambda *_: None)
    assert key_of_job(hooked) == key_of_job(conv()) == key_of_job(conv().to(memory_format=torch.channels_last))
    assert key_of_job(conv(), "cp3", options={"seed": 0}) == key_of_job(conv(), "cp3")


@pytest.mark.parametrize(
    ("quick", "slow", "call", "files", "tensors"),
    [
        (1e9, 1e9, factorize_all, 0, 0),
        (1e9, 1e9, measure_errors, 0, 0),
        (-1.0, 1e9, factorize_all, 1, 3),
        (-1.0, 1e9, measure_errors, 1, 0),
        (-1.0, -1.0, measure_errors, 1, 3),
    ],
)
def test_quick_fits_are_not_cached_and_factors_only_if_wanted_or_slow(quick, slow, call, files, tensors, tmp_path, monkeypatch):
    monkeypatch.setattr(parallel, "MIN_CACHED_S", quick)
    monkeypatch.setattr(parallel, "MIN_FACTORS_CACHED_S", slow)
    jobs = example_jobs()[:1]
    call(jobs, cache=tmp_path)
    found = cache_entries(tmp_path)
    assert (len(found), sum(len(load_file(path)) for path in found)) == (files, tensors)
    assert_same_factors(factorize_all(jobs, cache=tmp_path), factorize_all(jobs, cache=""))
    assert measure_errors(jobs, cache=tmp_path) == measure_errors(jobs, cache="")


def test_a_quick_fit_with_a_slow_error_is_cached(tmp_path, monkeypatch):
    waited = 0.5  # far above what this fit takes, also on a busy machine

    def slowly(*arguments):
        time.sleep(waited)
        return reconstruction_errors(*arguments)

    reconstruction_errors = parallel.reconstruction_errors
    monkeypatch.setattr(parallel, "reconstruction_errors", slowly)
    monkeypatch.setattr(parallel, "MIN_CACHED_S", waited)
    jobs = example_jobs()[:1]
    made = measure_errors(jobs, cache=tmp_path)
    monkeypatch.setattr(parallel, "reconstruction_errors", lambda *_: pytest.fail("was measured again"))
    assert measure_errors(jobs, cache=tmp_path) == made


@settings(max_examples=120, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_damaged_cache_entry_is_not_used(data):
    layer, where = example_jobs()[0].layer, Path(os.environ["EDGECOMPRESS_CACHE"]) / "damaged"
    compact = factorize(layer, "svd", (2,))
    known, fit = key_of_job(layer), cache.FitResult(0.25, 0.25, "a note")
    cache.store_fit(where, known, fit, compact)
    (path,) = cache_entries(where)
    whole = path.read_bytes()
    cut = data.draw(st.integers(0, len(whole) - 1))
    broken = data.draw(
        st.sampled_from([whole[:cut], whole[:cut] + bytes([whole[cut] ^ data.draw(st.integers(1, 255))]) + whole[cut + 1 :]])
    )
    path.write_bytes(broken)
    empty = factorize(layer, "svd", (2,), fit=False)
    found = cache.load_fit(where, known)
    assert found in (None, fit)
    if found is not None and cache.load_factors(where, known, empty):
        torch.testing.assert_close(empty.state_dict(), compact.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("damage", ["empty", "foreign", "renamed", "another-shape", "folder-of-files"])
def test_a_file_that_is_no_cache_entry_is_a_miss_and_is_replaced(damage, cache_every_fit, tmp_path):
    job = example_jobs()[0]
    wanted = factorize_all([job], cache=tmp_path)
    (path,) = cache_entries(tmp_path)
    good = {name: tensor.clone() for name, tensor in load_file(path).items()}  # not the mapped file, it is about to change
    if damage == "empty":
        path.write_bytes(b"")
    elif damage == "foreign":
        save_file({"weight": torch.zeros(3)}, path, {"relative_error": "0.0", "note": "", "factors": "", "seal": ""})
    elif damage == "renamed":
        factorize_all([job._replace(rank=(3,))], cache=tmp_path)
        (other,) = (p for p in cache_entries(tmp_path) if p != path)
        other.replace(path)
    elif damage == "another-shape":
        folder = tmp_path / "factorizations"
        cache.store_fit(
            folder, path.stem, cache.FitResult(wanted[0].relative_error, wanted[0].relative_error, ""), factorize(job.layer, "svd", (3,))
        )
    else:
        path.write_bytes(b"\xff" * 100_000)
    assert_same_factors(factorize_all([job], cache=tmp_path), wanted)
    torch.testing.assert_close(load_file(path), good, rtol=0, atol=0)
    assert cache.load_fit(tmp_path / "factorizations", path.stem) == wanted[0][1:]


@pytest.mark.parametrize("how", ["argument", "environment"])
def test_an_empty_cache_folder_turns_caching_off(how, cache_every_fit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EDGECOMPRESS_CACHE", "" if how == "environment" else str(tmp_path / "environment"))
    factorize_all(example_jobs()[:1], cache="" if how == "argument" else None)
    assert cache_entries(tmp_path) == []


def test_the_environment_or_else_the_users_cache_folder_sets_the_cache_folder(cache_every_fit, tmp_path, monkeypatch):
    monkeypatch.setenv("EDGECOMPRESS_CACHE", str(tmp_path))
    factorize_all(example_jobs()[:1])
    assert len(cache_entries(tmp_path / "factorizations")) == 1
    monkeypatch.delenv("EDGECOMPRESS_CACHE")
    monkeypatch.setattr(cache, "user_cache_path", lambda name: tmp_path / "user" / name)
    assert cache.cache_folder(None) == tmp_path / "user" / "edgecompress" / "factorizations"


def test_a_cache_that_cannot_be_written_does_not_fail_a_fit(cache_every_fit, tmp_path):
    (tmp_path / "file").write_text("in the way")
    jobs = example_jobs()
    assert_same_factors(factorize_all(jobs, cache=tmp_path / "file"), factorize_all(jobs, cache=""))


def test_a_full_cache_drops_the_entries_unused_for_longest(tmp_path):
    for i in range(10):
        cache.store_fit(tmp_path, f"{i:064}", cache.FitResult(i / 10, i / 10, ""), None)
        os.utime(cache._entry_path(tmp_path, f"{i:064}"), ns=(i, i))
    cache.load_fit(tmp_path, f"{0:064}")
    size = sum(path.stat().st_size + cache.ENTRY_OVERHEAD_BYTES for path in cache_entries(tmp_path))
    cache.trim_folder(tmp_path, size)
    assert len(cache_entries(tmp_path)) == 10
    cache.trim_folder(tmp_path, size // 2)
    left = [int(path.stem) for path in cache_entries(tmp_path)]
    assert left == [0, 7, 8, 9]  # 10 × 0.9 / 2, rounded down


def test_processes_may_write_read_and_trim_one_cache_at_the_same_time(tmp_path):
    layer = example_jobs()[0].layer
    forms = {key_of_job(layer, rank=(r,)): factorize(layer, "svd", (r,)) for r in (2, 3, 4)}
    empty = {name: factorize(layer, "svd", (r,), fit=False) for name, r in zip(forms, (2, 3, 4), strict=True)}

    def work(i):
        name = list(forms)[i % 3]
        cache.store_fit(tmp_path, name, cache.FitResult(0.5, 0.5, "note"), forms[name])
        if i % 7 == 0:
            cache.trim_folder(tmp_path, 40_000)
        return cache.load_fit(tmp_path, name)

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(work, range(120))) <= {None, cache.FitResult(0.5, 0.5, "note")}
    for name, form in forms.items():
        cache.store_fit(tmp_path, name, cache.FitResult(0.5, 0.5, "note"), form)
        assert cache.load_factors(tmp_path, name, empty[name])
        torch.testing.assert_close(empty[name].state_dict(), form.state_dict(), rtol=0, atol=0)
    assert len(cache_entries(tmp_path)) == 3


def test_cached_factors_work_in_a_model(cache_every_fit, tmp_path):
    model = nn.Sequential(nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 4))
    job = FactorizationJob("0", model[0], "svd", (10,))
    x = torch.randn(3, 12)
    wanted = model(x)
    for _ in range(2):
        trial = nn.Sequential(*model)
        replace_module(trial, "0", factorize_all([job], cache=tmp_path)[0].compact)
        torch.testing.assert_close(trial(x), wanted)
        trial(x).sum().backward()
        assert all(p.grad is not None for p in trial[0].parameters())
