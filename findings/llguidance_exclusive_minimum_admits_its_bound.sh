#!/usr/bin/env bash
# llguidance: a number with an exclusive lower bound may be that bound, where the upper bound has the same whole part.
#
# Software: llguidance 1.7.6.
# Expected: {"type": "number", "exclusiveMinimum": 15, "maximum": 15.5} admits 15.2 and not 15, which is not over 15.
# Seen: "15" is admitted, "15.0" is not. With maximum 16 in its place, or without a maximum, "15" is refused as it should
#   be. The mirror image, minimum -3.5 with exclusiveMaximum -3, admits "-3".
# Source: the pattern of a range within one whole number makes the fraction optional, for an exclusive bound as well.
# Exit status: 0 while the behaviour is as described, 1 once it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check llguidance==1.7.6
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import llguidance

TOKENS = llguidance.LLTokenizer("byte")


def admits(text: str, **bounds: float) -> bool:
    grammar = llguidance.LLMatcher.grammar_from_json_schema({"type": "number", **bounds})
    matcher = llguidance.LLMatcher(TOKENS, grammar)
    ids = list(text.encode())
    return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()


seen = {
    "15 within (15, 15.5]": admits("15", exclusiveMinimum=15, maximum=15.5),
    "15.0 within (15, 15.5]": admits("15.0", exclusiveMinimum=15, maximum=15.5),
    "15 within (15, 16]": admits("15", exclusiveMinimum=15, maximum=16),
    "-3 within [-3.5, -3)": admits("-3", minimum=-3.5, exclusiveMaximum=-3),
}
print("llguidance", llguidance.__version__, seen)
sys.exit(0 if list(seen.values()) == [True, False, False, True] else 1)
PYTHON
