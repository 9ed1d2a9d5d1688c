# SPDX-License-Identifier: Apache-2.0
"""Pools, tables and copies, and attention over what they lay out."""

from __future__ import annotations

from typing import Any, Callable

import numpy as np
import pytest

import quire
from reference import Requests, attention


def test_pools_count_references() -> None:
    pool = quire.PagePool(num_pages=4, page_size=8)
    pages = pool.allocate(3)
    assert pages.dtype == np.int32
    assert len(set(pages.tolist())) == 3
    assert (pool.num_free, pool.num_used) == (1, 3)
    pool.retain(pages[:1])
    assert [pool.ref_count(page) for page in pages] == [2, 1, 1]
    pool.release(pages)
    assert (pool.num_free, pool.ref_count(pages[0]), pool.ref_count(99)) == (3, 1, 0)
    pool.release([pages[0]])
    pool.check()
    assert pool.num_free == 4
    assert pool.allocate(0).size == 0


def test_pools_fail_without_a_change() -> None:
    pool = quire.PagePool(4)
    page = int(pool.allocate()[0])
    with pytest.raises(quire.OutOfPages):
        pool.allocate(4)
    with pytest.raises(quire.BadHandle):
        pool.release([page, page])
    with pytest.raises(quire.BadHandle):
        pool.retain([page, (page + 1) % 4])
    with pytest.raises(quire.InvalidArgument, match="expected 0 to 4, got 5"):
        pool.allocate(5)
    with pytest.raises(quire.InvalidArgument, match="expected page ids, got float64"):
        pool.release([0.5])
    with pytest.raises(quire.InvalidArgument, match="expected int32 page ids"):
        pool.release([2**40])
    assert (pool.num_free, pool.ref_count(page)) == (3, 1)
    pool.check()


def test_a_fork_shares_pages_until_it_writes() -> None:
    pool = quire.PagePool(8, page_size=4)
    table = quire.PageTable(pool)
    copies = quire.CopyPlan()
    seq = table.create()
    table.append(seq, 6, copies)
    forked = table.fork(seq)
    assert pool.num_used == 2
    assert len(copies) == 0
    assert table.pages_needed(forked, 1) == 1
    table.append(forked, 1, copies)
    assert list(copies) == [
        quire.CopyOp(table.pages(seq)[1], table.pages(forked)[1], tokens=2),
    ]
    assert table.pages(seq)[0] == table.pages(forked)[0]
    assert (pool.num_used, table.num_seqs) == (3, 2)
    assert (table.length(seq), table.length(forked)) == (6, 7)
    assert table.reclaimable_pages(forked) == 1
    assert table.slot(forked, 6) == table.pages(forked)[1] * 4 + 2
    np.testing.assert_array_equal(
        table.slots(forked), [table.slot(forked, t) for t in range(table.length(forked))]
    )
    np.testing.assert_array_equal(table.slots(forked, 5, 7), table.slots(forked)[5:])

    table.truncate(forked, 3)
    table.destroy(seq)
    table.check()
    assert pool.num_used == 1
    table.destroy(forked)
    assert pool.num_free == 8
    copies.clear()
    assert list(copies) == []


def test_an_accepted_path_of_a_tree_moves_up() -> None:
    pool = quire.PagePool(8, page_size=4)
    table = quire.PageTable(pool)
    copies = quire.CopyPlan()
    seq = table.create()
    table.append(seq, 3 + 6, copies)
    cache = np.full((8, 4, 1, 1), -1, np.int32)
    cache.flat[table.slots(seq)] = np.arange(9)
    table.accept_tree(seq, 3, [1, 4, 5], copies)
    copies.execute(cache)
    np.testing.assert_array_equal(cache.flat[table.slots(seq)], [0, 1, 2, 4, 7, 8])
    assert (table.length(seq), pool.num_used) == (6, 2)
    first, second = table.pages(seq)
    assert next(op[:2] for op in copies) == (second, first)
    table.accept_tree(seq, 5, [], copies)
    assert table.length(seq) == 5
    with pytest.raises(quire.InvalidArgument, match="accept_tree"):
        table.accept_tree(seq, 3, [1, 1], copies)
    table.check()


