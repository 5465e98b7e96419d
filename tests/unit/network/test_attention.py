"""Unfused attention equals PyTorch's, unsupported attention stays unchanged, and layers that share weights are found."""

import pytest
import torch
from torch import nn
from torch.nn.utils import prune as pruning

from edgecompress.errors import ConfigError, UnsupportedError
from edgecompress.network.attention import Attention, find_unsupported_attention, unfuse_attention
from edgecompress.network.surgery import find_tied_layers
from edgecompress.network.weights import fingerprint

WIDTH, HEADS, BATCH, LONG, SHORT = 12, 4, 3, 6, 5
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")
ATTENTIONS = {
    "plain": {},
    "batch first": {"batch_first": True},
    "no bias": {"bias": False, "batch_first": True},
    "odd heads": {"num_heads": 3, "batch_first": True},
    "other key": {"kdim": 7},
    "other key and value": {"kdim": 7, "vdim": 10, "batch_first": True},
    "other value without bias": {"vdim": 10, "bias": False},
    "learnt token": {"add_bias_kv": True},
    "token of zeros": {"add_zero_attn": True, "batch_first": True},
    "both tokens": {"add_bias_kv": True, "add_zero_attn": True},
    "dropout": {"dropout": 0.4, "batch_first": True},
}
PADDED = torch.tensor([[False] * LONG, [False] * 3 + [True] * 3, [False] * 5 + [True]])
LATER = torch.ones(SHORT, LONG, dtype=torch.bool).triu(2)
CALLS = {
    "weights": {},
    "weights of each head": {"average_attn_weights": False},
    "outputs alone": {"need_weights": False},
    "padding": {"key_padding_mask": PADDED, "need_weights": False},
    "padding, weights": {"key_padding_mask": PADDED},
    "padding in numbers": {"key_padding_mask": PADDED.double() * -3},
    "mask": {"attn_mask": LATER, "need_weights": False},
    "mask in numbers": {"attn_mask": LATER.double() * -3, "need_weights": False},
    "mask for each head": {"attn_mask": LATER.repeat(BATCH * HEADS, 1, 1), "need_weights": False},
    "mask and padding": {"attn_mask": LATER, "key_padding_mask": PADDED},
    "mask and padding, outputs alone": {"attn_mask": LATER, "key_padding_mask": PADDED, "need_weights": False},
}


def attention(options):
    torch.manual_seed(0)
    made = nn.MultiheadAttention(WIDTH, dtype=torch.float64, **{"num_heads": HEADS} | options)
    for parameter in made.parameters():  # PyTorch starts biases at zero, where a lost one would not show
        nn.init.normal_(parameter, std=0.5)
    return made


def sequences(dense, *, batch=BATCH):
    """Return (query, key, value) for cross-attention, in the layout of `dense`."""
    torch.manual_seed(1)
    shapes = ((SHORT, WIDTH), (LONG, dense.kdim), (LONG, dense.vdim))
    made = [torch.randn(batch, n, width, dtype=torch.float64) for n, width in shapes]
    return made if dense.batch_first else [x.transpose(0, 1) for x in made]


def assert_same_outputs(dense, inputs, **call):
    """Check that unfused attention equals `dense` in training with the same dropout, and in evaluation with and without the fused path."""
    both = dense, unfuse_attention(dense)
    for training, gradients in ((True, True), (False, True), (False, False)):
        answers = []
        for module in both:
            torch.manual_seed(2)
            with torch.set_grad_enabled(gradients):
                answers.append(module.train(training)(*inputs, **call))
        torch.testing.assert_close(answers[1], answers[0], rtol=1e-9, atol=1e-12)


# The same numbers


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("options", ATTENTIONS)
def test_cross_attention_is_what_pytorch_computes(options, call):
    dense, given = attention(ATTENTIONS[options]), CALLS[call]
    if call == "mask for each head":
        given = given | {"attn_mask": LATER.repeat(BATCH * dense.num_heads, 1, 1)}
    assert_same_outputs(dense, sequences(dense), **given)


