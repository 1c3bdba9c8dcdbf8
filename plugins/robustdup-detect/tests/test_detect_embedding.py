"""Networks that find candidates in place of the classical features: files, classifiers, transformers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detect_pictures import encoded, found, pictures, write
from robustdup_detect.embedding import load_embedding, open_embedder
from robustdup_detect.features import learn_projection
from robustdup_detect.options import DetectConfig
from robustdup_detect.run import detect
from robustdup_detect.transforms import change
from torch import nn

from robustdup.config import validate
from robustdup.errors import UserError
from robustdup.plugins import Registry
from tests.raising import raises

pytestmark = pytest.mark.usefixtures("own_datasets_cache")

NETWORKS = """
from torch import nn
from torch.nn.functional import adaptive_avg_pool2d


class Network(nn.Module):
    def __init__(self, answer, size=48):
        super().__init__()
        self.answer, self.size = answer, size

    def forward(self, images):
        assert images.shape[1:] == (3, self.size, self.size), images.shape
        assert 0 <= images.min() and images.max() <= 1
        return self.answer(images)


def rows():
    return Network(lambda images: adaptive_avg_pool2d(images, 6).flatten(1))


def maps():
    return Network(lambda images: images[:, :, 4:8, 4:8])


def usual():
    return nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())


def two():
    return Network(lambda images: (images, images))


def single():
    return Network(lambda images: images.mean())


def sizeless():
    return Network(lambda images: images, size="48")
