"""The documentation keeps its promises: links resolve, commands parse, snippets compile and run, generated pages are up to date."""

import ast
import importlib
import json
import pkgutil
import re
import shlex
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
import typer
from support.chromium import Chromium
from support.paths import REPOSITORY
from support.require import require

from edgecompress.cli.main import app

DOCS = REPOSITORY / "docs"
GUIDES = [REPOSITORY / "README.md", *sorted(DOCS.rglob("*.md")), *sorted((REPOSITORY / "examples").rglob("README.md"))]
PAGES = [
    *GUIDES,
    REPOSITORY / "CHANGELOG.md",  # names options that are gone
    REPOSITORY / "converters" / "README.md",
    *sorted((REPOSITORY / "device_tests").rglob("README.md")),  # name options of their own programs
]
README_BYTES, PICTURE_BYTES = 5000, 150_000
LINE_ENDS = ("…", "...")
# Options of benchmarks, pytest, pip and the emulated devices, which pages name beside those of edgecompress.
OTHER_OPTIONS = {
    "--quick", "--write", "--table", "--networks", "--cifar", "--rate", "--check", "--golden", "--max-slowdown", "--artifact", "--results",
    "--fault", "--root", "--board", "--userland", "--method", "--help", "--help-all", "--debug", "--verbose", "--version", "--cov",
}  # fmt: skip


class Block(NamedTuple):
    page: Path
    language: str
    text: str


