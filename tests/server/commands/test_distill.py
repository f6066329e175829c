"""`tutti distill fusechat`: the file, the plan, the stages, and the result as a served model."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path
from typing import Any

import pytest
from openai.types.chat import ChatCompletion

from alignment.errors import ConfigError
from fusion.distill.fusechat.settings import Align, Merge, Represent, Target
from fusion.distill.training.settings import Data
from server.settings.distill.fusechat import read_fusechat
from tests.support.distillable import save_site
from tests.support.forks import Fork
from tests.support.model_folders import run

FILE = """\
name: fused
base: ada
sources:
  ben: ben
  eve: {source: eve, max_sequences: 8}
data: {files: [texts.jsonl], held_out: 0.2, max_length: 128}
represent: {best: 8, shard: 10}
train:
  learning_rate: 1.0e-3
  steps: 2
  batch: 4
  accumulate: 1
  patience: null
merge: {compare: [linear]}
evaluate: {tasks: [questions.jsonl], alignment: exact}
work: work
out: out
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("distill")
    save_site(folder)
    (folder / "fused.yaml").write_text(FILE)
    # Long questions leave these models, which never end an answer by themselves, little room for one.
    rows = [{"id": str(n), "task": "sums", "prompt": f"the {n} " * 40, "reference": "cat"} for n in range(2)]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def distilled(folder: Path) -> tuple[int, str, str]:
    return run("distill", "fusechat", folder / "fused.yaml")


def write(tmp_path: Path, folder: Path, old: str, new: str) -> Path:
    assert old in FILE
    for name in ("ada", "ben", "eve", "texts.jsonl", "questions.jsonl"):
        (tmp_path / name).symlink_to(folder / name)
    path = tmp_path / "fused.yaml"
    path.write_text(FILE.replace(old, new))
    return path


def test_a_file_is_read_with_its_defaults(folder: Path) -> None:
    settings, evaluated = read_fusechat(folder / "fused.yaml")
    assert settings.targets == {"ben": Target(("ben",)), "eve": Target(("eve",))}
    assert settings.base.source == str(folder / "ada")
    assert settings.data == Data((folder / "texts.jsonl",), 0.2, 128)
    assert (settings.align, settings.represent) == (Align(), Represent(8, 10))
    assert settings.merge == Merge(compare=("linear",))
    assert evaluated is not None
    assert evaluated.tasks == [str(folder / "questions.jsonl")]


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("name: fused\n", "", "'name' is missing"),
        ("steps: 2", "step: 2", "train.step: unknown field (did you mean 'steps'?)"),
        ("steps: 2", "steps: 0", "train.steps: found 0; should be greater than 0"),
        ("learning_rate: 1.0e-3", "learning_rate: fast", "train.learning_rate: found 'fast'; should be"),
        ("best: 8", "best: 8.5", "represent.best: found 8.5; should be"),
        ("held_out: 0.2", "held_out: 1.2", "data.held_out: found 1.2; should be less than 1"),
        ("merge: {", "align: {method: near}\nmerge: {", "align.method: found 'near'; allowed: statistics"),
        (
            "merge: {",
            "align: {temperature: 2.0}\nmerge: {",
            "align.rest: what is left out is known at temperature 1",
        ),
        (
            "merge: {",
            "targets: {x: {teachers: [bob]}}\nmerge: {",
            "targets.x.teachers[0]: there is no source 'bob'; allowed: ben, eve, base",
        ),
        (
            "merge: {",
            "targets: {x: {teachers: [ben, eve], combine: mean}}\nmerge: {",
            "targets.x.combine: mean is for align.method projected",
        ),
        ("  ben: ben\n", "  base: ben\n", "sources.base: the name is taken by the base"),
        ("  ben: ben\n", "  ensemble: ben\n", "sources.ensemble: the name is taken by what is asked at the end"),
        ("name: fused", "name: merged-linear", "name: the name is taken by what is asked at the end"),
        ("out: out", "out: work", "out: holds work, which would be lost"),
        ("files: [", "files: [out/texts.jsonl, ", "out: holds data.files, which would be lost"),
        ("evaluate: {", "evaluate: {pivot: bob, ", "evaluate.pivot: there is no model 'bob'"),
    ],
)
def test_a_file_that_will_not_do_gets_one_sentence(
    folder: Path, tmp_path: Path, old: str, new: str, sentence: str
) -> None:
    path = write(tmp_path, folder, old, new)
    with pytest.raises(ConfigError) as error:
        read_fusechat(path)
    assert sentence in str(error.value)
    assert str(error.value).startswith(str(path))
    assert len(str(error.value).splitlines()) == 1


def test_the_plan_runs_nothing(folder: Path, tmp_path: Path) -> None:
    path = write(tmp_path, folder, "work: work", "work: planned")
    code, output, _ = run("distill", "fusechat", path, "--dry-run")
    assert code == 0
    for row in ("conversations", "tokens read by ben", "steps of each target", "memory while training", "disk"):
        assert row in output
    assert not (tmp_path / "planned").exists()


def test_all_stages_end_with_a_table_of_everyone_side_by_side(
    distilled: tuple[int, str, str], folder: Path
) -> None:
    code, output, progress = distilled
    assert code == 0, progress
    for name in ("start", "target-ben", "target-eve", "merged-linear", "fused", "base", "ben", "eve", "ensemble"):
        assert f"\n{name} " in output
    assert f"fused is in {folder / 'out'}" in progress
    answers = json.loads((folder / "work" / "evaluate.json").read_text())
    assert {summary["model"] for summary in answers["summary"]} >= {"fused", "start", "ensemble"}


