"""What a configuration may say, and what is said about one that may not."""

from __future__ import annotations

import pytest

from alignment.methods.origin import Parameters
from fusion.options import Mask
from server.settings import read_settings
from server.settings.ensembles import EnsembleSettings
from tests.support.small_configurations import MINIMAL, PAIR, parse, problems


def test_one_model_is_a_configuration():
    settings = parse(MINIMAL)
    assert settings.served == ("ada",)
    assert settings.models["ada"].device == "cpu"
    assert settings.models["ada"].candidates == 320


def test_ensembles_are_served_before_models_so_that_the_first_one_is_the_default():
    assert parse(PAIR).served == ("both", "ada", "ben")


def test_only_what_is_served_is_needed():
    alone = PAIR + "server: {serve_models: false}\n"
    spare = alone.replace(
        "  ben: {source: models/ben}", "  ben: {source: models/ben}\n  cleo: {source: models/cleo}"
    )
    assert parse(spare).served == ("both",)
    assert parse(spare).needed == ("ada", "ben")


def test_uniform_weights_and_no_weights_are_the_same():
    assert parse(PAIR + "    weights: uniform\n") == parse(PAIR)


def test_what_maps_lose_goes_to_the_pivot_unless_the_file_says_otherwise():
    assert EnsembleSettings(members=("a", "b"), pivot="a").fusion.unmapped == "pivot"
    assert EnsembleSettings(members=("a", "b"), pivot="a", unmapped="drop").fusion.unmapped == "drop"


def test_no_mask_is_false_in_the_file_and_in_the_environment():
    text = PAIR + "    combine: arithmetic\n"
    environ = {"TUTTI_ENSEMBLES__BOTH__MASK": "false"}
    asked = [parse(text + f"    mask: {mask}\n") for mask in ("false", "off", '{"off": true}')]
    assert {one.ensembles["both"].fusion.mask for one in [*asked, parse(text, environ)]} == {Mask(off=True)}
    assert parse(text).ensembles["both"].fusion.mask is None
    assert "ensembles.both.mask: found 'none'" in problems(text + "    mask: none\n")[0]


def test_relative_paths_start_where_the_file_is(tmp_path):
    (tmp_path / "models" / "ada").mkdir(parents=True)
    (tmp_path / "c.yaml").write_text(PAIR)
    settings = read_settings(tmp_path / "c.yaml", {})
    assert settings.models["ada"].source == str(tmp_path / "models" / "ada")
    assert settings.models["ben"].source == "models/ben", "not a folder here, so it may be a name on the Hub"


def test_an_alignment_is_a_method_or_a_method_with_what_it_takes():
    text = PAIR + "    alignment: eva\n"
    assert parse(text).ensembles["both"].alignment.parameters == Parameters("output", 10, 0.1)
    assert parse(PAIR).ensembles["both"].alignment.method == "spelled"
    environ = {"TUTTI_ENSEMBLES__BOTH__ALIGNMENT": "{method: hybrid, embeddings: input, top: 3, threshold: 0.2}"}
    alignment = parse(text, environ).ensembles["both"].alignment
    assert (alignment.method, alignment.parameters) == ("hybrid", Parameters("input", 3, 0.2))


def test_the_cache_lies_beside_the_file_whether_it_is_there_or_not():
    assert parse(MINIMAL).server.cache_dir is None
    assert parse(MINIMAL, {"TUTTI_SERVER__CACHE_DIR": "maps"}).server.cache_dir == "/nowhere/maps"
    assert parse(MINIMAL + "\nserver: {cache_dir: /var/x}").server.cache_dir == "/var/x"
    assert problems(MINIMAL + "\nserver: {cache_dir: ''}") == [
        "c.yaml:2: server.cache_dir: found ''; should be a path or a name, not an empty text."
    ]


def test_a_merge_key_shares_settings():
    text = "models:\n  ada: &gpu {source: a, device: 'cuda:0'}\n  ben: {<<: *gpu, source: b}\n"
    ben = parse(text).models["ben"]
    assert (ben.source, ben.device) == ("b", "cuda:0")


