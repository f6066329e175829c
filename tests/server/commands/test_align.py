"""`tutti align`: what it writes, what it prints, what it refuses."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from tokenizers import AddedToken
from transformers import AutoTokenizer

from alignment.methods.origin import Parameters, load_with_origin
from alignment.methods.registry import special_digest
from alignment.text.tokenizer import Tokenizer
from server import __version__
from tests.support.model_folders import REPOSITORY, run, save_tokenizer

DEMO = REPOSITORY / "deploy" / "demo" / "models"


@pytest.mark.parametrize("method", ["spelled", "exact", "prefix", "eva", "mined", "hybrid"])
def test_a_map_becomes_a_file(site, tmp_path, method):
    out = tmp_path / "map.safetensors"
    code, printed, err = run("align", site / "ben", site / "ada", "--method", method, "--out", out)
    assert (code, err) == (0, "")
    map, origin = load_with_origin(out)
    learns = method in ("eva", "hybrid")
    assert (origin.method, origin.parameters, origin.tutti) == (
        method,
        Parameters() if learns else None,
        __version__,
    )
    assert (origin.source.name, origin.target.name) == (str(site / "ben"), str(site / "ada"))
    assert (origin.source.embeddings is not None) == learns
    source = Tokenizer.load(str(site / "ben"))
    assert map.source_size == source.vocabulary_size
    text = [id for id, surface in enumerate(source.surfaces) if surface is not None]
    reach = (map.weights[text] > 0).any(axis=1).mean()
    assert f"{100 * reach:.1f}%" in printed
    assert printed.rstrip().endswith(f"wrote {out}")


def test_the_summary_has_ten_rows_that_a_person_can_read(tmp_path):
    """Between two of the demo's models."""
    out = tmp_path / "map.safetensors"
    code, printed, err = run("align", DEMO / "abacus", DEMO / "lingvo", "--method", "mined", "--out", out)
    assert (code, err) == (0, "")
    map = load_with_origin(out)[0]
    source, target = Tokenizer.load(str(DEMO / "abacus")), Tokenizer.load(str(DEMO / "lingvo"))
    examples = printed[printed.index("Examples") :].splitlines()[3:13]
    assert len(examples) == 10
    for line in examples:
        row = re.fullmatch(r" *(\d+) +('[^']+') +('.+') 1\.00 *", line)
        assert row, line
        id = int(row[1])
        surface, other = source.surfaces[id], target.surfaces[map.target_ids[id, 0]]
        assert (row[2], row[3]) == (repr((surface or b"").decode()), repr((other or b"").decode()))
        assert surface != other, "what exact could not have told"


def test_options_reach_the_map(site, tmp_path):
    out = tmp_path / "map.safetensors"
    options = ("--embeddings", "input", "--top", "2", "--threshold", "0.3")
    assert run("align", site / "ben", site / "ada", "--out", out, *options)[0] == 0
    map, origin = load_with_origin(out)
    assert origin.method == "hybrid"
    assert origin.parameters == Parameters("input", 2, 0.3)
    assert map.target_ids.shape[1] <= 2
    assert map.weights[map.weights > 0].min() >= np.float32(0.3)


def test_held_out_anchors_are_told_of(tmp_path):
    out = tmp_path / "map.safetensors"
    code, printed, err = run("align", DEMO / "abacus", DEMO / "lingvo", "--hold-out", "0.1", "--out", out)
    assert (code, err) == (0, "")
    best = re.search(r"111 anchors held out, found as the best entry +(\d+\.\d)%", printed)
    any = re.search(r"found among the entries +(\d+\.\d)%", printed)
    assert best
    assert any
    assert 0 < float(best[1]) < float(any[1]) < 100


