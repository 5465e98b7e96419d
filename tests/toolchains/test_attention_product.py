"""Attention through the whole product: fused projections, a vision transformer to TFLite, checkpoints and runs."""

import copy
from contextlib import contextmanager

import msgspec
import pytest
import torch
from safetensors.torch import load_file
from support.networks import digits, trained
from torch import nn
from torch.nn import functional as F

import edgecompress
from edgecompress.data.recipe import recipe_from_model
from edgecompress.errors import ConfigError
from edgecompress.factorizations.decompose import decompose
from edgecompress.network.analyze import analyze
from edgecompress.network.attention import unfuse_attention
from edgecompress.network.exported import read_program, to_program, write_program
from edgecompress.network.surgery import forward
from edgecompress.network.weights import fingerprint, save_state
from edgecompress.options import update_options
from edgecompress.pipeline.context import open_context
from edgecompress.pipeline.networks import load_compressed
from edgecompress.pipeline.runner import run as run_steps
from edgecompress.planning.plan import plan
from edgecompress.records import CompressionPlan, LayerPlan, ModelStats, read_record
from edgecompress.runs import open_run, use_options

WIDTH, HEADS, TOKENS = 12, 4, 6
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")


# Fused projections


class Fused(nn.Module):
    """A block of a vision transformer whose queries, keys and values are one Linear."""

    def __init__(self):
        super().__init__()
        self.norm1, self.qkv, self.proj = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.norm2, self.mlp = nn.LayerNorm(WIDTH), nn.Sequential(nn.Linear(WIDTH, 20), nn.GELU(), nn.Linear(20, WIDTH))

    def forward(self, x):
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)  # each (n, heads, tokens, features)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


def fused(rank):
    torch.manual_seed(0)
    model = Fused().eval()
    x = torch.randn(1, TOKENS, WIDTH)
    stats = analyze(model, (x,), measure=False)
    made = plan(model, stats, macs_ratio=1.0, layers={layer.name: ("dense", ()) for layer in stats.layers})
    counts = {"macs_before": 0, "macs": 0, "params_before": 0, "params": 0, "relative_error": 0.0, "loss_increase": 0.0}
    step = LayerPlan(layer="qkv", method="svd", rank=(rank,), why="", **counts)
    return model, decompose(model, msgspec.structs.replace(made, layers=(step,)))[0], x


def test_a_fused_projection_is_one_linear_whose_outputs_share_the_first_factor():
    _, compact, _ = fused(4)
    assert [tuple(factor.weight.shape) for factor in compact.qkv] == [(4, WIDTH), (3 * WIDTH, 4)]


def test_a_fused_projection_of_full_rank_answers_alike_and_is_exported(tmp_path):
    model, compact, x = fused(WIDTH)
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(compact(x), expected, rtol=1e-5, atol=1e-5)
        write_program(to_program(compact, (x,)), tmp_path / "fused.pt2")
        torch.testing.assert_close(read_program(tmp_path / "fused.pt2").module()(x), expected, rtol=1e-5, atol=1e-5)


# The whole product


class Vision(nn.Module):
    """A small vision transformer for 8×8 digits: 16 tokens of 2×2 pixels."""

    def __init__(self, width=48):
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, stride=2)
        self.position = nn.Parameter(torch.zeros(1, 16, width))
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, "gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        tokens = self.patches(x).flatten(2).transpose(1, 2)  # (n, 16, width)
        return self.head(self.encoder(tokens + self.position).mean(1))


IMAGE = torch.zeros(1, 1, 8, 8)
WHERE = [f"encoder.layers.{i}.self_attn.{name}" for i in range(2) for name in PROJECTIONS]


@pytest.fixture(scope="module")
def vision():
    torch.manual_seed(0)
    return trained(Vision(), epochs=3)


