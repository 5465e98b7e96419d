"""Parameters of commands that are made from fields, and help that once said something else."""

import pytest
import typer.main

from edgecompress.cli import app
from edgecompress.cli.parameters import make_record
from edgecompress.cli.steps import COMMAND_DEFAULTS, NOT_OFFERED
from edgecompress.errors import ConfigError
from edgecompress.options import QAT_COMMAND_EPOCHS, Options
from edgecompress.pipeline.steps import STEPS
from edgecompress.records import BenchmarkOptions
from edgecompress.records.fields import describe_option, option_fields

COMMANDS = typer.main.get_command(app).commands


def options_of(name):
    return {option.name: option for option in COMMANDS[name].params}


@pytest.mark.parametrize("name", ["device", "table", "scheme"])
def test_profile_has_help_of_its_own_for_shared_options(name):
    assert options_of("profile")[name].help != options_of("export")[name].help
    assert "measured" in options_of("profile")["device"].help


def test_mixed_precision_says_what_it_keeps():
    assert options_of("quantize")["mixed_precision"].help == "Keep the layers that int8 hurts most in fp32."
    assert options_of("quantize")["mixed_precision"].secondary_opts == ["--no-mixed-precision"]


def test_samples_means_one_thing():
    named = [name for name, command in COMMANDS.items() for option in command.params if "--samples" in option.opts]
    assert named == ["evaluate"]
    assert options_of("quantize")["calibration_samples"].opts == ["--calibration-samples"]


def test_the_help_of_qat_tells_the_epochs_that_qat_trains():
    assert COMMAND_DEFAULTS["qat"] == {"qat_epochs": QAT_COMMAND_EPOCHS}
    assert options_of("qat")["qat_epochs"].help.endswith(f"[{QAT_COMMAND_EPOCHS}].")
    assert options_of("export")["qat_epochs"].help.endswith("[0].")


def test_qat_offers_no_option_that_would_do_fine_tuning_again():
    shared = {*STEPS["qat"].options} & {*STEPS["finetune"].options}
    assert shared == {*NOT_OFFERED["qat"]}
    assert not {*options_of("qat")} & shared


@pytest.mark.parametrize(("command", "record"), [("export", Options), ("bench", BenchmarkOptions)])
def test_flags_are_the_fields(command, record):
    flags = options_of(command)
    for name, field in option_fields(record).items():
        assert flags[name].help == describe_option(field)
        assert flags[name].default is None
        assert flags[name].multiple == field.is_repeatable


def test_missing_values_have_their_defaults_and_given_ones_their_ranges():
    assert make_record(BenchmarkOptions, {"threads": 2, "repetitions": None}) == BenchmarkOptions(threads=2)
    with pytest.raises(ConfigError, match="threads 0: must be at least 1; the default is 1"):
        make_record(BenchmarkOptions, {"threads": 0})
