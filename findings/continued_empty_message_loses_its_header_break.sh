#!/usr/bin/env bash
# transformers: continuing a final message that is empty takes the line breaks of its header away.
#
# Software: transformers 5.19.0.
# Expected: with continue_final_message the prompt ends right before what the final message would say next. For an empty
#   one that is the end of its header, the place where add_generation_prompt ends as well.
# Seen: under a template that trims contents, as those of Llama 3 and Gemma do, the prompt of an empty message (or one of
#   white space) ends with the header's last mark: the two line breaks after it are gone, and the model reads a prompt
#   that it was never trained on. With a text in the message, or a template that does not trim, they stay.
# Source: the library appends a tag that ends in a space, looks for it in what was rendered, and where the space was
#   trimmed it strips all white space before the tag, whether it was the message's or the template's.
# Exit status: 0 while the behaviour is as described, 1 once it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.19.0 jinja2==3.1.6
cat >"$folder/continued.py" <<'PYTHON'
import tokenizers
from transformers import PreTrainedTokenizerFast

WHOLE = (
    "{% for m in messages %}<|{{ m.role }}|>\n\n{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n\n{% endif %}"
)
tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0}, [])))
asked = {"role": "user", "content": "Hi"}
for name, template in (("trims", WHOLE.replace("m.content", "m.content | trim")), ("keeps", WHOLE)):
    tokenizer.chat_template = template
    prompt = tokenizer.apply_chat_template([asked], tokenize=False, add_generation_prompt=True)
    for content in ("", "Well"):
        chat = [asked, {"role": "assistant", "content": content}]
        text = tokenizer.apply_chat_template(chat, tokenize=False, continue_final_message=True)
        print(name, repr(content), "goes on after the header" if text == prompt + content else repr(text[-13:]))
PYTHON
seen=$("$folder/venv/bin/python" "$folder/continued.py" 2>/dev/null)
printf '%s\n' "$seen"
[ "$seen" = "trims '' '<|assistant|>'
trims 'Well' goes on after the header
keeps '' goes on after the header
keeps 'Well' goes on after the header" ] || exit 1
