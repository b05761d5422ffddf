"""Whether the objects in the storage are this database's: those of another have no row here, and yet are no orphans.

The storage holds one small object, the mark, with the identity of the database that it belongs to. Nobody else sweeps.
"""

from __future__ import annotations

from itertools import groupby

from synthgen.errors import NotFound
from synthgen.ports import ObjectStore, Services
from synthgen.sharding import PREFIX, batch_of, input_key

MARK = "belongs-to-database"
"""Key of the mark."""


def is_ours(services: Services) -> bool:
    """Whether the storage is marked as this database's; one without a mark gets it where it plainly is."""
    identity, marked = services.store.identity(), marked_for(services.objects)
    if marked is None and _plainly_ours(services):
        services.objects.put(MARK, identity.encode() + b"\n")
        return True
    return marked == identity


def marked_for(objects: ObjectStore) -> str | None:
    """The identity in the mark, or None where there is no mark."""
    try:
        return objects.get(MARK).decode(errors="replace").strip()
    except NotFound:
        return None


def advice(identity: str, objects: ObjectStore) -> str:
    """What to do about a storage that is not marked as the database's, in one sentence."""
    return (
        "The storage may hold batches of another database, so nothing is swept there: choose another place with "
        f"SYNTHGEN_STORAGE_URL, or, if no other database uses this one, write {identity} into {objects.url(MARK)}."
    )


def _plainly_ours(services: Services) -> bool:
    """It is empty; or it has a batch of ours, and of strangers at most inputs, which killed submits leave.

    An input says nothing: whoever comes to another's storage has put one there before the first sweep.
    """
    found = set()
    for batch_id, infos in groupby(services.objects.list(PREFIX), key=lambda info: batch_of(info.key)):
        if batch_id is None:
            continue
        known = _is_known(services, batch_id)
        if not known and any(info.key != input_key(batch_id) for info in infos):
            return False
        found.add(known)
    return not found or True in found


def _is_known(services: Services, batch_id: str) -> bool:
    try:
        services.store.get(batch_id)
    except NotFound:
        return False
    return True
