"""What a configuration says of alignment, as the server and `tutti check` carry it out."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

import alignment.methods.eva
from alignment.errors import ConfigError
from alignment.methods.origin import load_with_origin, save_with_origin
from alignment.vocab_map import VocabMap
from fusion.ensemble import Ensemble
from server.loading import build
from server.settings import read_settings
from tests.support.forks import Fork
from tests.support.model_folders import run, save_tokenizer


@pytest.fixture
def learned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The pairs that EVA is asked to learn, in order."""
    calls: list[str] = []
    learn = alignment.methods.eva.eva_map

    def counted(source, target, *tables, **options):
        calls.append(f"{Path(source.name).name} into {Path(target.name).name}")
        return learn(source, target, *tables, **options)

    monkeypatch.setattr(alignment.methods.eva, "eva_map", counted)
    return calls


def configure(folder: Path, **fields: str) -> Path:
    """Add fields to the ensemble, and keep learned maps in the folder."""
    path = folder / "tutti.yaml"
    added = "".join(f", {name}: {value}" for name, value in fields.items())
    text = re.sub("pivot: ada.*, weights:", f"pivot: ada{added}, weights:", path.read_text())
    path.write_text(text.replace("{port: 0}", "{port: 0, cache_dir: cache}"))
    return path


def both(path: Path) -> Ensemble:
    return build(read_settings(path, {})).ensembles["both"]


def row_of(out: str, member: str) -> list[str]:
    [row] = [line.split() for line in out[out.index("Ensemble both") :].splitlines() if line.startswith(member)]
    return row


def test_what_is_missing_is_learned_at_the_first_start_and_kept(broken, learned, caplog):
    path = configure(broken, alignment="eva")
    caplog.set_level("INFO")
    first = both(path)
    assert learned == ["ben into ada"]
    assert "learning the map of ben into ada (eva)" in caplog.text
    assert (first.first.maps["ben"].rest.weights > 0).sum(axis=1).max() > 1, "EVA's rows have several entries"
    assert both(path).fingerprint == first.fingerprint
    assert learned == ["ben into ada"]
    assert len(list((broken / "cache" / "maps").glob("*.safetensors"))) == 1


def test_hybrid_takes_what_eva_has_learned(broken, learned):
    both(configure(broken, alignment="eva"))
    both(configure(broken, alignment="hybrid"))
    assert learned == ["ben into ada"]
    both(configure(broken, alignment="{method: hybrid, top: 3}"))
    assert learned == ["ben into ada"] * 2, "other parameters are another map"


def test_exact_and_the_pivots_own_tokenizer_learn_nothing(broken, learned):
    both(configure(broken))
    save_tokenizer(broken / "ben", ["th", "the"])
    twins = both(configure(broken, alignment="eva"))
    assert twins.first.maps["ada"].rest is twins.first.maps["ben"].rest is None
    assert learned == []
    assert not (broken / "cache").exists()


def test_new_weights_are_a_new_map(broken, learned):
    path = configure(broken, alignment="eva")
    both(path)
    _other_weights(broken)
    both(path)
    assert len(learned) == 2


def test_a_damaged_cache_is_no_error(broken, learned, caplog):
    path = configure(broken, alignment="eva")
    first = both(path)
    [file] = (broken / "cache" / "maps").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:100])
    assert both(path).fingerprint == first.fingerprint
    assert len(learned) == 2
    assert str(file) in caplog.text
    both(path)
    assert len(learned) == 2


def test_two_servers_that_start_at_once_come_to_the_same(broken):
    path = configure(broken, alignment="eva")
    code = (
        "import logging, pathlib, sys\nfrom server.loading import build\n"
        "from server.settings import read_settings\n"
        "logging.basicConfig(level='INFO', stream=sys.stderr)\n"
        "print(build(read_settings(pathlib.Path(sys.argv[1]), {})).ensembles['both'].fingerprint)"
    )
    with Fork("-c", code, path) as first, Fork("-c", code, path) as second:
        codes = [process.wait() for process in (first, second)]
        outputs = [(process.stdout.read(), process.stderr.read()) for process in (first, second)]
    assert codes == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0]
    assert sum(log.count("learning the map of") for _, log in outputs) == 1


