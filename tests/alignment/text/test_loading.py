from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tokenizers
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers
from transformers import LlamaConfig, MistralConfig, PreTrainedTokenizerFast, Qwen2Config

from alignment.errors import ConfigError
from alignment.text.loading import PROBES
from alignment.text.tokenizer import Tokenizer
from tests.support import small_tokenizers as tiny


def folder(path: Path, tokenizer: Tokenizer, *, kind: str | None = None, config=None, **more) -> Path:
    """A checkpoint's folder whose configuration names a tokenizer class."""
    tokenizer.hf.save_pretrained(path)
    if config is not None:
        config.save_pretrained(path)
    file = path / "tokenizer_config.json"
    configuration = json.loads(file.read_text())
    configuration.pop("backend", None)
    configuration |= more
    if kind is not None:
        configuration["tokenizer_class"] = kind
    file.write_text(json.dumps(configuration))
    return path


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("LlamaTokenizerFast", LlamaConfig()),
        ("LlamaTokenizer", None),
        ("Qwen2Tokenizer", Qwen2Config()),
        ("TokenizersBackend", Qwen2Config()),
    ],
)
@pytest.mark.parametrize("name", ["byte level", "split digits", "sentencepiece", "metaspace"])
def test_the_files_own_pipeline_is_used_whatever_class_is_named(tmp_path, name, kind, config):
    path = folder(tmp_path, tiny.KINDS[name](), kind=kind, config=config)
    loaded = Tokenizer.load(str(path))
    described = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
    for text in (*PROBES, *tiny.TEXTS):
        expected = described.encode(text, add_special_tokens=False).ids
        assert loaded.encode(text, add_special_tokens=False) == expected
    assert loaded.vocabulary_size == described.get_vocab_size()


def test_mistrals_own_format_beside_the_file_is_not_opened(tmp_path):
    """Where mistral-common is installed, transformers would open it with that, which is no fast tokenizer."""
    data = Path(pytest.importorskip("mistral_common").__file__).parent / "data"
    path = folder(tmp_path, tiny.byte_level(), config=MistralConfig())
    shutil.copy(next(data.glob("tekken_*.json")), path / "tekken.json")
    assert Tokenizer.load(str(path)).vocabulary_size == tiny.byte_level().vocabulary_size


@pytest.mark.parametrize("more", [{}, {"unk_token": None}])
def test_tokens_that_the_class_brings_and_the_file_lacks_are_none(tmp_path, more):
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|end|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.train_from_iterator(tiny.TEXTS, trainer)
    hf = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|end|>")
    path = folder(tmp_path, Tokenizer(hf), kind="LlamaTokenizer", **more)
    loaded = Tokenizer.load(str(path))
    assert loaded.vocabulary_size == made.get_vocab_size()
    assert loaded.special_ids == {made.token_to_id("<|end|>")}
    assert loaded.hf.unk_token is None


def test_what_differs_is_said(tmp_path):
    path = folder(tmp_path, tiny.split_digits(), kind="Qwen2Tokenizer", config=Qwen2Config())
    [sentence] = Tokenizer.load(str(path)).findings
    assert "Qwen2Tokenizer reads" in sentence
    assert sentence.endswith("the file's own pipeline is used.")


def test_a_faithful_class_has_nothing_to_say(tmp_path):
    assert Tokenizer.load(str(folder(tmp_path, tiny.split_digits()))).findings == []


def test_findings_name_repairs_and_unflagged_markers():
    hf = PreTrainedTokenizerFast(tokenizer_object=tiny.byte_level("<halt>").hf.backend_tokenizer, eos_token="</s>")
    hf.chat_template = "{% for m in messages %}{{ m.content[0].text }}<halt>{% endfor %}"
    found = Tokenizer(hf).findings
    assert any("in parts" in sentence for sentence in found)
    assert any("<halt>" in sentence for sentence in found)


def lossy(pre_tokenizer, normalizer=None) -> PreTrainedTokenizerFast:
    backend = Backend(models.Unigram([("<unk>", 0.0), ("▁a", -1.0), ("a", -2.0)], unk_id=0))
    backend.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        backend.normalizer = normalizer
    backend.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=backend)


@pytest.mark.parametrize(
    ("steps", "normalizer", "message"),
    [
        ([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()], None, "drops white space"),
        ([pre_tokenizers.Whitespace(), pre_tokenizers.Metaspace()], None, "drops white space"),
        ([pre_tokenizers.Split(" ", "removed"), pre_tokenizers.Metaspace()], None, "drops white space"),
        ([pre_tokenizers.Punctuation("removed"), pre_tokenizers.Metaspace()], None, "drops white space"),
        ([pre_tokenizers.Metaspace(replacement="_")], None, "writes a space as '_'"),
        ([pre_tokenizers.Metaspace()], normalizers.Lowercase(), "does not keep capital letters"),
        ([pre_tokenizers.Metaspace()], normalizers.StripAccents(), "does not keep accents"),
    ],
)
def test_pipelines_that_lose_text_are_refused(steps, normalizer, message):
    with pytest.raises(ConfigError, match=message):
        Tokenizer(lossy(pre_tokenizers.Sequence(steps), normalizer), "lossy")


def sentencepiece_folder(path: Path, *, opens_with_a_space: bool):
    """A checkpoint's folder with a SentencePiece model alone, and that model."""
    sentencepiece = pytest.importorskip("sentencepiece")
    text = path / "text.txt"
    text.write_text("\n".join(tiny.TEXTS))
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(path / "tokenizer"),
        vocab_size=420,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=opens_with_a_space,
        minloglevel=2,
    )
    LlamaConfig().save_pretrained(path)
    configuration = {"tokenizer_class": "LlamaTokenizer", "add_prefix_space": opens_with_a_space}
    (path / "tokenizer_config.json").write_text(json.dumps(configuration))
    return sentencepiece.SentencePieceProcessor(model_file=str(path / "tokenizer.model"))


def test_a_folder_with_a_sentencepiece_model_alone_reads_as_that_model_does(tmp_path):
    original = sentencepiece_folder(tmp_path, opens_with_a_space=False)
    loaded = Tokenizer.load(str(tmp_path))
    for probe in (*PROBES[:-1], *tiny.TEXTS):
        assert loaded.encode(probe, add_special_tokens=False) == original.encode(probe)


def test_a_sentencepiece_model_that_transformers_reads_differently_is_refused(tmp_path):
    """Transformers puts no space before a text that begins with one, where the model does."""
    sentencepiece_folder(tmp_path, opens_with_a_space=True)
    with pytest.raises(ConfigError, match=r"does not read ' a  b.* as what transformers makes of it does"):
        Tokenizer.load(str(tmp_path))


def test_a_class_that_makes_a_model_which_reads_nothing_gives_way_to_the_file(tmp_path):
    """GemmaTokenizer over a byte-level file: its unknown token is not in the vocabulary."""
    path = folder(tmp_path / "model", tiny.byte_level(), kind="GemmaTokenizer")
    tokenizer = Tokenizer.load(str(path))
    assert any("the file's own pipeline is used" in finding for finding in tokenizer.findings)
    text = "The quick brown fox"
    assert tokenizer.encode(text, add_special_tokens=False) == tiny.byte_level().encode(
        text, add_special_tokens=False
    )
