from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from alignment.errors import ConfigError
from fusion.distill import checkpoint
from fusion.distill.folders import merge_folders
from fusion.distill.sce import linear_tensor, merge, varm_tensor

EMBED, HEAD, NORM, COUNT = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight", "model.steps"


def weights(seed, rows=8, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return {
        EMBED: torch.randn(rows, 4, generator=generator, dtype=torch.float32).to(dtype),
        HEAD: torch.randn(rows, 4, generator=generator, dtype=torch.float32).to(dtype),
        NORM: torch.randn(4, generator=generator, dtype=torch.float32).to(dtype),
        COUNT: torch.tensor([seed]),
    }


def save(folder, tensors, *, sharded=False, tied=False, kind="llama", **config):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": kind, "tie_word_embeddings": tied, **config}))
    if not sharded:
        save_file(tensors, folder / "model.safetensors")
        return folder
    files = {}
    for number, (name, tensor) in enumerate(tensors.items()):
        files[name] = f"part-{number}.safetensors"
        save_file({name: tensor}, folder / files[name])
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    return folder


def load(folder):
    loaded = {}
    for file in folder.glob("*.safetensors"):
        loaded |= load_file(file)
    return loaded


@pytest.fixture
def models(tmp_path):
    base, tasks = weights(0), [weights(1), weights(2)]
    folders = [save(tmp_path / "base", base)]
    folders += [save(tmp_path / f"task{n}", task, sharded=n == 1) for n, task in enumerate(tasks)]
    return base, tasks, folders[0], folders[1:], tmp_path / "out"


@pytest.mark.parametrize("variant", ["fusechat", "mergekit"])
@pytest.mark.parametrize("select", [1.0, 0.4])
def test_folders_merge_as_their_tensors_do(models, variant, select):
    base, tasks, base_folder, task_folders, out = models
    seen = []
    report = merge_folders(
        base_folder, task_folders, out, select=select, variant=variant, progress=lambda *step: seen.append(step)
    )
    arrays = [{name: tensor.numpy() for name, tensor in model.items()} for model in (base, *tasks)]
    expected = merge(arrays[0], arrays[1:], select=select, variant=variant)
    got = load(out)
    assert got.keys() == expected.keys()
    for name, tensor in got.items():
        np.testing.assert_array_equal(tensor.numpy(), expected[name])
    assert [step[:2] for step in seen] == [(n, 4) for n in range(1, 5)]
    assert report.unchanged == [COUNT]
    assert report.weights.keys() == {EMBED, HEAD, NORM}


@pytest.mark.parametrize(("method", "tensor"), [("linear", linear_tensor), ("varm", varm_tensor)])
def test_the_other_methods_merge_as_their_tensors_do(models, method, tensor):
    base, tasks, base_folder, task_folders, out = models
    merge_folders(base_folder, task_folders, out, method=method)
    expected = tensor(base[NORM].numpy(), [task[NORM].numpy() for task in tasks])[0]
    np.testing.assert_array_equal(load(out)[NORM].numpy(), expected)


def test_small_shards_hold_the_same_model(models):
    _, _, base_folder, task_folders, out = models
    merge_folders(base_folder, task_folders, out)
    merge_folders(base_folder, task_folders, out.with_name("parts"), shard_bytes=130)
    whole, parts = load(out), load(out.with_name("parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    index = json.loads((out.with_name("parts") / checkpoint.INDEX).read_text())
    assert index["weight_map"].keys() == whole.keys()
    assert {file.name for file in out.with_name("parts").glob("*.safetensors")} == set(
        index["weight_map"].values()
    )
    assert len(set(index["weight_map"].values())) == 3
    assert checkpoint.Checkpoint.open(out.with_name("parts")).tensors.keys() == whole.keys()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_dtype_is_the_bases(tmp_path, dtype):
    base = save(tmp_path / "base", weights(0, dtype=dtype))
    task = save(tmp_path / "task", weights(1))
    merge_folders(base, [task], tmp_path / "out", method="linear")
    got = load(tmp_path / "out")
    assert got[NORM].dtype == dtype
    assert got[COUNT].dtype == torch.int64
    torch.testing.assert_close(got[NORM], weights(1)[NORM].to(dtype))


def test_a_table_with_added_rows_is_cropped(tmp_path):
    base = save(tmp_path / "base", weights(0))
    task = save(tmp_path / "task", weights(1, rows=11))
    report = merge_folders(base, [task], tmp_path / "out", method="linear")
    assert torch.equal(load(tmp_path / "out")[EMBED], weights(1, rows=11)[EMBED][:8])
    assert report.cropped == {EMBED: [0], HEAD: [0]}


def test_a_tensor_of_another_shape_is_left_out_and_reported(tmp_path):
    odd = weights(1) | {NORM: torch.ones(5)}
    base = save(tmp_path / "base", weights(0))
    tasks = [save(tmp_path / "odd", odd), save(tmp_path / "task", weights(2))]
    report = merge_folders(base, tasks, tmp_path / "out", method="linear")
    assert torch.equal(load(tmp_path / "out")[NORM], weights(2)[NORM])
    assert report.left_out == {NORM: [0]}


def test_a_tied_base_is_written_with_one_table(tmp_path):
    base = save(tmp_path / "base", weights(0), tied=True)
    task = save(tmp_path / "task", weights(1))
    merge_folders(base, [task], tmp_path / "out", method="linear")
    assert HEAD not in load(tmp_path / "out")


def test_a_tied_task_lends_its_table_to_an_untied_base(tmp_path):
    tied = weights(1)
    del tied[HEAD]
    base = save(tmp_path / "base", weights(0))
    task = save(tmp_path / "task", tied, tied=True)
    merge_folders(base, [task], tmp_path / "out", method="linear")
    assert torch.equal(load(tmp_path / "out")[HEAD], tied[EMBED])


def test_what_belongs_to_a_model_is_copied_and_programs_are_not(models):
    _, _, base_folder, task_folders, out = models
    kept = [
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
        "chat_template.jinja",
        "merges.txt",
    ]
    for name in [*kept, "modeling_x.py", "pytorch_model.bin", "README.md", "model.safetensors.index.json.bak"]:
        (base_folder / name).write_text("{}")
    (base_folder / "additional_chat_templates").mkdir()
    (base_folder / "additional_chat_templates" / "tools.jinja").write_text("x")
    merge_folders(base_folder, task_folders, out)
    assert sorted(path.name for path in out.iterdir()) == sorted(
        [*kept, "additional_chat_templates", "config.json", "model.safetensors"]
    )
    assert (out / "additional_chat_templates" / "tools.jinja").read_text() == "x"


def test_a_merge_that_fails_leaves_nothing_and_one_that_was_killed_can_start_over(models):
    _, _, base_folder, task_folders, out = models

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge_folders(base_folder, task_folders, out, progress=stop)
    assert sorted(p.name for p in out.parent.iterdir()) == ["base", "task0", "task1"]
    left = out.with_name(".out.unfinished")
    left.mkdir()
    (left / "model.safetensors").write_text("half")
    merge_folders(base_folder, task_folders, out)
    assert not left.exists()
    assert load(out)


def refused(sentence, *arguments, **options):
    with pytest.raises(ConfigError, match=sentence) as caught:
        merge_folders(*arguments, **options)
    assert "\n" not in str(caught.value)


def test_folders_that_cannot_be_merged_are_refused(models, tmp_path):
    _, _, base, tasks, out = models
    refused("is not a folder", tmp_path / "nothing", tasks, out)
    refused("at least one task", base, [], out)
    refused("exists already", base, tasks, base)
    refused("is of model type gpt2", base, [save(tmp_path / "other", weights(1), kind="gpt2")], out)
    refused("is quantised", base, [save(tmp_path / "q", weights(1), quantization_config={"bits": 4})], out)
    short = weights(1)
    del short[NORM]
    refused("lacks 1 of the base's tensors, such as model.norm.weight", base, [save(tmp_path / "s", short)], out)
    whole = weights(1) | {NORM: torch.ones(4, dtype=torch.int8)}
    refused("merging needs floats", base, [save(tmp_path / "i", whole)], out)
    damaged = weights(1) | {NORM: torch.full((4,), torch.nan)}
    refused("would not be finite", base, [save(tmp_path / "nan", damaged)], out)
    assert not out.exists()


def test_damaged_folders_are_refused(models, tmp_path):
    _, _, base, tasks, out = models
    (tasks[1] / "part-0.safetensors").write_bytes(b"\x08" + bytes(20))
    refused("is damaged", base, tasks, out)
    (tasks[1] / "part-0.safetensors").unlink()
    refused("part-0.safetensors is missing", base, tasks, out)
    (tasks[1] / checkpoint.INDEX).write_text(json.dumps({"weight_map": {NORM: "../base/model.safetensors"}}))
    refused("file names in its own folder", base, tasks, out)
    (tasks[1] / checkpoint.INDEX).unlink()
    refused("save the model as safetensors first", base, tasks, out)
    (tasks[1] / "config.json").write_text("{")
    refused("cannot be read as JSON", base, tasks, out)
    (tasks[1] / "config.json").unlink()
    refused("has no config.json", base, tasks, out)


def test_options_outside_their_range_are_refused(models):
    _, _, base, tasks, out = models
    for options in ({"method": "ties"}, {"select": 2}, {"variant": "other"}):
        with pytest.raises(ValueError, match="must"):
            merge_folders(base, tasks, out, **options)
