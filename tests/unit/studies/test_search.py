"""Laws of a search: what it may vary, what its front is, what its page says."""

import re

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.chromium import Chromium
from support.require import require
from support.searches import SPEC, point

from edgecompress.errors import ConfigError
from edgecompress.options import Options, update_options
from edgecompress.records import Axis, FailedTrial, Score, SearchResult
from edgecompress.reporting.scatter import Dot, draw_scatter
from edgecompress.reporting.search import render_search
from edgecompress.studies.pareto_front import dominates, pareto_front
from edgecompress.studies.space import OUTPUT, VARIED, apply_choice, build_space

# --- the space ---


def test_what_is_given_is_not_varied_and_what_a_target_exports_is():
    space = build_space(update_options(Options(), {"method": "tucker2", "format": ("tflite",)}), {"method", "format"}, ())
    assert list(space) == ["macs_ratio", "allocator", OUTPUT]
    assert space[OUTPUT].values == ("tflite int8-static", "tflite int8-dynamic", "tflite fp16", "tflite fp32")


def test_ranges_lists_and_methods_with_options_are_read_as_they_stand():
    vary = ("macs-ratio=0.3:0.9", "method=auto,svd", "method=cp3:seed=1,starts=5", "resolution=24,32")
    space = build_space(Options(), (), vary)
    assert space["macs_ratio"] == Axis(low=0.3, high=0.9)
    assert space["method"].values == ("auto", "svd", "cp3:seed=1,starts=5")
    assert space["resolution"].values == (24, 32)


def test_every_choice_is_options_of_a_run():
    space = build_space(Options(), (), ("macs_ratio=0.4,0.6", "resolution=24"))
    made = apply_choice(Options(), {name: axis.values[-1] for name, axis in space.items()})
    assert (made.macs_ratio, made.resolution, made.method, made.allocator) == (0.6, 24, "channel_svd", "energy")
    assert (made.format, made.scheme) == (("torchscript",), ("fp32",))
    assert made == update_options(made, {})


def test_another_budget_takes_the_place_of_the_usual_one():
    budgets = [name for name, option in VARIED.items() if option.is_budget]
    assert [name for name in budgets if name in build_space(Options(), (), ())] == ["macs_ratio"]
    assert "macs_ratio" not in build_space(Options(), {budgets[-1]}, ())


