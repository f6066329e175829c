"""Run: the stages in order, each from what the ones before it left on the disk.

`work` holds `represent/<reader>`, `align/<source>`, `align/target-<target>`, `train/<target>` and
`merge/<method>`. A stage knows from digests whether what is there was made from the same
settings and inputs, and then keeps it.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from alignment.errors import ConfigError
from fusion.distill.folders import Method, merge_folders
from fusion.distill.fusechat import align as aligning
from fusion.distill.fusechat import card, pairing
from fusion.distill.fusechat.align import Coverage, Teacher
from fusion.distill.fusechat.represent import (
    UNREAD,
    Represented,
    examples_of,
    represent,
    represented,
    shard_count,
)
from fusion.distill.fusechat.represent import inputs_of as reading_inputs
from fusion.distill.fusechat.settings import FuseChat
from fusion.distill.training.conversations import Conversations, held_out, read_conversations
from fusion.distill.training.curve import CURVE, read_curve
from fusion.distill.training.examples import Example, Examples
from fusion.distill.training.folders import publish
from fusion.distill.training.settings import BASE, StageProgress, digest_of
from fusion.distill.training.shards import Arrays, Stage, read_json, require_shard, shard_path, write_json
from fusion.distill.training.train import STAGE, Texts, load_student, save_student, train
from fusion.distill.training.trainer import processes

START = "start"
"""The name of the base's float32 copy, from which all targets start and with which they are merged."""


