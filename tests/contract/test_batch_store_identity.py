"""By what a database knows its storage again."""

from __future__ import annotations

from synthgen.ports import BatchStore
from tests.examples import stored_batch


def test_a_database_stays_the_one_that_it_is(batch_store: BatchStore) -> None:
    before = batch_store.identity()
    stored_batch(batch_store)
    assert batch_store.identity() == before != ""