@pytest.mark.parametrize("call", ["weights", "outputs alone", "padding", "mask and padding"])
@pytest.mark.parametrize("options", [name for name, options in ATTENTIONS.items() if not {"kdim", "vdim"} & options.keys()])
def test_self_attention_is_what_pytorch_computes(options, call):
    dense = attention(ATTENTIONS[options])
    x = sequences(dense)[1]
    square = torch.ones(LONG, LONG, dtype=torch.bool).triu(1)
    assert_same_outputs(dense, (x, x, x), **CALLS[call] | ({"attn_mask": square} if "attn_mask" in CALLS[call] else {}))


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("options", ["plain", "batch first", "other key and value", "both tokens"])
def test_a_sequence_without_a_batch_axis_gives_the_same_outputs(options, call):
    dense, given = attention(ATTENTIONS[options]), dict(CALLS[call])
    if "key_padding_mask" in given:
        given["key_padding_mask"] = given["key_padding_mask"][1]
    if call == "mask for each head":
        given["attn_mask"] = given["attn_mask"][:HEADS]
    assert_same_outputs(dense, [x.squeeze(0 if dense.batch_first else 1) for x in sequences(dense, batch=1)], **given)


@pytest.mark.parametrize("padding", [None, PADDED])
@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("options", ["plain", "batch first", "learnt token", "token of zeros"])
def test_a_causal_mask_with_its_hint_gives_the_same_outputs(options, need_weights, padding):
    dense = attention(ATTENTIONS[options])
    x = sequences(dense)[1]
    mask = torch.ones(LONG, LONG, dtype=torch.bool).triu(1)
    assert_same_outputs(dense, (x, x, x), attn_mask=mask, key_padding_mask=padding, is_causal=True, need_weights=need_weights)


def test_a_hint_without_its_mask_is_refused():
    dense = attention({})
    with pytest.raises(ConfigError, match="is_causal: there is no attn_mask that it could be a hint of; give the causal mask too"):
        unfuse_attention(dense)(*sequences(dense), is_causal=True)


@pytest.mark.parametrize("options", ["plain", "no bias", "other key and value"])
def test_gradients_are_those_of_the_stacked_parameters(options):
    dense = attention(ATTENTIONS[options])
    apart = unfuse_attention(dense)
    for module in (dense, apart):
        module(*sequences(dense))[0].square().sum().backward()
    stacked = (dense.q_proj_weight, dense.k_proj_weight, dense.v_proj_weight) if dense.in_proj_weight is None else (dense.in_proj_weight,)
    expected = [row for weight in stacked for row in weight.grad]
    torch.testing.assert_close([row for name in PROJECTIONS[:3] for row in apart.get_submodule(name).weight.grad], expected)
    torch.testing.assert_close(apart.out_proj.weight.grad, dense.out_proj.weight.grad)
    if dense.in_proj_bias is not None:
        torch.testing.assert_close(torch.cat([apart.get_submodule(n).bias.grad for n in PROJECTIONS[:3]]), dense.in_proj_bias.grad)


# PyTorch's transformers


# Without their dropout: masks follow the layout of an output in memory, so they differ by chance and nothing else.


@pytest.mark.parametrize(
    ("batch_first", "norm_first", "activation", "bias"),
    [(True, False, "relu", True), (True, True, "gelu", True), (False, False, "relu", True), (True, False, "gelu", False)],
)
def test_an_encoder_layer_answers_alike_in_training_and_in_evaluation(batch_first, norm_first, activation, bias):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(
        WIDTH, HEADS, 20, 0.0, activation, batch_first=batch_first, norm_first=norm_first, bias=bias, dtype=torch.float64
    )
    assert_same_outputs(layer, (torch.randn(BATCH, LONG, WIDTH, dtype=torch.float64),))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage:UserWarning")
@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True, but:UserWarning")
@pytest.mark.parametrize("heads", [4, 3])
def test_an_encoder_with_padding_gives_the_same_outputs_inside_each_sequence(heads):
    torch.manual_seed(0)
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(WIDTH, heads, 20, batch_first=True, dtype=torch.float64), 2).eval()
    x = torch.randn(BATCH, LONG, WIDTH, dtype=torch.float64)
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients):
            y, expected = unfuse_attention(encoder)(x, src_key_padding_mask=PADDED), encoder(x, src_key_padding_mask=PADDED)
        torch.testing.assert_close(y[~PADDED], expected[~PADDED], rtol=1e-9, atol=1e-12)


def test_a_decoder_answers_alike():
    torch.manual_seed(0)
    decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(WIDTH, HEADS, 20, 0.0, dtype=torch.float64), 2)
    assert_same_outputs(decoder, (torch.randn(SHORT, BATCH, WIDTH).double(), torch.randn(LONG, BATCH, WIDTH).double()))


