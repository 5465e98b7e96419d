"""Laws of the whole package: imports, sizes of files, help of commands, and the cost of starting the program."""

import ast
import importlib
import inspect
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main
from support.paths import PACKAGE, PROGRAMS, REPOSITORY, python_files

import edgecompress
from edgecompress.cli import app
from edgecompress.cli.help import COMMAND_HELP
from edgecompress.cli.steps import NOT_OFFERED
from edgecompress.cli.views.steps import STEP_VIEWS
from edgecompress.factorizations import METHODS, Factorization
from edgecompress.options import Options
from edgecompress.pipeline.steps import STEPS
from edgecompress.records import Record

SOURCES = python_files(*PROGRAMS)
COMMANDS = typer.main.get_command(app).commands
HEAVY = ("torch", "numpy", "tensorflow", "PIL", "jinja2", "safetensors", "asyncssh", "adbutils", "litert_torch", "ai_edge_litert")


def loaded_after(code):
    """Which heavy packages a fresh interpreter has imported after `code`."""
    code = f"import json, sys\n{code}\nprint(json.dumps([m for m in {HEAVY!r} if m in sys.modules]), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    return json.loads(done.stderr.splitlines()[-1])


@pytest.mark.parametrize("name", edgecompress.__all__)
def test_every_public_name_resolves_and_is_described(name):
    value = getattr(edgecompress, name)
    assert value.__name__ == name
    assert inspect.getdoc(value)


def test_an_unknown_public_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'compress_model'"):
        _ = edgecompress.compress_model


def test_public_names_stay_functions_when_their_modules_are_imported():
    for path in PACKAGE.rglob("[a-z]*.py"):
        importlib.import_module(".".join(path.relative_to(REPOSITORY).with_suffix("").parts))
    assert [name for name in edgecompress.__all__ if inspect.ismodule(getattr(edgecompress, name))] == []


def test_importing_a_module_leaves_no_file_open():
    names = [".".join(path.relative_to(REPOSITORY).with_suffix("").parts) for path in PACKAGE.rglob("[a-z]*.py")]
    code = f"import gc, importlib, io\nfor name in {names!r}:\n    importlib.import_module(name)\n"
    code += "print([found for found in gc.get_objects() if isinstance(found, io.IOBase) and not found.closed and found.fileno() > 2])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    "module", ["edgecompress", "edgecompress.cli", "edgecompress.records", "edgecompress.options", "edgecompress.runs"]
)
def test_modules_that_the_command_line_starts_with_import_nothing_heavy(module):
    assert loaded_after(f"import {module}") == []


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["export", "--help"], ["no-such-command"], ["export", "--epochs", "x"]])
def test_help_and_typing_errors_import_nothing_heavy(arguments):
    code = f"from edgecompress.cli import main\ntry:\n    main({arguments!r})\nexcept SystemExit:\n    pass"
    assert loaded_after(code) == []


@pytest.mark.parametrize("arguments", [["--scheme", "int4"], ["--target", "iphone"], ["--macs-ratio", "2"], ["--layer", "x"]])
def test_a_wrong_option_is_refused_before_torch_is_imported(arguments, tmp_path):
    code = f"import os\nos.chdir({str(tmp_path)!r})\nfrom edgecompress.cli import main\ntry:\n    main({['export', *arguments]!r})\n"
    assert loaded_after(f"{code}except SystemExit as stop:\n    assert stop.code == 2") == []
    assert list(tmp_path.iterdir()) == []


def help_of(name, width=80, *, every=False):
    context = typer.Context(
        COMMANDS[name], info_name=f"edgecompress {name}", max_content_width=width, terminal_width=width, obj={"--help-all": every}
    )
    return COMMANDS[name].get_help(context)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_each_command_fits_a_screen_and_ends_with_an_example(name):
    lines = help_of(name).rstrip().splitlines()
    assert len(lines) <= 30
    assert max(map(len, lines)) <= 80
    assert help_of(name).rstrip().rpartition("\n\n")[2].strip().startswith(f"Example: edgecompress {name}")