# Each case: what is added to or changed in PAIR, and the line that says what is wrong with it.
MISTAKES = {
    "unknown field": (
        "  ada: {source: models/ada}",
        "  ada: {source: models/ada, devise: cpu}",
        "c.yaml:2: models.ada.devise: unknown field (did you mean 'device'?); allowed: source, engine, "
        "dtype, device, host, worker, revision, trust_remote_code, cache_tokens, max_sequences, max_context, "
        "prefill_chunk, candidates, engine_args, adapter, chat_template.",
    ),
    "unknown section": (
        "ensembles:",
        "colour: red\nensembles:",
        "c.yaml:4: colour: unknown field; allowed: models, ensembles, server, evaluation.",
    ),
    "unknown field of an ensemble": (
        "    pivot: ada",
        "    pivot: ada\n    pivit: ada",
        "c.yaml:8: ensembles.both.pivit: unknown field (did you mean 'pivot'?); allowed: members, views, "
        "pivot, alignment, maps, mask, contrast, proxy, guidance, weights, weighting, combine, filter_top, "
        "renormalize, unmapped, guard, confidence, draft, gate, "
        "threshold, margin, context_place, on_member_failure.",
    ),
    "missing field": (
        "  ben: {source: models/ben}",
        "  ben: {device: cpu}",
        "c.yaml:3: models.ben: 'source' is missing.",
    ),
    "engine": (
        "  ada: {source: models/ada}",
        "  ada: {source: models/ada, engine: vlm}",
        "c.yaml:2: models.ada.engine: found 'vlm'; allowed: transformers, vllm.",
    ),
    "arguments of another engine": (
        "  ada: {source: models/ada}",
        "  ada: {source: models/ada, engine_args: {enforce_eager: true}}",
        "c.yaml:2: models.ada: found a mapping; engine_args is for engine: vllm; leave it out.",
    ),
    "two sizes of a cache": (
        "  ada: {source: models/ada}",
        "  ada: {source: models/ada, engine: vllm, cache_tokens: 9, engine_args: {kv_cache_memory_bytes: 9}}",
        "c.yaml:2: models.ada: found a mapping; cache_tokens and engine_args.kv_cache_memory_bytes both size the "
        "cache; leave one out.",
    ),
    "dtype": (
        "  ada: {source: models/ada}",
        "  ada:\n    source: models/ada\n    dtype: fp16",
        "c.yaml:4: models.ada.dtype: found 'fp16'; allowed: auto, float32, bfloat16, float16.",
    ),
    "device": (
        "  ada: {source: models/ada}",
        "  ada: {source: models/ada, device: gpu}",
        "c.yaml:2: models.ada.device: found 'gpu'; allowed: cpu, mps, cuda, cuda:N.",
    ),
    "number out of range": (
        "  ada: {source: models/ada}",
        "  ada: {source: models/ada, cache_tokens: 0}",
        "c.yaml:2: models.ada.cache_tokens: found 0; should be greater than 0.",
    ),
    "text for a number": (
        "  ada: {source: models/ada}",
        "  ada: {source: models/ada, cache_tokens: many}",
        "c.yaml:2: models.ada.cache_tokens: found 'many'; should be a whole number.",
    ),
    "number for a text": (
        "  ada: {source: models/ada}",
        "  ada: {source: models/ada, revision: 1234567}",
        "c.yaml:2: models.ada.revision: found 1234567; should be text; put it in quotes.",
    ),
    "truth for a number": (
        "  ada: {source: models/ada}",
        "  ada: {source: models/ada, max_sequences: yes}",
        "c.yaml:2: models.ada.max_sequences: found true; should be a whole number.",
    ),
    "empty source": (
        "  ada: {source: models/ada}",
        "  ada: {source: ''}",
        "c.yaml:2: models.ada.source: found ''; should be a path or a name, not an empty text.",
    ),
    "model is no mapping": (
        "  ada: {source: models/ada}",
        "  ada: models/ada",
        "c.yaml:2: models.ada: found 'models/ada'; should be a mapping of names to values.",
    ),
    "name": (
        "  ben: {source: models/ben}",
        "  ben: {source: models/ben}\n  'b b': {source: x}",
        "c.yaml:4: models.b b: found 'b b'; allowed: up to 128 letters, digits and . _ : / - with a letter or "
        "digit first.",
    ),
    "combine": (
        "    pivot: ada",
        "    pivot: ada\n    combine: mean",
        "c.yaml:8: ensembles.both.combine: found 'mean'; allowed: mixture, product, arithmetic.",
    ),
    "alignment": (
        "    pivot: ada",
        "    pivot: ada\n    alignment: evan",
        "c.yaml:8: ensembles.both.alignment: found 'evan'; allowed: spelled, exact, prefix, eva, mined, "
        "hybrid, or "
        "{method: eva, top: 5} and such.",
    ),
    "alignment without method": (
        "    pivot: ada",
        "    pivot: ada\n    alignment: {top: 5}",
        "c.yaml:8: ensembles.both.alignment: 'method' is missing.",
    ),
    "method": (
        "    pivot: ada",
        "    pivot: ada\n    alignment:\n      method: evan",
        "c.yaml:9: ensembles.both.alignment.method: found 'evan'; allowed: spelled, exact, prefix, eva, mined, "
        "hybrid.",
    ),
    "unknown field of an alignment": (
        "    pivot: ada",
        "    pivot: ada\n    alignment: {method: eva, tip: 5}",
        "c.yaml:8: ensembles.both.alignment.tip: unknown field (did you mean 'top'?); allowed: method, "
        "embeddings, top, threshold, temperature.",
    ),
    "threshold of nothing": (
        "    pivot: ada",
        "    pivot: ada\n    alignment: {method: eva, threshold: 0}",
        "c.yaml:8: ensembles.both.alignment.threshold: found 0; should be greater than 0.",
    ),
    "parameter that the method has no use for": (
        "    pivot: ada",
        "    pivot: ada\n    alignment: {method: exact, top: 5}",
        "c.yaml:8: ensembles.both.alignment: found a mapping; exact takes no top; leave it out.",
    ),
    "map of a stranger": (
        "    pivot: ada",
        "    pivot: ada\n    maps: {eve: eve.safetensors}",
        "c.yaml:8: ensembles.both.maps.eve: 'eve' is no member; allowed: ada, ben.",
    ),
    "map of the pivot": (
        "    pivot: ada",
        "    pivot: ada\n    maps: {ada: ada.safetensors}",
        "c.yaml:8: ensembles.both.maps.ada: the pivot needs no map; leave it out.",
    ),
    "context larger than the cache": (
        "  ada: {source: models/ada}",
        "  ada: {source: models/ada, cache_tokens: 100, max_context: 101}",
        "c.yaml:2: models.ada.max_context: found 101, but cache_tokens holds only 100.",
    ),
    "worker of an engine in the server": (
        "  ada: {source: models/ada}",
        "  ada: {source: models/ada, worker: {gpus: [0]}}",
        "c.yaml:2: models.ada.worker: has no effect with host: inline; set host: process or ray.",
    ),
    "actor of a process": (
        "  ada: {source: models/ada}",
        "  ada: {source: models/ada, host: process, worker: {ray: {num_gpus: 1}}}",
        "c.yaml:2: models.ada.worker.ray: has no effect without host: ray.",
    ),
    "GPUs by number on a cluster": (
        "  ada: {source: models/ada}",
        "  ada: {source: models/ada, host: ray, worker: {gpus: [0]}}",
        "c.yaml:2: models.ada.worker.gpus: Ray chooses the GPUs; say how many in worker.ray.num_gpus.",
    ),
    "device that the worker does not see": (
        "  ada: {source: models/ada}",
        "  ada: {source: models/ada, host: process, device: 'cuda:1', worker: {gpus: [5]}}",
        "c.yaml:2: models.ada.device: found 'cuda:1', but worker.gpus makes only 1 visible.",
    ),
    "back-off that shrinks": (
        "  ada: {source: models/ada}",
        "  ada: {source: models/ada, host: process, worker: {restart_seconds: 9, longest_restart_seconds: 2}}",
        "c.yaml:2: models.ada.worker.longest_restart_seconds: found 2, less than restart_seconds.",
    ),
    "variable that is a number": (
        "  ada: {source: models/ada}",
        "  ada: {source: models/ada, host: process, worker: {environment: {OMP_NUM_THREADS: 1}}}",
        "c.yaml:2: models.ada.worker.environment.OMP_NUM_THREADS: found 1; should be text; put it in quotes.",
    ),
    "host that there is not": (
        "  ada: {source: models/ada}",
        "  ada: {source: models/ada, host: thread}",
        "c.yaml:2: models.ada.host: found 'thread'; allowed: inline, process, ray.",
    ),
    "policy that there is not": (
        "    pivot: ada",
        "    pivot: ada\n    on_member_failure: retry",
        "c.yaml:8: ensembles.both.on_member_failure: found 'retry'; allowed: fail, degrade.",
    ),
    "filter that sees too little": (
        "    pivot: ada",
        "    pivot: ada\n    filter_top: 321",
        "c.yaml:8: ensembles.both.filter_top: found 321, but ada hands over only 320 candidates.",
    ),
    "drafter that is no member": (
        "    pivot: ada",
        "    pivot: ada\n    draft: eve",
        "c.yaml:8: ensembles.both.draft: 'eve' is no member; allowed: ngram, auto, ada, ben.",
    ),
    "draft and gate": (
        "    pivot: ada",
        "    pivot: ada\n    draft: ada\n    gate: confident",
        "c.yaml:9: ensembles.both.gate: draft and gate exclude each other; leave one out.",
    ),
    "gate that would not be exact": (
        "    pivot: ada",
        "    pivot: ada\n    gate: draw\n    combine: product",
        "c.yaml:8: ensembles.both.gate: draw runs one member a token, which takes combine: mixture, "
        "renormalize: true.",
    ),
    "gate that there is not": (
        "    pivot: ada",
        "    pivot: ada\n    gate: sure",
        "c.yaml:8: ensembles.both.gate: found 'sure'; allowed: confident, draw.",
    ),
    "no members": (
        "    members: [ada, ben]",
        "    members: []",
        "c.yaml:6: ensembles.both.members: found an empty list; should not be empty.",
    ),
    "member that is no model": (
        "    members: [ada, ben]",
        "    members:\n      - ada\n      - eve",
        "c.yaml:8: ensembles.both.members[1]: there is no model 'eve'; allowed: ada, ben.",
    ),
    "member twice": (
        "    members: [ada, ben]",
        "    members: [ada, ben, ada]",
        "c.yaml:6: ensembles.both.members: 'ada' is listed 2 times; list it once, with a larger weight.",
    ),
    "pivot that is no member": (
        "    pivot: ada",
        "    pivot: eve",
        "c.yaml:7: ensembles.both.pivot: 'eve' is no member; allowed: ada, ben, auto.",
    ),
    "weights in words": (
        "    pivot: ada",
        "    pivot: ada\n    weights: equal",
        "c.yaml:8: ensembles.both.weights: found 'equal'; allowed: uniform, top1, packllm-sim, "
        "packllm-opt, learned, or a number per member such as "
        "{ada: 0.7, ben: 0.3}.",
    ),
    "weight of a stranger": (
        "    pivot: ada",
        "    pivot: ada\n    weights:\n      ada: 1\n      ben: 1\n      eve: 1",
        "c.yaml:11: ensembles.both.weights.eve: 'eve' is no member; allowed: ada, ben.",
    ),
    "weight missing": (
        "    pivot: ada",
        "    pivot: ada\n    weights: {ada: 1}",
        "c.yaml:8: ensembles.both.weights: no weight for ben; give every member one (0 leaves it out).",
    ),
    "negative weight": (
        "    pivot: ada",
        "    pivot: ada\n    weights: {ada: 1, ben: -1}",
        "c.yaml:8: ensembles.both.weights.ben: found -1; should be greater than or equal to 0.",
    ),
    "infinite weight": (
        "    pivot: ada",
        "    pivot: ada\n    weights: {ada: 1, ben: .inf}",
        "c.yaml:8: ensembles.both.weights.ben: found inf; should be a finite number.",
    ),
    "weights of zero": (
        "    pivot: ada",
        "    pivot: ada\n    weights: {ada: 0, ben: 0.0}",
        "c.yaml:8: ensembles.both.weights: all are 0; at least one must be positive.",
    ),
    "ensemble named like a model": (
        "  both:",
        "  ada:",
        "c.yaml:5: ensembles.ada: a model has this name already; both would be served under it.",
    ),
    "port": (
        "ensembles:",
        "server: {port: 65536}\nensembles:",
        "c.yaml:4: server.port: found 65536; should be less than or equal to 65535.",
    ),
    "collector": (
        "ensembles:",
        "server: {otlp_endpoint: 'collector:4318'}\nensembles:",
        "c.yaml:4: server.otlp_endpoint: found 'collector:4318'; should be a URL such as http://collector:4318.",
    ),
    "log format": (
        "ensembles:",
        "server: {log_format: yaml}\nensembles:",
        "c.yaml:4: server.log_format: found 'yaml'; allowed: text, json.",
    ),
    "key file that is not there": (
        "ensembles:",
        "server:\n  api_keys_file: keys.txt\nensembles:",
        "c.yaml:5: server.api_keys_file: keys.txt: cannot be read: No such file or directory.",
    ),
    "duplicate key": (
        "    pivot: ada",
        "    pivot: ada\n    pivot: ben",
        "c.yaml:8: 'pivot' is given twice (first in line 7).",
    ),
    "duplicate model": (
        "  ben: {source: models/ben}",
        "  ada: {source: models/ben}",
        "c.yaml:3: 'ada' is given twice (first in line 2).",
    ),
    "name that is a number": (
        "  ben: {source: models/ben}",
        "  7: {source: models/ben}",
        "c.yaml:3: found 7 where a name should be; put such a name in quotes.",
    ),
    "tag": (
        "  ben: {source: models/ben}",
        "  ben: !!python/object/apply:os.system [ls]",
        "c.yaml:3: the tag 'tag:yaml.org,2002:python/object/apply:os.system' has no place in a configuration.",
    ),
}


