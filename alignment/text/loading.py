"""Loading: the tokenizer that a checkpoint's files describe, whatever transformers makes of its class.

Some tokenizer classes of transformers are rebuilt from the vocabulary and drop everything else in the file: the
way a byte-level vocabulary is read, a normaliser, the space before a text. So the loaded tokenizer is compared
with the file on probe texts, and where the two differ the file is right.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import tokenizers

from alignment.errors import ConfigError, one_line
from alignment.files import local_file
from alignment.text.surfaces import SPACE, components

PROBES = (
    "Hello world",
    " a  b\tc\n\n  d ",
    "don't stop: it's 12345.67, isn't it?",
    "Grüße aus München, ça va, cafe\u0301 \u212b ﬁn ①",
    "你好，世界。 こんにちは 안녕하세요",
    "😀👍🏽 Привет мир",
    "def f(x):\n\treturn x**2  # <b>&amp;</b>",
    "▁ \u00a0\u200b",
)
_DROPS = {"WhitespaceSplit", "Whitespace", "BertPreTokenizer", "CharDelimiterSplit"}
_REWRITES = {"Lowercase": "capital letters", "StripAccents": "accents", "BertNormalizer": "spaces and characters"}


_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "tekken.json",
    "spiece.model",
)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def fast_tokenizer(source: str, revision: str | None, trust_remote_code: bool) -> Any:
    """The transformers fast tokenizer of a folder or hub id.

    Raises:
        ConfigError: in one sentence, where there is none.
    """
    from transformers import AutoTokenizer

    folder = Path(source)
    if folder.is_dir():
        if not any((folder / file).exists() for file in _FILES):
            raise ConfigError(f"The folder {source} has no tokenizer.json: save the model's tokenizer into it.")
    elif folder.exists() or not _HUB_ID.fullmatch(source):
        raise ConfigError(f"The model folder {source} does not exist: check its path.")
    try:
        # Where mistral-common is installed, as vLLM has it, a tekken.json would be opened with that, which has no
        # fast tokenizer, even beside a tokenizer.json.
        hf = AutoTokenizer.from_pretrained(
            source, revision=revision, trust_remote_code=trust_remote_code, mistral_format=False
        )
    except Exception as error:  # the libraries raise everything from OSError to bare Exception here
        raise ConfigError(_load_failure(source, folder.is_dir(), error)) from error
    if not getattr(hf, "is_fast", False):
        raise ConfigError(
            f"The model {source} has only a slow tokenizer: convert it to a tokenizer.json "
            "(transformers' save_pretrained of its fast tokenizer) first."
        )
    return hf


def template_file(path: str) -> str:
    """The text of a chat template. Raises ConfigError where it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(f"The chat template {path} cannot be read: give a text file.") from error


def _load_failure(source: str, is_folder: bool, error: Exception) -> str:
    reason = one_line(error)
    if is_folder and (Path(source) / "tokenizer.json").exists():
        return f"The tokenizer.json of {source} cannot be read ({reason}): save or download the tokenizer again."
    if is_folder:
        return (
            f"The folder {source} has only a slow tokenizer, which could not be converted ({reason}): "
            "save a tokenizer.json into it."
        )
    return (
        f"The model {source} is neither a folder on this machine nor one whose tokenizer the model hub gives out "
        f"({type(error).__name__}): check the name, or download it and give the path of its folder."
    )


def as_the_file_says(hf: Any, source: str, revision: str | None) -> list[str]:
    """Give a loaded transformers tokenizer the pipeline of the checkpoint's own file.

    Returns:
        The differences found, in sentences.

    Raises:
        ConfigError: the checkpoint has only a `tokenizer.model`, and what was made of it reads text differently.
    """
    loaded: tokenizers.Tokenizer = hf.backend_tokenizer
    file = local_file(source, "tokenizer.json", revision)
    if file is None:
        _require_same_as_sentencepiece(loaded, local_file(source, "tokenizer.model", revision), source)
        return []
    described = tokenizers.Tokenizer.from_file(str(file))
    says = _read(described)
    if says is None:
        raise ConfigError(
            f"The tokenizer.json of {source} cannot read plain text: save or download the tokenizer again."
        )
    reads = _read(loaded) or [None] * len(PROBES)  # some classes rebuild a model that lacks what it needs
    differing = [text for text, one, other in zip(PROBES, reads, says, strict=True) if one != other]
    if not differing:
        return []
    _take(hf, described, _configuration(source, revision))
    return [
        f"transformers' {type(hf).__name__} reads {len(differing)} of {len(PROBES)} probe texts differently from "
        f"tokenizer.json, among them {differing[0]!r}; the file's own pipeline is used."
    ]


