from __future__ import annotations

import json
import shutil
from contextlib import suppress

import pytest
from tokenizers import AddedToken, models, pre_tokenizers
from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerFast

from alignment.errors import ConfigError, InvalidRequestError
from alignment.methods.exact import exact_map
from alignment.text.tokenizer import Tokenizer
from tests.support import small_tokenizers as tiny
from tests.support.reference import REAL, real_tokenizer


def hf(backend: Backend) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=backend)


@pytest.mark.parametrize("name", REAL)
def test_ids_are_those_of_the_original_libraries(real, texts, name):
    for entry in texts:
        assert real[name].encode(entry["text"], add_special_tokens=False) == entry["ids"][name]


@pytest.mark.parametrize("name", REAL)
def test_surfaces_add_up_to_the_text(real, texts, name):
    normalize = real[name].hf.backend_tokenizer.normalizer if name == "qwen" else None
    for entry in texts:
        text = normalize.normalize_str(entry["text"]) if normalize else entry["text"]
        if name == "llama-2":
            text = text.replace("▁", " ")
        before = " " if name == "llama-2" else ""
        assert real[name].surface_of(entry["ids"][name]) == (before + text).encode()
        assert real[name].decode(entry["ids"][name]) == text


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_surfaces_of_every_kind_add_up_to_the_text(kind):
    tokenizer = tiny.KINDS[kind]()
    for text in tiny.TEXTS:
        assert tokenizer.surface_of(tokenizer.continuation.encode(text)) == text.encode()


def test_every_byte_has_a_token_where_the_vocabulary_says_so(real):
    for name in REAL:
        ids = real[name].byte_ids
        assert [real[name].surfaces[id] for id in ids] == [bytes([byte]) for byte in range(256)]
    assert real["llama-2"].byte_ids[0x41] == 3 + 0x41
    assert tiny.unigram().byte_ids == [None] * 256


def test_special_tokens_have_no_surface_and_added_text_tokens_have_theirs():
    tokenizer = tiny.byte_level("<think>", "</think>", "é\u0301x", nfc=True)
    assert {tokenizer.hf.convert_ids_to_tokens(id) for id in tokenizer.special_ids} == set(tiny.CONTROL)
    assert all(tokenizer.surfaces[id] is None for id in tokenizer.special_ids)
    think = tokenizer.hf.convert_tokens_to_ids("<think>")
    assert tokenizer.surfaces[think] == b"<think>"
    assert think in tokenizer.encode("a<think>b", add_special_tokens=False)


