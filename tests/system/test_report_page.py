"""Laws of the report's page: untrusted text never becomes markup, and a real browser shows the page without requests or errors."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from support import report_records as run
from support.chromium import Chromium
from support.report_records import dense_and_int8_results, report_of
from support.require import require

from edgecompress.records import DeviceInfo, Record
from edgecompress.records.run_records import RunRecords
from edgecompress.reporting import numbers
from edgecompress.reporting.render import render_report
from edgecompress.reporting.report import report

replace = msgspec.structs.replace

# --- untrusted strings ---

ATTACKS = ("<script>alert(1)</script>", "\"'><img src=x onerror=alert(1)>", "</style></svg></title><b>", "{{ 7 * 7 }}{% raw %}")
KEPT = {"model", "format", "scheme", "session", "sha256", "artifact_sha256", "url", "serial"}


def poisoned(value: Any, text: str, field: str = "") -> Any:
    """Return `value` with `text` appended to every string, except those that join records."""
    if isinstance(value, Record):  # the keys of dictionaries are poisoned too
        kept = set() if isinstance(value, DeviceInfo) else KEPT
        return replace(value, **{n: poisoned(getattr(value, n), text, n) for n in value.__struct_fields__ if n not in kept})
    if isinstance(value, dict):
        return {poisoned(k, text): poisoned(v, text) for k, v in value.items()}
    if isinstance(value, tuple):
        return tuple(poisoned(item, text) for item in value)
    return value + text if isinstance(value, str) else value


@pytest.mark.parametrize("text", ATTACKS)
def test_nothing_from_a_model_or_a_device_becomes_markup(text: str) -> None:
    clean, page = (render_report(report_of(**{k: poisoned(v, t) for k, v in run.all_records().items()})) for t in ("harmless", text))
    assert poisoned("layer1", text) not in page if "<" in text else "{{ 7 * 7 }}" in page

    def tags(html: str) -> list[str]:
        return re.findall(r"<[a-z/!]+", html)

    # Numbers of ticks and the like are the same; a different sequence of tags would be markup that came from a string.
    assert tags(page) == tags(clean)


@pytest.mark.parametrize("character", ["\x00", "\x1b", "\u202e", "\u2066", "\ud800", "\x85"])
def test_characters_that_hide_or_reorder_text_are_made_visible(character: str) -> None:
    stats = run.stats()
    stats = replace(stats, layers=(replace(stats.layers[0], name=f"conv{character}1"), *stats.layers[1:]))
    page = render_report(report_of(stats=stats))
    assert character not in page
    assert "conv\ufffd1" in page
    page.encode()


def test_the_page_forbids_scripts_requests_and_foreign_styles() -> None:
    page = render_report(report_of(**run.main_records()))
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy
    assert policy[1].startswith("default-src 'none'; style-src 'sha256-")
    assert not re.findall(r"<(?:script|link|img|iframe|object|embed|form)\b|\son\w+=|\bstyle=|https?://|@import|url\(", page)


# --- in a real browser ---

PAGES = {
    "everything": run.all_records,
    "analyzed only": lambda: {"stats": run.stats()},
    "nothing": dict,
    "hostile": lambda: {k: poisoned(v, ATTACKS[0] + ATTACKS[1]) for k, v in run.main_records().items()},
    "long names": lambda: {k: poisoned(v, "averylongnamewithoutanyplacetobreak" * 4) for k, v in run.all_records().items()},
    "unlike": lambda: {"artifacts": run.artifacts(), "results": dense_and_int8_results(threads=4), "plan": run.plan()},
}
LOUD = {"Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Page.javascriptDialogOpening"}
# WCAG 2.2, 1.4.3: contrast of each text with the page, by relative luminance.
FAINTEST = """(() => {
  const light = c => { const [r, g, b] = c.match(/[\\d.]+/g).map(v => v / 255)
                                           .map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
                       return .2126 * r + .7152 * g + .0722 * b };
  const page = light(getComputedStyle(document.body).backgroundColor);
  const texts = [...document.querySelectorAll('body *:not(title, desc)')]
                  .filter(e => [...e.childNodes].some(n => n.nodeType == 3 && n.data.trim()));
  return Math.min(...texts.map(e => { const s = getComputedStyle(e); const l = light(e.closest('svg') ? s.fill : s.color);
                                      return (Math.max(l, page) + .05) / (Math.min(l, page) + .05) })) })()"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    with Chromium(require("chromium", "chromium"), tmp_path_factory.mktemp("chromium") / "profile") as opened:
        yield opened