@cache
def blocks() -> list[Block]:
    found = []
    for page in PAGES:
        found += [
            Block(page, *match.groups()) for match in re.finditer(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
        ]
    return found


def prose(page: Path) -> str:
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def short(page: Path) -> str:
    return str(page.relative_to(REPOSITORY))


# --- links ---


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and the site make them."""
    found = set()
    for heading in re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE):
        text = re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).strip()
        found.add(re.sub(r"[ -]+", "-", text))
    return found


@pytest.mark.parametrize("page", PAGES, ids=short)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+://", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{short(page)}: no {target}"
        if anchor and there.suffix == ".md":
            assert anchor in anchors(there), f"{short(page)}: {short(there)} has no #{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=short)
def test_every_path_of_the_repository_exists(page: Path) -> None:
    for path in re.findall(r"`((?:edgecompress|converters|device_tests|tests|benchmarks|examples|docs)/[\w./-]+)`", prose(page)):
        if re.search(r"[A-Z]{3}", path.removesuffix("README.md")):
            continue  # `tests/unit/ROOM`: a placeholder
        assert (REPOSITORY / path).exists() or (page.parent / path).exists(), f"{short(page)}: no {path}"


@pytest.mark.parametrize("page", GUIDES, ids=short)
def test_every_name_of_the_package_exists(page: Path) -> None:
    for name in re.findall(r"`(edgecompress(?:\.[a-zA-Z_]\w*)+)(?:\([^`]*\))?`", prose(page)):
        pkgutil.resolve_name(name)


# --- commands ---


def commands() -> Iterator[tuple[Path, str]]:
    """Yield every line of a code block that runs edgecompress, without prompt, environment and comment."""
    for block in blocks():
        if block.language in ("", "bash", "sh", "console"):
            for line in block.text.replace("\\\n", " ").splitlines():
                if match := re.match(r"(?:\$ )?(?:sudo env \S+ )?(edgecompress \S.*)", line):
                    yield block.page, match[1].partition("  #")[0].partition(" | ")[0].strip()


def test_every_command_is_one_that_the_real_parser_takes() -> None:
    group = typer.main.get_command(app)
    checked = 0
    for page, line in commands():
        arguments = [word for word in shlex.split(line.replace("$(", "").replace(")", ""), comments=True)[1:] if word not in LINE_ENDS]
        context = group.make_context("edgecompress", list(arguments), obj={})
        name, command, rest = group.resolve_command(context, [*context._protected_args, *context.args])
        try:
            command.make_context(name, rest, parent=context)
        except Exception as error:
            raise AssertionError(f"{short(page)}: {line}: {error}") from error
        checked += 1
    assert checked > 60


def known_options() -> set[str]:
    group = typer.main.get_command(app)
    every = {flag for command in group.commands.values() for option in command.params for flag in (*option.opts, *option.secondary_opts)}
    return every | OTHER_OPTIONS


@pytest.mark.parametrize("page", GUIDES, ids=short)
def test_every_option_in_the_text_exists(page: Path) -> None:
    known = known_options()
    for code in re.findall(r"`([^`\n]+)`", prose(page)):
        for flag in re.findall(r"(?<![\w-])--[a-z][\w-]*", code):
            assert flag in known, f"{short(page)}: `{code}` names {flag}, which no command has"


def test_programs_and_make_targets_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        text = page.read_text()
        for program in re.findall(r"python (benchmarks/\w+\.py|examples/[\w/]+\.py|docs/[\w/]+\.py|device_tests/[\w/]+\.py)", text):
            assert (REPOSITORY / program).exists(), f"{short(page)}: no {program}"
        for target in re.findall(r"(?:`|^)make ([\w-]+)", text, re.MULTILINE):
            assert target in targets, f"{short(page)}: no `make {target}`"


# --- snippets ---


def test_every_snippet_is_well_formed() -> None:
    for block in blocks():
        try:
            if block.language == "python":
                compile(block.text, short(block.page), "exec")
            elif block.language == "json":
                json.loads(block.text)
            elif block.language == "toml":
                tomllib.loads(block.text)
        except (SyntaxError, ValueError) as error:
            raise AssertionError(f"{short(block.page)}: {error}\n{block.text}") from error


def test_the_example_of_a_factorization_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (text,) = [block.text for block in blocks() if block.text.startswith("# one layer: factorize")]
    exec(compile(text, "factorizations.md", "exec"), {})
    assert 0 < float(capsys.readouterr().out) < 1


def test_the_quickstart_s_network_and_recipe_run(tmp_path: Path) -> None:
    """Its three files, trained for an epoch, and the first step of a run; the commands after that are those of every run."""
    files = {}
    for block in blocks():
        if block.page.name == "quickstart.md" and (match := re.match(r"# (digits/\w+\.py)\n", block.text)):
            files[match[1]] = block.text
    assert sorted(files) == ["digits/network.py", "digits/recipe.py", "digits/train.py"]
    (tmp_path / "digits").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(re.sub(r"epochs = \d+", "epochs = 1", text))
    edgecompress = Path(sys.executable).with_name("edgecompress")
    for argv in ([sys.executable, "-m", "digits.train"], [edgecompress, "analyze", "digits", "--json"]):
        done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=240)
        assert done.returncode == 0, done.stderr
    stats = json.loads(done.stdout)
    assert stats["model"] == "digits"
    assert len(stats["layers"]) == 7


def outputs_recipes() -> list[str]:
    return [block.text for block in blocks() if block.page.name == "outputs-and-metrics.md" and block.language == "python"]


@pytest.mark.parametrize("number", range(4))
def test_the_recipes_of_outputs_and_metrics_run(tmp_path: Path, number: int) -> None:
    """Each is loaded, its outputs are read, and its metric and loss are tried on a batch, as at the start of a run."""
    import torch

    from edgecompress.data import fetch_pairs
    from edgecompress.data.losses import check_loss
    from edgecompress.data.metrics import check_metric
    from edgecompress.data.recipe import load_recipe
    from edgecompress.network.batches import output_names, structure_of
    from edgecompress.network.exported import to_program
    from edgecompress.network.output_reading import read_specs
    from edgecompress.network.surgery import forward

    texts = outputs_recipes()
    assert len(texts) == 4
    (tmp_path / "recipe.py").write_text(texts[number])
    recipe = load_recipe(str(tmp_path))
    torch.manual_seed(0)
    network = recipe.model().eval()
    names, structure = output_names(network, recipe.example_inputs), structure_of(network, recipe.example_inputs)
    specs = read_specs(to_program(network, recipe.example_inputs), names=names, declared=recipe.outputs, subject=recipe.outputs_place)
    wanted = [["logits", "values"], ["values"], ["values"], ["independent", "values"]]
    assert [spec.kind for spec in specs] == wanted[number]
    if recipe.eval_data is not None:
        inputs, targets = fetch_pairs(recipe.eval_data(), 64, example=recipe.example_inputs)
        outputs = forward(network, inputs)
        headline = check_metric(recipe.metric, outputs, targets, structure)[0]
        assert (headline.name, headline.higher_is_better) == [("", True), ("mae", False), ("f1", True), ("pixels", True)][number]
        if recipe.loss is not None:
            assert check_loss(recipe.loss, outputs, targets, structure) > 0


# --- generated pages ---


@pytest.fixture(scope="module")
def generate() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(DOCS / "site"))
        yield importlib.import_module("generate")


def test_generated_pages_are_what_their_generators_give(generate: ModuleType) -> None:
    for path, text in generate.pages().items():
        assert path.read_text() == text, f"{short(path)} is not up to date; run `python docs/site/generate.py`"


def test_every_field_of_an_artifact_is_on_the_page(generate: ModuleType) -> None:
    from edgecompress.records import Artifact

    page = generate.pages()[DOCS / "reference" / "records.md"]
    section = page.partition("### Artifact\n")[2].partition("\n### ")[0]
    assert all(f"| `{field}` |" in section for field in Artifact.__struct_fields__)


def test_the_readme_fits_one_screen_and_its_picture_is_small() -> None:
    assert len((REPOSITORY / "README.md").read_bytes()) <= README_BYTES
    assert (DOCS / "assets" / "report.webp").stat().st_size <= PICTURE_BYTES


def test_guides_have_no_dates() -> None:
    for page in (*(DOCS / "guide").glob("*.md"), *(DOCS / "methods").glob("*.md")):
        assert not re.search(r"\b20\d\d-\d\d-\d\d\b", page.read_text()), f"{short(page)}: dated figures belong to docs/results"


# --- benchmarks ---


@pytest.mark.parametrize("program", sorted((REPOSITORY / "benchmarks").glob("*.py")), ids=lambda path: path.name)
def test_benchmarks_import_names_that_exist(program: Path) -> None:
    for node in ast.walk(ast.parse(program.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in ("edgecompress", "support"):
            module = importlib.import_module(node.module)
            for alias in node.names:
                if not hasattr(module, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")


def test_a_benchmark_writes_its_rows_into_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice: the second run replaces the rows of the first, and the rest of the page stays."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    rows = importlib.import_module("rows")
    page = tmp_path / "page.md"
    page.write_text("# Title\n\nKept.\n")
    for ours in (3.0, 1.0):
        table = rows.Rows(page)
        table.add("milliseconds", ours=ours, peer=2.0, bound=1.0, beside_it=7.0)
        with pytest.raises(SystemExit) as end:
            table.end()
        assert end.value.code == (ours > 2)
    text = page.read_text()
    assert text.startswith("# Title\n\nKept.\n")
    assert text.count("| milliseconds |") == 1
    assert "| milliseconds | 1 | 2 | 0.5 | <= 1 | yes | beside it 7 |" in text


# --- the site ---


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    argv = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--config-file", DOCS / "site" / "mkdocs.yml", "--site-dir", folder]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_site_builds_strictly(site: Path) -> None:
    assert (site / "index.html").exists()
    assert (site / "reference" / "records.html").exists()


def test_the_site_opens_from_disk_without_a_network_and_its_search_works(site: Path, tmp_path: Path) -> None:
    with Chromium(require("chromium", "chromium"), tmp_path / "profile") as browser:
        browser.open(site / "quickstart.html", width=1440)
        browser.send("Emulation.setFocusEmulationEnabled", enabled=True)
        browser.evaluate("document.querySelector('[data-md-component=search-query]').focus()")
        wait_for(browser, "document.querySelector('[data-md-toggle=search]').checked")
        browser.send("Input.insertText", text="precisio")
        for kind in ("keyDown", "keyUp"):
            browser.send("Input.dispatchKeyEvent", type=kind, key="n", text="n" if kind == "keyDown" else "")
        wait_for(browser, "document.querySelectorAll('.md-search-result__item').length > 0")
        requests = [event["params"]["request"]["url"] for event in browser.events if event.get("method") == "Network.requestWillBeSent"]
    assert requests
    assert all(url.startswith(("file:", "data:")) for url in requests), requests


def wait_for(browser: Chromium, expression: str, *, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not browser.evaluate(expression):
        assert time.monotonic() < end, f"not within {seconds} s: {expression}"
        time.sleep(0.1)
