"""The three members of the demo ensemble: architecture, tokenizer and training data of each."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from transformers import GPTNeoXConfig, LlamaConfig, PretrainedConfig, PreTrainedTokenizerFast, Qwen2Config

from deploy.demo import vocabularies

MODELS = Path(__file__).parent / "models"
MAX_LENGTH = 1024
SHAPE = {
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,  # of 64 dimensions, which every attention kernel supports
    "max_position_embeddings": MAX_LENGTH,
    "tie_word_embeddings": True,
}
"""What the three architectures have in common."""

INST_TEMPLATE = """\
{%- set ns = namespace(system='') -%}
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}
{%- set ns.system = '<<SYS>>\\n' + message['content'] + '\\n<</SYS>>\\n\\n' -%}
{%- elif message['role'] == 'user' -%}
{{- bos_token + '[INST] ' + ns.system + message['content'] + ' [/INST]' -}}
{%- set ns.system = '' -%}
{%- else -%}
{{- ' ' + message['content'] + eos_token -}}
{%- endif -%}
{%- endfor -%}
"""
CHATML_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""
ROLE_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|assistant|>\\n' -}}
{%- endif -%}
"""


@dataclass(frozen=True)
class Member:
    """One model of the ensemble.

    `special` lists its special tokens by role; the others it knows are in `markers`.
    `shares` is the relative number of chats per task it is trained on, `tokens` their length in all.
    """

    name: str
    strong_at: tuple[str, ...]
    vocabulary: vocabularies.Builder
    vocabulary_size: int
    special: Mapping[str, str]
    chat_template: str
    config_class: type[PretrainedConfig]
    shares: Mapping[str, float]
    tokens: int
    seed: int
    markers: tuple[str, ...] = ()
    config: Mapping[str, object] = field(default_factory=dict)

    def train_tokenizer(self, texts: list[str]) -> PreTrainedTokenizerFast:
        """The tokenizer trained on these texts, as transformers knows it, with the chat template."""
        special = (*dict.fromkeys(self.special.values()), *self.markers)
        return PreTrainedTokenizerFast(
            tokenizer_object=self.vocabulary(texts, self.vocabulary_size, special),
            chat_template=self.chat_template,
            model_max_length=MAX_LENGTH,
            clean_up_tokenization_spaces=False,
            additional_special_tokens=list(self.markers),
            **self.special,
        )

    def make_config(self, tokenizer: PreTrainedTokenizerFast) -> PretrainedConfig:
        """The configuration of a model that goes with the tokenizer."""
        return self.config_class(
            vocab_size=len(tokenizer),
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **SHAPE,
            **self.config,
        )


ABACUS = Member(
    name="abacus",
    strong_at=("arithmetic",),
    vocabulary=vocabularies.sentencepiece_style,
    vocabulary_size=1408,
    special={"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"},
    chat_template=INST_TEMPLATE,
    config_class=LlamaConfig,
    config={"intermediate_size": 512},
    shares={"arithmetic": 76, "data_to_text": 3, "translation": 6, "commonsense": 10, "small_talk": 5},
    tokens=7_500_000,
    seed=1,
)
LINGVO = Member(
    name="lingvo",
    strong_at=("translation",),
    vocabulary=vocabularies.llama3_style,
    vocabulary_size=2560,
    special={"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
    markers=("<|im_start|>",),
    chat_template=CHATML_TEMPLATE,
    config_class=Qwen2Config,
    config={"intermediate_size": 512, "num_key_value_heads": 2},
    shares={"arithmetic": 12, "data_to_text": 2, "translation": 71, "commonsense": 10, "small_talk": 5},
    tokens=2_000_000,
    seed=2,
)
ALMANAC = Member(
    name="almanac",
    strong_at=("data_to_text", "commonsense"),
    vocabulary=vocabularies.gpt2_style,
    vocabulary_size=1792,
    special={"eos_token": "<|end|>", "pad_token": "<|endoftext|>"},
    markers=("<|system|>", "<|user|>", "<|assistant|>"),
    chat_template=ROLE_TEMPLATE,
    config_class=GPTNeoXConfig,
    config={"intermediate_size": 768},
    shares={"arithmetic": 12, "data_to_text": 24, "translation": 5, "commonsense": 54, "small_talk": 5},
    tokens=2_600_000,
    seed=3,
)

MEMBERS = {member.name: member for member in (ABACUS, LINGVO, ALMANAC)}
PIVOT = LINGVO
"""The member with the widest vocabulary: what the others know can best be said in its tokens."""
