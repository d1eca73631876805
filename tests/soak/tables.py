"""What the loops found, as tables: how long, how often, and which bars were missed."""

from collections import Counter
from collections.abc import Sequence

from bench.report import Section, percentile, spread
from tests.soak.cluster_kills import ORPHANS_S as CLUSTER_ORPHANS_S
from tests.soak.cluster_kills import ClusterRound
from tests.soak.node_kills import ORPHANS_S, OUT_OF_ROUTING_S, RESTART_S, Round
from tests.soak.outage import Outage

BARS = {
    "out_of_routing_s": ("engine or shim killed: first report in which it is not ready", OUT_OF_ROUTING_S),
    "restart_s": ("engine or shim killed: first report of the next incarnation, which runs then", RESTART_S),
    "orphans_gone_s": ("any part killed: nothing of the old tree and no stray alive", ORPHANS_S),
    "served_again_s": ("engine or shim killed, a killed node agent's own start included: ready again", None),
}


def node_section(rounds: Sequence[Round]) -> tuple[Section, list[str]]:
    """Return the table of one node's rounds and which bars were missed."""
    rows, missed = [], []
    for name, (title, bar) in BARS.items():
        values = [value for one in rounds if (value := getattr(one, name)) is not None]
        if not values:
            continue
        cells = spread(values, "s")
        rows.append((title, str(len(values)), *cells, f"{percentile(values, 0.95):.2f} s", f"{bar:g} s" if bar else ""))
        if bar is not None and max(values) > bar:
            missed.append(f"{title}: {max(values):.2f} s, the bar is {bar:g} s")
    by_victims = ", ".join(f"{who} {count}" for who, count in sorted(Counter(one.victims for one in rounds).items()))
    method = (
        "One node agent, one fake engine with three children in sessions of their own under other names, a controller "
        "on a unix socket that notes when it hears what. Each round is a kill -9 of its victims at once and lasts "
        "until all is well again; the loop starts a killed node agent anew. The pause before a restart is the "
        "product's first one (1 s -+ 20 %) each time. Seconds from the kill; the old tree and strays are looked for "
        "once the replica is ready again, so that theirs is an upper bound. "
        f"Rounds by victims: {by_victims}."
    )
    header = ("figure", "rounds", "median", "minimum", "maximum", "p95", "bar (maximum)")
    return Section(title=f"kill -9, {len(rounds)} rounds", method=method, header=header, rows=tuple(rows)), missed


def cluster_section(rounds: Sequence[ClusterRound]) -> tuple[Section, list[str]]:
    """Return the table of a cluster's rounds, one row a kind of kill, and what was not well in time."""
    kinds = sorted({(one.where, one.victims) for one in rounds})
    rows = [_cluster_row(*kind, [one for one in rounds if (one.where, one.victims) == kind]) for kind in kinds]
    missed = [f"round {one.number}, {one.victims} of the {one.where}: {one.trouble}" for one in rounds if one.trouble]
    gone = [one.orphans_gone_s for one in rounds if one.orphans_gone_s is not None]
    late = [seconds for seconds in gone if seconds > CLUSTER_ORPHANS_S]
    method = (
        "Three machines in network namespaces: the controller's and two that joined; one replica of the fake engine on "
        "each, with three children in sessions of their own under other names; four clients stream without pause, a "
        "writer makes a key every 0.4 s. Each round is a kill -9 of its victims at once; `slice up` starts a killed "
        "supervisor again, as its systemd unit does, everything else is the product's business. Orphans: processes of "
        "a machine that descend from no living supervisor, recorded part or recorded shim, looked for until there is "
        "none. Well: every part runs once, no engine but a killed one was started anew (same pids, same incarnations, "
        "never two at once), the data planes route exactly the present spawns, every acknowledged write is there, "
        "answers come. Gap: the longest time in which no client got a whole answer. Failed requests include the "
        "streams that the kill cut. "
        f"After {len(gone)} of {len(rounds)} kills no orphan was left within {CLUSTER_ORPHANS_S:.0f} s "
        f"(slowest {max(gone, default=0.0):.1f} s, `slice up` included); rounds that were not well: {len(missed)}. "
        + " ".join(f"{line[:300]}." for line in missed)
    )
    header = (
        *("killed", "rounds", "orphans gone, max", "all well, median", "max", "longest gap, median", "max"),
        *("requests", "failed", "of them", "writes", "refused"),
    )
    return (
        Section(
            title=f"kill -9 of any part of three machines, {len(rounds)} rounds",
            method=method,
            header=header,
            rows=tuple(rows),
        ),
        missed + [f"orphans: {seconds:.1f} s, the bar is {CLUSTER_ORPHANS_S:.0f} s" for seconds in late],
    )


