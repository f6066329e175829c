"""What a configuration may say, and what is said about one that may not."""

from __future__ import annotations

from pathlib import Path

import hypothesis
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from alignment.errors import ConfigError
from alignment.methods.origin import Parameters
from server.settings import Settings, accepted_keys, parse_settings, read_settings

MINIMAL = "models: {ada: {source: models/ada}}"

PAIR = """\
models:
  ada: {source: models/ada}
  ben: {source: models/ben}
ensembles:
  both:
    members: [ada, ben]
    pivot: ada
"""


def parse(text: str, environ: dict[str, str] | None = None, folder: Path = Path("/nowhere")) -> Settings:
    return parse_settings(text, "c.yaml", folder, environ or {})


def problems(text: str, environ: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(text, environ)
    return str(caught.value).splitlines()


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


def test_relative_paths_start_where_the_file_is(tmp_path):
    (tmp_path / "models" / "ada").mkdir(parents=True)
    (tmp_path / "c.yaml").write_text(PAIR)
    settings = read_settings(tmp_path / "c.yaml", {})
    assert settings.models["ada"].source == str(tmp_path / "models" / "ada")
    assert settings.models["ben"].source == "models/ben", "not a folder here, so it may be a name on the Hub"


def test_an_alignment_is_a_method_or_a_method_with_what_it_takes():
    text = PAIR + "    alignment: eva\n"
    assert parse(text).ensembles["both"].alignment.parameters == Parameters("output", 10, 0.1)
    assert parse(PAIR).ensembles["both"].alignment.method == "prefix"
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
        "prefill_chunk, candidates, engine_args, adapter.",
    ),
    "unknown section": (
        "ensembles:",
        "colour: red\nensembles:",
        "c.yaml:4: colour: unknown field; allowed: models, ensembles, server, evaluation.",
    ),
    "unknown field of an ensemble": (
        "    pivot: ada",
        "    pivot: ada\n    pivit: ada",
        "c.yaml:8: ensembles.both.pivit: unknown field (did you mean 'pivot'?); allowed: members, pivot, "
        "alignment, maps, weights, weighting, combine, filter_top, renormalise, guard, on_member_failure.",
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
        "c.yaml:8: ensembles.both.combine: found 'mean'; allowed: mixture, product.",
    ),
    "alignment": (
        "    pivot: ada",
        "    pivot: ada\n    alignment: evan",
        "c.yaml:8: ensembles.both.alignment: found 'evan'; allowed: exact, prefix, eva, mined, hybrid, or "
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
        "c.yaml:9: ensembles.both.alignment.method: found 'evan'; allowed: exact, prefix, eva, mined, hybrid.",
    ),
    "unknown field of an alignment": (
        "    pivot: ada",
        "    pivot: ada\n    alignment: {method: eva, tip: 5}",
        "c.yaml:8: ensembles.both.alignment.tip: unknown field (did you mean 'top'?); allowed: method, "
        "embeddings, top, threshold.",
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
        "packllm-opt, or a number per member such as "
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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "c.yaml: the file is empty; it needs at least one entry under 'models'."),
        ("- a\n", "c.yaml:1: should be a mapping with 'models', not a list."),
        ("hello", "c.yaml:1: should be a mapping with 'models', not a single value."),
        (
            "a: 1\n---\nb: 2\n",
            "c.yaml:2: not valid YAML: expected a single document in the stream",
        ),
        ("a: [1\nb: 2", "c.yaml:2: not valid YAML: while parsing a flow sequence"),
        ("a: \x07", "c.yaml:1: not valid YAML: unprintable characters are not allowed."),
        ("models: {}", "c.yaml:1: models: found an empty mapping; should not be empty."),
        ("a: " + "[" * 17 + "]" * 17, "c.yaml:1: nested more than 16 levels deep."),
        ("a: &a [*a]", "c.yaml:1: aliases repeat each other into something too large."),
        ("#" * 300_000, "c.yaml: larger than 256 KiB"),
        ("a: !!int x", "c.yaml:1: 'x' is not a value of its type; put text in quotes."),
    ],
)
def test_text_that_is_no_configuration_at_all(text, message):
    assert problems(text)[0].startswith(message)