"""


@pytest.fixture
def networks(tmp_path):
    file = tmp_path / "networks.py"
    file.write_text(NETWORKS)
    return str(file)


def settings(data, **more):
    return validate(DetectConfig, {"data": data, "workers": 1, "shard": 20, **more})


def test_a_network_of_a_file_finds_candidates(networks, tmp_path):
    images = pictures(50, size=64)
    rng = np.random.default_rng(0)
    more = [images[3], change("crop", images[5:6], rng)[0], images[6].flip(-1)]
    data = write(tmp_path / "data", images=[encoded(image) for image in [*images, *more]])
    config = settings(data, embedding=f"{networks}:rows")
    record = detect(config, tmp_path / "run")
    assert found(tmp_path / "run") == {(3, 50, "exact"), (5, 51, "near"), (6, 52, "near")}
    assert record.method.embedding == f"{networks}:rows"
    # What it finds does not depend on how many workers share the work.
    detect(settings(data, embedding=f"{networks}:rows", workers=2), tmp_path / "two")
    assert found(tmp_path / "two") == found(tmp_path / "run")
    with pytest.raises(UserError, match="was started with embedding="):
        detect(settings(data), tmp_path / "run", resume=True)


def test_a_network_that_sees_nothing_finds_nothing(tmp_path):
    """So that the test above could fail: candidates come from the network alone."""
    (tmp_path / "blind.py").write_text(
        "import torch\nfrom torch import nn\n\n\nclass Blind(nn.Module):\n    size = 32\n\n"
        "    def forward(self, images):\n        return torch.randn(len(images), 8)\n\n\ndef blind():\n    return Blind()\n"
    )
    images = pictures(200)
    copies = change("crop", images[:20], np.random.default_rng(0))
    data = write(tmp_path / "data", images=[encoded(image) for image in [*images, *copies]])
    detect(settings(data, shard=500), tmp_path / "seen")
    detect(settings(data, shard=500, embedding=f"{tmp_path}/blind.py:blind"), tmp_path / "blind")
    assert len(found(tmp_path / "seen")) >= 19
    assert len(found(tmp_path / "blind")) < 15


def test_what_a_network_is_given_and_gives(networks):
    assert open_embedder(f"{networks}:rows").size == 48
    pixels = torch.randint(0, 256, (3, 3, 48, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    rows = open_embedder(f"{networks}:rows").describe(pixels)
    assert torch.allclose(rows[:, 0], pixels[:, 0, :8, :8].float().mean(dim=(1, 2)) / 255, atol=1e-5)
    maps = open_embedder(f"{networks}:maps").describe(pixels)
    assert torch.allclose(maps, pixels[:, :, 4:8, 4:8].float().mean(dim=(2, 3)) / 255, atol=1e-6)
    assert open_embedder(f"{networks}:usual").size == 224
    # Images of another size are resized to that of the network.
    assert load_embedding(f"{networks}:rows", registry=Registry())(torch.rand(2, 3, 20, 30)).shape == (2, 108)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("two", "An embedding returns features of shape .images, numbers.; got a tuple"),
        ("single", r"An embedding returns features of shape .images, numbers.; got shape \(\)"),
        ("sizeless", "attribute size of the network .* must be a number of pixels, got '48'"),
        ("row", "Did you mean 'rows'"),
    ],
)
def test_mistakes_in_a_network_show_before_anything_is_read(networks, tmp_path, name, message):
    with pytest.raises(UserError, match=message):
        detect(settings(str(tmp_path / "no data"), embedding=f"{networks}:{name}"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_unknown_network_and_one_of_grey_images(tmp_path):
    with raises("unknown-model", UserError, "'dino'"):
        detect(settings("builtin:digits", embedding="dino"), tmp_path / "run")
    with raises("bad-network", UserError, "'builtin:digits-robust'", "32 x 32"):
        detect(settings("builtin:digits", embedding="builtin:digits-robust"), tmp_path / "run")


def test_features_of_a_classifier_are_what_its_last_linear_layer_is_given(tmp_path):
    (tmp_path / "net.py").write_text("")
    registry = Registry()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 7), nn.ReLU(), nn.Linear(7, 3))
    registry.add_model_source("own", lambda rest, options: net, description="A classifier.", examples=("own:net",))
    embedding = load_embedding("own:net", registry=registry)
    embedding.size = 4
    images = torch.rand(5, 3, 4, 4)
    assert torch.allclose(embedding(images), net[:3](images))
    assert (embedding(images) >= 0).all()
    registry.add_model_source("flat", lambda rest, options: nn.Flatten(), description="None.", examples=("flat:net",))
    with raises("bad-network", UserError, "linear layer"):
        load_embedding("flat:net", registry=registry)


def test_few_features_make_an_embedding_of_the_usual_width():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(200, 5, generator=generator)
    projection = learn_projection(features, 0.1 * torch.randn(100, 5, generator=generator))
    embedded = projection(features)
    assert embedded.shape == (200, 64)
    assert torch.allclose(embedded.norm(dim=1), torch.ones(200))


@pytest.fixture(scope="module")
def dino(tmp_path_factory):
    """A tiny DINOv2 with random weights, in the files in which the Hub has it."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("dino")
    torch.manual_seed(0)
    config = transformers.Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14
    )
    transformers.Dinov2Model(config).save_pretrained(folder)
    transformers.BitImageProcessor(
        size={"shortest_edge": 64}, crop_size={"height": 56, "width": 56}, image_mean=[0.5] * 3, image_std=[0.25] * 3
    ).save_pretrained(folder)
    return folder


def test_a_dinov2_of_transformers(dino, tmp_path):
    import transformers

    network = load_embedding(f"hf:{dino}", registry=Registry())
    assert network.size == 56
    images = torch.rand(2, 3, 56, 56, generator=torch.Generator().manual_seed(1))
    own = transformers.AutoModel.from_pretrained(dino).eval()
    with torch.no_grad():
        expected = own(pixel_values=(images - 0.5) / 0.25).pooler_output
    assert torch.allclose(network(images), expected, atol=1e-5)
    shown = pictures(40, size=56)
    more = [shown[3], change("shift", shown[5:6], np.random.default_rng(0))[0]]
    data = write(tmp_path / "data", images=[encoded(image) for image in [*shown, *more]])
    detect(settings(data, embedding=f"hf:{dino}"), tmp_path / "run")
    assert found(tmp_path / "run") == {(3, 40, "exact"), (5, 41, "near")}


def test_without_its_pooling_the_first_token_is_taken(dino, tmp_path):
    import transformers

    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8, intermediate_size=32
    )
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path)  # without a pooler
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    network = load_embedding(f"hf:{tmp_path}", registry=Registry())
    own = transformers.ViTModel.from_pretrained(tmp_path, add_pooling_layer=False).eval()
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = own(pixel_values=(images - 0.5) / 0.5).last_hidden_state[:, 0]
    assert torch.allclose(network(images), expected, atol=1e-5)
