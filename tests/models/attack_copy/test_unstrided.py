"""A convolution without its stride gives what the convolution gives, forwards and backwards."""

import pytest
import torch
from torch import nn

from robustdup.models.attack_copy.following import Unstrided, can_go_unstrided


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("channels", "kernel", "stride", "padding"), [(3, 5, 2, 2), (1, 4, 4, 0), (4, 4, 2, 1), (3, 7, 3, 3)]
)
def test_it_is_the_same_convolution(channels, kernel, stride, padding, layout):
    torch.manual_seed(0)
    plain = nn.Conv2d(channels, 6, kernel, stride, padding).to(memory_format=layout)
    ours = Unstrided(channels, 6, kernel, stride, padding).to(memory_format=layout)
    ours.load_state_dict(plain.state_dict())
    assert can_go_unstrided(plain)
    for size in ((12, 24), (13, 11)):  # the second is no multiple of the stride
        images = torch.randn(3, channels, *size).to(memory_format=layout).requires_grad_(True)
        out, expected = ours(images), plain(images)
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
        grads = torch.autograd.grad(out.sin().sum(), [images, ours.weight, ours.bias])
        truth = torch.autograd.grad(expected.sin().sum(), [images, plain.weight, plain.bias])
        for found, right in zip(grads, truth, strict=True):
            torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(3, 6, 3, 1, 1), nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(16, 6, 5, 2, 2), nn.Conv2d(4, 4, 5, 2, 2, groups=4),
        nn.Conv2d(3, 6, 5, 2, 2, dilation=2), nn.Conv2d(3, 6, 5, (2, 1), 2), nn.Conv2d(3, 6, (5, 3), 2, 2),
        nn.Conv2d(3, 6, 5, 2, (2, 1)), nn.Conv2d(3, 6, 5, 2, 2, padding_mode="circular"), nn.Conv2d(3, 6, 5, padding="same"),
        nn.Conv2d(3, 6, 5, 2, 1), nn.Linear(3, 6),
    ],
)  # fmt: skip
def test_what_is_no_such_convolution_stays(layer):
    assert not can_go_unstrided(layer)