def test_tables_fail_without_a_change() -> None:
    pool = quire.PagePool(2, page_size=4)
    table = quire.PageTable(pool, max_seqs=2, max_tokens_per_seq=8)
    copies = quire.CopyPlan()
    seq = table.create()
    table.append(seq, 5, copies)
    other = table.create()
    with pytest.raises(quire.OutOfPages) as out_of_pages:
        table.append(other, 1, copies)
    assert out_of_pages.value.code is quire.ErrorCode.OUT_OF_PAGES
    with pytest.raises(quire.TooLong):
        table.append(seq, 4, copies)
    with pytest.raises(quire.QueueFull):
        table.create()
    with pytest.raises(quire.QueueFull):
        table.fork(seq)
    with pytest.raises(quire.InvalidArgument):
        table.truncate(seq, 6)
    with pytest.raises(quire.InvalidArgument, match="expected 0 to 4, got 5"):
        table.slot(seq, 5)
    with pytest.raises(quire.InvalidArgument, match="expected 0 to 3, got 4"):
        table.pages_needed(seq, 4)
    with pytest.raises(quire.InvalidArgument, match="expected within 5, got 2, 6"):
        table.slots(seq, 2, 6)
    with pytest.raises(quire.InvalidArgument, match=r"expected a quire\.SeqId, got 3"):
        table.length(3)  # type: ignore[arg-type]
    assert (table.length(seq), table.length(other), pool.num_free) == (5, 0, 0)
    table.check()


def test_a_destroyed_sequence_is_never_valid_again() -> None:
    table = quire.PageTable(quire.PagePool(2), max_seqs=1)
    seq = table.create()
    table.destroy(seq)
    again = table.create()
    assert again.slot == seq.slot
    calls: tuple[Callable[[quire.SeqId], object], ...] = (
        table.destroy,
        table.length,
        table.pages,
        table.slots,
        table.fork,
    )
    for call in calls:
        with pytest.raises(quire.BadHandle):
            call(seq)


def test_what_is_closed_fails_with_a_sentence() -> None:
    pool = quire.PagePool(2, page_size=4)
    table = quire.PageTable(pool)
    copies = quire.CopyPlan()
    seq = table.create()
    pool.close()
    pool.close()
    table.append(seq, 3, copies)  # a table keeps its pages
    copies.close()
    with pytest.raises(quire.Error, match="copies"):
        table.append(seq, 4, copies)
    table.close()
    uses: tuple[Callable[[], int], ...] = (
        lambda: pool.num_free,
        lambda: table.num_seqs,
        lambda: table.length(seq),
    )
    for use in uses:
        with pytest.raises(quire.Error, match="expected"):
            use()
    attend = quire.Attention(quire.AttentionSpec(1, 1, 64))
    attend.close()
    with pytest.raises(quire.Error, match="attention: expected"):
        attend.schedule(quire.Batch(np.zeros(1, np.int32)))


@pytest.mark.parametrize("kv_layout", ["NHD", "HND"])
def test_beams_that_fork_attend_to_their_own_tokens(kv_layout: Any) -> None:
    """Sequences grow, fork and end at random; every step attends over what the tables say, with the
    copies executed, and agrees with a list of each sequence's tokens."""
    rng = np.random.default_rng(3)
    heads, dim, page_size = 2, 64, 4
    pool = quire.PagePool(64, page_size)
    table = quire.PageTable(pool, max_seqs=8)
    copies = quire.CopyPlan()
    shape = (64, page_size, heads, dim) if kv_layout == "NHD" else (64, heads, page_size, dim)
    k_cache, v_cache = np.full(shape, np.nan, np.float32), np.full(shape, np.nan, np.float32)
    tokens: dict[quire.SeqId, tuple[list[Any], list[Any]]] = {table.create(): ([], [])}
    copied = 0
    for _ in range(40):
        if len(tokens) < 6 and rng.random() < 0.5:
            parent = list(tokens)[rng.integers(len(tokens))]
            length = int(rng.integers(table.length(parent) + 1))
            ks, vs = tokens[parent]
            tokens[table.fork(parent, length)] = (ks[:length], vs[:length])
        if len(tokens) > 3 and rng.random() < 0.3:
            ended = next(iter(tokens))
            table.destroy(ended)
            del tokens[ended]
        seqs = list(tokens)
        qo_len = rng.integers(0, 4, len(seqs))
        copies.clear()
        for seq, n in zip(seqs, qo_len):
            table.append(seq, n, copies)
        copied += len(copies)
        copies.execute(k_cache, kv_layout=kv_layout)
        copies.execute(v_cache, kv_layout=kv_layout)
        k, v = rng.standard_normal((2, qo_len.sum(), heads, dim)).astype(np.float32)
        first = 0
        for seq, n in zip(seqs, qo_len):
            tokens[seq][0].extend(k[first : first + n])
            tokens[seq][1].extend(v[first : first + n])
            first += n
        qo_indptr = np.cumsum([0, *qo_len]).astype(np.int32)
        batch = quire.Batch(qo_indptr, kv_len=table.kv_len(seqs), page_table=table.dense(seqs))
        quire.append(k, v, k_cache, v_cache, batch=batch, kv_layout=kv_layout)

        q = rng.standard_normal((qo_len.sum(), heads, dim)).astype(np.float32)
        rows = [np.reshape(ks, (-1, heads, dim)) for ks, _ in tokens.values()]
        values = [np.reshape(vs, (-1, heads, dim)) for _, vs in tokens.values()]
        requests = Requests(qo_len.tolist(), [len(row) for row in rows], rows, values)
        kv_page_indptr, kv_page_indices, kv_len = table.csr(seqs)
        o = quire.attention(
            q,
            k_cache,
            v_cache,
            qo_indptr=qo_indptr,
            kv_len=kv_len,
            kv_page_indptr=kv_page_indptr,
            kv_page_indices=kv_page_indices,
            kv_layout=kv_layout,
        )
        np.testing.assert_allclose(o, attention(q, requests)[0], atol=2e-5)
        table.check()
    assert copied > 5