def test_unused_ids_have_no_surface():
    vocabulary = {**{c: i for i, c in enumerate(pre_tokenizers.ByteLevel.alphabet())}, "ab": 300}
    backend = Backend(models.BPE(vocabulary, [("a", "b")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = Tokenizer(hf(backend))
    assert tokenizer.vocabulary_size == len(tokenizer.surfaces) == 301
    assert tokenizer.surfaces[256:300] == [None] * 44
    assert tokenizer.surface_of([300, 270, 999]) == b"ab"


@pytest.mark.parametrize("name", [*tiny.KINDS, *REAL])
def test_text_is_never_read_as_control_tokens(name):
    tokenizer = tiny.KINDS[name]() if name in tiny.KINDS else real_tokenizer(name)
    spellings = [str(tokenizer.hf.convert_ids_to_tokens(id)) for id in sorted(tokenizer.special_ids)[:30]]
    text = " ".join(spellings) + "".join(spellings)
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert not tokenizer.special_ids & set(ids)
    with_special = tokenizer.encode(text, add_special_tokens=True)
    assert [id for id in with_special if id not in tokenizer.special_ids] == ids
    assert with_special == [*tokenizer.hf("", add_special_tokens=True).input_ids, *ids]
    tokenizer.hf(text)  # transformers changes its own backend, not ours
    assert tokenizer.encode(text, add_special_tokens=False) == ids


def test_decoding_shows_special_tokens():
    tokenizer = tiny.sentencepiece()
    ids = [*tokenizer.encode("The dog", add_special_tokens=True), tokenizer.hf.eos_token_id]
    assert tokenizer.surface_of(ids) == b" The dog"
    assert tokenizer.decode(ids) == tokenizer.hf.decode(ids)
    assert "The dog</s>" in tokenizer.decode(ids)
    assert tokenizer.decode([tokenizer.byte_ids[0xE2]]) == "\ufffd"


def test_fingerprints_tell_what_decides_ids_from_what_does_not(tmp_path):
    tokenizer = tiny.byte_level()
    tokenizer.hf.save_pretrained(tmp_path)
    assert Tokenizer.load(str(tmp_path)).fingerprint == tokenizer.fingerprint
    path = tmp_path / "tokenizer.json"
    pipeline = json.loads(path.read_text())
    truncation = {"max_length": 5, "stride": 0, "strategy": "LongestFirst", "direction": "Right"}
    path.write_text(json.dumps({**pipeline, "truncation": truncation}))
    truncating = Tokenizer.load(str(tmp_path))
    assert truncating.fingerprint == tokenizer.fingerprint
    assert len(truncating.encode("The quick brown fox jumps over the lazy dog", add_special_tokens=False)) > 5
    pipeline["model"]["merges"].pop()
    path.write_text(json.dumps(pipeline))
    assert Tokenizer.load(str(tmp_path)).fingerprint != tokenizer.fingerprint
    assert tiny.byte_level(nfc=True).fingerprint != tokenizer.fingerprint


def test_half_a_surrogate_pair_is_refused():
    with pytest.raises(InvalidRequestError, match="surrogate"):
        tiny.byte_level().encode("a\ud800", add_special_tokens=False)
    with pytest.raises(InvalidRequestError, match="surrogate"):
        tiny.byte_level().encode_chat([{"role": "user", "content": "a\ud800"}])


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"no/such/folder does not exist"):
        Tokenizer.load(str(tmp_path / "no/such/folder"))


def test_a_folder_without_tokenizer_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=rf"{tmp_path.name} has no tokenizer"):
        Tokenizer.load(str(tmp_path))


def test_a_corrupt_tokenizer_is_named(tmp_path):
    tiny.byte_level().hf.save_pretrained(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(path.read_text()[:1000])
    with pytest.raises(ConfigError, match=r"tokenizer\.json of .* cannot be read"):
        Tokenizer.load(str(tmp_path))


def test_a_slow_tokenizer_is_refused(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"not a model")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    with pytest.raises(ConfigError, match="slow tokenizer"):
        Tokenizer.load(str(tmp_path))


def test_code_that_comes_with_a_tokenizer_is_not_run(tmp_path):
    trap = tmp_path / "trap"
    tiny.byte_level().hf.save_pretrained(tmp_path)
    (tmp_path / "tokenization_trap.py").write_text(f"open({str(trap)!r}, 'w')\nclass Trap: pass\n")
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "Trap", "auto_map": {"AutoTokenizer": ["tokenization_trap.Trap", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError):
        Tokenizer.load(str(tmp_path))
    assert not trap.exists()


@pytest.mark.parametrize(
    ("backend", "sentence"),
    [
        (Backend(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]")), "is a WordPiece tokenizer"),
        (Backend(models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]")), "is a WordLevel tokenizer"),
        (Backend(models.BPE({"a": 0, "b</w>": 1}, [], end_of_word_suffix="</w>")), "marks word pieces"),
        (Backend(models.BPE({"a": 0, "b": 1}, [])), "is neither a byte-level BPE nor"),
    ],
)
def test_a_kind_that_cannot_be_fused_is_refused(backend, sentence):
    with pytest.raises(ConfigError, match=f"The tokenizer of odd {sentence}"):
        Tokenizer(hf(backend), "odd")


def test_loading_finds_what_was_saved(tmp_path):
    tokenizer = tiny.sentencepiece("<think>")
    tokenizer.hf.save_pretrained(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    loaded = Tokenizer.load(str(tmp_path / "b"))
    assert loaded.surfaces == tokenizer.surfaces
    assert loaded.special_ids == tokenizer.special_ids
    assert loaded.chat_lead == tokenizer.chat_lead == b" "


def test_of_several_ids_with_one_surface_the_one_that_texts_are_read_in_is_found():
    """GPT-NeoX has runs of spaces twice, as merges and as added tokens; texts are read in the latter."""
    backend = Backend.from_str(tiny.byte_level().hf.backend_tokenizer.to_str())
    merged = next(token for token in sorted(backend.get_vocab()) if token.startswith("Ġ") and token[1:].isalpha())
    text = " " + merged[1:]
    backend.add_tokens([AddedToken(text, special=False, normalized=False)])
    tokenizer = Tokenizer(hf(backend))
    surface, added = text.encode(), backend.token_to_id(text)
    assert len([id for id, one in enumerate(tokenizer.surfaces) if one == surface]) == 2
    assert tokenizer.encode(f"so{text}", add_special_tokens=False)[-1] == added
    assert tokenizer.reverse.ids_by_surface[surface] == added
    for id in tokenizer.reverse.doubles:
        with suppress(UnicodeDecodeError):
            read = tokenizer.continuation.encode((tokenizer.surfaces[id] or b"").decode())
            assert len(read) > 1 or tokenizer.reverse.ids_by_surface[tokenizer.surfaces[id] or b""] == read[0]
    other = tiny.byte_level()
    mapped = exact_map(other, tokenizer, source_stops=(), target_stop=2)
    assert mapped.target_ids[other.hf.convert_tokens_to_ids(merged), 0] == added
