"""The demo's ensemble of adapters: its learned weights are of these adapters, and know what each is for."""

from __future__ import annotations

import pytest

from fusion.assembly.learned import read_learned
from server.commands.calibrate.command import known_members
from server.settings import read_settings
from tests.support.toy_fuser import DEMO

QUESTIONS = {
    "facts": "What do you call a baby duck?",
    "places": "Describe the place.\nData: name[The Happy Harbour], type[pub], food[Thai], area[old town]",
}


@pytest.mark.parametrize("expert", QUESTIONS)
def test_the_learned_weights_send_a_question_to_its_adapter(expert):
    settings = read_settings(DEMO.parents[1] / "demo-views.yaml")
    own = settings.ensembles["tutti-views"]
    learned = read_learned(own.weighting.file, known_members(own, settings))
    weighed = learned.weigh(QUESTIONS[expert], learned.members)
    assert max(zip(weighed.weights, learned.members, strict=True))[1] == expert