def test_aliases_cannot_blow_up():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    assert "too large" in problems("\n".join(lines))[0]


def test_a_file_that_is_not_text_or_not_there(tmp_path):
    (tmp_path / "c.yaml").write_bytes(b"models: \xff")
    cases = {"c.yaml": "not UTF-8 text", ".": "directory", "d.yaml": "No such file"}
    for path, sentence in cases.items():
        with pytest.raises(ConfigError, match=sentence):
            read_settings(tmp_path / path, {})


# Environment


def test_the_environment_overrides_the_file():
    environ = {
        "TUTTI_SERVER__PORT": "9000",
        "TUTTI_MODELS__ADA__DEVICE": "cuda:0",
        "TUTTI_MODELS__BEN__MAX_CONTEXT": "null",
        "TUTTI_ENSEMBLES__BOTH__WEIGHTS": "{ada: 3, ben: 1}",
        "TUTTI_ENSEMBLES__BOTH__WEIGHTS__BEN": "2",
    }
    settings = parse(PAIR, environ)
    assert settings.server.port == 9000
    assert settings.models["ada"].device == "cuda:0"
    assert settings.ensembles["both"].weights == {"ada": 3, "ben": 2}


def test_a_variable_reaches_names_that_a_variable_cannot_spell():
    text = "models: {Qwen/Qwen-0.5b: {source: q}}"
    settings = parse(text, {"TUTTI_MODELS__QWEN_QWEN_0_5B__DTYPE": "float32"})
    assert settings.models["Qwen/Qwen-0.5b"].dtype == "float32"


def test_variables_that_others_set_are_left_alone():
    """Kubernetes services called tutti and tutti-server put these into every container beside them."""
    environ = {
        "TUTTI_SERVER_PORT": "tcp://10.0.0.1:8000",
        "TUTTI_SERVER_SERVICE_PORT": "8000",
        "TUTTI_SERVER_PORT_8000_TCP_ADDR": "10.0.0.1",
        "TUTTI_PORT": "tcp://10.0.0.1:8000",
        "TUTTI_SERVICE_HOST": "10.0.0.1",
        "TUTTI_API_KEY": "k",
        "HOME": "/",
    }
    assert parse(PAIR, environ) == parse(PAIR)


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("TUTTI_SERVER__PORT", "http", "server.port: found 'http'; should be a whole number."),
        ("TUTTI_SERVER__PROT", "1", "server.prot: unknown field (did you mean 'port'?)"),
        ("TUTTI_SERVE__PORT", "1", "serve: unknown field (did you mean 'server'?)"),
        ("TUTTI_MODELS__EVE__DEVICE", "cpu", "there is no model 'eve'; the file has ada, ben."),
        ("TUTTI_ENSEMBLES__ALL__PIVOT", "ada", "there is no ensemble 'all'; the file has both."),
        (
            "TUTTI_ENSEMBLES__BOTH__PIVOT",
            "eve",
            "ensembles.both.pivot: 'eve' is no member; allowed: ada, ben, auto.",
        ),
        ("TUTTI_ENSEMBLES__BOTH__MEMBERS", "[ada", "does not hold a YAML value; put text in quotes."),
        ("TUTTI_MODELS__ADA__SOURCE__X", "1", "models.ada.source: found a mapping; should be text."),
    ],
)
def test_a_mistake_in_the_environment_names_the_variable(variable, value, message):
    assert problems(PAIR, {variable: value})[0].startswith(f"{variable}: {message}")


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("TUTTI_SERVER_PORT", "TUTTI_SERVER__PORT"),
        ("TUTTI_SERVER_API_KEYS", "TUTTI_SERVER__API_KEYS"),
        ("TUTTI_MODELS_ADA_DEVICE", "TUTTI_MODELS__ADA__DEVICE"),
        ("TUTTI_ENSEMBLES_BOTH_WEIGHTS", "TUTTI_ENSEMBLES__BOTH__WEIGHTS"),
    ],
)
def test_a_variable_with_single_underscores_is_not_ignored(variable, meant):
    assert problems(PAIR, {variable: "9000"}) == [
        f"{variable}: has no effect; write {meant}, two underscores between names."
    ]