def test_check_tells_what_is_known_and_learns_nothing(broken, learned):
    path = configure(broken, alignment="hybrid")
    assert row_of(run("check", path)[1], "ben") == ["ben", "hybrid", "learned", "at", "start", "0.250"]
    assert learned == []
    ensemble = both(path)
    text = [id for id, surface in enumerate(ensemble.models["ben"].tokenizer.surfaces) if surface is not None]
    reach = (ensemble.first.maps["ben"].rest.weights[text] > 0).any(axis=1).mean()
    assert row_of(run("check", path)[1], "ben") == ["ben", "hybrid", f"{100 * reach:.1f}%", "0.250"]
    assert len(learned) == 1


def test_what_cannot_be_learned_is_said_before_weights_are_loaded(broken):
    path = configure(broken, alignment="{method: eva, embeddings: input}")
    (broken / "ben" / "model.safetensors").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"models\.ben: .*damaged"):
        build(read_settings(path, {}))
    assert not (broken / "cache").exists()


# Map files


def make(folder: Path, *options: str) -> Path:
    out = folder / "ben-ada.safetensors"
    code, _, err = run("align", folder / "ben", folder / "ada", "--out", out, *options)
    assert code == 0, err
    return out


@pytest.mark.parametrize(
    "options", [("--method", "mined"), ("--method", "eva", "--embeddings", "input", "--top", "2")]
)
def test_a_map_file_is_taken_instead(broken, learned, options):
    out = make(broken, *options)
    learned.clear()
    path = configure(broken, alignment="eva", maps=f"{{ben: {out.name}}}")
    map = both(path).first.maps["ben"].rest
    np.testing.assert_array_equal(map.target_ids[: VocabMap.load(out).source_size], VocabMap.load(out).target_ids)
    assert learned == []
    assert row_of(run("check", path)[1], "ben")[1] == "file"


def _other_tokenizer(folder: Path) -> None:
    save_tokenizer(folder / "ben", ["an", "and", "on"])


def _other_weights(folder: Path) -> None:
    """One number of the head is another."""
    path = folder / "ada" / "model.safetensors"
    tensors = load_file(path)
    tensors["lm_head.weight"][7, 3] += 1
    save_file(tensors, path, {"format": "pt"})


def _other_end(folder: Path) -> None:
    path = folder / "ben" / "generation_config.json"
    path.write_text(re.sub(r'"eos_token_id": \d+', '"eos_token_id": 3', path.read_text()))


def _same_tokenizer(folder: Path) -> None:
    save_tokenizer(folder / "ben", ["th", "the"])


def _truncated(folder: Path) -> None:
    path = folder / "ben-ada.safetensors"
    path.write_bytes(path.read_bytes()[:-9])


def _missing(folder: Path) -> None:
    (folder / "ben-ada.safetensors").unlink()


def _of_another_size(folder: Path) -> None:
    """With ids beyond the pivot's vocabulary, from tokenizers that have the same fingerprint."""
    map, origin = load_with_origin(folder / "ben-ada.safetensors")
    save_with_origin(
        VocabMap(map.target_ids, map.weights, map.target_size + 5), folder / "ben-ada.safetensors", origin
    )


def _of_an_unknown_method(folder: Path) -> None:
    map, origin = load_with_origin(folder / "ben-ada.safetensors")
    save_with_origin(map, folder / "ben-ada.safetensors", replace(origin, method="runes"))


MISMATCHES = {
    _other_tokenizer: "whose tokens are not those of",
    _other_weights: "whose embeddings are not those of",
    _other_end: "whose end tokens are not those of",
    _same_tokenizer: "ben has the pivot's tokenizer and needs no map",
    _truncated: "is damaged",
    _of_another_size: "build the map again with `tutti align`",
    _of_an_unknown_method: "'runes'",
    _missing: "does not exist",
}


@pytest.mark.parametrize(("change", "sentence"), MISMATCHES.items(), ids=[one.__name__ for one in MISMATCHES])
def test_a_map_file_that_does_not_belong_is_refused(broken, change, sentence):
    path = configure(broken, maps=f"{{ben: {make(broken, '--method', 'hybrid').name}}}")
    change(broken)
    code, _, err = run("check", path)
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith("ensembles.both: ")
    assert sentence in err
    with pytest.raises(ConfigError) as caught:
        build(read_settings(path, {}))
    assert f"{caught.value}\n" == err
