#!/usr/bin/env bash
# xgrammar: a required name that is not among the properties makes another property required in its place.
#
# Software: xgrammar 0.2.9 (0.2.8 does the same).
# Expected: with integers "a" and "b" under properties, "total" under required and further integers allowed, an object
#   must have "total" and may have "a" and "b". Where a keyword is not supported, it is ignored or refused.
# Seen: {"total":1}, which is valid, is not admitted, and {"a":1}, which is not valid, is: the object must have "a" or
#   "b", and need not have "total". Without required, {"total":1} is admitted, so the keyword was neither kept nor
#   ignored. Once "total" stands under properties as well, all is right. Nothing is raised. A server that takes the
#   output of such a grammar for valid hands out objects without the one key that the schema insists on.
# Source: cpp/json_schema_converter.cc, GetPartialRuleForProperties: each name under properties is looked up in
#   required, so that one that is elsewhere is never found; but that an object is empty, or begins with a property that
#   is not listed, is allowed only where required is empty.
# Exit status: 0 while the behaviour is as described, 1 once it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check xgrammar==0.2.9 torch==2.13.0 jsonschema==4.26.0
OMP_NUM_THREADS=1 "$folder/venv/bin/python" - <<'PYTHON'
import json
import sys
from importlib.metadata import version

import jsonschema
import xgrammar
from xgrammar.testing import _is_grammar_accept_string as admits

INTEGER = {"type": "integer"}
NAMED = {"a": INTEGER, "b": INTEGER}
OBJECT = {"type": "object", "additionalProperties": INTEGER}
SCHEMAS = {
    "total only required": {**OBJECT, "properties": NAMED, "required": ["total"]},
    "nothing required": {**OBJECT, "properties": NAMED},
    "total required and named": {**OBJECT, "properties": {**NAMED, "total": INTEGER}, "required": ["total"]},
}
TEXTS = ('{"total":1}', '{"a":1,"total":1}', '{"a":1}', '{"b":1}', "{}")
print("xgrammar", version("xgrammar"))
wrong = {}
for name, schema in SCHEMAS.items():
    grammar = xgrammar.Grammar.from_json_schema(json.dumps(schema))
    admitted = [text for text in TEXTS if admits(grammar, text)]
    valid = [text for text in TEXTS if jsonschema.Draft202012Validator(schema).is_valid(json.loads(text))]
    wrong[name] = set(admitted) ^ set(valid)
    print(f"{name}:\n  valid    {'  '.join(valid)}\n  admitted {'  '.join(admitted)}")
expected = [{'{"total":1}', '{"a":1}', '{"b":1}'}, set(), set()]
sys.exit(0 if list(wrong.values()) == expected else 1)
PYTHON