def test_a_whole_transformer_answers_alike():
    torch.manual_seed(0)
    whole = nn.Transformer(WIDTH, HEADS, 1, 2, 20, 0.0, batch_first=True, dtype=torch.float64)
    mask = nn.Transformer.generate_square_subsequent_mask(SHORT, dtype=torch.float64)
    inputs = torch.randn(BATCH, LONG, WIDTH).double(), torch.randn(BATCH, SHORT, WIDTH).double()
    assert_same_outputs(whole, inputs, tgt_mask=mask, tgt_is_causal=True)
    assert len([m for m in unfuse_attention(whole).modules() if isinstance(m, Attention)]) == 5


# Which attention is unfused, and which stays unchanged


def two_attentions(**options):
    """Return a model of two attentions."""
    return nn.ModuleDict({"a": attention(options), "b": attention(options)})


def names(model):
    return [name for name, module in model.named_modules() if isinstance(module, Attention)]


def test_the_original_model_stays_unchanged():
    model = two_attentions()
    before, kinds = fingerprint(model), [type(m) for m in model.modules()]
    with torch.no_grad():
        for parameter in unfuse_attention(model).parameters():
            parameter.zero_()
    assert fingerprint(model) == before
    assert [type(m) for m in model.modules()] == kinds


def test_the_projections_are_ordinary_linears_of_the_same_kind():
    dense = attention({"add_bias_kv": True, "kdim": 7}).half().requires_grad_(False).eval()
    dense.out_proj.weight.requires_grad_(True)
    made = unfuse_attention(dense)
    assert [type(made.get_submodule(name)) for name in PROJECTIONS] == [nn.Linear] * 4
    assert made.k_proj.weight.shape == (WIDTH, 7)
    assert {p.dtype for p in made.parameters()} == {torch.float16}
    assert [name for name, p in made.named_parameters() if p.requires_grad] == ["out_proj.weight"]
    assert not any(m.training for m in made.modules())
    assert sum(p.numel() for p in made.parameters()) == sum(p.numel() for p in dense.parameters())
    assert {p.device.type for p in unfuse_attention(attention({}).to("meta")).parameters()} == {"meta"}


def test_an_attention_with_two_names_stays_one_module():
    model = nn.ModuleDict({"a": attention({})})
    model["b"], model["deeper"] = model["a"], nn.Sequential(model["a"])
    made = unfuse_attention(model)
    assert isinstance(made["a"], Attention)
    assert made["a"] is made["b"] is made["deeper"][0]


def test_parameters_that_are_not_split_stay_shared():
    model = two_attentions(kdim=7)
    model["b"].out_proj.weight = model["a"].out_proj.weight
    model["b"].k_proj_weight = model["a"].k_proj_weight
    made = unfuse_attention(model)
    assert made["a"].out_proj.weight is made["b"].out_proj.weight
    assert made["a"].k_proj.weight is made["b"].k_proj.weight
    assert made["a"].q_proj.weight is not made["b"].q_proj.weight


class Doubled(nn.MultiheadAttention):
    def forward(self, *inputs, **call):
        y, weights = super().forward(*inputs, **call)
        return 2 * y, weights


def share(model, key):
    setattr(model["b"], key, getattr(model["a"], key))
    return {"a": f"its {key} is shared with b.{key}", "b": f"its {key} is shared with a.{key}"}


def share_with_a_linear(model):
    model["b"] = nn.Linear(WIDTH, 3 * WIDTH)
    model["b"].weight = model["a"].in_proj_weight
    return {"a": "its in_proj_weight is shared with b.weight"}


def subclass(model):
    model["a"] = Doubled(WIDTH, HEADS, dtype=torch.float64)
    return {"a": "Doubled is a subclass of nn.MultiheadAttention and may compute something else"}


def hook(model):
    model["a"].register_forward_hook(lambda _, __, answer: (2 * answer[0], answer[1]))
    return {"a": "it has hooks"}


def patch(model):
    model["a"].forward = lambda *inputs, **call: (inputs[0], None)
    return {"a": "it was changed after it was made"}


def adapt(model):
    model["a"].adapter = nn.Linear(WIDTH, WIDTH)
    return {"a": "it was changed after it was made"}


def wrap(model):
    nn.utils.parametrizations.weight_norm(model["a"].out_proj)
    return {"a": "its out_proj is a ParametrizedNonDynamicallyQuantizableLinear"}


