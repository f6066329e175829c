"""A GGUF file is the checkpoint that it was written from: the same tokens, the same log-probabilities."""

import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
from tokenizers import AddedToken
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from alignment.errors import ConfigError
from alignment.text.tokenizer import Tokenizer
from fusion.assembly.checkpoints import read_vocabulary
from fusion.members import gguf
from fusion.members.checkpoint import estimate, load_model, resolved
from tests.support.gguf_files import logits, write
from tests.support.reference import shared

TEXTS = [
    "",
    "  two spaces",
    "don't 1234 DON'T",
    "x  =  3.14;\n\n\treturn",
    "Größe, naïve",
    "日本語 テキスト",
    "🙂 a\u0301",
]
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def backend():
    """A byte-level tokenizer of 300 tokens or so."""
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|end|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.train_from_iterator(["the cat sat on the mat and ate the rat"] * 4, trainer)
    return made


def llama(size: int, **options) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=size, **{**SIZES, **options})).eval()


def loaded(path, dtype=torch.float32):
    source, revision = resolved(str(path))
    cpu = torch.device("cpu")
    return load_model(source, dtype=dtype, device=cpu, revision=revision, trust_remote_code=False)


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_computes_what_the_original_does(tmp_path, backend, tied):
    model = llama(backend.get_vocab_size(), tie_word_embeddings=tied)
    path = write(tmp_path / "m.gguf", model, backend, pre="gpt-2")
    torch.testing.assert_close(logits(loaded(path), [5, 6, 7]), logits(model, [5, 6, 7]), atol=1e-5, rtol=0)


def test_biases_of_qwen_are_loaded(tmp_path, backend):
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=backend.get_vocab_size(), **SIZES)).eval()
    torch.nn.init.normal_(model.model.layers[1].self_attn.k_proj.bias)
    path = write(tmp_path / "m.gguf", model, backend, pre="gpt-2")
    torch.testing.assert_close(logits(loaded(path), [5, 6, 7]), logits(model, [5, 6, 7]), atol=1e-5, rtol=0)


def test_biases_that_the_loader_drops_are_refused(tmp_path, backend):
    model = llama(backend.get_vocab_size(), attention_bias=True)
    path = write(tmp_path / "m.gguf", model, backend, pre="gpt-2")
    with pytest.raises(ConfigError, match="does not load all of it"):
        loaded(path)


def test_quantised_weights_are_dequantised(tmp_path, backend):
    model = llama(backend.get_vocab_size())
    path = write(tmp_path / "m.gguf", model, backend, pre="gpt-2", q8=True)
    assert (logits(loaded(path), [5, 6, 7]) - logits(model, [5, 6, 7])).abs().max() < 0.05


def test_memory_is_counted_by_numbers(tmp_path, backend):
    model = llama(backend.get_vocab_size())
    path = write(tmp_path / "m.gguf", model, backend, pre="gpt-2", q8=True)
    weights, _ = estimate(resolved(str(path))[0], "bfloat16", 128)
    assert weights == 2 * sum(weight.numel() for weight in model.parameters())


@pytest.mark.parametrize(
    ("scaling", "keys"),
    [
        ({"rope_type": "linear", "factor": 4.0}, {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}),
        ({"rope_type": "linear", "factor": 4.0}, {"rope.scale_linear": 4.0}),
        (
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
            {
                "rope.scaling.type": "yarn",
                "rope.scaling.factor": 4.0,
                "rope.scaling.original_context_length": 64,
            },
        ),
    ],
)
def test_scaled_rotary_embeddings_are_kept(tmp_path, backend, scaling, keys):
    model = llama(backend.get_vocab_size(), rope_parameters={"rope_theta": 10_000.0, **scaling})
    keys = {f"llama.{name}": value for name, value in keys.items()}
    path = write(tmp_path / "m.gguf", model, backend, pre="gpt-2", keys=keys)
    ids = list(range(5, 105))
    torch.testing.assert_close(logits(loaded(path), ids), logits(model, ids), atol=1e-4, rtol=0)


