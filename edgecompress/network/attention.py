"""Unfuse `nn.MultiheadAttention` into ordinary Linears, so that its projections can be counted, factorized and quantized.

PyTorch keeps the projections of queries, keys and values stacked in one parameter and passes the output projection's weight to a function
that knows no layers, so none of the four projections can be replaced by another module.
"""

import copy
import math
from typing import Final, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgecompress.errors import ConfigError, UnsupportedError

PARAMETERS: Final = {"in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight", "in_proj_bias", "bias_k", "bias_v"}
STACKED: Final = ("in_proj_weight", "in_proj_bias")
HOOKS: Final = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def unfuse_attention(model: nn.Module) -> nn.Module:
    """Return a copy of `model` in which every `nn.MultiheadAttention` is an `Attention`, equal to it up to rounding.

    An attention that is used under several names stays one module; those that `find_unsupported_attention` names stay unchanged.
    PyTorch's transformer layers no longer take their fused path, which reads weights past the modules that hold them. With padding, that
    path gave zeros beyond the end of a sequence; as in training and in an exported program, the layers' own values now stand there.

    Raises:
        UnsupportedError: The model cannot be copied.
    """
    try:
        model = copy.deepcopy(model)
    except RuntimeError as error:  # e.g. pruning keeps a computed weight
        raise UnsupportedError(f"the model cannot be copied: {error}; remove its hooks and parametrizations first") from error
    unsupported = find_unsupported_attention(model)
    made = {id(m): Attention(m) for name, m in model.named_modules() if isinstance(m, nn.MultiheadAttention) and name not in unsupported}
    for module in list(model.modules()):
        for name, child in list(module._modules.items()):  # named_children leaves out a second name of the same module
            if id(child) in made:
                setattr(module, name, made[id(child)])
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0  # of no other use than to allow the fused path
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False
    return made.get(id(model), model)


def find_unsupported_attention(model: nn.Module) -> dict[str, str]:
    """Return the name of each attention of `model` that `unfuse_attention` leaves alone, with the reason."""
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(f"{name}.{key}".lstrip("."))
    attentions = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.MultiheadAttention)]
    return {name: reason for name, m in attentions if (reason := _refusal_reason(m, name, owners))}


