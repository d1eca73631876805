"""Copies: the files of a registered version into one more node's store, or off one.

Comes in: wishes from the admin API, file reports from nodes (through the reconcile loop, the only caller of `absorb`).
Goes out: rows of copies, which the loop makes orders of, and of removals. A copy is done when the node's store has all
of its files; a move then takes them off the other node. Nothing leaves a store that a replica there uses, nor the last
copy of what a version has.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from controller.exchange import DeployableVersion, FileReport
from controller.registry import copy_store, store
from controller.registry.model import Copy, Holding
from controller.registry.service import Registry
from core.errors import CODES, Failure
from core.events import Happening, Subject
from core.ids import IdSource, NodeId
from core.infra import postgres
from core.names import did_you_mean, split_version, version_text
from core.ports import EventLog, Wakeups
from core.states import PullState
from core.units import text_from_bytes

PREFIX = "cpy"
"""Begins the id of a copy, as `pul` does a pull's: both are shown and cancelled at one place."""


def want_id(copy_id: str, position: int) -> str:
    """Return what a node calls one file of a copy."""
    return f"{copy_id}.{position}"


def is_of(report: FileReport, copy_id: str) -> bool:
    """Return whether a node's report is of a file of this copy."""
    return report.want_id.startswith(f"{copy_id}.")


@dataclass(frozen=True, kw_only=True)
class Leaving:
    """What leaves a node's store, and what stays because another version there shares it."""

    items: tuple[Holding, ...]
    kept: tuple[Holding, ...]

    @property
    def total_bytes(self) -> int:
        """What becomes free."""
        return sum(one.size_bytes for one in self.items)


def leaving(holdings: Sequence[Holding], what: str, node: str) -> Leaving:
    """Return what of `what` may leave the store of `node`: all that no other version there shares, or none of it.

    Raises:
        Failure: `registry.not_on_node` when nothing of it is there, `registry.model_in_use` while a replica or a copy
            there needs it or other versions share all of it, `registry.last_copy` when no other node has all of it.
    """
    here = [one for one in holdings if one.is_here]
    if not here:
        raise not_there(what, node)
    users = sorted({user for one in here for user in one.users})
    if users:
        raise Failure(
            "registry.model_in_use",
            f"{what} is used on node {node} by {', '.join(users[:5])}",
            hint="stop or move what uses it first; `slice ps` shows where it runs",
            param="node",
        )
    if any(one.is_awaited for one in here):
        raise Failure(
            "registry.model_in_use",
            f"{what} is being copied to node {node}",
            hint="wait for that copy, or cancel it",
            param="node",
        )
    items = tuple(one for one in here if not one.sharers)
    if not items:
        sharers = sorted({sharer for one in here for sharer in one.sharers})
        raise Failure(
            "registry.model_in_use",
            f"every file of {what} on node {node} is one of {', '.join(sharers[:5])} too",
            hint="take those off the node first",
            param="node",
        )
    if any(not one.is_elsewhere for one in items):
        raise Failure(
            "registry.last_copy",
            f"no other node has all of {what}: node {node} keeps it",
            hint="copy it to another node first with `slice model copy`, or delete the model with `slice rm`",
            param="node",
        )
    return Leaving(items=items, kept=tuple(one for one in here if one.sharers))


def not_there(what: str, node: str) -> Failure:
    """Return the failure of a node that does not have what was to leave it."""
    return Failure(
        "registry.not_on_node",
        f"node {node} does not have {what}",
        hint="`slice model where` shows who has it",
        param="node",
    )


