"""The training loop: answers are learnt, and a part of the prompts with them, on a CPU."""

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim import AdamW, Muon, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel

from deploy.demo.batches import Batch

MATRIX_RATE = 0.02
VECTOR_RATE = 3e-3
ADAPTER_RATE = 4e-3
WARMUP = 0.03
"""Share of the steps in which the learning rate rises; over the rest it falls to nothing."""


def learn(model: PreTrainedModel, batches: Iterable[Batch], steps: int, seed: int) -> Iterator[float]:
    """Trains the model in place, one batch a step, and yields the loss of each step in nats a token.

    What needs no gradient stays as it is: the weights under an adapter, which is trained in float32 by AdamW.
    """
    sampler = torch.Generator().manual_seed(seed)
    whole = all(weight.requires_grad for weight in model.parameters())
    optimizers = _optimizers(model) if whole else [_adapter_optimizer(model)]
    schedules = [LambdaLR(optimizer, lambda step: _rate(step / steps)) for optimizer in optimizers]
    model.train()
    for batch in batches:
        loss = _loss(model, batch, sampler, half=whole)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        yield loss.item()
    model.eval()


def _loss(model: PreTrainedModel, batch: Batch, sampler: torch.Generator, *, half: bool) -> Tensor:
    """Cross-entropy of the tokens that are learnt; only their logits are computed."""
    learnt = torch.rand(batch.ids.shape, generator=sampler)[:, 1:] < batch.learnt[:, 1:]
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
        hidden = model.base_model(batch.ids[:, :-1], use_cache=False).last_hidden_state
        logits = model.get_output_embeddings()(hidden[learnt])
    return cross_entropy(logits.float(), batch.ids[:, 1:][learnt])


def _optimizers(model: PreTrainedModel) -> list[Optimizer]:
    """Muon for the matrices between the layers, AdamW for embeddings, norms and biases."""
    embedding = model.get_input_embeddings().weight
    matrices = [weight for weight in model.parameters() if weight.ndim == 2 and weight is not embedding]
    rest = [weight for weight in model.parameters() if weight.ndim != 2 or weight is embedding]
    return [
        Muon(matrices, lr=MATRIX_RATE, weight_decay=0.01),
        AdamW(rest, lr=VECTOR_RATE, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def _adapter_optimizer(model: PreTrainedModel) -> Optimizer:
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    return AdamW(weights, lr=ADAPTER_RATE, betas=(0.9, 0.98), weight_decay=0.0)


def _rate(progress: float) -> float:
    if progress < WARMUP:
        return progress / WARMUP
    return 0.5 * (1 + math.cos(math.pi * (progress - WARMUP) / (1 - WARMUP)))
