"""The training loop: the loss it optimises, when it stops, and what of a broken run it trusts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from accelerate.data_loader import BatchSamplerShard
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file

from alignment.errors import ConfigError
from fusion.distill.fusechat.run import Run
from fusion.distill.loss import fusion_loss
from fusion.distill.training import folders
from fusion.distill.training import train as training
from fusion.distill.training.curve import CURVE, PICTURE, read_curve
from fusion.distill.training.examples import Example, Examples, LengthGrouped, collate
from fusion.distill.training.settings import Source, Train
from fusion.distill.training.train import Texts, load_student, train
from fusion.distill.training.trainer import COMPLETE, FusionTrainer, mark_complete, newest_complete
from tests.support.distillable import TRAIN, files_of

Trained = Callable[..., Path]


@pytest.fixture
def trained(done: Run, tmp_path: Path) -> Trained:
    """Train target ben with other settings; returns the model's folder."""

    def run(settings: Train, texts: Texts | None = None, name: str = "run") -> Path:
        folder = tmp_path / name
        train(name, done.settings.base, texts or done.texts("ben"), settings, folder, name, lambda *_: None)
        return folder / "model"

    return run


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def farthest(one: Path, other: Path) -> float:
    a, b = weights(one), weights(other)
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def test_accumulated_batches_are_one_large_batch(trained: Trained) -> None:
    settings = replace(TRAIN, steps=3, weight_decay=0.0, warmup=0.0, learning_rate=1e-2)
    one = trained(replace(settings, batch=16, accumulate=1), name="one")
    four = trained(replace(settings, batch=4, accumulate=4), name="four")
    assert farthest(one, four) < 2e-4
    norms = [[e["norm"] for e in read_curve(m / CURVE) if "norm" in e] for m in (one, four)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


def test_the_first_loss_is_the_fusion_loss_of_the_base(done: Run, trained: Trained) -> None:
    texts = done.texts("ben")
    model = trained(replace(TRAIN, batch=len(texts.learned), accumulate=1, steps=1, lm_weight=0.3))
    batch = collate([texts.learned[i] for i in range(len(texts.learned))])
    student = load_student(done.settings.base)
    with torch.no_grad():
        logits = student(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    total, _, _ = fusion_loss(logits, batch["labels"], batch["probabilities"], batch["target_ids"], lm_weight=0.3)
    assert read_curve(model / CURVE)[0]["loss"] == pytest.approx(float(total), rel=1e-5)


def test_training_brings_the_held_out_loss_down(trained: Trained) -> None:
    curve = read_curve(trained(replace(TRAIN, steps=30, learning_rate=3e-3, check_every=10)) / CURVE)
    held_out = [entry["held_out"] for entry in curve if "held_out" in entry]
    assert held_out == sorted(held_out, reverse=True)
    assert len(held_out) == 3


def test_the_held_out_loss_is_a_mean_over_positions_whatever_the_batch(done: Run, trained: Trained) -> None:
    texts = done.texts("ben")
    uneven = sorted((texts.learned[i] for i in range(len(texts.learned))), key=lambda one: len(one.positions))
    texts = Texts(texts.learned, Examples([*uneven[:2], *uneven[-1:]]))
    settings = replace(TRAIN, steps=1, check_every=1)
    losses = [
        read_curve(trained(replace(settings, batch=batch, accumulate=4 // batch), texts, name=str(batch)) / CURVE)
        for batch in (1, 4)
    ]
    one, four = ([entry["held_out"] for entry in curve if "held_out" in entry] for curve in losses)
    assert one == pytest.approx(four, rel=1e-4)


def test_settings_that_transformers_would_not_write_are_the_bases_still(done: Run, tmp_path: Path) -> None:
    base = replace(done.settings.base, source=str(shutil.copytree(done.settings.base.source, tmp_path / "base")))
    own = '{"temperature": 0.6, "top_p": 0.9, "eos_token_id": 2}\n'
    for content in (own, None):
        path = Path(base.source) / "generation_config.json"
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_text(content)
        config = Path(base.source) / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"temperature": 0.6}))
        settings = replace(TRAIN, steps=1, accumulate=1, check_every=1)
        folder = tmp_path / str(content is None)
        train("ben", base, done.texts("ben"), settings, folder, "x", lambda *_: None)
        written = folder / "model" / "generation_config.json"
        assert (written.read_text() if written.exists() else None) == content


def test_of_a_hub_model_only_what_lies_beside_its_weights_is_fetched_to_be_copied(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    repository = ["config.json", "tokenizer.model", "chat_templates/tool.jinja", "LICENSE", "model.safetensors"]
    repository += ["original/consolidated.00.pth", "pytorch_model.bin", "model.gguf", "onnx/model.onnx"]

    def fetched(source: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        wanted.extend(filter_repo_objects(repository, allow_patterns=allow_patterns))
        return str(tmp_path)

    wanted: list[str] = []
    monkeypatch.setattr(folders, "snapshot_download", fetched)
    assert folders.local_folder(Source("someone/model")) == tmp_path
    assert wanted == repository[:4]


def test_a_run_stops_when_the_held_out_loss_no_longer_falls_and_keeps_the_lowest(trained: Trained) -> None:
    settings = replace(TRAIN, steps=60, learning_rate=0.05, schedule="constant_with_warmup", patience=2)
    curve = read_curve(trained(settings) / CURVE)
    held_out = [entry["held_out"] for entry in curve if "held_out" in entry]
    assert held_out.index(min(held_out)) == len(held_out) - 3
    assert curve[-1]["step"] < 60


@pytest.mark.parametrize(
    "settings",
    [
        replace(TRAIN, steps=60, learning_rate=0.05, schedule="constant_with_warmup", patience=2),
        replace(TRAIN, steps=7, schedule="constant_with_warmup", patience=None, check_every=7),
        replace(TRAIN, steps=7, schedule="constant_with_warmup", patience=None, check_every=7, lora_rank=2),
    ],
    ids=["settled", "all steps", "adapters"],
)
def test_a_run_that_was_over_is_not_trained_further(
    trained: Trained, monkeypatch: pytest.MonkeyPatch, settings: Train
) -> None:
    """It ended between its last checkpoint and its result, as with a full disk."""
    whole = trained(settings, name="whole")
    save = training.save_student

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(training, "save_student", full)
    with pytest.raises(OSError, match="No space"):
        trained(settings, name="again")
    monkeypatch.setattr(training, "save_student", save)
    again = trained(settings, name="again")
    assert farthest(whole, again) == 0
    assert (again / CURVE).read_text() == (whole / CURVE).read_text()


def test_several_processes_go_on_in_the_middle_of_an_epoch_with_its_own_order(
    done: Run, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between several processes accelerate divides batches by a sampler more, which hides the one of the order."""
    skip = transformers.trainer.skip_first_batches

    def shared(loader: Any, batches: int) -> Any:
        skipped = skip(loader, batches)
        skipped.batch_sampler.batch_sampler = BatchSamplerShard(loader.batch_sampler, 1, 0)
        return skipped

    monkeypatch.setattr(transformers.trainer, "skip_first_batches", shared)
    settings = replace(TRAIN, steps=None, epochs=3.0, batch=2, accumulate=1, check_every=1)
    whole = trained(settings, name="whole")
    per_epoch = len(done.texts("ben").learned) // 2

    def killed(step: int, _: int) -> None:
        if step == per_epoch + 3:
            raise KeyboardInterrupt

    again = tmp_path / "again"
    with pytest.raises(KeyboardInterrupt):
        train("again", done.settings.base, done.texts("ben"), settings, again, "again", killed)
    assert farthest(whole, trained(settings, name="again")) == 0


def test_the_lowest_model_is_the_result(trained: Trained) -> None:
    settings = replace(
        TRAIN, steps=60, learning_rate=0.05, schedule="constant_with_warmup", warmup=0.0, patience=2
    )
    stopped = trained(settings, name="stopped")
    lowest = min((e for e in read_curve(stopped / CURVE) if "held_out" in e), key=lambda entry: entry["held_out"])
    until = trained(replace(settings, steps=int(lowest["step"]), patience=None), name="until")
    assert farthest(stopped, until) == 0


def test_a_loss_that_is_no_number_ends_the_run_with_a_sentence(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = FusionTrainer.compute_loss

    def broken(self: FusionTrainer, *args: object, **kwargs: object) -> torch.Tensor:
        value: torch.Tensor = loss(self, *args, **kwargs)  # type: ignore[arg-type]
        return value * float("nan") if self.state.global_step == 3 else value

    monkeypatch.setattr(FusionTrainer, "compute_loss", broken)
    with pytest.raises(ConfigError, match=r"loss of step 4 is not a number; lower train\.learning_rate"):
        trained(TRAIN)


def test_a_gradient_that_is_no_number_ends_the_run_with_a_sentence(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, value: torch.Tensor) -> torch.Tensor:
            return value.clone()

        @staticmethod
        def backward(ctx: object, gradient: torch.Tensor) -> torch.Tensor:
            return gradient * float("inf")

    loss = FusionTrainer.compute_loss
    monkeypatch.setattr(FusionTrainer, "compute_loss", lambda *a, **k: Broken.apply(loss(*a, **k)))
    with pytest.raises(ConfigError, match="gradient of step 1 is not a number"):
        trained(TRAIN)


def test_nothing_to_learn_from_is_said(trained: Trained, done: Run) -> None:
    with pytest.raises(ConfigError, match="run has nothing to learn from"):
        trained(TRAIN, Texts(Examples([]), done.texts("ben").held_out))


def test_plain_fine_tuning_needs_no_targets(done: Run, trained: Trained) -> None:
    plain = replace(TRAIN, lm_weight=1.0)
    assert farthest(trained(plain, done.texts(None), "bare"), trained(plain, name="with")) == 0


def test_adapters_are_merged_into_ordinary_weights(done: Run, trained: Trained) -> None:
    pytest.importorskip("peft")
    model = trained(replace(TRAIN, lora_rank=4, learning_rate=1e-2))
    base = weights(Path(done.settings.base.source))
    assert weights(model).keys() == base.keys()
    changed = {name for name, tensor in weights(model).items() if not torch.equal(tensor, base[name])}
    assert changed
    assert all("proj" in name for name in changed)


def test_the_result_is_a_folder_with_its_curve(done: Run) -> None:
    folder = done.model_folder("ben")
    names = {path.name for path in folder.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", CURVE, PICTURE} <= names
    curve = read_curve(folder / CURVE)
    assert [entry["step"] for entry in curve if "loss" in entry] == list(range(1, TRAIN.steps + 1))
    assert (folder / PICTURE).read_bytes().startswith(b"\x89PNG")


def test_batches_of_unequal_lengths_are_padded_with_nothing() -> None:
    long = Example(
        np.arange(5, dtype=np.int32), np.array([1, 2]), np.array([[3, 4], [1, -1]], np.int32), np.ones((2, 2))
    )
    short = Example(np.arange(3, dtype=np.int32), np.array([1]), np.array([[2]], np.int32), np.ones((1, 1)))
    batch = collate([long, short])
    assert batch["labels"].tolist() == [[-100, -100, 2, 3, -100], [-100, -100, 2, -100, -100]]
    assert batch["attention_mask"].tolist() == [[1] * 5, [1, 1, 1, 0, 0]]
    assert batch["target_ids"][1].tolist() == [[-1, -1], [2, -1], [-1, -1], [-1, -1], [-1, -1]]


def test_an_epoch_has_every_example_once_in_an_order_of_its_own() -> None:
    lengths = np.random.default_rng(0).integers(1, 50, 500).tolist()
    sampler = LengthGrouped(lengths, 8, seed=3)
    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    assert sorted(first) == sorted(second) == list(range(500))
    assert first != second
    sampler.set_epoch(0)
    assert list(sampler) == first
    padded = sum(8 * max(lengths[i] for i in first[at : at + 8]) for at in range(0, 496, 8))
    assert padded < 1.25 * sum(lengths)


def test_only_whole_checkpoints_are_gone_on_from(tmp_path: Path) -> None:
    for number in (2, 4, 10, 12, 14):
        folder = tmp_path / f"checkpoint-{number}"
        folder.mkdir()
        for name in ("model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json"):
            (folder / name).write_text(f"{name} {number}")
        mark_complete(folder)
    (tmp_path / "checkpoint-10" / COMPLETE).unlink()
    (tmp_path / "checkpoint-12" / "optimizer.pt").unlink()
    (tmp_path / "checkpoint-14" / "model.safetensors").write_text("model")
    assert newest_complete(tmp_path) == tmp_path / "checkpoint-4"
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-2", "checkpoint-4"}


def test_a_checkpoint_without_its_optimizer_is_none(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-1"
    folder.mkdir()
    (folder / "trainer_state.json").write_text("{}")
    mark_complete(folder)
    assert newest_complete(tmp_path) is None


def test_a_finished_target_is_not_trained_again(done: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    before = files_of(done.settings.work / "train")
    monkeypatch.setattr(training, "load_student", None)
    monkeypatch.setattr("fusion.distill.fusechat.run.load_student", None)
    done.train()
    assert files_of(done.settings.work / "train") == before


def test_checkpoints_of_a_run_that_was_killed_after_its_result_was_whole_are_removed(trained: Trained) -> None:
    model = trained(replace(TRAIN, steps=1))
    before = files_of(model)
    left = model.parent / "run-0123456789abcdef" / "checkpoint-1"
    left.mkdir(parents=True)
    assert trained(replace(TRAIN, steps=1)) == model
    assert [path.name for path in model.parent.iterdir()] == ["model"]
    assert files_of(model) == before


def test_every_target_reads_the_texts_in_an_order_of_its_own(done: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    monkeypatch.setattr(
        "fusion.distill.fusechat.run.train", lambda name, base, texts, settings, *rest: seeds.append(settings.seed)
    )
    done.train()
    done.train()
    assert len(set(seeds)) == len(done.settings.targets)
    assert seeds[: len(set(seeds))] * 2 == seeds


def test_logits_from_the_first_learned_position_on_give_the_same_weights(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = trained(replace(TRAIN, steps=3), name="some")
    monkeypatch.setattr("fusion.distill.training.trainer._first_learned", lambda labels: 0)
    assert farthest(some, trained(replace(TRAIN, steps=3), name="all")) < 1e-5


@pytest.mark.parametrize("last", [4, 5])
def test_a_curve_of_means_is_the_same_after_a_resume_wherever_the_checkpoint_was(
    done: Run, trained: Trained, tmp_path: Path, last: int
) -> None:
    settings = replace(TRAIN, steps=7, log_every=3, check_every=2)
    whole = trained(settings, name="whole")

    def killed(step: int, _: int) -> None:
        if step == last:
            raise KeyboardInterrupt

    again = tmp_path / "again"
    with pytest.raises(KeyboardInterrupt):
        train("again", done.settings.base, done.texts("ben"), settings, again, "again", killed)
    assert (trained(settings, name="again") / CURVE).read_text() == (whole / CURVE).read_text()
    steps = [entry["step"] for entry in read_curve(whole / CURVE) if "loss" in entry]
    assert steps == [2, 3, 4, 6, 7]


def test_steps_follow_from_epochs_as_the_trainer_counts_them() -> None:
    settings = Train(epochs=1.5, batch=4, accumulate=2)
    assert training.steps_of(settings, 41) == 9
    assert training.steps_of(replace(settings, steps=7), 41) == 7


def test_the_curve_is_lines_of_json(done: Run) -> None:
    for line in (done.model_folder("ben") / CURVE).read_text().splitlines():
        assert "step" in json.loads(line)