def test_the_list_of_commands_shows_each_first_sentence_whole():
    done = subprocess.run(
        [sys.executable, "-m", "edgecompress", "--help"], capture_output=True, text=True, check=True, env=os.environ | {"COLUMNS": "80"}
    )
    assert "..." not in done.stdout.partition("Commands:")[2]
    assert all(told.text.partition(". ")[0] in done.stdout for told in COMMAND_HELP.values())


@pytest.mark.parametrize("name", COMMANDS)
def test_help_all_names_every_option(name):
    full, short = help_of(name, every=True), help_of(name)
    flags = [flag for option in COMMANDS[name].params for flag in option.opts if flag.startswith("--")]
    assert [flag for flag in flags if flag not in full] == []
    rare = [flag for option in COMMANDS[name].rare for flag in option.opts]
    assert [flag for flag in rare if f" {flag} " in short] == []
    assert (f"--help-all shows {len(rare)} more." in short) == bool(rare)


def test_help_all_is_understood_by_the_program():
    argv = [sys.executable, "-m", "edgecompress", "export", "--help-all"]
    assert "--max-rel" in subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    assert "--max-rel" not in help_of("export")


@pytest.mark.parametrize("name", COMMANDS)
def test_the_example_in_the_help_parses(name):
    example = help_of(name, 200).rstrip().splitlines()[-1].strip().removeprefix("Example: ")
    program, command, *arguments = shlex.split(example)
    assert (program, command) == ("edgecompress", name)
    COMMANDS[name].make_context(name, arguments)


def test_every_command_has_help_for_every_option():
    assert list(COMMAND_HELP) == list(COMMANDS)
    for name, command in COMMANDS.items():
        assert command.help, name
        assert [p.name for p in command.params if not getattr(p, "help", None)] == [], name


def test_every_option_of_a_run_belongs_to_a_step_and_is_a_flag_of_its_command():
    options = set(Options.__struct_fields__)
    assert {option for step in STEPS.values() for option in step.options} == options
    for step in STEPS.values():
        flags = {parameter.name for parameter in COMMANDS[step.name].params}
        own = set(step.options) - set(NOT_OFFERED.get(step.name, ()))
        assert flags & options == (options if step.name == "export" else own)


def test_every_step_has_a_view():
    assert list(STEP_VIEWS) == list(STEPS)


def test_every_method_has_the_functions_of_the_protocol_with_its_signatures():
    wanted = {name for name, value in vars(Factorization).items() if inspect.isfunction(value) and not name.startswith("_")}
    assert {"reject", "max_rank", "skeleton", "fit", "reconstruct"} <= wanted
    for name, method in METHODS.items():
        assert issubclass(method.Options, Record), name
        assert isinstance(method.DATA_AWARE, bool), name
        for function in wanted:
            own = list(inspect.signature(getattr(method, function)).parameters)
            assert own == list(inspect.signature(getattr(Factorization, function)).parameters)[1:], (name, function)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(REPOSITORY)))
def test_files_are_short_and_only_the_command_line_prints(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    if path.is_relative_to(PACKAGE) and not path.is_relative_to(PACKAGE / "cli"):
        calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
        assert [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"] == []


def test_no_shell_and_no_code_from_data():
    """Commands are argument lists; arrays and checkpoints are read without pickle."""
    for path in SOURCES:
        for call in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)):
            called = ast.unparse(call.func)
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            where = f"{path.relative_to(REPOSITORY)}:{call.lineno}: {called}"
            assert given.get("shell", "False") == "False", where
            assert called not in {"eval", "exec", "os.system", "os.popen", "pickle.load", "pickle.loads"}, where
            if called == "torch.load":
                assert given.get("weights_only") == "True", where
            if called in {"np.load", "numpy.load"}:
                assert given.get("allow_pickle") == "False", where


def test_the_import_contracts_hold():
    program = shutil.which("lint-imports", path=Path(sys.executable).parent) or shutil.which("lint-imports")
    done = subprocess.run([program, "--no-cache"], cwd=REPOSITORY, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout
    assert " 0 broken" in done.stdout


def test_every_module_of_the_package_has_a_docstring():
    assert [str(p) for p in PACKAGE.rglob("*.py") if p.stat().st_size and not ast.get_docstring(ast.parse(p.read_text()))] == []
