"""Packed weights compute the same and take the place of the plain ones."""

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from fusion.members.transformers.linear import SMALLEST_WEIGHT, pack_linear_layers


@torch.inference_mode()
def test_large_layers_are_replaced_without_a_change_of_result():
    model = nn.Sequential(
        nn.Linear(600, 700), nn.Linear(700, 600, bias=False), Conv1D(500, 600), nn.Linear(500, 3)
    )
    inputs = [torch.randn(1, rows, 600) for rows in (1, 2, 16, 100)]
    expected = [model(x) for x in inputs]
    pack_linear_layers(model)
    assert [layer.weight.numel() for layer in model] == [0, 0, 0, 1500]
    assert SMALLEST_WEIGHT > 1500
    for x, y in zip(inputs, expected, strict=True):
        torch.testing.assert_close(model(x), y, atol=1e-5, rtol=1e-5)


def test_an_embedding_that_shares_the_weight_keeps_it():
    embedding, head = nn.Embedding(1000, 512), nn.Linear(512, 1000, bias=False)
    head.weight = embedding.weight
    pack_linear_layers(nn.ModuleList([embedding, head]))
    assert embedding.weight.shape == (1000, 512)
    torch.testing.assert_close(
        head(embedding.weight[:1]), embedding.weight[:1] @ embedding.weight.T, atol=1e-3, rtol=1e-4
    )


def test_half_precision_is_left_alone():
    layer = nn.Linear(600, 700).to(torch.bfloat16)
    pack_linear_layers(nn.Sequential(layer))
    assert layer.weight.shape == (700, 600)
