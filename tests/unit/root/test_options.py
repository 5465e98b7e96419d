"""The options of a run: values that are taken, values that are refused, and their meaning."""

import inspect

import msgspec
import pytest

from edgecompress.devices.bench import bench
from edgecompress.devices.evaluate import evaluate
from edgecompress.errors import ConfigError
from edgecompress.factorizations import METHODS
from edgecompress.options import QAT_COMMAND_EPOCHS, Choice, Options, parse_fixed_layers, parse_method, select_outputs, update_options
from edgecompress.records import BenchmarkOptions
from edgecompress.records.evaluation import EvaluationOptions
from edgecompress.records.fields import check_values, describe_option, option_fields
from edgecompress.recovery.finetune import USUAL_RATE, FinetuneOptions
from edgecompress.recovery.qat import QatOptions
from edgecompress.targets import FORMATS, OPTIMIZERS, SCHEMES, TARGETS


def test_given_values_replace_and_none_keeps_the_old_one():
    first = update_options(Options(), {"macs_ratio": 0.5, "scheme": ["fp32"], "epochs": None})
    assert (first.macs_ratio, first.scheme, first.epochs) == (0.5, ("fp32",), 8)
    assert update_options(first, {"epochs": 2}).macs_ratio == 0.5
    assert update_options(Options(), {"learning_rate": 1}).learning_rate == 1.0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"macs_ration": 0.5}, "unknown option 'macs_ration'; did you mean macs_ratio?"),
        ({"zzzz": 0.5}, "unknown option 'zzzz'; see edgecompress.options.Options"),
        ({"macs_ratio": "half"}, r"options: Expected `float \| null`, got `str` - at `\$.macs_ratio`"),
        ({"epochs": 2.5}, "options: Expected `int`"),
        ({"target": "iphone"}, "unknown target 'iphone'; choose from android, raspberry-pi"),
        ({"format": ("coreml",)}, "unknown format 'coreml'; choose from tflite, torchscript, "),
        ({"tflite_route": "magic"}, "unknown TFLite route 'magic'; choose from auto, litert-torch, onnx2tf, fastest"),
        ({"optimizer": "lion"}, "unknown optimizer 'lion'; choose from sgd, adamw"),
        ({"macs_ratio": 0.0}, "macs_ratio 0.0: must be above 0 and at most 1; 0.35 is 35%"),
        ({"macs_ratio": 1.5}, "macs_ratio 1.5: must be"),
        ({"macs_ratio": float("nan")}, "macs_ratio nan: must be"),
        ({"min_fidelity": -0.1}, "min_fidelity -0.1: must be"),
        ({"max_loss": -1.0}, "max_loss -1.0: must be"),
        ({"min_int8_agreement": 98.0}, "min_int8_agreement 98.0: must be above 0 and at most 1"),
        ({"max_rel": 0.0}, "max_rel 0.0: must be above 0; the default is 0.0001"),
        ({"max_rel": float("nan")}, "max_rel nan: must be above 0"),
        ({"epochs": -1}, "epochs -1: must be at least 0; the default is 8"),
        ({"batch_size": 1}, "batch_size 1: must be at least 2; the default is 64"),
        ({"epoch_samples": 1}, "epoch_samples 1: must be at least 2; the default is 10000"),
        ({"learning_rate": -0.1}, "learning_rate -0.1: must be at least 0"),
        ({"learning_rate": float("inf")}, "learning_rate inf: must be at least 0; 0 takes 0.01 for sgd"),
        ({"threads": 0}, "threads 0: must be at least 1"),
        ({"repetitions": 0}, "repetitions 0: must be at least 1"),
        ({"calibration_samples": -5}, "calibration_samples -5: must be at least 1"),
        ({"resolution": -8}, "resolution -8: must be at least 0; 0 takes the recipe's"),
        ({"speedup": 0.5}, "speedup 0.5: must be at least 1; leave it out to set none"),
        ({"cost_scheme": "int4"}, "unknown cost scheme 'int4'; choose from int8-static, "),
        ({"scheme": ("fp32", "int4")}, "unknown scheme 'int4'; choose from int8-static, "),
    ],
)
def test_a_wrong_option_is_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        update_options(Options(), given)


def test_every_target_has_outputs_that_exist():
    for name, target in TARGETS.items():
        made = select_outputs(update_options(Options(), {"target": name}))
        assert made == target.outputs
        assert all(f in FORMATS and s in SCHEMES for f, s in made)


def test_formats_and_schemes_narrow_the_target():
    made = select_outputs(update_options(Options(), {"format": ("tflite",), "scheme": ("fp32", "int8-static")}))
    assert made == (("tflite", "int8-static"), ("tflite", "fp32"))