def prune(model, of=""):
    module = model["a"].requires_grad_(False).get_submodule(of)  # a computed weight with gradients could not be copied
    pruning.l1_unstructured(module, "weight" if of else "in_proj_weight", 0.5)
    return {"a": "it was changed after it was made"}


ODD = {
    "stacked weights shared": lambda model: share(model, "in_proj_weight"),
    "stacked biases shared": lambda model: share(model, "in_proj_bias"),
    "shared with a Linear": share_with_a_linear,
    "subclass": subclass,
    "hook": hook,
    "other forward": patch,
    "adapter": adapt,
    "weight norm": wrap,
    "pruned": prune,
    "pruned output": lambda model: prune(model, "out_proj"),
}


@pytest.mark.parametrize("change", ODD)
def test_attention_that_cannot_be_unfused_stays_unchanged_and_the_reason_is_named(change):
    model = two_attentions()
    reasons = ODD[change](model)
    assert find_unsupported_attention(model) == reasons
    model.eval()
    x = sequences(attention({}))[1]
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients):
            made = unfuse_attention(model)
            assert torch.equal(made["a"](x, x, x)[0], model["a"](x, x, x)[0])
    assert names(made) == [name for name, m in model.items() if isinstance(m, nn.MultiheadAttention) and name not in reasons]
    assert find_unsupported_attention(made) == reasons


def test_a_model_that_cannot_be_copied_is_refused():
    model = nn.Sequential(nn.Linear(3, 3))
    pruning.l1_unstructured(model[0], "weight", 0.5)
    with pytest.raises(UnsupportedError, match=r"the model cannot be copied: .*; remove its hooks and parametrizations first"):
        unfuse_attention(model)


@pytest.mark.parametrize("shared", [False, True])
def test_feed_forward_layers_can_be_replaced_beside_fused_and_unfused_attention(shared):
    """PyTorch's fused path would read the weights of layers that are no longer there."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 20, batch_first=True, dtype=torch.float64)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    if shared:
        model.layers[1].self_attn.in_proj_weight = model.layers[0].self_attn.in_proj_weight
    compact = unfuse_attention(model)
    assert len(names(compact)) == (0 if shared else 2)
    for one in compact.layers:
        one.linear1 = nn.Sequential(one.linear1)
    x = torch.randn(BATCH, LONG, WIDTH, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(compact(x), model(x))


# Layers that share their weights


def find_ties_after(change):
    """Return the tied layers of two Linears, an embedding and an attention after a change."""
    torch.manual_seed(0)
    first, second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
    model = nn.ModuleDict({"a": first, "b": second, "embedding": nn.Embedding(9, WIDTH), "attention": nn.MultiheadAttention(WIDTH, HEADS)})
    change(model)
    return find_tied_layers(unfuse_attention(model))


def share_an_embedding(model):
    model["a"] = nn.Linear(WIDTH, 9)
    model["a"].weight = model["embedding"].weight


def share_a_transpose(model):
    model["b"].weight = nn.Parameter(model["a"].weight.detach().T)


def share_with_the_model(model):
    model.shared = model["b"].weight


def use_attention_twice(model):
    model["again"] = model["attention"]


def share_with_in_projection(model):
    model["a"] = nn.Linear(WIDTH, 3 * WIDTH)
    model["a"].weight = model["attention"].in_proj_weight


def output_projection(model):
    model["a"].weight = model["attention"].out_proj.weight


def share_without_values(model):
    model.to("meta")
    model["b"].weight = model["a"].weight


TIES = {
    "nothing": (lambda model: None, {}),
    "one weight": (lambda model: setattr(model["b"], "weight", model["a"].weight), {"a": "b", "b": "a"}),
    "embedding": (share_an_embedding, {"a": "embedding", "embedding": "a"}),
    "a view": (share_a_transpose, {}),
    "the model's own": (share_with_the_model, {"b": "shared"}),
    "another parameter": (share_with_in_projection, {"a": "attention.in_proj_weight"}),
    "output projection": (output_projection, {"a": "attention.out_proj", "attention.out_proj": "a"}),
    "attention used twice": (use_attention_twice, {}),
    "no values": (share_without_values, {"a": "b", "b": "a"}),
}


@pytest.mark.parametrize("case", TIES)
def test_ties_are_found(case):
    change, expected = TIES[case]
    assert find_ties_after(change) == expected