@pytest.mark.parametrize(
    ("vary", "message"),
    [
        ("epochs=1,2", "epochs cannot be varied; choose from macs_ratio"),
        ("macs_ratio", "write NAME=LOW:HIGH or NAME=VALUE,VALUE"),
        ("macs_ratio=0.9:0.3", "LOW below HIGH"),
        ("macs_ratio=low:high", "give numbers"),
        ("macs_ratio=0.1:0.5:0.9", "give numbers"),
        ("macs_ratio=0.3:1.5", "macs_ratio 1.5: must be above 0 and at most 1"),
        ("macs_ratio=0.3:nan", "LOW below HIGH"),
        ("resolution=24.5", "give whole numbers"),
        ("resolution=-8", "resolution -8: must be at least 0"),
        ("allocator=fair", "unknown allocator 'fair'"),
        ("scheme=fp32", "scheme cannot be varied"),
        ("seed=3", "seed cannot be varied"),
    ],
)
def test_what_cannot_be_varied_is_refused_with_what_to_write(vary, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        build_space(Options(), (), (vary,))


def test_an_option_is_either_given_or_varied():
    with pytest.raises(ConfigError, match="--vary macs_ratio: it is given as --macs-ratio too"):
        build_space(Options(), {"macs_ratio"}, ("macs_ratio=0.3:0.9",))


# --- the front ---

UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # other tests share the machine
SCORES = st.builds(
    Score, accuracy=st.integers(0, 4).map(lambda n: n / 4), latency_ms=st.integers(1, 4).map(float), size_bytes=st.integers(1, 4)
)


@UNHURRIED
@given(st.lists(SCORES, max_size=12))
def test_nothing_on_the_front_is_beaten_and_everything_else_is_beaten_by_the_front(scores):
    on = pareto_front(scores)
    assert not any(dominates(scores[j], scores[i]) for i in on for j in range(len(scores)))
    assert all(any(dominates(scores[i], score) for i in on) for j, score in enumerate(scores) if j not in on)
    assert bool(on) == bool(scores)


@UNHURRIED
@given(SCORES, SCORES, SCORES)
def test_to_dominate_is_a_strict_order(a, b, c):
    assert not dominates(a, a)
    assert not (dominates(a, b) and dominates(b, a))
    assert not (dominates(a, b) and dominates(b, c)) or dominates(a, c)


@UNHURRIED
@given(st.permutations(range(6)), st.lists(SCORES, min_size=6, max_size=6))
def test_the_order_of_the_trials_does_not_matter(order, scores):
    assert {order[i] for i in pareto_front([scores[j] for j in order])} == set(pareto_front(scores))


# --- the page ---


def result(tmp_path, **changes):
    choices = [{"macs_ratio": 0.3 + 0.1 * i, "method": "auto", "output": "tflite fp16"} for i in range(5)]
    points = [point(i, tmp_path, choice) for i, choice in enumerate(choices)]
    dense = Score(accuracy=0.97, latency_ms=1.2, size_bytes=120_000)
    points = [msgspec.structs.replace(p, on_front=p.trial != 2, dense=dense, noisy=("busy",) * (p.trial == 1)) for p in points]
    failed = FailedTrial(trial=5, choice=choices[0], reason="net: agrees 0.5")
    made = SearchResult(
        study="net", storage="study.sqlite3", spec=SPEC, points=tuple(points), failed=(failed,), running=1, created_at="2026-01-02T03:04:05"
    )
    return msgspec.structs.replace(made, **changes)


def test_the_page_has_every_trial_and_draws_each_twice(tmp_path):
    page = render_search(result(tmp_path))
    assert "4 of 5 trials of <bdi>net</bdi> are on the Pareto front" in page
    assert all(f'<th role="rowheader" scope="row">{i}' in page for i in range(6))
    assert (page.count('class="full"'), page.count('class="open"')) == (8, 2)
    assert "dense 97.00%" in page
    assert "net: agrees 0.5" in page


def test_a_search_without_a_finished_trial_has_a_page(tmp_path):
    assert "No trial has come to an end yet" in render_search(result(tmp_path, points=()))


@pytest.mark.parametrize("attack", ["<script>alert(1)</script>", "\"'><img src=x onerror=alert(1)>", "{{ 7 * 7 }}"])
def test_nothing_from_a_recipe_a_host_or_an_error_becomes_markup(attack, tmp_path):
    def poisoned(text):
        made = result(tmp_path)
        points = tuple(
            msgspec.structs.replace(p, host=text, run=text, backend=text, accuracy_of=text, choice=p.choice | {"method": text})
            for p in made.points
        )
        space = SPEC.space | {"method": Axis(values=(text, "svd"))}
        spec = msgspec.structs.replace(SPEC, model=text, device=text, sampler=text, options={"seed": 0, "data": text}, space=space)
        failed = tuple(msgspec.structs.replace(f, reason=text, choice=f.choice | {"method": text}) for f in made.failed)
        return render_search(
            msgspec.structs.replace(made, points=points, failed=failed, spec=spec, study=text, storage=text, created_at=text)
        )

    page = poisoned(attack)
    assert re.findall(r"<[a-z/!]+", page) == re.findall(r"<[a-z/!]+", poisoned("harmless"))
    assert attack not in page if "<" in attack else attack in page


@UNHURRIED
@given(st.lists(st.tuples(st.floats(0.001, 1e6), st.floats(0, 100), st.booleans()), min_size=1, max_size=20))
def test_every_dot_stays_inside_the_picture(points):
    picture = draw_scatter([Dot(x, y, full, "t") for x, y, full in points], title="t", desc="d", reference=50.0)
    circles = re.findall(r'cx="([\d.-]+)" cy="([\d.-]+)"', picture)
    assert len(circles) == len(points)
    width, height = map(int, re.search(r'viewBox="0 0 (\d+) (\d+)"', picture).groups())
    assert all(0 <= float(x) <= width and 0 <= float(y) <= height for x, y in circles)


def test_the_page_opens_in_silence_and_fits_every_screen(tmp_path):
    page = tmp_path / "search.html"
    page.write_text(render_search(result(tmp_path)))
    with Chromium(require("chromium", "chromium"), tmp_path / "profile") as browser:
        for width in (360, 1280):
            browser.open(page, width=width)
            browser.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
            assert browser.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"), width
        assert [e["params"] for e in browser.events if e["method"] in ("Runtime.consoleAPICalled", "Log.entryAdded")] == []