def require_lossless(pipeline: dict[str, Any], name: str) -> None:
    """ConfigError for a pipeline (a backend's JSON) that does not keep all of a text."""
    for step in components(pipeline.get("pre_tokenizer")):
        removes = step["type"] == "Split" and step["behavior"] == "Removed" and not step["invert"]
        if step["type"] in _DROPS or removes or (step["type"] == "Punctuation" and step["behavior"] == "Removed"):
            raise ConfigError(
                f"The tokenizer of {name} drops white space or signs ({step['type']} in its pre_tokenizer), so "
                "the text cannot be had back from its tokens, and it cannot be fused."
            )
        if step["type"] == "Metaspace" and step.get("replacement", SPACE) != SPACE:
            raise ConfigError(
                f"The tokenizer of {name} writes a space as {step['replacement']!r} instead of {SPACE!r}, so it "
                "is not known which bytes its tokens stand for, and it cannot be fused."
            )
    for step in components(pipeline.get("normalizer")):
        if step["type"] in _REWRITES:
            raise ConfigError(
                f"The tokenizer of {name} does not keep {_REWRITES[step['type']]} ({step['type']} in its "
                "normalizer), so it cannot be fused."
            )


def _read(backend: tokenizers.Tokenizer) -> list[list[int] | None] | None:
    """The ids of each of the probe texts; None where the backend cannot read one."""
    try:
        return [encoding.ids for encoding in backend.encode_batch(list(PROBES), add_special_tokens=False)]
    except Exception:  # the library has no class of its own for this
        return None


def _take(hf: Any, described: tokenizers.Tokenizer, configuration: dict[str, Any]) -> None:
    """Put the file's backend into `hf`, with what its configuration says besides.

    That is added tokens that it names, and what is added around a text, where it says anything about that.
    """
    loaded: tokenizers.Tokenizer = hf.backend_tokenizer
    named = json.dumps(configuration, ensure_ascii=False)
    for id, token in sorted(loaded.get_added_tokens_decoder().items()):
        is_new = described.token_to_id(token.content) is None and id == described.get_vocab_size()
        if is_new and json.dumps(token.content, ensure_ascii=False) in named:
            described.add_tokens([token])
    says_what_is_added = any(configuration.get(name) is not None for name in ("add_bos_token", "add_eos_token"))
    if says_what_is_added and loaded.post_processor is not None:
        described.post_processor = loaded.post_processor
    described.no_truncation()
    described.no_padding()
    for role in hf.SPECIAL_TOKENS_ATTRIBUTES:
        brought = getattr(hf, role, None)
        if isinstance(brought, str) and described.token_to_id(brought) is None:
            setattr(hf, role, None)  # the class brings it, and the file has none
    hf._tokenizer = described


def _configuration(source: str, revision: str | None) -> dict[str, Any]:
    file = local_file(source, "tokenizer_config.json", revision)
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file is not None else {}


def _require_same_as_sentencepiece(loaded: tokenizers.Tokenizer, model: Path | None, source: str) -> None:
    """ConfigError where a converted SentencePiece model reads probe texts differently from the model itself."""
    try:
        from sentencepiece import SentencePieceProcessor
    except ImportError:
        return
    if model is None:
        return
    try:
        original = SentencePieceProcessor(model_file=str(model))
    except (RuntimeError, OSError):  # no SentencePiece model: tiktoken's format has the same name
        return
    for text in PROBES[:-1]:  # the mark itself cannot be distinguished from a space
        if loaded.encode(text, add_special_tokens=False).ids != original.encode(text):
            raise ConfigError(
                f"The tokenizer.model of {source} does not read {text!r} as what transformers makes of it does: "
                "save a tokenizer.json that does (convert it with the transformers version of the checkpoint)."
            )