def _cluster_row(where: str, victims: str, rounds: Sequence[ClusterRound]) -> tuple[str, ...]:
    failed: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    for one in rounds:
        failed.update(one.failed)
        refused.update(one.writes_refused)
    return (
        f"{where}: {victims}",
        str(len(rounds)),
        _most(rounds, "orphans_gone_s"),
        *_middle(rounds, "well_s"),
        *_middle(rounds, "longest_gap_s"),
        str(sum(one.answers for one in rounds)),
        str(sum(failed.values())),
        _counted(failed),
        str(sum(one.writes for one in rounds)),
        _counted(refused),
    )


def _values(rounds: Sequence[ClusterRound], name: str) -> list[float]:
    return [value for one in rounds if (value := getattr(one, name)) is not None]


def _most(rounds: Sequence[ClusterRound], name: str) -> str:
    values = _values(rounds, name)
    return f"{max(values):.1f} s" if values else "never"


def _middle(rounds: Sequence[ClusterRound], name: str) -> tuple[str, str]:
    values = _values(rounds, name)
    if not values:
        return "never", "never"
    median, _, most = spread(values, "s", digits=1)
    return median, most


def _counted(words: Counter[str] | dict[str, int]) -> str:
    return ", ".join(f"{count} {word}" for word, count in sorted(words.items())) or "none"


def outage_section(outages: Sequence[Outage]) -> tuple[Section, list[str]]:
    """Return the table of outages of PostgreSQL, and what was noticed of them that should not have been."""
    missed = [f"{one.form}: {trouble}" for one in outages for trouble in noticed(one)]
    rows = [
        (
            one.form,
            f"{one.seconds:.0f} s",
            f"{one.answers}",
            f"{sum(one.failed.values())} ({_counted(one.failed)})",
            f"{one.longest_gap_s:.2f} s",
            f"{one.writes}: {_counted(one.writes_refused)}",
            f"{one.slowest_refusal_s:.1f} s",
            f"{one.reads}: {_counted(one.reads_refused)}",
            ", ".join(one.states),
            f"{one.again_s:.1f} s",
            f"{one.ready_s:.1f} s",
            str(len(one.restarted)),
        )
        for one in outages
    ]
    method = (
        "Three machines in network namespaces, a model on the two that joined, four clients that stream without pause. "
        "Frozen: SIGSTOP to every process of PostgreSQL, its sockets stay open. Withheld: SIGKILL, and a line in its "
        "configuration that it refuses, so that the supervisor's starts fail. A writer makes a key, and two readers "
        "list nodes and replicas, every 0.4 s or as fast as they are answered. States: all that `GET /nodes` said of "
        "any node from its beginning until 15 s after its end, when it answered. Again: from the end to a write that "
        "is done, and to all nodes and replicas seen ready (a withheld server is started at the supervisor's next try, "
        "which is up to 30 s away)."
    )
    header = (
        *("form", "for", "requests", "failed", "longest gap", "writes: refused", "slowest refusal", "reads: refused"),
        *("states of nodes", "writes again", "all ready", "engines restarted"),
    )
    return Section(title="PostgreSQL is gone", method=method, header=header, rows=tuple(rows)), missed


def noticed(one: Outage) -> list[str]:
    """Return what of an outage should not have been noticed."""
    told = [one.trouble] if one.trouble else []
    told += [f"requests failed: {_counted(one.failed)}"] if one.failed else []
    told += [f"engines were started anew: {one.restarted}"] if one.restarted else []
    told += [f"nodes were {one.states}"] if not set(one.states) <= {"ready"} else []
    others = {word for word in (*one.writes_refused, *one.reads_refused) if word != "503 storage.unavailable"}
    told += [f"the admin API said {sorted(others)}"] if others else []
    told += [] if one.writes_refused else ["no write was refused"]
    return told
