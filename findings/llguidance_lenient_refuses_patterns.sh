#!/usr/bin/env bash
# llguidance: `lenient` passes over keywords that it does not know, and refuses patterns that it cannot take all the same.
#
# Software: llguidance 1.7.6.
# Expected: with `lenient: true`, for whoever wants as much of a schema enforced as can be, a pattern that cannot be is
#   passed over as `uniqueItems` is.
# Seen: without it both schemas are refused. With it the one with `uniqueItems` compiles, and the one whose pattern has a
#   lookahead, as schema libraries write for addresses of e-mail, is refused as before: look-around is not supported.
#   One such property among many takes the whole schema with it.
# Source: lenience is about keywords of a schema; patterns go to the regular expressions' own parser, which has no such mode.
# Exit status: 0 while the behaviour is as described, 1 once it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check llguidance==1.7.6
cat >"$folder/lenient.py" <<'PYTHON'
import json
from importlib.metadata import version

import llguidance

SCHEMAS = {
    "uniqueItems": {"type": "array", "items": {"type": "integer"}, "uniqueItems": True},
    "lookahead": {"type": "object", "properties": {"name": {"type": "string", "pattern": "^(?!a)[a-z]+$"}}},
}


def refusal(schema, lenient):
    options = {"lenient": lenient}
    try:
        grammar = llguidance.LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=options)
    except ValueError as error:
        return str(error)
    return llguidance.LLMatcher.validate_grammar(grammar)


print("llguidance", version("llguidance"))
found = {(name, lenient): refusal(schema, lenient) for name, schema in SCHEMAS.items() for lenient in (False, True)}
for (name, lenient), why in found.items():
    print(f"{name}, lenient {lenient}: {' '.join(why.split())[:160] or 'taken'}")
assert found["uniqueItems", False] and not found["uniqueItems", True]
assert found["lookahead", False] and "look-around" in found["lookahead", True]
PYTHON
"$folder/venv/bin/python" "$folder/lenient.py" || exit 1