class Copies:
    """The copies' one owner; the state of a copy is written here and nowhere else."""

    def __init__(
        self,
        *,
        database: postgres.Database,
        registry: Registry,
        events: EventLog[postgres.Connection],
        wakeups: Wakeups,
        ids: IdSource,
    ) -> None:
        self._database = database
        self._registry = registry
        self._events = events
        self._wakeups = wakeups
        self._ids = ids

    async def copies(self, connection: postgres.Connection) -> list[Copy]:
        """Return the newest copies, newest first."""
        return await copy_store.newest(connection)

    async def copy(self, connection: postgres.Connection, copy_id: str) -> Copy:
        """Return one copy.

        Raises:
            Failure: `registry.pull_not_found`.
        """
        found = await copy_store.copy(connection, copy_id)
        if found is None:
            raise Failure(
                "registry.pull_not_found",
                f"there is no copy {copy_id!r}",
                hint="it goes with its version and its node; `slice model where` shows what is there",
            )
        return found

    async def begin(self, name: str, to: str, *, away_from: str | None = None) -> Copy:
        """Begin to bring the version that `name` means (`m`, `m@v2`) to a node, and off another when it is there.

        Returns a copy that is done when the node has it, the running one when the same is under way, else a queued one.

        Raises:
            Failure: `registry.model_not_found`, `registry.version_not_found`, `registry.no_files`, `node.not_found`,
                `request.usage` from a node to itself; for a move also what `leaving` raises, but that it is the last.
        """
        async with self._database.transaction() as connection:
            version = await self._registry.deployable(connection, name)
            what = version_text(version.model, version.number)
            if not version.file_digests:
                raise _no_files(what)
            target = await self._node_id(connection, to, "to")
            source = None if away_from is None else await self._node_id(connection, away_from, "from")
            if source is not None:
                await self._check_move(connection, version, what, source, target, away_from or "")
            holdings = await copy_store.holdings(connection, [version.version_id], target)
            is_there = all(one.is_here for one in holdings)
            state = PullState.DONE if is_there else PullState.QUEUED
            copy_id = self._ids.fresh(PREFIX)
            await copy_store.insert(connection, copy_id, version.version_id, target, source, state.value)
            made = await copy_store.copy(connection, copy_id)
            found = made or await copy_store.active_of(connection, version.version_id, target)
            assert found is not None, "made in this transaction, or there already"
            if made is not None:
                await self._record(connection, made, "copy_done" if is_there else "copy_begun")
                if is_there:
                    await self._leave_source(connection, made)
        self._wakeups.wake("copy_begun")
        return found

    async def _check_move(
        self,
        connection: postgres.Connection,
        version: DeployableVersion,
        what: str,
        source: str,
        target: str,
        name: str,
    ) -> None:
        if source == target:
            raise Failure("request.usage", "a move leads to another node", hint="name two nodes", param="to")
        holdings = await copy_store.holdings(connection, [version.version_id], source)
        if not all(one.is_here for one in holdings):
            raise not_there(f"all of {what}", name)
        try:
            leaving(holdings, what, name)
        except Failure as failure:
            if failure.code != "registry.last_copy":  # it will not be, once it has come to the other node
                raise

    async def _node_id(self, connection: postgres.Connection, name: str, param: str) -> str:
        known = await copy_store.nodes(connection)
        if name not in known:
            raise Failure(
                "node.not_found",
                f"there is no node {name!r}.{did_you_mean(name, list(known))}",
                hint="`slice node list` shows all",
                param=param,
            )
        return known[name]

    async def cancel(self, copy_id: str) -> Copy:
        """End a copy; files of it that are whole stay in the node's store.

        Raises:
            Failure: `registry.pull_not_found`, `registry.pull_finished`.
        """
        async with self._database.transaction() as connection:
            found = await self.copy(connection, copy_id)
            if found.state == PullState.CANCELLED.value:
                return found
            if not await copy_store.end(connection, copy_id, PullState.CANCELLED.value):
                raise Failure("registry.pull_finished", f"copy {copy_id} has ended: it is {found.state}")
            await self._record(connection, found, "copy_cancelled")
            found = await self.copy(connection, copy_id)
        self._wakeups.wake("copy_cancelled")
        return found

    async def take_off(self, name: str, node: str) -> Leaving:
        """Take a version (`m@v2`), or all versions of a model (`m`) that are there, out of the store of `node`.

        Raises:
            Failure: `registry.model_not_found`, `registry.version_not_found`, `node.not_found`, and what `leaving`
                raises.
        """
        async with self._database.transaction() as connection:
            base, number = split_version(name)
            model = await self._registry.model_in(connection, base)
            if number is None:
                versions = await store.versions_of(connection, model.model_id)
            else:
                versions = [await self._registry.numbered(connection, model, number)]
            node_id = await self._node_id(connection, node, "node")
            what = version_text(model.name, number)
            found = await self._take_off(connection, [one.version_id for one in versions], node_id, node, what)
        self._wakeups.wake("files_taken_off")
        return found

    async def _take_off(
        self, connection: postgres.Connection, version_ids: Sequence[str], node_id: str, node: str, what: str
    ) -> Leaving:
        await copy_store.hold_removals(connection)
        found = leaving(await copy_store.holdings(connection, version_ids, node_id), what, node)
        await copy_store.put_asked(connection, node_id, [one.sha256 for one in found.items])
        happening = Happening(
            kind="files_taken_off",
            subject_kind=Subject.NODE,
            subject=node,
            message=f"{text_from_bytes(found.total_bytes)} of {what} leave the store of node {node}",
            data={"files": [one.sha256 for one in found.items][:100], "bytes": found.total_bytes},
        )
        await self._events.record(connection, happening)
        return found

    async def absorb(self, connection: postgres.Connection, node_id: NodeId, reports: tuple[FileReport, ...]) -> None:
        """End the copies to a node that its store has, or that it says have failed; its store was written before."""
        for copy in await copy_store.active(connection):
            if copy.node_id != node_id:
                continue
            holdings = await copy_store.holdings(connection, [copy.version_id], node_id)
            failed = next((one for one in reports if is_of(one, copy.copy_id) and one.state is PullState.FAILED), None)
            if all(one.is_here for one in holdings):
                if await copy_store.end(connection, copy.copy_id, PullState.DONE.value):
                    await self._record(connection, copy, "copy_done")
                    await self._leave_source(connection, copy)
            elif failed is not None:
                code = failed.code if failed.code in CODES else "internal.unexpected"
                message = failed.message or "the node could not bring a file and did not say why"
                if await copy_store.end(connection, copy.copy_id, PullState.FAILED.value, code, message):
                    await self._record(connection, copy, "copy_failed", code, message)

    async def _leave_source(self, connection: postgres.Connection, copy: Copy) -> None:
        """Do the other half of a move; what has come to use the files there meanwhile keeps them."""
        if copy.from_node is None:
            return
        names = {node_id: name for name, node_id in (await copy_store.nodes(connection)).items()}
        what = version_text(copy.model, copy.version)
        try:
            node = names[copy.from_node]
            await self._take_off(connection, [copy.version_id], copy.from_node, node, what)
        except Failure as failure:
            await self._record(connection, copy, "move_kept", failure.code, failure.message)

    async def _record(
        self, connection: postgres.Connection, copy: Copy, kind: str, code: str = "", detail: str = ""
    ) -> None:
        what = version_text(copy.model, copy.version)
        sentence = f"copy of {what} to node {copy.node_name} {_WORDS[kind]}" + (f": {detail}" if detail else "")
        happening = Happening(
            kind=kind,
            subject_kind=Subject.PULL,
            subject=copy.copy_id,
            message=sentence,
            reason=code,
            data={"model": copy.model, "version": copy.version, "node": copy.node_name},
        )
        await self._events.record(connection, happening)


_WORDS = {
    "copy_begun": "was asked for",
    "copy_done": "is done",
    "copy_failed": "failed",
    "copy_cancelled": "was cancelled",
    "move_kept": "is done, but its files stay where they were",
}


def _no_files(what: str) -> Failure:
    return Failure(
        "registry.no_files",
        f"{what} has no files of ours: it is served from where it is",
        hint="only a model that was pulled can be copied",
        param="model",
    )
