"""Laws of the table of steps: what a step needs stands before it, and its key depends on its options and on nothing else."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from edgecompress.data import Samples
from edgecompress.data.recipe import recipe_from_model
from edgecompress.errors import ConfigError
from edgecompress.options import Options, update_options
from edgecompress.pipeline.context import open_context
from edgecompress.pipeline.runner import run as run_steps
from edgecompress.pipeline.step_keys import hash_inputs
from edgecompress.pipeline.steps import SOURCE_OPTIONS, STAGED, STEPS, stage_path, steps_up_to
from edgecompress.records import CheckResult, CompressionPlan, ExportResult, ModelStats, Record
from edgecompress.runs import open_run

# A value of each option that differs from its default and is allowed beside the others' defaults.
OTHER = {
    "target": "raspberry-pi", "format": ("tflite",), "scheme": ("fp32",), "resolution": 16, "macs_ratio": 0.5, "params_ratio": 0.5,
    "size_mb": 1.0, "latency_ms": 1.0, "speedup": 2.0, "max_drop": 1.0, "device": "local://", "cost_scheme": "fp32",
    "allocator": "minmax", "method": "svd", "layer": ("0=dense",), "data_aware": True, "sensitivity_samples": 8,
    "min_fidelity": 0.5, "max_loss": 9.0,
    "stages": 2, "weakening": 0.5, "epochs": 3, "epoch_samples": 50, "batch_size": 16, "optimizer": "adamw", "learning_rate": 0.5,
    "calibration_samples": 7, "mixed_precision": True, "layer_scheme": ("0=fp32",), "qat_epochs": 1, "tflite_route": "onnx2tf",
    "layout": "NCHW", "io": "int8", "verify_samples": 9, "max_rel": 0.5, "min_int8_agreement": 0.5, "convert_timeout_s": 5.0,
    "convert_memory_gb": 2.0, "jobs": 2, "bytecode_version": 5, "also_python": sys.executable, "threads": 2, "repetitions": 3, "seed": 1,
}  # fmt: skip
# Options that another option switches off, as `_without_effect` has them: they change no key beside the defaults.
SILENT = {
    "analyze": set(),
    # Presets round ranks alike; without a latency no device has a part in a plan; training data make the guard needless.
    "plan": {"target", "device", "cost_scheme", "threads", "mixed_precision", "min_fidelity", "weakening"},
    "decompose": {"sensitivity_samples", "seed"},
    "finetune": {"stages", "weakening"},
    "quantize": {"target", "format", "min_int8_agreement"},
    "qat": set(),
}
TIMED = {"device"}  # asking for a device makes a plan one by latencies


@pytest.fixture
def context(tmp_path):
    """A run of a small network whose steps all have files, whatever is in them."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))
    data = Samples(torch.rand(32, 8), torch.randint(4, (32,)), source="drawn")
    recipe = recipe_from_model(model, (torch.zeros(1, 8),), name="net", train_data=data, eval_data=data)
    with open_run(tmp_path / "run", name="net", recipe="python") as run:
        run.set_options(Options())
        made = open_context(run, recipe)
        run_steps(made, "plan")
        for step in STEPS.values():
            for stage in (1, 2) if step.name in STAGED else (2,):
                name = stage_path(step.name, stage, 2) if step.name in STAGED else step.name
                if not run.path(step.files[0]).exists():
                    run.path(step.files[0]).write_bytes(b"{}")
                run.finish(name, "", step.files[:1], 0.0)
        yield made


@pytest.mark.parametrize("name", STEPS)
def test_a_step_stands_behind_those_it_needs_and_writes_files_of_its_own(name):
    step, names = STEPS[name], list(STEPS)
    assert step.name == name
    assert all(names.index(other) < names.index(name) for other in step.needs)
    assert issubclass(step.record, Record)
    others = [other for other in STEPS.values() if other is not step]
    assert not {*step.files} & {file for other in others for file in other.files}
    assert step.record not in {other.record for other in others}


def test_every_option_belongs_to_a_step_and_every_option_of_a_step_exists():
    fields = set(Options.__struct_fields__)
    assert {option for step in STEPS.values() for option in step.options} == fields
    assert set(OTHER) | {"weights", "data", "table"} == fields


@pytest.mark.parametrize("name", [name for name, step in STEPS.items() if step.reusable])
def test_the_key_of_a_step_depends_on_its_options_and_on_no_other(context, name):
    step, options = STEPS[name], context.options
    before = hash_inputs(context, step)
    for option, value in OTHER.items():
        if option == "stages":  # moves the step to another place, which test_staged_runs looks at
            continue
        context.run.set_options(update_options(options, {option: value}))
        changed = hash_inputs(context, step) != before
        has_effect = (option in step.options and option not in {*SOURCE_OPTIONS, *SILENT[name]}) or (name == "plan" and option in TIMED)
        assert changed == has_effect, option
    context.run.set_options(options)
    assert hash_inputs(context, step) == before


