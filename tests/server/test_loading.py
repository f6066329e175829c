"""Loading: members and ensembles built from a configuration."""

from __future__ import annotations

from server.loading import build
from server.settings import read_settings


def test_what_is_built_is_what_was_configured(site):
    runtime = build(read_settings(site / "tutti.yaml", {}))
    both = runtime.ensembles["both"]
    assert list(runtime.ensembles) == ["both", "ada", "ben"]
    assert both.defaults.weights == {"ada": 0.75, "ben": 0.25}
    assert both.defaults.filter_top == 5
    assert both.models["ben"].member.capacity.cache_tokens == 2048
    assert both.models["ben"] is runtime.ensembles["ben"].models["ben"], "a model is loaded once"
    assert runtime.ensembles["ben"].fingerprint != both.fingerprint
