"""A folder in the layout of transformers is a network of tensors in, named tensors out; no code of it runs, and nothing is fetched."""

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from edgecompress.data.recipe import load_recipe
from edgecompress.data.shapes import UnknownShapeError
from edgecompress.errors import ConfigError, UnsupportedError
from edgecompress.network.batches import output_names
from edgecompress.records import Preprocessing

ROWS = 50
IMAGES = {
    "image_mean": [0.5] * 3, "image_std": [0.25] * 3, "size": {"shortest_edge": 36}, "crop_size": {"height": 32, "width": 32},
    "do_center_crop": True,
}  # fmt: skip


class PreTrainedModel(nn.Module):
    main_input_name = "input_ids"

    @classmethod
    def from_pretrained(cls, folder, *, config, dtype, local_files_only, trust_remote_code, use_safetensors, output_loading_info):
        assert (dtype, local_files_only, trust_remote_code) == (torch.float32, True, False)
        assert use_safetensors
        assert output_loading_info
        assert config.use_cache is False
        if config.damaged:
            raise OSError("header too large\nof a file")
        return cls().eval(), {"missing_keys": set(config.missing)}


class TextForSequenceClassification(PreTrainedModel):
    def __init__(self):
        super().__init__()
        self.words, self.head = nn.Embedding(ROWS, 4), nn.Linear(4, 3)

    def forward(self, input_ids=None, attention_mask=None, token_type_ids=None, labels=None, return_dict=None):
        assert return_dict
        x = self.words(input_ids)
        x = x if attention_mask is None else x * attention_mask[..., None]
        return {"loss": labels, "logits": self.head(x.mean(1)), "hidden": x, "past_key_values": object()}


class ImageModel(PreTrainedModel):
    main_input_name = "pixel_values"

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 2, 3)

    def forward(self, pixel_values, return_dict=None):
        return {"features": self.stem(pixel_values).flatten(1)}


class Translation(PreTrainedModel):
    def forward(self, input_ids, decoder_input_ids):
        raise NotImplementedError


class AutoConfig:
    @staticmethod
    def from_pretrained(folder, *, local_files_only, trust_remote_code):
        assert (local_files_only, trust_remote_code) == (True, False)
        given = json.loads(Path(folder, "config.json").read_text())
        if given.get("model_type") == "unknown":
            raise ValueError("contains custom code which must be executed\nSet trust_remote_code=True")
        defaults = {"use_cache": True, "missing": [], "damaged": False, "architectures": None, "id2label": {0: "LABEL_0", 1: "LABEL_1"}}
        config = SimpleNamespace(**defaults | given)
        config.get_text_config = lambda: SimpleNamespace(vocab_size=ROWS)
        return config


@pytest.fixture
def package(monkeypatch):
    """A package with what of transformers 5 is called, whose import takes seconds."""
    module = ModuleType("transformers")
    state = {"verbosity": 30, "bars": True}
    log = SimpleNamespace(
        get_verbosity=lambda: state["verbosity"],
        set_verbosity=lambda value: state.update(verbosity=value),
        set_verbosity_error=lambda: state.update(verbosity=40),
        is_progress_bar_enabled=lambda: state["bars"],
        disable_progress_bar=lambda: state.update(bars=False),
        enable_progress_bar=lambda: state.update(bars=True),
    )
    classes = {kind.__name__: kind for kind in (PreTrainedModel, TextForSequenceClassification, ImageModel, Translation, AutoConfig)}
    vars(module).update(__version__="5.0", utils=SimpleNamespace(logging=log), **classes, pipeline=lambda: None)
    monkeypatch.setitem(sys.modules, "transformers", module)
    yield
    assert state == {"verbosity": 30, "bars": True}


@pytest.fixture
def write(tmp_path, package):
    def write(architecture="TextForSequenceClassification", weights="model.safetensors", images=None, **config):
        folder = tmp_path / "net"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"architectures": [architecture] if architecture else [], **config}))
        if weights:
            save_file({"x": torch.zeros(1)}, folder / weights)
        if images is not None:
            (folder / "preprocessor_config.json").write_text(images if isinstance(images, str) else json.dumps(images))
        return f"hf:{folder}"

    return write


def test_a_text_network_takes_indices_and_returns_its_tensors_by_name(write):
    target = write(id2label={"1": "bad", "0": "good"})
    recipe = load_recipe(f"{target}@1x60")
    (ids,) = recipe.example_inputs
    assert (recipe.name, recipe.source, recipe.labels) == ("net", f"{target}@1x60", ("good", "bad"))
    assert (ids.shape, ids.dtype, int(ids.min()), int(ids.max())) == ((1, 60), torch.int64, 0, ROWS - 1)
    model = recipe.model()
    assert output_names(model, recipe.example_inputs) == ("logits", "hidden")
    assert torch.equal(model(ids)["logits"], model.network(input_ids=ids, return_dict=True)["logits"])
    program = torch.export.export(model, recipe.example_inputs, strict=False)
    assert torch.allclose(program.module()(ids)["logits"], model(ids)["logits"])
    masked = load_recipe(f"{target}@1x8,1x8")
    assert masked.example_inputs[1].tolist() == [[1] * 8]
    ids, mask = masked.example_inputs
    mask[:, 4:] = 0
    model = masked.model()
    assert torch.equal(model(ids, mask)["logits"], model.network(input_ids=ids, attention_mask=mask, return_dict=True)["logits"])
    assert load_recipe(f"{target}@1x8,1x8,1x8").example_inputs[2].tolist() == [[0] * 8]
    assert load_recipe(f"{target}@1x60").sources_sha256 == recipe.sources_sha256 != masked.sources_sha256


