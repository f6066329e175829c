"""GGUF: a checkpoint in one file, opened as a folder with the configuration and the tokenizer that it describes.

transformers reads both out of the file, and its weights, but passes over some of what the file says: rotary
scaling, most names of pre-tokenizers, whether a text begins with a space, control tokens with characters of their
own. So the keys of the architecture and of the tokenizer are compared with what came out, which is mended or
refused. The folder lies in the user's cache; in it a link to the file stands for weights, which are dequantised
when they are loaded.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import transformers
from tokenizers import AddedToken, Regex, normalizers, pre_tokenizers, processors
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast

from alignment.errors import ConfigError, one_line
from alignment.methods.map_cache import user_cache

WEIGHTS = "weights.gguf"
"""Name of the link, in the folder, to the file with the weights."""

_LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN = _LLAMA_3.replace("{1,3}", "")
_WORD = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER, _UPPER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]", r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TEKKEN = rf"{_WORD}*{_LOWER}+|{_WORD}+{_LOWER}*|\p{{N}}|{_REST}"
_CONTRACTED = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_GPT_4O = rf"{_WORD}*{_LOWER}+{_CONTRACTED}|{_WORD}+{_LOWER}*{_CONTRACTED}|\p{{N}}{{1,3}}|{_REST}"

# How byte-level vocabularies cut text into words, by the name in `tokenizer.ggml.pre`: a pattern, or one of the
# two ways below.
_GPT_2, _DIGITS = "gpt-2", "digits"
_PRE_TOKENIZERS: dict[str, str] = {
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo", "jais"), _GPT_2),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell"), _DIGITS),
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3", "smaug-bpe", "dbrx"), _LLAMA_3),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), _QWEN),
    "tekken": _TEKKEN,
    **dict.fromkeys(("gpt-4o", "llama4"), _GPT_4O),
}
_WHOLE_WORDS = {_LLAMA_3, _TEKKEN, _GPT_4O}  # a word that is a token is one, whatever the merges say
_COMPOSED = {_QWEN}  # in NFC
_BEGUN = {"llama3", "llama-v3", "llama-bpe", "falcon3", "tekken"}
"""Names whose texts begin with the bos token where the file does not say, as llama.cpp has it."""

# Types of tokens in `tokenizer.ggml.token_type` that stand for themselves: a text is never merged into one.
_CONTROL, _USER_DEFINED = 3, 4

# Keys of an architecture that state what an attribute of the configuration must be.
_ATTRIBUTES = {
    "attention.key_length": "head_dim",
    "attention.value_length": "head_dim",
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "vocab_size": "vocab_size",
}
_ROPE_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
_RECIPE = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]
"""What makes the folders: those of an earlier version are not taken."""
_NUMBERS = "numbers.json"
"""Name of the file, in the folder, that holds how many numbers the weights are: counting them takes seconds."""


def opened(file: Path) -> Path:
    """The folder of a GGUF file; made when the file is first seen or has changed.

    Raises:
        ConfigError: in one sentence, for a file that is damaged, or says what would be lost.
    """
    stated = file.stat()
    versions = f"{transformers.__version__} {tokenizers.__version__} {_RECIPE}"
    made_of = f"{file.resolve()} {stated.st_size} {stated.st_mtime_ns} {versions}"
    name = f"{file.stem}-{hashlib.sha256(made_of.encode()).hexdigest()[:16]}"
    cache = user_cache()
    home = Path(tempfile.mkdtemp(prefix="tutti-")) if cache is None else cache / "gguf"
    folder = home / name
    try:
        if folder.is_dir():
            return folder
        home.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=home))
    except OSError as error:
        raise ConfigError(f"{home} cannot be written ({error.strerror or error}): set XDG_CACHE_HOME.") from error
    try:
        try:
            _write(file, fresh)
        except OSError as error:
            raise ConfigError(
                f"{fresh} cannot be written ({error.strerror or error}): make room for it."
            ) from error
        try:
            fresh.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was faster
                raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return folder


def require_whole(model: Any, folder: Path) -> None:
    """Raise ConfigError unless every number of the file has gone into the model, which has no others."""
    wanted = numbers(folder)
    held = sum(weight.numel() for weight in model.parameters())
    if wanted != held:
        raise _lossy(
            (folder / WEIGHTS).resolve(),
            f"holds {wanted:,} numbers for a model of {held:,}: transformers {transformers.__version__} does not "
            "load all of it",
        )


def _lossy(file: Path, what: str) -> ConfigError:
    return ConfigError(f"{file} {what}; take the original checkpoint.")


def numbers(folder: Path) -> int:
    """How many numbers the weights in the file are."""
    return int(json.loads((folder / _NUMBERS).read_text()))


def _read(file: Path) -> tuple[Any, dict[str, Any]]:
    """The file as `gguf.GGUFReader` maps it, and its keys."""
    missing = [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"{file.name} needs {' and '.join(missing)}: pip install 'tutti-server[gguf]'.")
    from gguf import GGUFReader

    try:
        reader = GGUFReader(file)
        return reader, {name: field.contents() for name, field in reader.fields.items()}
    except Exception as error:  # it raises whatever its parsing runs into
        raise ConfigError(
            f"{file} is no GGUF file, or is damaged ({one_line(error, 120)}); copy it again."
        ) from error


def _write(file: Path, folder: Path) -> None:
    reader, fields = _read(file)
    parts = fields.get("split.count", 1)
    if parts not in (0, 1):
        raise ConfigError(f"{file} is one of {parts} parts; join them with llama-gguf-split --merge.")
    try:
        config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
        hf = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    except Exception as error:
        raise ConfigError(
            f"{file} cannot be read by transformers {transformers.__version__}: {one_line(error, 300)}."
        ) from error
    _settle_config(file, config, fields, reader)
    config.save_pretrained(folder)
    backend = with_whole_tokens(file, hf.backend_tokenizer, fields)
    settle_tokenizer(file, backend, fields)
    _packed(backend, fields).save_pretrained(folder)
    ends = [fields.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    ids = list(dict.fromkeys(id for id in ends if id is not None))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))
    weights = [int(tensor.n_elements) for tensor in reader.tensors if tensor.name not in _ROPE_TENSORS]
    (folder / _NUMBERS).write_text(json.dumps(sum(weights)))
    (folder / WEIGHTS).symlink_to(file.resolve())


def _settle_config(file: Path, config: Any, fields: Mapping[str, Any], reader: Any) -> None:
    """Bring a configuration to what the file says. Raises ConfigError for a key that nothing here understands."""
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

    architecture = fields["general.architecture"]
    known = {
        name: attribute
        for family in (architecture, config.model_type)
        for name, attribute in GGUF_CONFIG_MAPPING.get(family, {}).items()
    }
    tensors = {tensor.name: tensor for tensor in reader.tensors if tensor.name in _ROPE_TENSORS}
    own = {
        name.removeprefix(f"{architecture}."): value
        for name, value in fields.items()
        if name.startswith(f"{architecture}.")
    }
    rotary = {name: own.pop(name) for name in list(own) if name.startswith(("rope.scal", "rope.dimension"))}
    for name, value in own.items():
        attribute = _ATTRIBUTES.get(name)
        if attribute is not None and hasattr(config, attribute):
            setattr(config, attribute, value)
        elif known.get(name) is None and value:
            raise _lossy(file, f"states {architecture}.{name} = {value}, which would be lost")
    _settle_rotary(file, config, rotary, {name: np.array(tensor.data) for name, tensor in tensors.items()})


def _settle_rotary(file: Path, config: Any, stated: dict[str, Any], tensors: dict[str, Any]) -> None:
    """Give the rotary embedding the scaling that the file states in keys, or in factors by frequency."""
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rope = dict(getattr(config, "rope_parameters", None) or {"rope_type": "default"})
    if stated.get("rope.dimension_count") == int(width * rope.get("partial_rotary_factor", 1.0)):
        del stated["rope.dimension_count"]
    kind = stated.pop("rope.scaling.type", "linear")
    factor = stated.pop("rope.scaling.factor", stated.pop("rope.scale_linear", 1.0))
    original = stated.pop("rope.scaling.original_context_length", None)
    attention = stated.pop("rope.scaling.attn_factor", None) if kind == "yarn" else None
    stated.pop("rope.scaling.finetuned", None)
    if tensors and factor != 1:
        raise _lossy(file, f"scales its rotary frequencies by {factor} and by factors of their own")
    if kind == "yarn" and factor == 1 and attention not in (None, 1):
        stated["rope.scaling.attn_factor"] = attention
    if "rope_freqs.weight" in tensors:
        rope |= _llama_3(file, rope, tensors["rope_freqs.weight"], original)
    elif tensors:
        raise _lossy(file, "has factors for long contexts, which are not built")
    elif kind == "linear" and factor != 1:
        rope |= {"rope_type": "linear", "factor": factor}
    elif kind == "yarn" and factor != 1:
        rope |= {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
        if attention not in (None, 1):
            rope["attention_factor"] = attention * (0.1 * np.log(factor) + 1)
    elif factor != 1 and kind != "none":
        stated[f"rope.scaling.type {kind}, factor"] = factor
    # Gemma 3 has one for each kind of layers, and the file does not say which it scales.
    by_layer = any(isinstance(value, dict) for value in rope.values())
    if by_layer and rope != config.rope_parameters:
        stated["rope.scaling.factor"] = factor
    if stated:
        name, value = next(iter(stated.items()))
        raise _lossy(file, f"states {name} = {value}, which would be lost")
    config.rope_parameters = rope


def _llama_3(file: Path, rope: dict[str, Any], factors: Any, original: int | None) -> dict[str, Any]:
    """The parameters of Llama 3's scaling that give these factors by frequency [width / 2]."""
    theta = rope.get("rope_theta", 10_000.0)
    plain = theta ** -(np.arange(len(factors), dtype=np.float64) / len(factors))
    for length in dict.fromkeys((original or 8192, 8192, 4096)):
        found = {
            "rope_type": "llama3",
            "factor": float(factors.max()),
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": length,
        }
        waves = length * plain / (2 * np.pi)
        smooth = np.clip((waves - 1.0) / (4.0 - 1.0), 0, 1)
        expected = 1 / ((1 - smooth) / found["factor"] + smooth)
        if np.allclose(expected, factors, rtol=1e-4):
            return found
    raise _lossy(file, "scales its rotary frequencies in a way of its own")