@pytest.mark.parametrize(("before", "after", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_named_with_its_line_what_was_found_and_what_is_allowed(before, after, message):
    assert before in PAIR
    assert problems(PAIR.replace(before, after)) == [message]


def test_all_mistakes_of_a_file_are_listed():
    text = PAIR.replace("source: models/ada", "sauce: x").replace("pivot: ada", "combine: sum")
    places = [problem.split(": ")[:2] for problem in problems(text)]
    assert places == [
        ["c.yaml:2", "models.ada"],
        ["c.yaml:2", "models.ada.sauce"],
        ["c.yaml:5", "ensembles.both"],
        ["c.yaml:7", "ensembles.both.combine"],
    ]


VIEWS = """
models:
  ada: {source: models/ada}
ensembles:
  own:
    members:
      - ada
      - calm: {model: ada, system: Be calm.}
      - told: {model: ada, context: Rome is in Italy.}
    pivot: ada
    contrast: {amateur: calm}
"""


def test_members_may_be_views_in_a_list_or_a_mapping():
    settings = parse(VIEWS)
    own = settings.ensembles["own"]
    assert own.members == ("ada", "calm", "told")
    assert [own.model_of(name) for name in own.members] == ["ada"] * 3
    assert own.views["told"].context == "Rome is in Italy."
    assert own.fusion.contrast.amateur == "calm"
    assert own.fusion.views is None
    assert settings.needed == ("ada",)
    mapping = (
        VIEWS.replace("- ada\n", "ada:\n").replace("      - ", "        ").replace("      ada", "        ada")
    )
    assert parse(mapping).ensembles["own"].views == own.views


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("model: ada, system", "model: ben, system", "there is no model 'ben'"),
        ("calm: {model", "ada: {model", "already"),
        ("amateur: calm", "amateur: ada", "the pivot, which leads"),
        ("amateur: calm", "amateur: calm, alpha: 2", "less than or equal to 1"),
        ("Be calm.", '""', "should not be empty"),
        ("system: Be calm.", "template: {tokenize: false}", "views.calm.template.tokenize: is set by the server"),
        ("models/ada", "models/ada, max_sequences: 2", "3 views of ada take more places than its max_sequences"),
    ],
)
def test_mistakes_in_views_and_sums_are_named(before, after, message):
    found = problems(VIEWS.replace(before, after))
    assert any(message in line for line in found), found


def test_guidance_reads_a_second_prompt_which_takes_a_place_too():
    guided = PAIR.replace("models/ada", "models/ada, max_sequences: 1") + "    guidance: {negative: Be rude.}\n"
    assert problems(guided) == [
        "c.yaml:6: ensembles.both.members: 2 views of ada, with a second prompt each for guidance, take more "
        "places than its max_sequences, 1."
    ]


@pytest.mark.parametrize("name", ["add_generation_prompt", "documents", "messages", "tools"])
def test_arguments_that_the_server_gives_every_template_are_named(name):
    found = problems(MINIMAL + f"\nserver: {{chat_template_kwargs: {{{name}: false}}}}")
    assert found == [f"c.yaml:2: server.chat_template_kwargs.{name}: is set by the server; leave it out."]