def test_an_image_network_has_the_size_and_preprocessing_of_its_folder(write):
    target = write("ImageModel", image_size=32, images=IMAGES)
    recipe = load_recipe(target)
    assert (recipe.example_inputs[0].shape, recipe.example_inputs[0].dtype) == ((1, 3, 32, 32), torch.float32)
    assert recipe.preprocessing == Preprocessing(mean=(0.5,) * 3, std=(0.25,) * 3, resize=36, crop=32)
    assert recipe.labels == ()
    assert recipe.model()(torch.zeros(2, 3, 32, 32))["features"].shape == (2, 1800)
    assert load_recipe(f"{target}@1x3x64x64").preprocessing.resize == 72


@pytest.mark.parametrize(
    ("changes", "due"),
    [
        ({"size": {"height": 32, "width": 32}, "do_center_crop": False}, (0.5, 32)),
        ({"do_normalize": False}, (0.0, 36)),
        ({"size": 40}, (0.5, 40)),
        ({"do_rescale": False}, None),
    ],
)
def test_other_preprocessing_is_read_or_left_to_the_user(write, changes, due):
    found = load_recipe(write("ImageModel", images=IMAGES | changes) + "@1x3x32x32").preprocessing
    assert (found and (found.mean[0], found.resize)) == due


@pytest.mark.parametrize(
    ("given", "suffix", "error", "message"),
    [
        ({}, "", UnknownShapeError, "the shape of input_ids is not known; add it, e.g. .*@1x128"),
        ({"architecture": "ImageModel"}, "", UnknownShapeError, "the shape of pixel_values is not known; add it, e.g. .*@1x3x224x224"),
        ({}, "@1x8,1x8,1x8,1x8", ConfigError, "4 shapes are given, TextFor.* takes input_ids, attention_mask, token_type_ids; give 3"),
        ({"architecture": "Translation"}, "@1x8", UnsupportedError, "inputs of an encoder and of a decoder; give a function"),
        ({"architecture": "pipeline"}, "@1x8", ConfigError, "names the class pipeline, which transformers 5.0 lacks; give a function"),
        ({"architecture": None}, "@1x8", ConfigError, "names the class None"),
        ({"weights": None}, "@1x8", ConfigError, "has none of model.safetensors, .*; save the network again with save_pretrained"),
        ({"model_type": "unknown"}, "@1x8", ConfigError, "cannot read config.json .contains custom code .*executed.; update transformers"),
        (
            {"model_type": "unknown", "auto_map": {"AutoConfig": "code.Config"}},
            "@1x8",
            ConfigError,
            "; code of its own is not run, so give a function that returns the network",
        ),
        ({"images": "{"}, "@1x8", ConfigError, "preprocessor_config.json is damaged"),
        ({"images": "[]"}, "@1x8", ConfigError, "preprocessor_config.json holds no object"),
    ],
)
def test_a_folder_that_cannot_be_read_is_told(write, given, suffix, error, message):
    target = write(**given)
    with pytest.raises(error, match=message) as caught:
        load_recipe(f"{target}{suffix}")
    assert str(caught.value).startswith(f"{target}{suffix}: ")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"missing": ["head.weight", "head.bias"]}, r"has weights that the files lack \(head.bias, head.weight\); save the whole network"),
        ({"damaged": True}, r"cannot read the weights \(header too large\); save the network again"),
    ],
)
def test_weights_that_are_missing_or_damaged_are_never_drawn_at_random(write, config, message):
    recipe = load_recipe(write(**config) + "@1x8")
    with pytest.raises(ConfigError, match=message):
        recipe.model()


@pytest.mark.parametrize(
    ("target", "message"), [("hf:google/bert", "google/bert is no folder, and nothing is fetched"), ("hf:.", "has no config")]
)
def test_a_name_of_a_hub_is_no_folder(tmp_path, monkeypatch, package, target, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        load_recipe(target)


def test_the_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"transformers cannot be imported .*; pip install transformers$"):
        load_recipe(f"hf:{tmp_path}")


@pytest.mark.slow
def test_real_networks_of_transformers_are_compressed(edgecompress, tmp_path):
    """A BERT and a ViT with random weights, the former in two shards and half precision."""
    transformers = pytest.importorskip("transformers")
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    torch.manual_seed(0)
    bert = transformers.BertForSequenceClassification(
        transformers.BertConfig(vocab_size=100, max_position_embeddings=32, num_labels=3, **small)
    )
    bert.half().save_pretrained(tmp_path / "bert", max_shard_size="30KB")
    vit = transformers.ViTForImageClassification(transformers.ViTConfig(image_size=32, patch_size=8, **small))
    vit.save_pretrained(tmp_path / "vit")
    assert (tmp_path / "bert/model.safetensors.index.json").is_file()
    ids = torch.arange(16).reshape(1, 16)
    found = load_recipe(f"hf:{tmp_path}/bert@1x16").model()(ids)["logits"]
    assert torch.allclose(found, bert.float().eval()(ids).logits, atol=1e-5)
    for target in ("hf:bert@1x16", "hf:vit"):
        answer = edgecompress("check", target)
        assert answer.code == 0, answer.out
        answer = edgecompress("plan", target, "--macs-ratio", "0.8")
        assert answer.code == 0, answer.err