def test_the_frequencies_of_llama_3_are_kept(tmp_path, backend):
    scaling = {
        "rope_type": "llama3",
        "rope_theta": 500_000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    model = llama(backend.get_vocab_size(), rope_parameters=scaling, hidden_size=256)
    plain = 500_000.0 ** -(np.arange(32) / 32)
    factors = (plain / model.model.rotary_emb.inv_freq.numpy()).astype(np.float32)
    assert factors.max() > 7
    path = write(tmp_path / "m.gguf", model, backend, pre="gpt-2", tensors={"rope_freqs.weight": factors})
    config = json.loads(Path(resolved(str(path))[0], "config.json").read_text())
    assert config["rope_parameters"]["factor"] == 8.0
    ids = list(range(5, 205))
    torch.testing.assert_close(logits(loaded(path), ids), logits(model, ids), atol=1e-4, rtol=0)


def test_frequencies_of_their_own_are_refused(tmp_path, backend):
    model = llama(backend.get_vocab_size())
    factors = np.linspace(1, 3, 4, dtype=np.float32)
    path = write(tmp_path / "m.gguf", model, backend, pre="gpt-2", tensors={"rope_freqs.weight": factors})
    with pytest.raises(ConfigError, match="rotary frequencies in a way of its own"):
        resolved(str(path))
    keys = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    tensors = {"rope_freqs.weight": factors}
    both = write(tmp_path / "n.gguf", model, backend, pre="gpt-2", tensors=tensors, keys=keys)
    with pytest.raises(ConfigError, match=r"by 4\.0 and by factors of their own"):
        resolved(str(both))


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"llama.expert_count": 8}, "llama.expert_count = 8, which would be lost"),
        ({"llama.rope.scaling.type": "other", "llama.rope.scaling.factor": 2.0}, "type other"),
        (
            {"llama.rope.dimension_count": 4, "llama.attention.key_length": 8},
            "rope.dimension_count = 4, which would be lost",
        ),
        ({"llama.rope.scaling.type": "yarn", "llama.rope.scaling.attn_factor": 2.0}, "attn_factor = 2.0"),
        ({"split.count": 3}, "one of 3 parts"),
        ({"split.count": "3"}, "one of 3 parts"),
        ({"tokenizer.ggml.pre": "jabberwock"}, "by the rules of 'jabberwock'"),
        ({"tokenizer.ggml.pre": None}, "names no pre-tokenizer"),
        ({"tokenizer.ggml.add_eos_token": True}, "add_eos_token"),
        ({"tokenizer.ggml.model": "bert"}, "'bert'"),
    ],
)
def test_what_would_be_lost_is_refused(tmp_path, backend, keys, sentence):
    path = write(tmp_path / "m.gguf", llama(backend.get_vocab_size()), backend, pre="gpt-2", keys=keys)
    with pytest.raises(ConfigError, match=sentence):
        resolved(str(path))


def test_a_damaged_file_is_one_sentence(tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"GGUFnot")
    with pytest.raises(ConfigError, match="damaged"):
        resolved(str(tmp_path / "m.gguf"))


@pytest.mark.parametrize("name", ["{folder}/m.gguf", "m.gguf", "folder/m.gguf"])
def test_a_file_that_is_absent_is_named(tmp_path, name):
    with pytest.raises(ConfigError, match=r"m\.gguf does not exist"):
        resolved(name.format(folder=tmp_path))


def test_a_key_that_is_no_text_is_one_sentence(tmp_path, backend):
    path = write(tmp_path / "m.gguf", llama(backend.get_vocab_size()), backend, pre="gpt-2", keys={"a.b": "cafe"})
    path.write_bytes(path.read_bytes().replace(b"cafe", b"caf\xe9"))
    with pytest.raises(ConfigError, match="damaged"):
        resolved(str(path))


def test_a_folder_that_cannot_be_filled_is_one_sentence(tmp_path, backend, monkeypatch):
    path = write(tmp_path / "m.gguf", llama(backend.get_vocab_size()), backend, pre="gpt-2")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "symlink_to", full)
    with pytest.raises(ConfigError, match="No space left on device"):
        resolved(str(path))
    assert list((tmp_path / "cache" / "tutti" / "gguf").iterdir()) == []