@pytest.mark.slow
def test_a_vision_transformer_from_python_to_tflite(vision, tmp_path):
    train, test = digits()
    before, kinds = fingerprint(vision), [type(m) for m in vision.modules()]
    result = edgecompress.export(
        vision,
        (IMAGE,),
        run=tmp_path / "run",
        train_data=train,
        eval_data=test,
        target="android",
        format=("tflite",),
        scheme=("fp32",),
        method="svd",
        macs_ratio=0.7,
        epochs=1,
        epoch_samples=400,
        verify_samples=100,
        repetitions=3,
    )
    assert fingerprint(vision) == before
    assert [type(m) for m in vision.modules()] == kinds
    assert [a.path for a in result.artifacts] == ["vision-dense-fp32.tflite", "vision-fp32.tflite"]
    stats, made = read_record(tmp_path / "run" / "stats.json", ModelStats), read_record(tmp_path / "run" / "plan.json", CompressionPlan)
    assert {layer.name: layer.macs for layer in stats.layers if "self_attn" in layer.name} == dict.fromkeys(WHERE, 16 * 48 * 48)
    assert made.macs <= 0.7 * made.macs_before
    factorized = {step.layer for step in made.layers}
    assert factorized & set(WHERE)
    keys = load_file(tmp_path / "run" / "weights.safetensors").keys()
    for name in WHERE:
        assert {key for key in keys if key.startswith(f"{name}.")} == {
            f"{name}.{key}" for key in (("0.weight", "1.weight", "1.bias") if name in factorized else ("weight", "bias"))
        }


@contextmanager
def open_vision(model, folder, on_step=lambda *_: None, **options):
    recipe = recipe_from_model(model, (IMAGE,), train_data=digits()[0], eval_data=digits()[1])
    given = {"method": "svd", "macs_ratio": 0.7, "sensitivity_samples": 32, "epochs": 0} | options
    with open_run(folder, name="vision", recipe="python") as run, use_options(run, update_options(run.record.options, given)):
        yield open_context(run, recipe, on_step=on_step)


def test_a_checkpoint_has_the_names_of_the_users_model_and_what_a_run_keeps_those_of_its_own(vision, tmp_path):
    save_state(vision.state_dict(), tmp_path / "trained.safetensors")
    untrained = Vision().eval()
    with open_vision(untrained, tmp_path / "run", weights=str(tmp_path / "trained.safetensors")) as context:
        images = (digits()[1].inputs[:50],)
        torch.testing.assert_close(forward(context.dense, images), forward(vision, images), rtol=1e-4, atol=1e-4)
        run_steps(context, "finetune")
        first = forward(load_compressed(context), images)
        assert {step.layer for step in context.read(CompressionPlan).layers} & set(WHERE)
    reused = []
    with open_vision(untrained, tmp_path / "run", lambda name, _r, _s, was_reused: reused.append((name, was_reused))) as again:
        run_steps(again, "finetune")
        assert torch.equal(forward(load_compressed(again), images)[0], first[0])
        assert reused == [(name, True) for name in ("check", "analyze", "plan", "decompose", "finetune")]
    opened_names = unfuse_attention(vision).state_dict()
    save_state(opened_names, tmp_path / "opened.safetensors")
    with (
        pytest.raises(ConfigError, match=r"opened.safetensors: does not fit the model: .* keys missing \(first: encoder.*in_proj_bias.*\)"),
        open_vision(untrained, tmp_path / "other", weights=str(tmp_path / "opened.safetensors")) as context,
    ):
        run_steps(context, "analyze")


def test_a_plan_says_which_attention_was_left_alone_and_why(vision, tmp_path):
    model = copy.deepcopy(vision)
    model.encoder.layers[0].self_attn.register_forward_hook(lambda *_: None)
    with open_vision(model, tmp_path / "run") as context:
        made = run_steps(context, "plan")
    assert made.notes == ("encoder.layers.0.self_attn: it has hooks; its projections stay as they are",)
    known = {step.layer for step in (*made.layers, *made.skipped)}
    assert known & set(WHERE) == set(WHERE[4:])
