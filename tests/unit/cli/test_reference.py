"""The reference pages are what the commands and the fields say."""

import subprocess
import sys

import pytest
from support.paths import REPOSITORY

from edgecompress.cli.reference import make_pages
from edgecompress.options import Options
from edgecompress.records import BenchmarkOptions
from edgecompress.records.evaluation import EvaluationOptions

PAGES = make_pages()


@pytest.mark.parametrize("name", PAGES)
def test_the_committed_page_is_the_generated_one(name):
    assert (REPOSITORY / "docs" / "reference" / name).read_text() == PAGES[name], (
        "run `python -m edgecompress.cli.reference docs/reference`"
    )


def test_the_generator_writes_every_page(tmp_path):
    subprocess.run([sys.executable, "-m", "edgecompress.cli.reference", tmp_path], check=True)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == PAGES


@pytest.mark.parametrize("record", [Options, BenchmarkOptions, EvaluationOptions])
def test_every_option_has_a_row(record):
    assert [name for name in record.__struct_fields__ if f"\n| `{name}` |" not in PAGES["options.md"]] == []


def test_no_cell_breaks_its_table():
    for line in "\n".join(PAGES.values()).splitlines():
        if line.startswith("|"):
            assert line.count("|") in {3, 4, 6, 7}, line
