"""Linear layers compute the same in either layout, and take the faster for the rows that come."""

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from fusion.members.transformers import linear
from fusion.members.transformers.linear import ROWS, SMALLEST_WEIGHT, pack_linear_layers


def packed_wins(layer):
    return dict.fromkeys(ROWS, (2.0, 1.0))


def plain_wins_with_few_rows(layer):
    return {rows: (1.0, 2.0) if rows < 4 else (2.0, 1.0) for rows in ROWS}


def calls(monkeypatch):
    """The numbers of rows of the multiplications over packed weights."""
    seen, packed = [], linear._Layer.packed
    monkeypatch.setattr(linear._Layer, "packed", lambda layer, x: (seen.append(x.shape[-2]), packed(layer, x))[1])
    return seen


@torch.inference_mode()
@pytest.mark.parametrize("kind", [nn.Linear, Conv1D])
def test_each_number_of_rows_takes_the_layout_that_was_faster(monkeypatch, kind):
    layer = kind(600, 700)
    inputs = [torch.randn(1, rows, layer.weight.shape[kind is nn.Linear]) for rows in (1, 2, 3, 4, 5, 16, 300)]
    expected = [layer(x) for x in inputs]
    seen = calls(monkeypatch)
    assert pack_linear_layers(nn.Sequential(layer), plain_wins_with_few_rows) == 1
    for x, y in zip(inputs, expected, strict=True):
        torch.testing.assert_close(layer(x), y, atol=1e-5, rtol=1e-5)
    assert seen == [3, 4, 5, 16, 300]
    assert layer.weight.numel() == 420_000


@pytest.mark.parametrize(
    ("timings", "packed"),
    [
        (plain_wins_with_few_rows, False),  # it would be slower for one row
        (packed_wins, True),
        (lambda layer: {1: (1.0, 1.0), 2: (0.5, 1.0), 4: (1.0, 1.0), 8: (1.0, 1.0), 16: (2.0, 1.0)}, True),
    ],
)
def test_one_layout_is_kept_where_memory_is_short(monkeypatch, timings, packed):
    monkeypatch.setattr(linear, "free_memory", lambda: 1 << 20)
    layer = nn.Linear(600, 700)
    assert pack_linear_layers(nn.Sequential(layer), timings) == packed
    assert layer.weight.numel() == (0 if packed else 420_000)


def test_layers_are_timed_once_for_each_shape(monkeypatch):
    timed = []
    model = nn.Sequential(nn.Linear(600, 700), nn.Linear(700, 600), nn.Linear(600, 700))
    pack_linear_layers(model, lambda layer: timed.append(layer.nbytes) or packed_wins(layer))
    assert timed == [1_680_000] * 2


def test_what_was_taken_is_logged(caplog):
    with caplog.at_level("INFO"):
        pack_linear_layers(nn.Sequential(nn.Linear(600, 700)))
    assert "700 x 600 x 1: " in caplog.text
    assert "plain and packed" in caplog.text


@torch.inference_mode()
def test_large_layers_are_replaced_without_a_change_of_result():
    model = nn.Sequential(
        nn.Linear(600, 700), nn.Linear(700, 600, bias=False), Conv1D(500, 600), nn.Linear(500, 3)
    )
    inputs = [torch.randn(1, rows, 600) for rows in (1, 2, 16, 100)]
    expected = [model(x) for x in inputs]
    pack_linear_layers(model, packed_wins)
    assert [layer.weight.numel() for layer in model] == [0, 0, 0, 1500]
    assert SMALLEST_WEIGHT > 1500
    for x, y in zip(inputs, expected, strict=True):
        torch.testing.assert_close(model(x), y, atol=1e-5, rtol=1e-5)


def test_an_embedding_that_shares_the_weight_keeps_it():
    embedding, head = nn.Embedding(1000, 512), nn.Linear(512, 1000, bias=False)
    head.weight = embedding.weight
    pack_linear_layers(nn.ModuleList([embedding, head]), packed_wins)
    assert embedding.weight.shape == (1000, 512)
    torch.testing.assert_close(
        head(embedding.weight[:1]), embedding.weight[:1] @ embedding.weight.T, atol=1e-3, rtol=1e-4
    )


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_packed_where_this_processor_multiplies_it(dtype):
    layer = nn.Linear(600, 700).to(dtype)
    inputs = [torch.randn(1, rows, 600).to(dtype) for rows in (1, 16)]
    expected = [nn.functional.linear(x.double(), layer.weight.double(), layer.bias.double()) for x in inputs]
    packed = pack_linear_layers(nn.Sequential(layer), packed_wins)
    assert packed == (dtype in linear._dtypes())
    assert layer.weight.numel() == (0 if packed else 420_000)
    for x, y in zip(inputs, expected, strict=True):
        torch.testing.assert_close(layer(x).double(), y, atol=1e-2, rtol=1e-2)


def test_what_onednn_does_not_multiply_is_left_alone(monkeypatch):
    monkeypatch.setattr(linear, "_dtypes", lambda: (torch.float32,))
    layer = nn.Linear(600, 700).to(torch.bfloat16)
    assert pack_linear_layers(nn.Sequential(layer), packed_wins) == 0
    assert layer.weight.shape == (700, 600)
