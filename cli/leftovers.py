"""What a deleted model leaves in the nodes' stores, in a sentence: `slice rm` deletes names, not bytes.

The admin API is asked before and after; a cluster that cannot say makes no error of a deletion that worked.
"""

from cli.client import AdminClient
from cli.human import size
from core.errors import Failure


def digests_of(client: AdminClient, model: str, number: int | None) -> frozenset[str]:
    """Return the content of one version of a model, or of all (None), empty when the cluster does not know it."""
    try:
        versions = client.get("models", model).get("versions") or []
    except Failure:
        return frozenset()  # the deletion itself will say what is wrong
    meant = [version for version in versions if number in (None, version.get("number"))]
    return frozenset(str(file.get("sha256")) for version in meant for file in version.get("files") or [])


def left_sentence(client: AdminClient, digests: frozenset[str]) -> str:
    """Return what of `digests` no other model uses and still lies on disks, with the cure; "" when nothing does."""
    try:
        items = client.items("store") if digests else []
    except Failure:
        return ""
    left = [item for item in items if item.get("sha256") in digests and not item.get("versions")]
    if not left:
        return ""
    nodes = ", ".join(sorted({str(item.get("node")) for item in left}))
    amount = size(sum(int(item.get("size_bytes") or 0) for item in left))
    return f"{amount} of it stay in the store of {nodes}; `slice store gc` frees them"
