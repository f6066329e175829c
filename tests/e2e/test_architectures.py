"""Architectures that cannot run packed are served all the same, alone and as members, and answer as `generate`."""

from __future__ import annotations

import codecs
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest
import torch
from transformers import BloomConfig, JambaConfig, PreTrainedModel
from transformers.models.auto import AutoModelForCausalLM

from alignment.text.tokenizer import Tokenizer
from server.commands.check import make_plan
from server.settings import read_settings
from tests.support.demo import MODELS, questions, user
from tests.support.serving import serving

ENDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
CONFIGS = {
    "bloom": BloomConfig(vocab_size=1408, hidden_size=48, n_layer=2, n_head=4, initializer_range=0.3, **ENDS),
    "jamba": JambaConfig(
        vocab_size=1408,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        attn_layer_period=2,
        attn_layer_offset=1,
        num_experts=2,
        mamba_d_state=8,
        mamba_dt_rank=4,
        initializer_range=0.3,
        max_position_embeddings=512,
        **ENDS,
    ),
}
PROMPTS = questions(12)
LENGTH = 24


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Random models with the tokenizer and the chat template of one of the demo's."""
    root = tmp_path_factory.mktemp("models")
    for name, config in CONFIGS.items():
        shutil.copytree(
            MODELS / "abacus", root / name, ignore=shutil.ignore_patterns("*.safetensors", "*config.json")
        )
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(root / name)
        shutil.copy(MODELS / "abacus" / "tokenizer_config.json", root / name)
    return {name: root / name for name in CONFIGS}


@pytest.fixture(scope="module")
def config(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("server")
    models = "".join(f"  {name}: {{source: {path}}}\n" for name, path in folders.items())
    (folder / "tutti.yaml").write_text(
        f"models:\n{models}  abacus: {{source: {MODELS / 'abacus'}}}\n"
        "ensembles:\n"
        "  mixed:\n"
        "    members: [abacus, bloom, jamba]\n"
        "    pivot: abacus\n"
        "    weights: {abacus: 0.98, bloom: 0.01, jamba: 0.01}\n"
    )
    return folder / "tutti.yaml"


@pytest.fixture(scope="module")
def client(config: Path) -> Iterator[openai.OpenAI]:
    with (
        serving(config, config.parent / "log") as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120) as client,
    ):
        yield client
    log = (config.parent / "log").read_text()
    assert "BloomForCausalLM runs padded: its attention cannot be replaced" in log
    assert "JambaForCausalLM runs with states, token by token: its layers keep a state" in log


def test_the_plan_says_what_will_not_run_packed(config: Path) -> None:
    notes = make_plan(read_settings(config, {})).notes
    assert [note for note in notes if "path" in note] == [
        "bloom runs on the portable path, which is slower: its attention cannot be replaced.",
        "jamba runs on the portable path, which is slower: its layers keep a state.",
    ]
    assert [note.split(":")[0] for note in notes if "system message" in note], (
        "what templates need is said as well"
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_all_at_once_and_token_for_token(client: openai.OpenAI, folders: dict[str, Path], name: str) -> None:
    def ask(prompt: str) -> str:
        done = client.completions.create(
            model=name, prompt=prompt, temperature=0, max_tokens=LENGTH, extra_body={"ignore_eos": True}
        )
        return done.choices[0].text

    with ThreadPoolExecutor(len(PROMPTS)) as threads:
        answers = list(threads.map(ask, PROMPTS))
    model = AutoModelForCausalLM.from_pretrained(folders[name]).eval()
    tokenizer = Tokenizer.load(str(folders[name]))
    assert answers == [generated(model, tokenizer, prompt) for prompt in PROMPTS]
    assert len(set(answers)) > 1


def generated(model: PreTrainedModel, tokenizer: Tokenizer, prompt: str) -> str:
    ids = torch.tensor([tokenizer.encode(prompt, add_special_tokens=True)])
    with torch.inference_mode():
        row = model.generate(ids, do_sample=False, max_new_tokens=LENGTH, min_new_tokens=LENGTH)[0]
    surfaces = [tokenizer.surfaces[id] or b"" for id in row[ids.shape[1] :].tolist()]
    return codecs.utf_8_decode(b"".join(surfaces), "replace", False)[0]  # without a character that breaks off


def test_as_members_of_an_ensemble(client: openai.OpenAI) -> None:
    """Nearly the pivot's answer where they weigh little, and their own where they weigh everything."""
    messages = user(questions(4, "arithmetic")[1])

    def ask(model: str, **weights: float) -> str | None:
        extra = {"fusion": {"weights": weights}} if weights else {}
        done = client.chat.completions.create(
            model=model, messages=messages, temperature=0, max_tokens=40, extra_body=extra
        )
        return done.choices[0].message.content

    pivot = ask("abacus")
    assert ask("mixed") == pivot
    for name in CONFIGS:
        own = ask(name)
        assert ask("mixed", **{"abacus": 0, "bloom": 0, "jamba": 0, name: 1}) == own
        assert own != pivot