def _refusal_reason(attention: nn.MultiheadAttention, name: str, owners: dict[int, list[str]]) -> str | None:
    """Return why `attention` cannot be written in ordinary Linears; None if it can."""
    if type(attention) is not nn.MultiheadAttention:
        return f"{type(attention).__name__} is a subclass of nn.MultiheadAttention and may compute something else"
    if type(attention.out_proj) not in (nn.Linear, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return f"its out_proj is a {type(attention.out_proj).__name__}"
    own = attention._parameters.keys() | attention._buffers.keys() | attention._modules.keys()
    if not own <= PARAMETERS | {"out_proj"} or attention.out_proj._parameters.keys() != {"weight", "bias"} or "forward" in vars(attention):
        return "it was changed after it was made"
    if any(getattr(attention, hooks) for hooks in HOOKS):
        return "it has hooks"
    for key in STACKED:
        parameter = getattr(attention, key)
        others = [] if parameter is None else [o for o in owners[id(parameter)] if o != f"{name}.{key}".lstrip(".")]
        if others:
            return f"its {key} is shared with {others[0]}"
    return None


class Attention(nn.Module):
    """Multi-head attention of four Linears, with the interface and the parameters of an `nn.MultiheadAttention`.

    Between the Linears are scaled dot products, or matrix products and a softmax where attention weights are asked for.

    References:
        A. Vaswani et al. Attention Is All You Need. NeurIPS 2017, section 3.2.
    """

    in_proj_weight = None  # PyTorch's transformer layers read these attributes, and take their fused path unless the bias is None
    in_proj_bias = None
    _qkv_same_embed_dim = False

    def __init__(self, dense: nn.MultiheadAttention) -> None:
        super().__init__()
        self.embed_dim, self.kdim, self.vdim = dense.embed_dim, dense.kdim, dense.vdim
        self.num_heads, self.head_dim = dense.num_heads, dense.head_dim
        self.dropout, self.batch_first, self.add_zero_attn = dense.dropout, dense.batch_first, dense.add_zero_attn
        separate = (dense.q_proj_weight, dense.k_proj_weight, dense.v_proj_weight)
        weights = separate if dense.in_proj_weight is None else _split_in_thirds(dense.in_proj_weight)
        biases = (None, None, None) if dense.in_proj_bias is None else _split_in_thirds(dense.in_proj_bias)
        self.q_proj, self.k_proj, self.v_proj = map(_linear_with, weights, biases)
        self.out_proj = _linear_with(dense.out_proj.weight, dense.out_proj.bias)
        self.bias_k, self.bias_v = dense.bias_k, dense.bias_v
        self.train(dense.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Return outputs and, with `need_weights`, attention weights: `(n, l, s)`, or `(n, heads, l, s)` when they are not averaged.

        Raises:
            ConfigError: `is_causal` is given without the mask that it describes.
        """
        if is_causal and attn_mask is None:
            raise ConfigError("is_causal: there is no attn_mask that it could be a hint of; give the causal mask too")
        batched = query.dim() == 3
        if not batched and key_padding_mask is not None:
            key_padding_mask = key_padding_mask[None]
        hinted = is_causal and key_padding_mask is None and not need_weights
        mask = None if hinted else self._combine_masks(attn_mask, key_padding_mask, query.dtype)
        dropout = self.dropout if self.training else 0.0
        # A Linear always gets (batch, tokens, features), because layers are counted and timed with the batch as their first axis.
        q = self._split_heads(self.q_proj(self._to_batch_first(query)))
        k = self._split_heads(self._append_tokens(self.k_proj(self._to_batch_first(key)), self.bias_k))
        v = self._split_heads(self._append_tokens(self.v_proj(self._to_batch_first(value)), self.bias_v))
        weights: Tensor | None = None
        if need_weights:
            scores = q * math.sqrt(1 / self.head_dim) @ k.transpose(-2, -1)  # (n, heads, l, s)
            weights = F.dropout(torch.softmax(scores if mask is None else scores + mask, -1), dropout)
            y = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
            weights = weights if batched else weights[0]
        else:
            y = F.scaled_dot_product_attention(q, k, v, mask, dropout, hinted)
        y = self.out_proj(y.transpose(1, 2).flatten(2))  # (n, l, embed_dim)
        if not batched:
            return y[0], weights
        return y if self.batch_first else y.transpose(0, 1), weights

    def _to_batch_first(self, x: Tensor) -> Tensor:
        """Return `(n, tokens, features)`."""
        if x.dim() == 2:
            return x[None]
        return x if self.batch_first else x.transpose(0, 1)

    def _split_heads(self, x: Tensor) -> Tensor:
        """Return `(n, tokens, embed_dim)` as `(n, heads, tokens, head_dim)`."""
        return torch.unflatten(x, -1, (self.num_heads, self.head_dim)).transpose(1, 2)

    def _append_tokens(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Append the tokens that every query may attend to besides the sequence: the learnt one, and one of zeros."""
        if bias is not None:
            x = torch.cat([x, bias.expand(len(x), 1, -1)], 1)
        return F.pad(x, (0, 0, 0, 1)) if self.add_zero_attn else x

    def _combine_masks(self, attn_mask: Tensor | None, key_padding_mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        """Return the sum of both masks, to be added to the scores, `(n or 1, heads or 1, l or 1, s)`."""
        if attn_mask is not None:
            attn_mask = _to_additive(attn_mask, dtype)
            attn_mask = attn_mask[None, None] if attn_mask.dim() == 2 else torch.unflatten(attn_mask, 0, (-1, self.num_heads))
        if key_padding_mask is not None:
            key_padding_mask = _to_additive(key_padding_mask, dtype)[:, None, None]
            attn_mask = key_padding_mask if attn_mask is None else attn_mask + key_padding_mask
        more = (self.bias_k is not None) + self.add_zero_attn
        return F.pad(attn_mask, (0, more)) if attn_mask is not None and more else attn_mask


def _to_additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a mask as numbers to be added to scores; a boolean mask is true where attention is forbidden."""
    return mask if mask.is_floating_point() else torch.zeros_like(mask, dtype=dtype).masked_fill(mask, -math.inf)


def _split_in_thirds(stacked: Tensor) -> tuple[Tensor, ...]:
    return tuple(nn.Parameter(part.clone(), stacked.requires_grad) for part in stacked.detach().chunk(3))


def _linear_with(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Return a Linear that holds these very parameters, so that other modules can keep sharing them."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = cast(nn.Parameter, weight)
    if bias is not None:
        layer.bias = cast(nn.Parameter, bias)
    return layer