@pytest.fixture(scope="module")
def made(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("maps") / "map.safetensors"
    assert run("align", site / "ben", site / "ada", "--method", "hybrid", "--out", out)[0] == 0
    return out


def inspected(*arguments: str | Path) -> list[list[str]]:
    code, printed, err = run("align", *arguments)
    assert (code, err) == (0, "")
    return [line.split() for line in printed.splitlines() if re.match(r" *\d", line)]


def test_a_token_is_named_by_its_text_its_id_or_its_spelling(site, made):
    ben, ada = (Tokenizer.load(str(site / name)) for name in ("ben", "ada"))
    ids = {name: tokenizer.surfaces.index(b"th") for name, tokenizer in (("ben", ben), ("ada", ada))}
    expected = [[str(ids["ada"]), "'th'", "1.0000"]]
    assert inspected("--inspect", made, "th") == expected
    assert inspected("--inspect", made, str(ids["ben"])) == expected
    assert inspected(site / "ben", site / "ada", "--inspect", made, "th") == expected
    space = [str(ada.surfaces.index(b" ")), "'", "'", "1.0000"]
    assert inspected("--inspect", made, " ") == inspected("--inspect", made, "Ġ") == [space]
    [end] = inspected("--inspect", made, "<end>")
    assert end[1:] == ["<end>", "1.0000"]


@pytest.mark.parametrize(
    ("token", "sentence"),
    [
        ("nothing of the kind", "is no single token"),
        ("9999999", "There is no token 9999999: "),
        ("", "is no single token"),
        ("<start>", "is no single token"),
    ],
)
def test_a_token_that_is_none(made, token, sentence):
    code, printed, err = run("align", "--inspect", made, token)
    assert (code, printed, err.count("\n")) == (2, "", 1)
    assert sentence in err


def test_a_map_whose_models_have_gone_can_be_read_with_others_of_the_same_tokens(broken, tmp_path):
    out = tmp_path / "map.safetensors"
    assert run("align", broken / "ben", broken / "ada", "--method", "exact", "--out", out)[0] == 0
    broken.rename(tmp_path / "moved")
    code, _, err = run("align", "--inspect", out, "th")
    assert (code, err.count("\n")) == (2, 1)
    assert "give both models before --inspect" in err
    moved = tmp_path / "moved"
    assert run("align", moved / "ben", moved / "ada", "--inspect", out, "th")[0] == 0
    code, _, err = run("align", moved / "ada", moved / "ada", "--inspect", out, "th")
    assert (code, "whose tokens are not those of" in err) == (2, True)


# Each case: arguments after `align`, and what is said. SITE and OUT stand for their paths.
REFUSED = {
    "nothing": ([], "Give two models and --out FILE"),
    "one model": (["SITE/ada", "--out", "OUT/m"], "Give two models and --out FILE"),
    "no file": (["SITE/ben", "SITE/ada"], "Give two models and --out FILE"),
    "no model": (["SITE/eve", "SITE/ada", "--out", "OUT/m"], "SITE/eve does not exist"),
    "no method": (
        ["SITE/ben", "SITE/ada", "--out", "OUT/m", "--method", "best"],
        "There is no alignment method 'best': use one of spelled, exact, prefix, eva, mined, hybrid.",
    ),
    "no table": (
        ["SITE/ben", "SITE/ada", "--out", "OUT/m", "--embeddings", "middle"],
        "--embeddings: found 'middle'; should be 'input' or 'output'.",
    ),
    "top": (
        ["SITE/ben", "SITE/ada", "--out", "OUT/m", "--top", "0"],
        "--top: found 0; should be greater than or equal to 1.",
    ),
    "useless option": (
        ["SITE/ben", "SITE/ada", "--out", "OUT/m", "--method", "mined", "--top", "3"],
        "mined takes no top; leave it out.",
    ),
    "nothing to hold out": (
        ["SITE/ben", "SITE/ada", "--out", "OUT/m", "--method", "mined", "--hold-out", "0.1"],
        "mined learns nothing from anchors that could be held out; use eva or hybrid.",
    ),
    "no folder": (["SITE/ben", "SITE/ada", "--out", "OUT/x/m"], "The folder OUT/x does not exist"),
    "a folder": (["SITE/ben", "SITE/ada", "--out", "OUT"], "OUT is a folder"),
    "no device": (["SITE/ben", "SITE/ada", "--out", "OUT/m", "--device", "cuda:99"], "'cuda:99' does not exist"),
    "the same": (["SITE/ada", "SITE/ada", "--out", "OUT/m"], "have the same tokenizer: they need no map"),
    "half a pair": (
        ["SITE/ada", "--inspect", "OUT/m", "th"],
        "Give both models of the map to --inspect, or none.",
    ),
    "no map": (["--inspect", "OUT/m", "th"], "OUT/m does not exist"),
    "no map but": (["--inspect", "SITE/tutti.yaml", "th"], "SITE/tutti.yaml is damaged"),
}


@pytest.mark.parametrize(("arguments", "sentence"), REFUSED.values(), ids=REFUSED.keys())
def test_bad_input_is_one_sentence_and_leaves_nothing(site, tmp_path, arguments, sentence):
    def real(text: str) -> str:
        return text.replace("SITE", str(site)).replace("OUT", str(tmp_path))

    code, printed, err = run("align", *map(real, arguments))
    assert (code, printed, err.count("\n")) == (2, "", 1)
    assert real(sentence) in err
    assert list(tmp_path.iterdir()) == []


def test_models_that_nothing_can_be_learned_from(broken, tmp_path):
    out = tmp_path / "map.safetensors"
    save_tokenizer(broken / "ben", ["on"])
    (broken / "ben" / "model.safetensors").write_bytes(b"{}")
    code, printed, err = run("align", broken / "ben", broken / "ada", "--out", out)
    assert (code, printed, err.count("\n")) == (2, "", 1)
    assert "damaged" in err
    assert not out.exists()


def test_models_of_a_configuration_have_its_chat_templates(site, tmp_path):
    """A map that is made without one is of other control tokens, and `maps:` would refuse it for ever."""
    marked = shutil.copytree(site / "ben", tmp_path / "ben")
    tokenizer = AutoTokenizer.from_pretrained(marked)
    tokenizer.add_tokens([AddedToken("[turn]", special=False)])
    tokenizer.save_pretrained(marked)
    (tmp_path / "turns.jinja").write_text("{% for m in messages %}[turn]{{ m.content }}{% endfor %}")
    config = tmp_path / "duo.yaml"
    models = {"ben": f"source: {marked}, chat_template: turns.jinja", "ada": f"source: {site / 'ada'}"}
    config.write_text("models:\n" + "".join(f"  {name}: {{{fields}}}\n" for name, fields in models.items()))
    out = tmp_path / "map.safetensors"
    code, _, err = run("align", "ben", "ada", "--config", config, "--method", "spelled", "--out", out)
    assert (code, err) == (0, "")
    origin = load_with_origin(out)[1]
    plain, told = (
        special_digest(Tokenizer.load(str(marked), chat_template=template))
        for template in (None, str(tmp_path / "turns.jinja"))
    )
    assert origin.source.special == told != plain
    assert origin.source.name == str(marked)
    code, printed, err = run("align", "ben", "ada", "--config", config, "--inspect", out, "5")
    assert (code, err) == (0, "")
    assert "(id 5)" in printed
    code, _, err = run("align", "bob", "ada", "--config", config, "--out", out)
    assert (code, err.strip()) == (2, "There is no model 'bob' in the configuration; choose from ben, ada.")
