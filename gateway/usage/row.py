"""One usage row of a visit that has ended. Pure, but for the row's number. Called by the app once a request.

A row is left by each request of a known key to an endpoint of a model, however it ended. None by lists, health and
wrong paths, which use nothing, and none without a valid key: there is nobody to count for, and anybody could fill the
table.
"""

from itertools import count

from core.states import Outcome
from gateway.app import CLIENT_GONE, CLIENT_STALLED
from gateway.visit import Tally, Visit
from protos.slice.routes.v1 import routes_pb2

MAX_TEXT = 128
"""Longest text of a row, characters: clients choose names of models and request ids."""


class Rows:
    """Makes the rows of one door; `seed` is a text that no other door ever has."""

    def __init__(self, seed: str) -> None:
        self._seed = seed
        self._numbers = count(1)

    def of(self, visit: Visit, *, now_unix_s: float, now_s: float) -> routes_pb2.UsageRow | None:
        """Return the row of `visit`, which ends now (the same instant on both clocks), None when it leaves none."""
        tally, caller = visit.tally, visit.caller
        if caller is None or not tally.endpoint:
            return None
        total_s = max(0.0, now_s - visit.started_s)
        ended = outcome(tally)
        row = routes_pb2.UsageRow(
            row_id=f"{self._seed}-{next(self._numbers):x}",
            request_id=plain(visit.request_id),
            trace_id=visit.trace_id,
            kid=caller.kid,
            project=caller.project,
            public_name=plain(tally.model),
            endpoint=tally.endpoint,
            is_stream=tally.is_stream,
            outcome=ended.value,
            code="" if ended is Outcome.ANSWERED else tally.code,
            status=tally.status,
            input_tokens=tally.input_tokens or 0,
            output_tokens=tally.output_tokens or 0,
            cached_tokens=tally.cached_tokens or 0,
            is_estimated=tally.is_estimated,
            started_unix_us=round((now_unix_s - total_s) * 1e6),
            first_byte_us=0 if tally.first_byte_s is None else max(1, round(tally.first_byte_s * 1e6)),
            total_us=round(total_s * 1e6),
            attempts=tally.attempts,
        )
        route, target = tally.route, tally.target
        if route is not None:
            row.model, row.version, row.deployment = route.model, route.version, route.deployment
            if route.public_name != tally.model:
                row.arm = route.public_name
        if target is not None:
            row.replica_id = target.replica_id
            row.node_id = target.plane.node_id if target.plane is not None else ""
        return row


def outcome(tally: Tally) -> Outcome:
    """Return how the request ended.

    1. Its client left or stopped reading: gone, unless it had got everything; many leave once they have read the end.
    2. No fault: answered; without a status nobody got anything, which only a client's leaving explains.
    3. A fault after the first byte: cut.
    4. Else by the status of the refusal.
    """
    if tally.code in (CLIENT_GONE, CLIENT_STALLED):  # 1
        return Outcome.ANSWERED if tally.is_whole else Outcome.GONE
    if not tally.code:  # 2
        return Outcome.ANSWERED if tally.status else Outcome.GONE
    if tally.first_byte_s is not None and tally.status < 400:  # 3
        return Outcome.CUT
    return Outcome.REFUSED if tally.status < 500 else Outcome.FAILED  # 4


def plain(text: str) -> str:
    """Return at most `MAX_TEXT` characters of a client's `text`, each that cannot be printed as `?`."""
    text = text[:MAX_TEXT]
    return text if text.isprintable() else "".join(one if one.isprintable() else "?" for one in text)