def test_a_variable_that_fits_two_names():
    text = "models: {a-b: {source: x}, a.b: {source: y}}"
    assert problems(text, {"TUTTI_MODELS__A_B__DEVICE": "cpu"}) == [
        "TUTTI_MODELS__A_B__DEVICE: fits both 'a-b' and 'a.b'; rename one of them."
    ]


# Keys


def test_keys_come_from_the_file_and_the_configuration(tmp_path):
    (tmp_path / "keys").write_text("# ours\nalpha\n\n  beta \n")
    text = MINIMAL + "\nserver: {api_keys: [gamma], api_keys_file: keys}"
    assert accepted_keys(parse(text, folder=tmp_path).server) == ["gamma", "alpha", "beta"]


def test_a_key_file_without_keys_does_not_open_the_server(tmp_path):
    (tmp_path / "keys").write_text("# none yet\n")
    with pytest.raises(ConfigError, match=r"c.yaml:2: server.api_keys_file: .*holds no key"):
        parse(MINIMAL + "\nserver: {api_keys_file: keys}", folder=tmp_path)


def test_keys_are_never_shown():
    secret = "sk-verysecret"
    settings = parse(MINIMAL + f"\nserver: {{api_keys: [{secret}]}}")
    mistakes = [
        problems(MINIMAL + f"\nserver: {{api_keys: {secret}}}"),
        problems(MINIMAL + f"\nserver: {{api_keys: [[{secret}]]}}"),
        problems(MINIMAL, {"TUTTI_SERVER__API_KEYS": f"[{secret}"}),
        problems(MINIMAL, {"TUTTI_SERVER__API_KEYS": secret}),
    ]
    assert secret not in repr([settings, mistakes])


# Whatever the text

FRAGMENTS = [
    *(
        "models:",
        "  ada:",
        "{",
        "}",
        "[",
        "]",
        "source: x",
        ": ",
        ", ",
        "\n",
        "  ",
        "- ",
        "&a ",
        "*a",
        "<<: ",
        "? ",
    ),
    *("!!int ", "!!binary ", "!!timestamp ", "!!set ", "!x ", "|", ">", "'", '"', "\\ud800", "\\", "%YAML 9.9\n"),
    *(
        "--- ",
        "...",
        "null",
        "1e999",
        "0x",
        "0o9",
        "12:30",
        "2024-99-99",
        "2024-01-01",
        "~",
        "yes",
        "=",
        "server:",
    ),
    *(
        "ensembles:",
        "members:",
        "pivot:",
        "weights:",
        "api_keys:",
        "port:",
        "ada",
        ".nan",
        "-.inf",
        "\t",
        "\ufeff",
    ),
    *("\u2028", "\x00", "#"),
]


def complaint(text: str, environ: dict[str, str]) -> str | None:
    try:
        parse(text, environ)
    except ConfigError as error:
        return str(error)
    return None


@hypothesis.settings(max_examples=300)
@given(st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=3), max_size=30).map("".join))
@example('models: {"a\\ud800": {source: x}}')
@example('models: {ada: {source: "\\ud800"}}')
@example("models: {ada: {source: '" + "x" * 5000 + "'}}")
@example("models: {ada: {source: x, cache_tokens: " + "9" * 5000 + "}}")
@example("models: {ada: {source: x, revision: !!timestamp x}}")
@example("models: {ada: {source: x, cache_tokens: !!bool x}}")
@example("!!set {models}")
@example("? [a]\n: b")
@example("<<: [1]")
def test_no_text_raises_anything_but_a_config_error(text):
    lines = (complaint(text, {}) or "c.yaml").splitlines()
    assert all(line.startswith("c.yaml") for line in lines), lines


@given(st.dictionaries(st.text(max_size=12).map("TUTTI_{}".format), st.text(max_size=12)))
@example({"TUTTI___": "x"})
@example({"TUTTI_SERVER__": "x"})
@example({"TUTTI_MODELS__ADA__SOURCE": "\ud800"})
def test_no_environment_raises_anything_but_a_config_error(environ):
    assert (complaint(PAIR, environ) or "TUTTI_").startswith("TUTTI_")