def with_whole_tokens(
    file: Path, backend: tokenizers.Tokenizer, fields: Mapping[str, Any]
) -> tokenizers.Tokenizer:
    """The tokenizer with all tokens that the file says stand for themselves: control and user-defined ones.

    Of a byte-level vocabulary transformers respells those that hold other characters than its alphabet's, such
    as a full-width bar, and adds none of them, so that texts are cut into pieces there; and it adds GPT-2's end of
    a text behind the last token where there is none. Raises ConfigError where a token cannot be had.
    """
    tokens, types = fields["tokenizer.ggml.tokens"], fields.get("tokenizer.ggml.token_type", ())
    wanted = (_CONTROL, _USER_DEFINED) if fields["tokenizer.ggml.model"] == "gpt2" else (_CONTROL,)
    whole = {id: kind for id, kind in enumerate(types) if kind in wanted and id < len(tokens)}
    state = json.loads(backend.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["id"] < len(tokens)]
    vocabulary: dict[str, int] = state["model"]["vocab"]
    respelled = {id: text for text, id in vocabulary.items() if id in whole and text != tokens[id]}
    for id, text in respelled.items():
        del vocabulary[text]
        vocabulary[tokens[id]] = id
    backend = tokenizers.Tokenizer.from_str(json.dumps(state))
    for control in (True, False):
        backend.add_tokens(
            [
                AddedToken(tokens[id], normalized=False, special=control)
                for id, kind in whole.items()
                if (kind == _CONTROL) == control
            ]
        )
    added = backend.get_added_tokens_decoder()
    for id in whole:
        if id not in added or added[id].content != tokens[id]:
            raise _lossy(file, f"has the token {tokens[id]!r:.60}, id {id}, which would be lost")
    return backend