def test_a_folder_with_one_file_is_that_file(tmp_path, backend):
    folder = tmp_path / "model"
    folder.mkdir()
    path = write(folder / "a.gguf", llama(backend.get_vocab_size()), backend, pre="gpt-2")
    assert resolved(str(folder)) == resolved(str(path))
    write(folder / "b.gguf", llama(backend.get_vocab_size()), backend, pre="gpt-2")
    with pytest.raises(ConfigError, match=r"several GGUF files.*a\.gguf"):
        resolved(str(folder))


def test_end_tokens_and_template_are_those_of_the_file(tmp_path, backend):
    template = "{% for m in messages %}{{ m.content }}<|end|>{% endfor %}"
    keys = {"tokenizer.chat_template": template, "tokenizer.ggml.eot_token_id": 7}
    path = write(tmp_path / "m.gguf", llama(backend.get_vocab_size()), backend, pre="gpt-2", keys=keys)
    vocabulary = read_vocabulary(resolved(str(path))[0])
    assert set(vocabulary.stop_ids) == {0, 7}
    ids = vocabulary.tokenizer.encode_chat([{"role": "user", "content": "the cat"}], add_generation_prompt=False)
    assert ids[-1] == 0


MARKED = "{% for m in messages %}<｜User｜>{{ m.content }}<|end|>{% endfor %}<｜Assistant｜>"


def test_tokens_outside_the_byte_alphabet_stay_whole(tmp_path, backend):
    """Control tokens and user-defined ones, as DeepSeek's are written."""
    made = tokenizers.Tokenizer.from_str(backend.to_str())
    made.add_special_tokens([AddedToken("<｜User｜>", special=True), AddedToken("<｜begin｜>", special=True)])
    made.add_tokens([AddedToken("<｜Assistant｜>", normalized=False)])
    size = made.get_vocab_size(with_added_tokens=True)
    begin = made.token_to_id("<｜begin｜>")
    keys = {"tokenizer.chat_template": MARKED, "tokenizer.ggml.bos_token_id": begin}
    path = write(tmp_path / "m.gguf", llama(size), made, pre="llama-bpe", keys=keys)
    tokenizer = Tokenizer.load(resolved(str(path))[0])
    assert tokenizer.vocabulary_size == size
    ids = tokenizer.encode_chat([{"role": "user", "content": "the cat"}], add_generation_prompt=True)
    assert [ids[0], ids[-1]] == [made.token_to_id("<｜User｜>"), made.token_to_id("<｜Assistant｜>")]
    assert tokenizer.encode("the cat", add_special_tokens=True)[0] == begin, "as llama.cpp does for this name"
    user = tokenizer.encode_chat([{"role": "user", "content": "<｜User｜>"}], add_generation_prompt=True)
    assert user.count(ids[0]) == 1, "a text is no control token"


def texts_of_the_world():
    lines = shared("tokenizers", "texts.jsonl").read_text().splitlines()
    return TEXTS + [json.loads(line)["text"] for line in lines][:200]


@pytest.mark.parametrize(("name", "pre"), [("gpt2", "gpt-2"), ("qwen", "qwen2"), ("mistral-tekken", "tekken")])
def test_words_are_cut_as_in_the_original(name, pre):
    folder = shared("tokenizers", name)
    original = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    read = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    read.pre_tokenizer, read.normalizer = tokenizers.pre_tokenizers.Whitespace(), None
    gguf.settle_tokenizer(folder, read, {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": pre})
    for text in texts_of_the_world():
        assert (
            read.encode(text, add_special_tokens=False).ids == original.encode(text, add_special_tokens=False).ids
        )


def test_scores_of_sentencepiece_merge_as_the_original(tmp_path):
    """Merges from scores, the space in front, bytes."""
    folder = shared("tokenizers", "llama-2")
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tiny = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}
    path = write(tmp_path / "m.gguf", llama(backend.get_vocab_size(with_added_tokens=True), **tiny), backend)
    original, read = Tokenizer.load(str(folder)), Tokenizer.load(resolved(str(path))[0])
    for text in texts_of_the_world():
        ids = original.encode(text, add_special_tokens=True)
        assert read.encode(text, add_special_tokens=True) == ids, text
        assert read.text_of(ids) == original.text_of(ids)
