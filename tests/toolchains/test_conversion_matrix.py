"""Every cell of the conversion matrix passes the gate or is refused with a reason; the judging and the table of the matrix are correct."""

import itertools
from datetime import date

import pytest
import torch
from support import conversion_matrix
from support.conversion_matrix import OUTPUTS, VARIANTS, Cell, Matrix, Output, Result, every, gate, parts, quick
from support.matrix_networks import NETWORKS
from support.paths import REPOSITORY

from edgecompress.network.parity import measure_parity

EXPLAINED = ("passed", "unsupported", "scheme")
TOOLCHAINS = tuple(dict.fromkeys((output.format, output.route) for output in OUTPUTS))
BENCHMARKS = REPOSITORY / "benchmarks"
FP32 = Output("torchscript", "", "fp32")


class Covered:
    """The results of the quick part, those of a toolchain when the first of them is asked for."""

    def __init__(self, folder):
        self.matrix, self.results = Matrix(folder), {}

    def __getitem__(self, cell):
        if cell not in self.results:
            same = [other for other in quick() if other.output[:2] == cell.output[:2]]
            self.results |= {result.cell: result for result in self.matrix.run(same)}
        return self.results[cell]


@pytest.fixture(scope="session")
def covered(tmp_path_factory):
    return Covered(tmp_path_factory.mktemp("matrix"))


def marked(cell):
    marks = [] if cell.output.format == "torchscript" else [pytest.mark.slow]  # quick tests of the other converters are their own
    return pytest.param(cell, marks=marks, id="-".join(filter(None, (*cell[:2], *cell.output))))


@pytest.mark.parametrize("cell", [marked(cell) for cell in quick()])
def test_a_cell_passes_the_gate_or_is_refused_with_a_reason(covered, cell):
    result = covered[cell]
    assert result.outcome in EXPLAINED, result
    assert bool(result.reason) == (result.outcome != "passed")
    assert (result.layers > 0) == (cell.method != "dense")


def test_the_quick_cells_cover_every_network_every_factorization_and_every_output():
    cells = quick()
    assert {cell.network for cell in cells} == set(NETWORKS)
    assert {cell.method for cell in cells} == set(VARIANTS)
    assert [cell.output for cell in cells] == list(OUTPUTS)


def test_each_cell_is_in_one_part_dense_networks_first_and_cells_of_a_model_together():
    dense, factorized = parts(every())
    assert {cell.method for cell in dense} == {"dense"}
    assert {cell.output for cell in dense} == set(OUTPUTS)
    assert dense[-1].output.route == "onnx2tf"
    assert sorted(dense + factorized) == sorted(every())
    models = [key for key, _ in itertools.groupby(factorized, key=lambda cell: (cell.output[:2], cell.network, cell.method))]
    assert len(models) == len(set(models))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("toolchain", TOOLCHAINS, ids=lambda toolchain: "-".join(filter(None, toolchain)))
@pytest.mark.parametrize("network", NETWORKS)
def test_every_cell_passes_the_gate_or_is_refused_with_a_reason(network, toolchain, tmp_path):
    cells = [cell for cell in every() if cell.network == network and cell.output[:2] == toolchain]
    results = Matrix(tmp_path).run(cells)
    assert {result.cell for result in results} == set(cells)
    assert not [result for result in results if result.outcome not in EXPLAINED]


def test_wrong_outputs_do_not_pass(tmp_path):
    model = Matrix(tmp_path).model(Cell("audio", "dense", FP32))
    for scheme, factor in (("fp32", 1.001), ("int8-static", -1.0)):
        outputs = tuple(factor * y for y in model.reference)
        failed, loss = gate(Output("tflite", "litert-torch", scheme), model, outputs, measure_parity(outputs, model.reference))
        assert failed
        assert not loss.is_scheme_at_fault
    failed, _ = gate(FP32, model, model.reference, measure_parity(model.reference, model.reference))
    assert not failed


def test_a_factorization_that_takes_no_layer_says_so(tmp_path):
    (result,) = Matrix(tmp_path).run([Cell("audio", "svd", FP32)])
    assert (result.outcome, result.reason, result.layers) == ("unsupported", "svd takes no layer of audio", 0)


def test_a_toolchain_that_dies_breaks_one_cell_only(tmp_path, monkeypatch):
    mortal = tmp_path / "worker.py"
    mortal.write_text(
        "import os, sys\nfrom pathlib import Path\n"
        "for path in map(Path, sys.argv[2:]):\n"
        "    if 'dynamic' in path.name:\n        os.abort()\n"
        "    path.with_suffix('.refused').write_text('UnsupportedError: not today')\n"
    )
    monkeypatch.setattr(conversion_matrix, "WORKER", mortal)
    schemes = ("fp32", "int8-dynamic", "int8-static")
    results = Matrix(tmp_path).run([Cell("audio", "dense", Output("torchscript", "", scheme)) for scheme in schemes])
    told = {result.scheme: (result.outcome, result.reason) for result in results}
    assert told == {
        "fp32": ("unsupported", "not today"),
        "int8-dynamic": ("broken", "died by signal 6"),
        "int8-static": ("unsupported", "not today"),
    }


def result(method, outcome, reason="", *, layers=0):
    return Result(network="vgg", method=method, **FP32._asdict(), outcome=outcome, reason=reason, layers=layers)


def test_the_table_counts_the_cells_that_passed_and_explains_the_others(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    from conversion_table import BEGIN, END, write_table

    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    results = [
        result("dense", "passed"),
        result("tucker2", "wrong", "off by 0.25", layers=3),
        result("cp3", "wrong", "off by 0.5", layers=3),
        result("svd", "unsupported", "svd takes no layer of vgg"),
    ]
    for _ in range(2):  # a second time changes nothing
        write_table(page, results, date(2026, 1, 2))
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    column = 2 + list(NETWORKS).index("vgg")
    (row,) = [line for line in text.splitlines() if line.startswith("| torchscript | fp32 |")]
    assert row.split(" | ")[column].strip() == "1/3 [1]"
    assert "1. **the converter is wrong**: off by 0.25 (vgg tucker2, vgg cp3)" in text
    assert "svd on vgg" in text
    assert "2026-01-02" in text


def test_the_page_shows_the_table_of_the_stored_results(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    from conversion_matrix import PAGE, RESULTS, read
    from conversion_table import rows_of

    page = PAGE.read_text()
    assert all(row in page for row in rows_of(read(RESULTS))[0])


def test_the_same_network_is_built_every_time():
    from support.matrix_networks import dense

    first = [p.clone() for p in dense("vgg").parameters()]
    dense.cache_clear()
    assert all(torch.equal(a, b) for a, b in zip(first, dense("vgg").parameters(), strict=True))
