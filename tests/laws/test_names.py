"""What things may be called: no retired name, no class name twice, no function named by a participle, and few modules at the root."""

import ast
import itertools
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.paths import PACKAGE, PROGRAMS, REPOSITORY, TESTS, python_files

# Names that said too little, and the names that took their place.
RETIRED = {
    "opened": "unfuse_attention, restore_dense", "drawn": "shuffled_batches", "parted": "chunks", "twice": "retry_once",
    "prove": "check_artifact", "Departs": "Divergence", "strays": "noise_failure",
    "spoilt": "nonfinite_tensors", "barred": "masked", "outdone": "slower_in_int8",
    "FEWEST": "MIN_SAMPLES and the like", "AGAIN": "REMEASURE_ROUNDS and the like", "STEEPEST": "MAX_GRAD_NORM",
    "left": "remaining_fraction", "below": "lower_ranks", "between": "reachable_ranks",
    "weigh": "solve", "Weighed": "Solution", "Considered": "Candidates", "known": "loss_cache", "replay": "activation_cache",
    "stranger": "third_party", "Extremes": "an observer's name", "rounding": "gptq", "cutting": "subgraph", "on_grids": "fake_quantize",
}  # fmt: skip
PARTICIPLE = re.compile(r"[a-z0-9]*(ed|en|own|awn|ept|aid|old|ade|ound)")
VERBS_AND_NOUNS = {"embed", "golden", "hidden", "open", "round", "seed", "shared", "speed", "unfold"}  # that end as participles do
PREPOSITIONS = {
    "above",
    "after",
    "along",
    "among",
    "at",
    "before",
    "below",
    "between",
    "beyond",
    "by",
    "inside",
    "of",
    "under",
    "up",
    "with",
    "within",
}
SAME_IN_EACH = {"Options"}  # the protocol of factorizations gives the options of every method this name
FILES = python_files(*PROGRAMS, "tests")
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def nodes_of(path: Path) -> Iterator[ast.AST]:
    return ast.walk(ast.parse(path.read_text()))


def place(path: Path, node: ast.AST) -> str:
    return f"{path.relative_to(REPOSITORY)}:{getattr(node, 'lineno', 1)}"


def names_defined(path: Path) -> Iterator[tuple[ast.AST, str]]:
    """Yield the module's own name, its functions and classes, and what it assigns outside of functions."""
    tree = ast.parse(path.read_text())
    yield tree, path.stem
    for node in ast.walk(tree):
        if isinstance(node, (*FUNCTIONS, ast.ClassDef)):
            yield node, node.name
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        yield from ((node, target.id) for target in targets if isinstance(target, ast.Name))


def test_no_retired_name_is_defined_again():
    found = [f"{place(path, node)} {name}: say {RETIRED[name]}" for path in FILES for node, name in names_defined(path) if name in RETIRED]
    assert found == []


def test_the_documents_name_no_retired_name():
    pages = [*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md"), *(REPOSITORY / "device_tests").rglob("*.md")]
    quoted = re.compile("`(?:[a-z_.]+\\.)?(" + "|".join(RETIRED) + ")(?:\\(.*?\\))?`")
    assert [f"{page.relative_to(REPOSITORY)}: {match[0]}" for page in pages for match in quoted.finditer(page.read_text())] == []


def test_no_two_public_classes_share_a_name():
    homes = defaultdict(list)
    for path in PACKAGE.rglob("*.py"):
        for node in nodes_of(path):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_") and node.name not in SAME_IN_EACH:
                homes[node.name].append(place(path, node))
    assert {name: places for name, places in homes.items() if len(places) > 1} == {}


def is_no_name(name: str) -> bool:
    """Whether a function's name is a participle or a preposition and nothing else."""
    bare = name.strip("_")
    is_participle = bool(PARTICIPLE.fullmatch(bare)) and bare not in VERBS_AND_NOUNS
    return not name.startswith("__") and (bare in PREPOSITIONS or is_participle)


@pytest.mark.parametrize("name", ["opened", "_drawn", "kept", "found", "made", "between", "of"])
def test_a_participle_or_a_preposition_is_no_name(name):
    assert is_no_name(name)


@pytest.mark.parametrize("name", ["open_run", "is_found", "speed", "load", "nodes_of", "made_from", "golden", "__len__"])
def test_a_verb_a_noun_or_several_words_are_a_name(name):
    assert not is_no_name(name)


def test_no_function_is_named_by_a_participle_or_a_preposition_alone():
    found = [
        f"{place(path, node)} {node.name}"
        for path in PACKAGE.rglob("*.py")
        for node in nodes_of(path)
        if isinstance(node, FUNCTIONS) and is_no_name(node.name)
    ]
    assert found == []


def test_few_modules_lie_at_the_root_of_the_package():
    loose = sorted(path.stem for path in PACKAGE.glob("*.py") if not path.stem.startswith("__"))
    assert len(loose) <= 8, loose


def test_test_files_import_no_test_file():
    found = []
    for path in TESTS.rglob("*.py"):
        for node in nodes_of(path):
            names = [alias.name for alias in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
            parts = itertools.chain(*(name.split(".") for name in (*names, getattr(node, "module", None) or "")))
            found += [f"{place(path, node)} {part}" for part in parts if re.match("test_", part)]
    assert found == []