def test_a_format_that_the_target_leaves_out_is_exported_by_name():
    made = select_outputs(update_options(Options(), {"target": "raspberry-pi", "format": ("torchscript",), "scheme": ("fp32",)}))
    assert made == (("torchscript", "fp32"),)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"scheme": ("int4",)}, "unknown scheme 'int4'; choose from int8-static, int8-dynamic, int16x8, int4-weights, fp16, fp32"),
        ({"format": ("torchscript",), "scheme": ("fp16",)}, "scheme fp16: none of the formats has it; there is torchscript: int8-static, "),
        ({"format": ("coreml",)}, "unknown format 'coreml'; choose from tflite, torchscript"),
    ],
)
def test_a_scheme_that_no_format_has_is_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        select_outputs(update_options(Options(), given))


def test_fixed_layers_are_parsed():
    options = update_options(Options(), {"layer": ("a.b=tucker2:8x4", "c=svd:3", "d=dense", "e=tucker2:8,4", "f=grouped_svd:3:slices=4")})
    assert parse_fixed_layers(options) == {
        "a.b": Choice("tucker2", (8, 4)),
        "c": Choice("svd", (3,)),
        "d": Choice("dense"),
        "e": Choice("tucker2", (8, 4)),
        "f": Choice("grouped_svd", (3,), {"slices": 4}),
    }


@pytest.mark.parametrize(
    ("text", "method", "options"),
    [
        ("auto", "auto", {}),
        ("cp3:seed=1,tolerance=1e-6", "cp3", {"seed": 1, "tolerance": 1e-6}),
        ("cp_epc:separable=true,cost=norm", "cp_epc", {"separable": True, "cost": "norm"}),
        ("tensor_train:in_modes=[4,8],out_modes=[2,5]", "tensor_train", {"in_modes": [4, 8], "out_modes": [2, 5]}),
    ],
)
def test_a_method_is_parsed_with_its_options(text, method, options):
    assert parse_method(update_options(Options(), {"method": text})) == Choice(method, (), options)


@pytest.mark.parametrize("text", ["", ":", ":seed=1", "cp3:seed", "cp3:seed=", "cp3:=1", "cp3:seed=1,", "cp3:seed=1,starts"])
def test_a_malformed_method_is_refused(text):
    with pytest.raises(ConfigError, match=rf"--method {text}: write METHOD or METHOD:KEY=VALUE, e\.g\."):
        parse_method(update_options(Options(), {"method": text}))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "conv",
        "conv=",
        "=svd:3",
        "conv=svd",
        "conv=svd:",
        "conv=svd:three",
        "conv=tucker2:8x",
        "conv=:3",
        "conv=svd:3:x",
        "conv=dense:3",
    ],
)
def test_a_malformed_fixed_layer_is_refused(text):
    with pytest.raises(ConfigError, match=rf"--layer {text}: write NAME=METHOD:RANK, e\.g\."):
        parse_fixed_layers(update_options(Options(), {"layer": (text,)}))


def test_options_of_training_have_the_defaults_of_a_run():
    assert tuple(USUAL_RATE) == OPTIMIZERS
    assert "dense" not in METHODS
    assert "auto" not in METHODS
    tuning, every = FinetuneOptions(), Options()
    for own, theirs in {"epochs": "epochs", "samples": "epoch_samples", "batch_size": "batch_size", "optimizer": "optimizer"}.items():
        assert getattr(tuning, own) == getattr(every, theirs)


def test_options_survive_json():
    made = update_options(Options(), {"layer": ("a=svd:3",), "scheme": ("fp32",)})
    assert msgspec.json.decode(msgspec.json.encode(made), type=Options) == made


@pytest.mark.parametrize("record", [Options, BenchmarkOptions, EvaluationOptions])
def test_every_field_says_its_help_once(record):
    fields = option_fields(record)
    assert list(fields) == list(record.__struct_fields__)
    for field in fields.values():
        assert field.option.help[0] not in " .,"
        assert not field.option.help.endswith(".")
        assert describe_option(field) in inspect.getdoc(record)
    check_values(record())  # the defaults are in their own ranges


def test_help_holds_the_choices_and_the_default():
    told = {name: describe_option(field) for name, field in option_fields(Options).items()}
    assert told["optimizer"] == "Optimizer of fine-tuning: sgd or adamw [sgd]."
    assert told["mixed_precision"] == "Keep the layers that int8 hurts most in fp32."
    assert told["weakening"] == "Fraction of the remaining compression that each stage but the last performs [0.8]."
    assert told["format"].endswith("tflite, torchscript, onnx or executorch; repeatable [the target's].")
    assert told["also_python"].endswith("tflite-runtime.")


def test_measurements_have_the_same_defaults_everywhere():
    for name in ("threads", "repetitions"):
        assert getattr(Options(), name) == getattr(BenchmarkOptions(), name) == inspect.signature(bench).parameters[name].default
    for function, record in ((bench, BenchmarkOptions()), (evaluate, EvaluationOptions())):
        given = {name: p.default for name, p in inspect.signature(function).parameters.items() if hasattr(record, name)}
        assert set(record.__struct_fields__) == set(given)
        assert {name: value or None for name, value in given.items()} == {name: getattr(record, name) or None for name in given}
    assert QatOptions().epochs == QAT_COMMAND_EPOCHS
