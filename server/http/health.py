"""Health: whether this process can still do its work, or only another one could."""

from __future__ import annotations

from collections.abc import Collection

from fusion.core import Trouble
from server.http.service import Service


def missed_by(service: Service, away: Collection[str]) -> list[str]:
    """The members that do not answer and without which some served name cannot answer.

    A member of ensembles counts as they need it, whether or not it is served under its own name too. One that does
    not answer and is not known to be down keeps sequences waiting, even where they could go on without it.
    """
    joint = [ensemble for ensemble in service.ensembles.values() if len(ensemble.models) > 1]
    shared = {name for ensemble in joint for name in ensemble.models}
    alone = [e for e in service.ensembles.values() if len(e.models) == 1 and e.pivot not in shared]
    down = service.fuser.attendance.down
    missed: set[str] = set()
    for ensemble in [*joint, *alone]:
        needed = ensemble.taking_part(ensemble.defaults)
        gone = [name for name in needed if name in away]
        spared = [name for name in gone if ensemble.engine(name) in down and ensemble.can_do_without(name)]
        missed.update(gone if len(gone) == len(needed) else set(gone).difference(spared))
    return [name for name in away if name in missed]


def unwell(service: Service) -> Trouble | None:
    """What keeps this process from its work, if a restart would help; None while it is well.

    It is lasting where the decoding loop has ended, or an engine that a served name cannot do without is broken
    for good or hangs. An engine that has failed at its last steps may still work at the next.
    """
    if not service.fuser.alive():
        return Trouble("The decoding loop has ended", lasting=True)
    troubled = service.fuser.troubled()
    for lasting in (True, False):
        engines = {name for name, one in troubled.items() if one.lasting == lasting}
        if lasting:
            down = list(service.fuser.attendance.down.items())  # the fuser's thread changes it meanwhile
            engines |= {name for name, one in down if one.retry_after is None}
        if missed := missed_by(service, _run_by(service, engines)):
            return Trouble(f"Not answering: {', '.join(missed)}", lasting)
    return None


def _run_by(service: Service, engines: Collection[str]) -> list[str]:
    """The members that these engines run, views among them."""
    run_by = {name: each.engine(name) for each in service.ensembles.values() for name in each.models}
    return [name for name, engine in run_by.items() if engine in engines]