def test_dense_tables_are_padded_and_written_where_asked() -> None:
    table = quire.PageTable(quire.PagePool(8, page_size=4))
    copies = quire.CopyPlan()
    long, short = table.create(), table.create()
    table.append(long, 9, copies)
    table.append(short, 2, copies)
    dense = table.dense([short, long])
    assert dense.dtype == np.int32
    np.testing.assert_array_equal(dense[0], [*table.pages(short), quire.NO_PAGE, quire.NO_PAGE])
    np.testing.assert_array_equal(dense[1], table.pages(long))
    out = np.zeros((4, 5), np.int32)
    assert table.dense([short, long], out=out) is out
    np.testing.assert_array_equal(out[:2, :3], dense)
    with pytest.raises(quire.InvalidArgument, match=r"expected \[≥2, ≥3\], got \(2, 2\)"):
        table.dense([short, long], out=out[:2, :2])
    assert table.dense([]).shape == (0, 0)
    assert [part.tolist() for part in table.csr([])] == [[0], [], []]


def test_copies_are_checked_as_a_whole() -> None:
    table = quire.PageTable(quire.PagePool(8, page_size=4))
    copies = quire.CopyPlan()
    seq = table.create()
    table.append(seq, 1, copies)
    table.append(table.fork(seq), 1, copies)
    assert copies.to_numpy().tolist() == [list(op) for op in copies]
    with pytest.raises(quire.InvalidArgument):
        copies.execute(np.zeros((1, 4, 1, 64), np.float32))
    with pytest.raises(quire.InvalidArgument, match='expected one of "NHD", "HND"'):
        copies.execute(np.zeros((8, 4, 1, 64), np.float32), kv_layout="DHN")  # type: ignore[arg-type]


def test_copies_move_pages_between_caches_of_many_layers() -> None:
    table = quire.PageTable(quire.PagePool(8, page_size=4))
    copies = quire.CopyPlan()
    seq = table.create()
    table.append(seq, 6, copies)
    table.append(table.fork(seq), 1, copies)
    ((src, dst, tokens, _, _),) = copies
    random = np.random.default_rng(1)
    host = [random.standard_normal((8, 4, 2, 16)).astype(np.float32) for _ in range(3)]
    caches = [np.zeros_like(cache) for cache in host]
    copies.execute(*caches, sources=host)
    for cache, source in zip(caches, host):
        expected = np.zeros_like(source)
        expected[dst, :tokens] = source[src, :tokens]
        np.testing.assert_array_equal(cache, expected)
    with pytest.raises(quire.InvalidArgument, match="one for each"):
        copies.execute(*caches, sources=host[:2])
    with pytest.raises(quire.InvalidArgument, match="at least one cache"):
        copies.execute()


def test_a_fence_of_the_cpu_is_always_reached() -> None:
    with quire.Fence() as fence:
        assert fence.query()
        fence.record()
        fence.wait()
        fence.synchronize()
        assert fence.query()
    with pytest.raises(quire.Error):
        fence.query()
    with pytest.raises(quire.Error):
        quire.Fence("cuda:99")


def test_a_window_gives_pages_back() -> None:
    pool = quire.PagePool(4, 2)
    table = quire.PageTable(pool, max_seqs=1, max_tokens_per_seq=40, window_left=3)
    seq, copies = table.create(), quire.CopyPlan()
    for _ in range(40):
        table.append(seq, 1, copies)
        table.slide(seq, table.length(seq))
    assert table.num_holes(seq) == (40 - 3) // 2
    pages = table.pages(seq)
    assert (pages[:18] == quire.NO_PAGE).all()
    assert (pages[18:] >= 0).all()
    assert pool.num_used == 2
    with pytest.raises(quire.InvalidArgument, match="expected 36 to 39, got 35"):
        table.slot(seq, 35)
    with pytest.raises(quire.InvalidArgument, match=r"within \[36, 40\]"):
        table.slots(seq)
    assert (table.slots(seq, 36) >= 0).all()
    with pytest.raises(quire.InvalidArgument, match="whose window is still there"):
        table.truncate(seq, 10)
    table.truncate(seq, 39)
    with pytest.raises(quire.InvalidArgument, match="window_left"):
        quire.PageTable(pool, window_left=-2)
    table.destroy(seq)
    assert table.num_holes(seq) == -1
    assert pool.num_free == 4
    table.check()