def noises(browser: Chromium) -> list[dict[str, Any]]:
    return [event for event in browser.events if event["method"] in LOUD]


def requests(browser: Chromium) -> list[str]:
    return [event["params"]["request"]["url"] for event in browser.events if event["method"] == "Network.requestWillBeSent"]


def test_the_browser_would_notice_a_request_and_an_error(browser: Chromium, tmp_path: Path) -> None:
    """A page that sends a request and logs an error is noticed, so silence in the other tests means something."""
    page = tmp_path / "loud.html"
    page.write_text("<!doctype html><img src='http://127.0.0.1:9/x.png'><script>console.error('heard')</script>")
    browser.open(page, width=360)
    assert "http://127.0.0.1:9/x.png" in requests(browser)
    assert noises(browser)


@pytest.mark.parametrize("name", PAGES)
def test_the_page_opens_from_disk_in_silence_and_fits_every_screen(browser: Chromium, tmp_path: Path, name: str) -> None:
    report(tmp_path, RunRecords(**PAGES[name]()))
    page = tmp_path / "report.html"
    for width, dark in ((360, False), (360, True), (700, False), (900, False), (1280, True)):
        browser.open(page, width=width, dark=dark)
        assert browser.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)") is None
        assert browser.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"), width
        assert browser.evaluate("document.readyState") == "complete"
        assert browser.evaluate("document.scripts.length + document.images.length") == 0
        assert browser.evaluate(FAINTEST) >= 4.5
        assert requests(browser) == [page.resolve().as_uri()]
        assert noises(browser) == []


def test_light_and_dark_follow_the_reader(browser: Chromium, tmp_path: Path) -> None:
    report(tmp_path, RunRecords(**run.main_records()))
    shades = []
    for dark in (False, True):
        browser.open(tmp_path / "report.html", width=1280, dark=dark)
        shades.append(browser.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert shades == ["rgb(252, 252, 251)", "rgb(19, 21, 23)"]


@pytest.mark.parametrize("width", [360, 1280])
def test_the_table_shows_the_numbers_of_the_records(browser: Chromium, tmp_path: Path, width: int) -> None:
    found = report(tmp_path, RunRecords(**run.main_records()))
    browser.open(tmp_path / "report.html", width=width)
    shown = browser.evaluate("[...document.querySelectorAll('.comparison:not(.kept) tbody tr:not(.place)')].map(r => r.innerText)")
    expected = [(row, result) for group in found.groups for row in group.rows for result in run.results()
                if (result.artifact, result.device.url) == (row.artifact, group.device.url)]  # fmt: skip
    assert len(shown) == len(expected) == len(run.results())
    by_name = {artifact.name: artifact for artifact in run.artifacts()}
    for text, (row, result) in zip(shown, expected, strict=True):
        artifact = by_name[row.artifact]
        assert artifact.parity
        low, middle, high = np.percentile(result.latency_ms, (10, 50, 90))
        said = (
            row.artifact,
            numbers.format_size(artifact.size_bytes),
            numbers.format_percent(artifact.top1),
            f"{numbers.format_ms(float(middle))} ms",
            f"{numbers.format_ms(float(low))}–{numbers.format_ms(float(high))}",
            numbers.format_factor(row.speed_up),
            f"{artifact.parity.sqnr_db:.1f} dB",
        )
        assert [number for number in said if number not in text] == []
    layers = browser.evaluate("[...document.querySelectorAll('.layers tbody tr')].map(r => r.innerText)")
    for text, layer in zip(layers, run.stats().layers, strict=True):
        assert layer.name in text
        assert numbers.format_count(layer.macs) in text
    assert browser.evaluate("document.querySelectorAll('.strip circle').length") == sum(len(r.latency_ms) for r in run.results())


def test_a_strip_is_inside_its_cell_and_nothing_is_hidden_on_paper(browser: Chromium, tmp_path: Path) -> None:
    report(tmp_path, RunRecords(**run.main_records()))
    browser.open(tmp_path / "report.html", width=688)  # A4 less its margins
    browser.send("Emulation.setEmulatedMedia", media="print", features=[])
    try:
        assert browser.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
        assert browser.evaluate("[...document.querySelectorAll('details:not([open]) dl')].every(d => d.getBoundingClientRect().height > 0)")
    finally:
        browser.send("Emulation.setEmulatedMedia", media="", features=[])