@dataclass
class Run:
    """A distillation under way.

    Attributes:
        settings: of all stages.
        progress: called by every stage.
        notes: sentences on what did not go as it should, for whoever started the run.
    """

    settings: FuseChat
    progress: StageProgress = lambda what, done, total: None
    notes: list[str] = field(default_factory=list)

    @cached_property
    def conversations(self) -> Conversations:
        """The conversations that are learned from."""
        return read_conversations(self.settings.data)

    @property
    def count(self) -> int:
        """Shards of every stage."""
        return shard_count(self.conversations, self.settings.represent)

    @cached_property
    def reading(self) -> dict[str, str]:
        """By reader, what its shards depend on."""
        settings = self.settings
        return {
            name: reading_inputs(source, self.conversations, settings.represent, settings.data.max_length)
            for name, source in settings.readers.items()
        }

    def represent(self) -> None:
        """Every model reads the texts."""
        for name, source in self.settings.readers.items():
            unread = represent(
                name,
                source,
                self.conversations,
                self.settings.represent,
                self.settings.data.max_length,
                self._folder("represent", name),
                partial(self.progress, f"represent {name}"),
            )
            if unread:
                self.notes.append(
                    f"{name} cannot read {unread} of {len(self.conversations.messages)} conversations: they are "
                    f"longer than {self.settings.data.max_length} tokens or its context, or its chat template "
                    "does not write their answers after its generation prompt."
                )

    def align(self) -> dict[str, Coverage]:
        """Every target's distributions; returns what they cover."""
        settings = self.settings
        base = aligning.open_vocabulary(settings.base)
        needed = list(dict.fromkeys(name for target in settings.targets.values() for name in target.teachers))
        teachers = {name: self._teacher(name, base) for name in needed}
        found: dict[str, Coverage] = {}
        for name, target in settings.targets.items():
            found[name] = aligning.align(
                target,
                base,
                [teachers[teacher] for teacher in target.teachers],
                self._reading_of,
                settings.align,
                self._paths_of,
                self._aligning(f"target-{name}", self._targets_inputs(name), f"align {name}"),
            )
            write_json(self._folder("align", f"target-{name}") / "coverage.json", asdict(found[name]))
        return found

    def train(self) -> None:
        """A model for every target, and the base in float32 beside them."""
        settings = self.settings
        start = self.model_folder(START)
        model = digest_of(settings.base, self.reading[BASE])
        with processes().main_process_first():
            if read_json(start / STAGE).get("inputs") != model:
                shutil.rmtree(start, ignore_errors=True)
                save_student(load_student(settings.base), settings.base, start, {"inputs": model})
        for name in settings.targets:
            train(
                name,
                settings.base,
                self.texts(name),
                # Each target reads the texts in an order of its own: their errors differ, their mean errs less.
                replace(settings.train, seed=int(digest_of(settings.train.seed, name)[:8], 16)),
                self._folder("train", name),
                self._training_inputs(name),
                partial(self.progress, f"train {name}"),
            )

    def merge(self) -> Path:
        """One model of all targets, and the result's folder, which is returned."""
        settings = self.settings
        trained = {name: self._trained(name) for name in settings.targets}
        inputs = digest_of(settings.merge, list(trained.values()), settings.name, settings.dtype)
        weights: dict[str, Any] = {}
        for method in dict.fromkeys((settings.merge.method, *settings.merge.compare)):
            weights[method] = self._merge_by(method, digest_of(inputs, method))
        publish(
            self.merged_folder(settings.merge.method),
            settings.out,
            settings.dtype,
            inputs,
            lambda: self._described(inputs, weights[settings.merge.method]),
        )
        return settings.out

    def texts(self, name: str | None) -> Texts:
        """The examples of a target; of plain fine-tuning on the same texts for None."""
        marked = held_out(len(self.conversations.messages), self.settings.data.held_out)
        learned: list[Example] = []
        checked: list[Example] = []
        for number in range(self.count):
            targets = None
            if name is not None:
                path = shard_path(self._folder("align", f"target-{name}"), number)
                targets = require_shard(path, self._targets_inputs(name))
            first = number * self.settings.represent.shard
            for at, example in enumerate(examples_of(self._reading_of(BASE, number), targets), first):
                if example is not None:
                    (checked if marked[at] else learned).append(example)
        return Texts(Examples(learned), Examples(checked))

    def model_folder(self, name: str) -> Path:
        """The folder of a trained target, or `START`."""
        return self._folder("train", name) / "model"

    def merged_folder(self, method: Method) -> Path:
        """The folder of the model merged by a method."""
        return self._folder("merge", method)

    def _folder(self, stage: str, name: str) -> Path:
        return self.settings.work / stage / name

    def _reading_of(self, name: str, number: int) -> Represented:
        return represented(shard_path(self._folder("represent", name), number), self.reading[name])

    def _paths_of(self, name: str, number: int) -> Arrays:
        return require_shard(shard_path(self._folder("align", name), number), self._paths_inputs(name))

    def _paths_inputs(self, name: str) -> str:
        return digest_of("paths", self.reading[BASE], self.reading[name])

    def _targets_inputs(self, name: str) -> str:
        return aligning.inputs_of(self.settings.targets[name], self.settings.align, self.reading)

    def _training_inputs(self, name: str) -> str:
        return digest_of(name, self.settings.train, self.settings.data, self._targets_inputs(name))

    def _teacher(self, name: str, base: pairing.Vocabulary) -> Teacher:
        if name == BASE:
            return Teacher(BASE, base)
        source = self.settings.sources[name]
        if self.settings.align.method == "projected":
            return aligning.project(name, base, self.settings.base, source, self.settings.align)
        stage = self._aligning(name, self._paths_inputs(name), f"warp {name}")
        return aligning.warp(name, base, source, self._reading_of, stage)

    def _aligning(self, name: str, inputs: str, what: str) -> Stage:
        return Stage(self.count, inputs, self._folder("align", name), partial(self.progress, what))

    def _trained(self, name: str) -> str:
        """The digest of what a target was trained from; its training has to be over."""
        inputs = self._training_inputs(name)
        if read_json(self.model_folder(name) / STAGE).get("inputs") != inputs:
            raise ConfigError(
                f"There is no target {name} trained with these settings in {self.model_folder(name)}; run the "
                "stage train first."
            )
        return inputs

    def _merge_by(self, method: Method, inputs: str) -> dict[str, Any]:
        settings, folder = self.settings.merge, self.merged_folder(method)
        known = read_json(folder / STAGE)
        if known.get("inputs") == inputs:
            return known
        shutil.rmtree(folder, ignore_errors=True)
        report = merge_folders(
            self.model_folder(START),
            [self.model_folder(name) for name in self.settings.targets],
            folder,
            method=method,
            select=settings.select,
            variant=settings.variant,
            progress=partial(self.progress, f"merge by {method}"),
        )
        about = {"inputs": inputs, **asdict(report)}
        write_json(folder / STAGE, about)
        return about

    def _described(self, inputs: str, merged: dict[str, Any]) -> tuple[dict[str, Any], str]:
        curves = {name: read_curve(self.model_folder(name) / CURVE) for name in self.settings.targets}
        coverage = {
            name: read_json(self._folder("align", f"target-{name}") / "coverage.json")
            for name in self.settings.targets
        }
        unread = {
            name: int(read_json(self._folder("represent", name) / UNREAD).get("conversations", 0))
            for name in self.settings.readers
        }
        record = card.record(self.settings, self.conversations, inputs, curves, coverage, merged, unread)
        return record, card.model_card(self.settings, record)