def settle_tokenizer(file: Path, backend: tokenizers.Tokenizer, fields: Mapping[str, Any]) -> None:
    """Bring a tokenizer to what the file says. Raises ConfigError for what is not understood."""
    kind, pre = fields["tokenizer.ggml.model"], fields.get("tokenizer.ggml.pre")
    for name in ("add_eos_token", "add_sep_token", "precompiled_charsmap", "remove_extra_whitespaces"):
        if fields.get(f"tokenizer.ggml.{name}"):
            raise _lossy(file, f"states tokenizer.ggml.{name}, which is not built")
    if kind == "gpt2":
        way = _PRE_TOKENIZERS.get(pre or "")
        if way is None:
            found = "names no pre-tokenizer" if pre is None else f"cuts text into words by the rules of {pre!r}"
            raise _lossy(file, f"{found}, which is not known here (known are {', '.join(_PRE_TOKENIZERS)})")
        backend.pre_tokenizer = _pre_tokenizer(way)
        backend.model.ignore_merges = way in _WHOLE_WORDS
        backend.normalizer = normalizers.NFC() if way in _COMPOSED else normalizers.Sequence([])
    elif kind == "llama":
        spaced = fields.get("tokenizer.ggml.add_space_prefix", True)
        backend.pre_tokenizer = None
        marks = [normalizers.Prepend("▁")] if spaced else []
        backend.normalizer = normalizers.Sequence([*marks, normalizers.Replace(" ", "▁")])
    else:
        raise ConfigError(f"{file} has a tokenizer of the kind {kind!r}; gpt2 and llama are built.")
    begins = fields.get("tokenizer.ggml.add_bos_token", kind == "llama" or pre in _BEGUN)
    bos = fields.get("tokenizer.ggml.bos_token_id")
    if begins and bos is not None:
        token = fields["tokenizer.ggml.tokens"][bos]
        backend.post_processor = processors.TemplateProcessing(
            single=[token, "$A"], pair=[token, "$A", token, "$B"], special_tokens=[(token, bos)]
        )
    elif kind == "gpt2":
        backend.post_processor = processors.ByteLevel(trim_offsets=False)


def _pre_tokenizer(way: str) -> pre_tokenizers.PreTokenizer:
    if way == _GPT_2:
        return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if way == _DIGITS:
        words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words])
    spelled = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(way), behavior="isolated"), spelled])


def _packed(backend: tokenizers.Tokenizer, fields: Mapping[str, Any]) -> PreTrainedTokenizerFast:
    """The tokenizer as a class that keeps its pipeline, with the special tokens and the template of the file."""
    tokens = fields["tokenizer.ggml.tokens"]
    named = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    special = {
        f"{short}_token": tokens[id]
        for short, long in named.items()
        if (id := fields.get(f"tokenizer.ggml.{long}_token_id")) is not None and id < len(tokens)
    }
    packed = PreTrainedTokenizerFast(tokenizer_object=backend, **special)
    packed.chat_template = fields.get("tokenizer.chat_template")
    return packed
