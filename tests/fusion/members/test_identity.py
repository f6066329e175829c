"""The same model in two places is the same; another is another."""

import shutil

from fusion.members.identity import content_digest
from tests.support.random_models import build


def test_copies_are_the_same_and_other_weights_are_not(tmp_path):
    for name, seed in (("one", 0), ("other", 1)):
        build("llama", seed).save_pretrained(tmp_path / name)
    shutil.copytree(tmp_path / "one", tmp_path / "elsewhere" / "copy")
    one = content_digest(str(tmp_path / "one"))
    assert one == content_digest(str(tmp_path / "elsewhere" / "copy"))
    assert one != content_digest(str(tmp_path / "other"))


def test_the_configuration_counts(tmp_path):
    build("llama").save_pretrained(tmp_path)
    before = content_digest(str(tmp_path))
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'))
    assert content_digest(str(tmp_path)) != before


def test_a_checkpoint_in_the_cache_of_the_hub_is_the_same_as_its_folder(tmp_path, monkeypatch):
    import huggingface_hub.constants
    import huggingface_hub.file_download

    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "models--org--name" / "snapshots" / commit
    build("llama").save_pretrained(snapshot)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert content_digest("org/name", revision=commit) == content_digest(str(snapshot))


def test_weights_in_another_format_go_by_the_name_of_the_checkpoint(tmp_path):
    for name in ("one", "other"):
        build("llama").save_pretrained(tmp_path / name)
        (tmp_path / name / "model.safetensors").rename(tmp_path / name / "consolidated.pth")
    assert content_digest(str(tmp_path / "one")) == content_digest(str(tmp_path / "one"))
    assert content_digest(str(tmp_path / "one")) != content_digest(str(tmp_path / "other"))
