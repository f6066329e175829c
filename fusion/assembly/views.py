"""Views for a request: an ensemble whose members read documents, or a second prompt, beside the request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from alignment.errors import InvalidRequestError, field_error
from fusion.ensemble import Ensemble, Model, View
from fusion.options import ContextView, FusionParams, Guidance
from fusion.terms import NEGATIVE
from fusion.views import GAP, ModelView

Views = dict[str, tuple[str, ModelView]]
"""Views by name, each with the member that it is one of."""


def with_views(ensemble: Ensemble, fusion: FusionParams) -> tuple[Ensemble, FusionParams]:
    """The ensemble with the views that these options ask for, and the options for it; both as given without any.

    A member `ada` becomes `ada` and `ada/2` for two documents, each with an `ada/negative` or `ada/2/negative` for
    the second prompt of a guidance. The views share its engine, tokenizer and maps.

    Raises:
        InvalidRequestError: there is no context to do without, or a member is called as a view; names the field.
    """
    if not fusion.views and fusion.guidance is None:
        return ensemble, fusion
    _require_free_names(ensemble, fusion)
    views: Views = {name: (name, ensemble.models[name].view) for name in fusion.members or ensemble.models}
    weights, weighting = fusion.weights, fusion.weighting
    if fusion.views:
        views, weights = _by_document(views, fusion.views, fusion)
    if fusion.guidance is not None:
        views |= _second_prompts(views, fusion.guidance)
    if weighting.offsets is not None:
        usual = {name: weighting.offsets.get(member, 0.0) for name, (member, _) in views.items()}
        weighting = replace(weighting, offsets=usual)
    options = replace(fusion, members=None, weights=weights, weighting=weighting, views=None)
    return _joined(ensemble, views), options


def _by_document(
    views: Views, documents: Sequence[ContextView], fusion: FusionParams
) -> tuple[Views, dict[str, float] | None]:
    """A view for each member and document, and their weights; None where members and documents have none."""
    shares = _shares(fusion)
    found: Views = {}
    weights: dict[str, float] = {}
    for name, (_, view) in views.items():
        given = 1.0 if fusion.weights is None else fusion.weights.get(name, 0.0)
        for index, document in enumerate(documents):
            own = replace(
                view,
                context=document.context if view.context is None else GAP.join([view.context, document.context]),
                param=f"fusion.views[{index}].context",
                name=name if index == 0 else f"{name}/{index + 1}",
                of=name,
            )
            found[own.name] = name, own
            weights[own.name] = given * (1.0 if shares is None else shares[index])
    if shares is None and fusion.weights is None:
        return found, None
    total = sum(weights.values()) or 1.0
    return found, {name: weight / total for name, weight in weights.items()}


def _second_prompts(views: Views, guidance: Guidance) -> Views:
    """The second prompt of every view. Raises InvalidRequestError where there is no context to do without."""
    found: Views = {}
    for name, (member, view) in views.items():
        if not guidance.without_context:
            second = replace(view, negative=guidance.negative, param="fusion.guidance.negative")
        elif view.context is None:
            raise field_error(
                "fusion.guidance.without_context", "takes a context to do without; give one in fusion.views."
            )
        else:
            second = replace(view, context=None)
        found[name + NEGATIVE] = member, replace(second, name=name + NEGATIVE)
    return found


def _joined(ensemble: Ensemble, views: Views) -> Ensemble:
    """The ensemble of these views; those of a pivot may be the pivot where it is chosen, else its first alone."""
    models = {}
    for name, (member, view) in views.items():
        model = ensemble.models[member]
        models[name] = model if view is model.view else replace(model, view=view)
    pivots = {name: member for name, (member, _) in views.items() if member in ensemble.views}
    if not ensemble.chooses_pivot:
        pivots = {name: member for name, member in pivots.items() if name == member}
    built = {
        name: replace(_around(ensemble.views[member], models, views), pivot=name)
        for name, member in pivots.items()
    }
    return replace(ensemble, models=models, views=built)


def _require_free_names(ensemble: Ensemble, fusion: FusionParams) -> None:
    """Raise InvalidRequestError where a configured member is called as one of the views."""
    for name in fusion.members or tuple(ensemble.models):
        own = [name] + [f"{name}/{index + 1}" for index in range(1, len(fusion.views or ()))]
        second = [one + NEGATIVE for one in own] if fusion.guidance is not None else []
        if taken := [one for one in (*own[1:], *second) if one in ensemble.models]:
            raise field_error(
                "fusion.views" if fusion.views else "fusion.guidance",
                f"makes a view called {taken[0]}, as a member of {ensemble.name} is; rename that one.",
            )


def _around(view: View, models: dict[str, Model], views: Views) -> View:
    """The same pivot and maps; a view has those of its member."""
    maps = {name: view.maps[member] for name, (member, _) in views.items() if member in view.maps}
    return replace(view, models=models, maps=maps, of=view)


def _shares(fusion: FusionParams) -> list[float] | None:
    """The documents' weights; None where none is given.

    Raises InvalidRequestError where only some have one, all are 0, or they are measured as well.
    """
    given = [document.weight for document in fusion.views or ()]
    if all(weight is None for weight in given):
        return None
    for index, weight in enumerate(given):
        if weight is None:
            raise field_error(f"fusion.views[{index}].weight", "is missing; give every view one, or none of them.")
    if fusion.weighting.method != "given":
        raise InvalidRequestError(
            f"fusion.views hold weights, but fusion.weighting.method is {fusion.weighting.method}; leave one out.",
            param="fusion.views[0].weight",
        )
    if not any(given):
        raise InvalidRequestError(
            "The weights of fusion.views are all 0; at least one must be positive.", param="fusion.views[0].weight"
        )
    largest = max(weight or 0.0 for weight in given)
    return [(weight or 0.0) / largest for weight in given]
