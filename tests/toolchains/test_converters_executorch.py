"""ExecuTorch files compute in their runtime what the model computes, and their replies list the ops outside XNNPACK."""

from pathlib import Path

import pytest
from support.conversions import NETS, Case, Conversions, Converted
from support.converter_session import ConverterSessions

from edgecompress.artifacts.converter_process import run_converter
from edgecompress.errors import ToolchainError
from edgecompress.records import Preprocessing, UndelegatedOp

LABELS = ("a", "b")
QUICK = {
    "heads-int8-static": Case("heads", "int8-static"),
    "sound-int8-static": Case("sound", "int8-static"),
    "masked": Case("masked", "int8-static"),
    "branching": Case("branching", "int8-static"),
    "forked": Case("forked", "int8-dynamic"),
    "mixed": Case("heads", "int8-static", {"layers": {"conv": "fp32"}}),
    "told": Case("sound", "fp32", {"name": "sound", "labels": LABELS, "preprocessing": Preprocessing(mean=(0.5,), std=(0.2,))}),
}
LARGE = {
    **{f"residual-{scheme}": Case("residual", scheme) for scheme in ("fp32", "int8-static")},
    **{f"heads-{scheme}": Case("heads", scheme) for scheme in ("fp32", "int8-dynamic")},
    "clamped-int8-static": Case("clamped", "int8-static"),
    "causal": Case("causal", "int8-static"),
}
CASES = QUICK | LARGE
KEYS = [*QUICK, *(pytest.param(key, marks=pytest.mark.slow) for key in LARGE)]
REFUSED = {
    "op": (Case("placed", "fp32"), "UnsupportedError: executorch: middle: there is no aten.median.dim; replace that op"),
    "scheme": (Case("sound", "int3"), "ConfigError: executorch: unknown scheme 'int3'; choose from int8-static, int8-dynamic, fp32"),
    "fp16": (Case("sound", "fp16"), "UnsupportedError: executorch: fp16: XNNPACK would compute in float16"),
    "route": (Case("sound", "fp32", {"route": "x"}), "ConfigError: executorch: unknown route 'x'; there is only one, leave it out"),
    "io": (Case("sound", "int8-static", {"io": "int8"}), "UnsupportedError: executorch: int8 inputs and outputs: a file has no place for"),
    "bytecode": (Case("sound", "fp32", {"bytecode_version": 5}), "UnsupportedError: executorch: bytecode version: only a TorchScript"),
    "layer": (Case("sound", "int8-static", {"layers": {"fx": "fp32"}}), "ConfigError: executorch: no layer is called 'fx'"),
    "two": (Case("sound", "int8-static", {"layers": {"fc": "int8-dynamic"}}), "UnsupportedError: executorch: int8-dynamic and int8-static"),
}
# Signal to noise that a scheme leaves at least: 8 bits through a dozen layers. In decibels.
FLOOR_DB = {"int8-dynamic": 25.0, "int8-static": 25.0}
MASKED_DB = 20.0  # scores and GELUs in 8 bits, through two blocks; under a mask of −∞ it was 0
WEIGHTS = "quantized_decomposed.dequantize_per_channel.default"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, converter_sessions: ConverterSessions) -> Conversions:
    cases = CASES | {key: case for key, (case, _) in REFUSED.items()}
    return Conversions(tmp_path_factory.mktemp("executorch"), "executorch", cases, converter_sessions)


@pytest.fixture
def converted(made: Conversions, key: str) -> Converted:
    return made[key]


@pytest.mark.parametrize("key", KEYS)
def test_the_file_agrees_with_the_model(converted: Converted, key: str) -> None:
    if CASES[key].scheme == "fp32":
        assert converted.max_rel() <= 1e-4
    else:
        assert converted.sqnr_db() >= (MASKED_DB if key in ("masked", "causal") else FLOOR_DB[CASES[key].scheme])


@pytest.mark.parametrize("key", KEYS)
def test_the_reply_tells_what_the_file_takes(converted: Converted, key: str) -> None:
    reply = converted.reply
    assert [spec.shape for spec in reply.inputs] == [(1, *shape) for shape in NETS[CASES[key].net][1]]
    assert [spec.shape for spec in reply.outputs] == [(1, *y.shape[1:]) for y in converted.outputs]
    assert all(spec.layout == ("NCHW" if len(spec.shape) == 4 else "") for spec in (*reply.inputs, *reply.outputs))
    assert {spec.dtype for spec in (*reply.inputs, *reply.outputs)} == {"float32"}


@pytest.mark.slow
def test_int8_is_in_the_file_and_shrinks_it(made: Conversions) -> None:
    """Lowering has kept float weights beside the quantized ones, and has dropped the quantization, both without a word."""
    assert made["residual-int8-static"].reply.ops[WEIGHTS] == made["residual-int8-static"].reply.ops["aten.convolution.default"] + 1
    sizes = {scheme: made[f"residual-{scheme}"].path.stat().st_size for scheme in ("fp32", "int8-static")}
    assert sizes["int8-static"] < 0.7 * sizes["fp32"]


@pytest.mark.slow
def test_xnnpack_takes_the_whole_network(made: Conversions) -> None:
    assert made["residual-fp32"].reply.undelegated == made["residual-int8-static"].reply.undelegated == ()


@pytest.mark.slow
def test_ops_outside_xnnpack_have_the_partitioners_reason(made: Conversions) -> None:
    assert made["clamped-int8-static"].reply.undelegated == (
        UndelegatedOp(op="aten.mean.dim", count=1, reason="mean.dim only supports keepdim=True"),
    )


def test_only_the_requested_layers_stay_float(made: Conversions) -> None:
    mixed, plain = made["mixed"].reply, made["heads-int8-static"].reply
    assert (mixed.ops[WEIGHTS], plain.ops[WEIGHTS]) == (1, 2)
    assert "1 of 2 convolution and linear layers stayed float32" in mixed.notes


def test_labels_and_preprocessing_are_methods_of_the_file(made: Conversions) -> None:
    assert made["told"].constants == {
        "name": ["sound"],
        "labels": ['["a","b"]'],
        "preprocessing": ['{"mean":[0.5],"std":[0.2],"resize":null,"crop":null}'],
    }


@pytest.mark.parametrize("key", REFUSED)
def test_an_impossible_request_is_refused_by_name(made: Conversions, key: str) -> None:
    assert made.refusal(key).startswith(REFUSED[key][1])
    assert not (made.folder / f"{key}.file").exists()


@pytest.mark.parametrize("how", ["half", "noise"])
def test_a_damaged_file_is_refused_by_its_runtime(made: Conversions, tmp_path: Path, how: str) -> None:
    assert "refused it" in made.damaged("told", how, tmp_path / "damaged.pte")


def test_the_runner_uses_as_many_threads_as_asked(made: Conversions) -> None:
    assert made["told"].further_threads == 2


@pytest.mark.slow
def test_the_same_request_in_another_process_gives_the_same_bytes(made: Conversions) -> None:
    again = made.request(CASES["sound-int8-static"], "again.pte")
    assert run_converter("executorch", again) == made["sound-int8-static"].reply
    assert Path(again.output).read_bytes() == made["sound-int8-static"].path.read_bytes()


def test_a_missing_package_comes_with_its_remedy(made: Conversions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "executorch.py").write_text("raise ModuleNotFoundError(\"No module named 'executorch'\", name='executorch')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(ToolchainError, match=r"executorch is not installed for .*; pip install 'edgecompress\[executorch\]'"):
        run_converter("executorch", made.request(CASES["told"], "never"))
    assert not (made.folder / "never").exists()