def test_the_result_says_what_it_is_and_where_it_is_from(distilled: tuple[int, str, str], folder: Path) -> None:
    record = json.loads((folder / "out" / "distillation.json").read_text())
    assert record["base"]["name"] == "ada"
    assert list(record["sources"]) == ["ben", "eve"]
    assert len(record["data"]["digest"]) == 64
    assert record["settings"]["train"]["steps"] == 2
    assert record["figures"]["targets"]["ben"]["steps"] == 2
    assert sum(record["figures"]["merge_weights"].values()) == pytest.approx(1)
    assert set(record["versions"]) >= {"torch", "transformers", "accelerate"}
    card = (folder / "out" / "README.md").read_text()
    assert "# fused" in card
    assert "arXiv 2408.07990" in card
    assert str(folder) not in card + json.dumps(record)


def test_the_result_is_served_and_names_its_parents(distilled: tuple[int, str, str], folder: Path) -> None:
    from server.commands.client import local
    from server.settings import Settings

    models = {name: {"source": str(folder / name), "dtype": "float32"} for name in ("out", "ada")}
    settings = Settings.model_validate({"models": models}, context={"folder": folder})

    async def ask() -> tuple[dict[str, dict[str, Any]], ChatCompletion]:
        async with local(settings) as client:
            cards = {card.id: card.model_dump() async for card in client.models.list()}
            answer = await client.chat.completions.create(
                model="out",
                messages=[{"role": "user", "content": "the"}],
                max_tokens=3,
                extra_body={"ignore_eos": True},
            )
            return cards, answer

    cards, answer = asyncio.run(ask())
    assert cards["out"]["parents"] == ["ada", "ben", "eve"]
    assert cards["ada"]["parents"] is None
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3


def test_a_stage_alone_needs_what_the_ones_before_leave(folder: Path, tmp_path: Path) -> None:
    path = write(tmp_path, folder, "work: work", "work: empty")
    for stage, sentence in (
        ("align", "run the stages before this one again"),
        ("merge", "run the stage train first"),
    ):
        code, _, error = run("distill", "fusechat", path, "--stage", stage)
        assert code == 2
        assert sentence in " ".join(error.split())
    code, _, error = run("distill", "fusechat", path, "--stage", "rest")
    assert code == 2
    assert "represent, align, train, merge, evaluate" in error


def test_a_base_of_another_shape_than_its_targets_is_refused(
    distilled: tuple[int, str, str], folder: Path, tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from fusion.distill.folders import merge_folders

    model = AutoModelForCausalLM.from_pretrained(folder / "ben", dtype=torch.float32)
    model.save_pretrained(tmp_path / "other")
    with pytest.raises(ConfigError, match=r"is of model type gpt_neox, but the base .* of llama"):
        merge_folders(folder / "ada", [tmp_path / "other"], tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_folder_that_holds_something_else_is_not_overwritten(
    distilled: tuple[int, str, str], folder: Path, tmp_path: Path
) -> None:
    path = write(tmp_path, folder, "work: work", f"work: {folder / 'work'}")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "letter.txt").write_text("Dear Anna")
    for name in ("ada", "ben", "eve", "texts.jsonl"):
        (tmp_path / name).unlink()
    path.write_text(path.read_text().replace("ada", str(folder / "ada"), 1))
    path.write_text(path.read_text().replace("ben: ben", f"ben: {folder / 'ben'}"))
    path.write_text(path.read_text().replace("source: eve", f"source: {folder / 'eve'}"))
    path.write_text(path.read_text().replace("[texts.jsonl]", f"[{folder / 'texts.jsonl'}]"))
    code, _, error = run("distill", "fusechat", path, "--stage", "merge")
    assert code == 2
    assert "holds something that is no result of a distillation" in " ".join(error.split())
    assert (tmp_path / "out" / "letter.txt").read_text() == "Dear Anna"


@pytest.mark.parametrize("record", ["{", "[]", '{"base": 1}', '{"base": {"name": 3}, "sources": {}}'])
def test_a_record_that_cannot_be_read_names_no_parents(tmp_path: Path, record: str) -> None:
    from fusion.members.lineage import parents_of

    (tmp_path / "distillation.json").write_text(record)
    assert parents_of(str(tmp_path)) == ()


KILLED = """
import os, signal, sys
from server.commands.evaluate import report
from server.commands.distill import evaluation
{where} = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
from server.cli import app
app(["distill", "fusechat", sys.argv[1], "--stage", "evaluate"])
"""


@pytest.mark.parametrize("where", ["evaluation.report.summarise", "os.fsync"])
def test_an_evaluation_that_was_killed_is_done_again_with_the_same_result(
    distilled: tuple[int, str, str], folder: Path, tmp_path: Path, where: str
) -> None:
    kept = folder / "work" / "evaluate.json"
    whole = kept.read_bytes()
    kept.unlink()
    program = KILLED.format(where=where)
    with Fork("-c", program, folder / "fused.yaml", errors=tmp_path / "progress") as killed:
        assert killed.wait() == -signal.SIGKILL
    assert not kept.exists()
    assert run("distill", "fusechat", folder / "fused.yaml", "--stage", "evaluate")[0] == 0
    assert kept.read_bytes() == whole