def test_another_file_of_a_step_changes_the_keys_of_those_that_need_it(context):
    for needed in ("analyze", "plan", "finetune", "quantize"):
        before = {name: hash_inputs(context, step) for name, step in STEPS.items() if step.reusable}
        file = context.run.path(STEPS[needed].files[0])
        file.write_bytes(file.read_bytes() + b"\n")
        context.run.finish(needed, "", STEPS[needed].files[:1], 0.0)
        changed = {name for name, key in before.items() if hash_inputs(context, STEPS[name]) != key}
        assert changed == {name for name in before if needed in STEPS[name].needs}


def test_a_budget_in_another_form_is_the_same_budget(context):
    before = hash_inputs(context, STEPS["plan"])
    context.run.set_options(update_options(context.options, {"macs_ratio": 0.35}))
    assert hash_inputs(context, STEPS["plan"]) == before


@pytest.mark.parametrize(
    ("options", "last", "names"),
    [
        ({}, "decompose", ["analyze", "plan", "decompose"]),
        ({}, "export", ["analyze", "plan", "decompose", "finetune", "quantize", "export"]),
        ({"qat_epochs": 1}, "export", [*STEPS]),
        ({"qat_epochs": 1, "scheme": ("fp32",)}, "export", ["analyze", "plan", "decompose", "finetune", "quantize", "export"]),
    ],
)
def test_a_step_runs_what_it_needs_in_the_order_of_the_table(options, last, names):
    assert [step.name for step in steps_up_to(last, update_options(Options(), options))] == names


def test_steps_are_run_once_and_reused_with_their_records(tmp_path):
    told = []
    data = Samples(torch.rand(32, 8), torch.randint(4, (32,)), source="drawn")
    recipe = recipe_from_model(nn.Sequential(nn.Linear(8, 64), nn.Linear(64, 64)), (torch.zeros(1, 8),), name="net", train_data=data)
    with open_run(tmp_path / "run", name="net", recipe="python") as run:
        run.set_options(Options())
        context = open_context(run, recipe, on_step=lambda name, record, _seconds, reused: told.append((name, type(record), reused)))
        first = run_steps(context, "plan")
        assert run_steps(context, "plan") == first
    kinds = [("check", CheckResult), ("analyze", ModelStats), ("plan", CompressionPlan)]
    assert told == [(*kind, reused) for reused in (False, True) for kind in kinds]


def test_stages_without_training_data_are_refused_before_anything_is_computed(tmp_path):
    recipe = recipe_from_model(nn.Sequential(nn.Linear(8, 4)), (torch.zeros(1, 8),), name="net")
    with open_run(tmp_path / "run", name="net", recipe="python") as run:
        run.set_options(update_options(Options(), {"stages": 2}))
        with pytest.raises(ConfigError, match=r"no training data for --stages; add train_data\(\), give --data, or ask for one stage"):
            run_steps(open_context(run, recipe), "export")
        assert run.record.steps == {}


def test_the_table_is_read_without_torch():
    code = "import sys, edgecompress.pipeline.steps; print([m for m in ('torch', 'numpy', 'typer') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "[]\n"


def test_no_step_is_a_method_and_no_context_inherits():
    sources = Path(sys.modules["edgecompress.pipeline.context"].__file__).parent.glob("*.py")
    assert [path.name for path in sources if path.name.startswith("make_")]
    from edgecompress.pipeline.context import RunContext

    assert RunContext.__bases__ == (object,)
    assert not {*STEPS} & {*dir(RunContext)}
    assert "refused" in ExportResult.__struct_fields__


class Unregistered(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.rest = nn.Linear(64, 64), [nn.Linear(64, 64)]

    def forward(self, x):
        return self.rest[0](self.first(x))


def test_macs_of_weights_that_no_layer_holds_are_counted(tmp_path):
    recipe = recipe_from_model(
        Unregistered(), (torch.zeros(1, 64),), name="net", train_data=Samples(torch.rand(16, 64), None, source="drawn")
    )
    with open_run(tmp_path / "run", name="net", recipe="python") as run:
        run.set_options(update_options(Options(), {"macs_ratio": 0.3}))
        context = open_context(run, recipe)
        stats = run_steps(context, "analyze")
        assert stats.macs == 2 * 64 * 64
        assert sum(stats.other_macs.values()) == 64 * 64
        with pytest.raises(ConfigError, match=r"MACs ratio 0\.3: the lowest this network reaches is 0\.[56]"):
            run_steps(context, "plan")
