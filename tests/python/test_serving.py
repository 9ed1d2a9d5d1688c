# SPDX-License-Identifier: Apache-2.0
"""Prefix cache, batch builder, batcher and recorder, and a loop that serves with all of them."""

from __future__ import annotations

from typing import Any, Callable

import numpy as np
import numpy.typing as npt
import pytest

import quire

PAGE_SIZE = 4


def make(num_pages: int = 8, **spec: Any) -> tuple[quire.PagePool, quire.PageTable]:
    pool = quire.PagePool(num_pages, PAGE_SIZE)
    return pool, quire.PageTable(pool, **spec)


def publish(cache: quire.PrefixCache, table: quire.PageTable, tokens: list[int], **how: Any) -> int:
    """As a sequence does that then ends."""
    seq = table.create()
    table.append(seq, len(tokens), quire.CopyPlan())
    stored = cache.publish_seq(table, seq, tokens, **how)
    table.destroy(seq)
    return stored


def test_a_prefix_is_found_pinned_and_adopted() -> None:
    pool, table = make()
    cache = quire.PrefixCache(pool)
    assert publish(cache, table, [1, 2, 3, 4, 5, 6]) == 2
    lease = cache.match(np.array([1, 2, 3, 4, 5, 9]))
    assert (lease.num_tokens, lease.num_pages) == (5, 2)
    assert cache.evict(8) == 0
    pages = lease.pages()
    tokens = cache.tokens(pages[1])
    assert tokens is not None
    assert tokens.tolist() == [5, 6]
    assert cache.tokens((pages.max() + 1) % 8) is None
    seq = cache.adopt(lease, table)
    assert table.length(seq) == 5
    copies = quire.CopyPlan()
    table.append(seq, 1, copies)
    assert [op.src for op in copies] == [pages[1]]
    lease.close()
    table.destroy(seq)
    cache.check()
    assert cache.evictable_pages == 2
    assert cache.evict(1) == 1
    assert cache.match_length([1, 2, 3, 4, 5, 6]) == 4
    stats = cache.stats
    assert (stats.lookups, stats.hit_tokens, stats.evicted, stats.pages) == (1, 5, 1, 1)


def test_namespaces_do_not_see_each_other() -> None:
    pool, table = make()
    cache = quire.PrefixCache(pool)
    publish(cache, table, [1, 2, 3, 4], name_space=2**64 - 1)
    assert cache.match_length([1, 2, 3, 4], name_space=2**64 - 1) == 4
    assert cache.match_length([1, 2, 3, 4]) == 0
    assert cache.erase() == 0
    assert cache.erase(2**64 - 1) == 1
    assert pool.num_free == 8


def test_pages_expire_and_priorities_count() -> None:
    pool, _ = make()
    cache = quire.PrefixCache(pool)
    pages = pool.allocate(3)
    cache.publish([1] * 4, pages[:1], time_to_live=10)
    cache.publish([2] * 4, pages[1:2], priority=90)
    cache.publish([3] * 4, pages[2:])
    pool.release(pages)
    assert cache.evict_expired() == 0
    cache.set_time(11)
    assert cache.evict_expired() == 1
    assert cache.evict(1) == 1
    assert cache.match_length([2] * 4) == 4


def test_events_tell_of_every_page() -> None:
    pool, table = make()
    cache = quire.PrefixCache(pool, record_events=True)
    publish(cache, table, [1, 2, 3, 4, 5], name_space=3)
    first, second = cache.take_events()
    assert first == quire.PrefixEvent(True, 3, first.page, quire.NO_PAGE, (1, 2, 3, 4))
    assert second == quire.PrefixEvent(True, 3, second.page, first.page, (5,))
    cache.evict(1)
    assert cache.take_events() == [second._replace(stored=False)]
    assert cache.take_events() == []
    with pytest.raises(quire.InvalidArgument, match="record_events"):
        quire.PrefixCache(pool).take_events()


def test_a_snapshot_comes_back_on_new_pages() -> None:
    pool, table = make()
    cache = quire.PrefixCache(pool)
    publish(cache, table, [1, 2, 3, 4, 5, 6])
    saved = cache.save()
    with pytest.raises(quire.InvalidArgument, match="empty index"):
        cache.restore(saved)
    cache.erase()
    with pytest.raises(quire.InvalidArgument):
        cache.restore(saved[:-1])
    pages = cache.restore(saved)
    assert pages.dtype == np.int32
    assert sorted(pages[:, 2].tolist()) == [2, 4]
    assert not pages[:, 3].any()
    assert cache.match_length([1, 2, 3, 4, 5, 6]) == 6
    assert pool.num_used == 2


def test_pages_go_to_the_host_and_come_back() -> None:
    pool, table = make(4)
    host = quire.PagePool(4, PAGE_SIZE)
    cache = quire.PrefixCache(
        pool, host=host, costs=quire.TierCosts(transfer_seconds=0.0), record_events=True
    )
    on_device = np.full((4, PAGE_SIZE, 1, 1), -1.0, np.float32)
    on_host = np.full_like(on_device, -1.0)
    tokens = [1, 2, 3, 4, 5, 6, 7, 8]
    seq = table.create()
    table.append(seq, 8, quire.CopyPlan())
    on_device[table.pages(seq)] = np.reshape(tokens, (2, PAGE_SIZE, 1, 1))
    cache.publish_seq(table, seq, tokens)
    table.destroy(seq)
    cache.take_events()

    plan = quire.TransferPlan()
    assert cache.offload(2, plan) == 2
    assert (pool.num_free, cache.parked_pages, cache.stats.in_flight) == (2, 2, 2)
    assert [event.on_host for event in cache.take_events()] == [True, False, True, False]
    plan.offloads.execute(on_host, sources=[on_device])
    assert cache.retire(plan.ticket) == 2
    assert cache.retire(plan.ticket) == 0
    assert pool.num_free == 4
    on_device[:] = -1.0
    plan.clear()
    assert (plan.ticket, len(plan.offloads)) == (0, 0)

    assert cache.match_length(tokens) == 0
    assert cache.match_host(tokens) == quire.HostMatch(8, 2, True)
    assert cache.fetch(tokens, plan) == 2
    with cache.match(tokens) as lease:
        assert lease.pending == plan.ticket
        plan.fetches.execute(on_device, sources=[on_host])
        cache.retire(plan.ticket)
        assert lease.pending == 0
        assert on_device[lease.pages()].ravel().tolist() == tokens
    stats = cache.stats
    assert (stats.offloaded, stats.fetched, stats.fetched_tokens, stats.host_pages) == (2, 2, 8, 0)
    assert cache.evict_host(1) == 0
    cache.check()

    plan.clear()
    cache.offload(1, plan)
    cache.retire(plan.ticket)
    saved = cache.save()
    cache.erase()
    assert sorted(cache.restore(saved)[:, 3].tolist()) == [0, 1]
    assert cache.match_host(tokens).tokens == 4
    costly = quire.PrefixCache(pool, costs=quire.TierCosts(prefill_tokens_per_second=float("inf")))
    costly.check()
    with pytest.raises(quire.InvalidArgument, match="bytes_per_token"):
        quire.PrefixCache(pool, costs=quire.TierCosts(bytes_per_token=0.0))


def test_a_batcher_swaps() -> None:
    pool, table = make(8, max_seqs=4, max_tokens_per_seq=32)
    host = quire.PagePool(8, PAGE_SIZE)
    cache = quire.PrefixCache(pool, host=host, costs=quire.TierCosts(transfer_seconds=0.0))
    batcher = quire.Batcher(table, cache)
    batcher.submit(quire.Request(1, list(range(13)), 12))
    batcher.submit(quire.Request(2, list(range(50, 62)), 9))
    copies = quire.CopyPlan()
    sent = fetched = 0
    for _ in range(60):
        plan = batcher.plan()
        batcher.commit(plan, copies)
        offloads, fetches = plan.transfers
        sent += len(offloads)
        fetched += len(fetches)
        batcher.finish(plan, [7] * sum(item.num_samples for item in plan.items))
        if batcher.idle:
            break
    batcher.check()
    stats = batcher.stats
    assert stats.finished == 2
    assert stats.swaps == stats.preemptions > 0
    assert 0 < fetched <= sent
    assert stats.prefill_tokens + stats.decode_tokens == 13 + 11 + 12 + 8  # nothing twice


def test_a_batcher_keeps_window_tables() -> None:
    _, table = make(16, max_seqs=2, max_tokens_per_seq=64)
    window_pool = quire.PagePool(8, PAGE_SIZE)
    window = quire.PageTable(window_pool, max_seqs=2, max_tokens_per_seq=64, window_left=5)
    batcher = quire.Batcher(table, windows=[window])
    batcher.submit(quire.Request(1, 20, 6))
    builder, copies = quire.BatchBuilder(window), quire.CopyPlan()
    chunks = []
    while not batcher.idle:
        plan = batcher.plan()
        batcher.commit(plan, copies)
        entries, window_copies = plan.window(0)
        assert [entry.new_tokens for entry in entries] == [
            item.num_new_tokens for item in plan.items
        ]
        assert len(window_copies) == 0
        staged = builder.build(entries)
        assert staged.kv_len[0] == table.length(plan.items[0].seq)
        chunks.append(plan.num_tokens)
        batcher.finish(plan)
        batcher.check()
    assert chunks == [8, 8, 4, 1, 1, 1, 1, 1]
    assert window_pool.num_used == 0
    with pytest.raises(quire.InvalidArgument, match="expected one of 1 in a committed plan, got 1"):
        plan.window(1)
    with pytest.raises(quire.InvalidArgument, match="expected tables with a window"):
        quire.Batcher(table, windows=[quire.PageTable(window_pool, max_seqs=2)])


def test_a_prefix_is_shared_in_all_tables() -> None:
    pool, table = make(16, max_seqs=2, max_tokens_per_seq=64)
    window_pool = quire.PagePool(20, PAGE_SIZE)
    window = quire.PageTable(window_pool, max_seqs=2, max_tokens_per_seq=64, window_left=5)
    batcher = quire.Batcher(table, quire.PrefixCache(pool), windows=[window], cached_windows=2)
    copies = quire.CopyPlan()
    positions = []
    for request, prompt in enumerate(([*range(16)], [*range(16), 77, 78])):
        batcher.submit(quire.Request(request, prompt, 1))
        while not batcher.idle:
            plan = batcher.plan()
            batcher.commit(plan, copies)
            positions.append(plan.items[0].position)
            batcher.finish(plan, [5] * sum(item.num_samples for item in plan.items))
            batcher.check()
    assert positions[-1] == 16
    assert batcher.stats.hit_tokens == 16
    assert window_pool.num_used > 0
    batcher.close()
    assert window_pool.num_used == 0


def test_caches_refuse_what_does_not_fit() -> None:
    pool, table = make()
    cache = quire.PrefixCache(pool)
    other = quire.PrefixCache(quire.PagePool(2, PAGE_SIZE))
    publish(cache, table, [1, 2, 3, 4])
    with pytest.raises(quire.InvalidArgument, match="min_partial_tokens"):
        quire.PrefixCache(pool, min_partial_tokens=0)
    with pytest.raises(quire.BadHandle):
        other.adopt(cache.match([1, 2, 3, 4]), table)
    with pytest.raises(quire.BadHandle):
        cache.adopt(cache.match([9]), table)
    with pytest.raises(quire.InvalidArgument, match="expected a uint64, got -1"):
        cache.match([1], name_space=-1)
    with pytest.raises(quire.InvalidArgument, match="expected int32"):
        cache.match([2**40])
    with pytest.raises(quire.InvalidArgument, match="expected int32, got float64"):
        cache.match([0.5])
    with pytest.raises(quire.InvalidArgument):
        publish(cache, table, [7], priority=101)
    with pytest.raises(quire.InvalidArgument):
        cache.publish([1, 2, 3, 4, 5], pool.allocate(1))
    cache.check()
    cache.close()
    with pytest.raises(quire.Error, match="cache"):
        cache.match([1])


def entries(table: quire.PageTable, *lengths: tuple[int, int]) -> list[quire.BatchEntry]:
    made = []
    for length, new_tokens in lengths:
        seq = table.create()
        table.append(seq, length, quire.CopyPlan())
        made.append(quire.BatchEntry(seq, new_tokens))
    return made


def test_a_staged_batch_has_what_the_table_says() -> None:
    _, table = make()
    builder = quire.BatchBuilder(table)
    given = entries(table, (5, 1), (3, 3))
    seqs = [entry.seq for entry in given]
    assert builder.tight_shape(given) == quire.BatchShape(2, 4, 2, 3)
    staged = builder.build(given)
    assert (staged.num_seqs, staged.num_tokens) == (2, 4)
    assert (staged.max_q_len, staged.max_kv_len) == (3, 5)
    assert staged.bytes.nbytes == builder.staging_size(staged.shape)
    np.testing.assert_array_equal(staged.qo_indptr, [0, 1, 4])
    np.testing.assert_array_equal(staged.kv_len, table.kv_len(seqs))
    assert staged.page_table is not None
    np.testing.assert_array_equal(staged.page_table, table.dense(seqs))
    indptr, indices, _ = table.csr(seqs)
    assert staged.kv_page_indptr is not None
    assert staged.kv_page_indices is not None
    assert staged.kv_last_page_len is not None
    np.testing.assert_array_equal(staged.kv_page_indptr, indptr)
    np.testing.assert_array_equal(staged.kv_page_indices, indices)
    np.testing.assert_array_equal(staged.kv_last_page_len, [1, 3])
    np.testing.assert_array_equal(staged.positions, [4, 0, 1, 2])
    slots = np.concatenate([table.slots(seqs[0], 4), table.slots(seqs[1])])
    np.testing.assert_array_equal(staged.slot_mapping, slots)


def test_both_tables_and_an_upload_give_the_same_attention() -> None:
    _, table = make()
    builder = quire.BatchBuilder(table)
    staged = builder.build(entries(table, (5, 1), (3, 3)))
    rng = np.random.default_rng(0)
    cache = rng.standard_normal((2, 8, PAGE_SIZE, 1, 8)).astype(np.float32)
    q = rng.standard_normal((4, 2, 8)).astype(np.float32)
    spec = quire.AttentionSpec(2, 1, 8, q_dtype="float32", page_size=PAGE_SIZE)
    attention = quire.Attention(spec, quire.BatchLimits(2, 4, 8))
    elsewhere = staged.bytes.copy()
    results = []
    for batch in (staged.dense(), staged.csr(), staged.dense(elsewhere), staged.csr(elsewhere)):
        schedule = attention.schedule(batch, attention.allocate_workspaces())
        results.append(attention.run(schedule, q, *cache))
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])
    assert quire.view(staged.slots(elsewhere)).shape == (4,)
    staged.bytes[:] = 255  # what was uploaded does not look back
    schedule = attention.schedule(staged.dense(elsewhere), attention.allocate_workspaces())
    np.testing.assert_array_equal(attention.run(schedule, q, *cache), results[0])


def test_a_fixed_shape_is_padded_and_omits_what_it_says() -> None:
    _, table = make()
    builder = quire.BatchBuilder(table)
    shape = quire.BatchShape(3, 4, pages_per_seq=2)
    staging = np.zeros(4096, np.uint8)
    staged = builder.build(entries(table, (5, 1)), shape=shape, staging=staging)
    assert np.shares_memory(staged.slot_mapping, staging)
    np.testing.assert_array_equal(staged.qo_indptr, [0, 1, 1, 1])
    np.testing.assert_array_equal(staged.slot_mapping[1:], [-1] * 3)
    assert staged.kv_page_indptr is None
    with pytest.raises(quire.InvalidArgument, match="omits"):
        staged.csr()
    with pytest.raises(quire.InvalidArgument, match="without gaps"):
        staged.dense(np.zeros(4, np.uint8))


def test_an_updated_block_has_the_bytes_of_a_build() -> None:
    _, table = make()
    builder = quire.BatchBuilder(table)
    shape = quire.BatchShape(3, 8, pages_per_seq=4, total_pages=12)
    staging = np.zeros(builder.staging_size(shape), np.uint8)
    given = entries(table, (5, 1), (3, 3))
    copies = quire.CopyPlan()
    for _ in range(4):
        updated = builder.update(given, shape=shape, staging=staging)
        assert np.shares_memory(updated.bytes, staging)
        expected = quire.BatchBuilder(table).build(given, shape=shape)
        np.testing.assert_array_equal(updated.bytes, expected.bytes)
        given = [quire.BatchEntry(seq, 1) for seq, _ in given]
        for seq, n in given:
            table.append(seq, n, copies)
    with pytest.raises(quire.TooLong):
        builder.update(given, shape=quire.BatchShape(1, 0, 2), staging=staging)


def test_prefixes_that_are_named_give_the_bits_of_those_that_are_found() -> None:
    pool = quire.PagePool(64, 16)
    table = quire.PageTable(pool, max_seqs=8, max_tokens_per_seq=512)
    builder, copies = quire.BatchBuilder(table), quire.CopyPlan()
    root = table.create()
    table.append(root, 400, copies)
    seqs = [table.fork(root, 384) for _ in range(6)]
    for i, seq in enumerate(seqs):
        table.append(seq, 1 + i, copies)
    given = [quire.BatchEntry(seq, 1) for seq in seqs]
    groups = builder.find_prefixes(given, num_seqs=7)
    assert groups.shape == (2, quire.MAX_PREFIX_LEVELS, 7)
    np.testing.assert_array_equal(groups[0, 0], [0, 0, 0, 0, 0, 0, -1])
    np.testing.assert_array_equal(groups[1, 0], [24] * 6 + [0])
    assert (groups[0, 1:] == -1).all()
    with pytest.raises(quire.TooLong, match="expected at most 5, got 6"):
        builder.find_prefixes(given, num_seqs=5)
    with pytest.raises(quire.InvalidArgument, match="expected at least 0, got -1"):
        builder.find_prefixes(given, num_seqs=-1)
    assert builder.find_prefixes([]).shape == (2, 3, 0)

    rng = np.random.default_rng(1)
    cache = rng.standard_normal((2, 64, 16, 2, 16)).astype(np.float32)
    q = rng.standard_normal((6, 4, 16)).astype(np.float32)
    spec = quire.AttentionSpec(4, 2, 16, q_dtype="float32", page_size=16)
    attention = quire.Attention(spec, quire.BatchLimits(8, 8, 512))
    staged = builder.build(given)
    leaders, pages = builder.find_prefixes(given)
    names = {"prefix_leaders": leaders, "prefix_pages": pages}
    results = [
        attention.run(attention.schedule(batch), q, *cache)
        for batch in (staged.dense(), staged.dense(**names), staged.csr(**names))
    ]
    np.testing.assert_array_equal(results[1], results[0])
    np.testing.assert_array_equal(results[2], results[0])
    leaders[:] = -1
    apart = attention.run(attention.schedule(staged.dense(**names)), q, *cache)
    assert (apart != results[0]).any()  # groups are what is shared
    np.testing.assert_allclose(apart, results[0], atol=1e-5)
    leaders[0, 2] = 9
    record = quire.CheckRecord()
    with pytest.raises(quire.InvalidArgument, match=r"prefix_leaders\[0\]\[2\]: expected -1 or"):
        attention.schedule(staged.dense(**names), check=record)
    off = quire.AttentionSpec(4, 2, 16, q_dtype="float32", page_size=16, share_prefixes=False)
    with pytest.raises(quire.InvalidArgument, match="share_prefixes of the spec is off"):
        quire.Attention(off).schedule(staged.dense(**names))
    with pytest.raises(quire.InvalidArgument, match="prefix_pages: expected"):
        attention.schedule(staged.dense(prefix_leaders=leaders))


def test_builders_refuse_what_does_not_fit() -> None:
    _, table = make()
    builder = quire.BatchBuilder(table)
    given = entries(table, (5, 1))
    with pytest.raises(quire.TooLong):
        builder.build(given, shape=quire.BatchShape(1, 0, 2))
    with pytest.raises(quire.InvalidArgument):
        builder.build(given * 2)
    with pytest.raises(quire.Error, match="staging") as small:
        builder.build(given, staging=np.zeros(8, np.uint8))
    assert small.value.code is quire.ErrorCode.WORKSPACE_TOO_SMALL
    with pytest.raises(quire.InvalidArgument, match="expected uint8"):
        builder.build(given, staging=np.zeros(8, np.int32))
    with pytest.raises(quire.InvalidArgument, match="in range"):
        builder.staging_size(quire.BatchShape(-1, 0))
    table.destroy(given[0].seq)
    with pytest.raises(quire.BadHandle):
        builder.build(given)


def test_a_step_is_planned_committed_and_finished() -> None:
    pool, table = make()
    batcher = quire.Batcher(table)
    copies = quire.CopyPlan()
    batcher.submit(quire.Request(1, 6, max_new_tokens=2))
    batcher.submit(quire.Request(2, 3, max_new_tokens=5))
    plan = batcher.plan()
    assert (pool.num_used, plan.num_tokens, plan.batch) == (0, 9, [])
    batcher.commit(plan, copies)
    first, second = plan.items
    assert (first.request, first.num_new_tokens) == (1, 6)
    assert first.is_prefill
    assert first.samples
    assert first.admitted
    assert plan.batch[1] == quire.BatchEntry(second.seq, 3)
    assert batcher.finish(plan, stopped=[2]) == [2]
    again = batcher.plan(into=plan)
    assert again is plan
    assert plan.step == 1
    batcher.commit(plan, copies)
    batcher.cancel(1)
    assert batcher.finish(plan) == [1]
    assert batcher.idle
    batcher.check()
    stats = batcher.stats
    assert (stats.finished, stats.cancelled, stats.prefill_tokens, stats.used_pages) == (1, 1, 9, 0)
    assert batcher.plan().items == []


def test_batchers_refuse_what_does_not_fit() -> None:
    pool, table = make()
    batcher = quire.Batcher(table, max_requests=1)
    with pytest.raises(quire.InvalidArgument, match="watermark_pages"):
        quire.Batcher(table, watermark_pages=-1)
    with pytest.raises(quire.BadHandle):
        quire.Batcher(table, quire.PrefixCache(quire.PagePool(2, PAGE_SIZE)))
    closed = quire.PrefixCache(pool)
    closed.close()
    with pytest.raises(quire.InvalidArgument, match="closed"):
        quire.Batcher(table, closed)
    with pytest.raises(quire.TooLong):
        batcher.submit(quire.Request(1, 33, max_new_tokens=1))
    with pytest.raises(quire.InvalidArgument):
        batcher.submit(quire.Request(1, 0, max_new_tokens=1))
    batcher.submit(quire.Request(1, [1, 2, 3], max_new_tokens=2))
    with pytest.raises(quire.QueueFull):
        batcher.submit(quire.Request(2, 1, max_new_tokens=1))
    with pytest.raises(quire.InvalidArgument):
        batcher.cancel(7)
    with pytest.raises(quire.InvalidArgument):
        batcher.plan(max_tokens=0)
    plan = batcher.plan()
    with pytest.raises(quire.InvalidArgument):
        batcher.finish(plan)
    batcher.commit(plan, quire.CopyPlan())
    with pytest.raises(quire.InvalidArgument, match="sampled tokens"):
        batcher.finish(plan, [1, 2])
    with pytest.raises(quire.InvalidArgument):
        batcher.finish(plan, stopped=[9])
    assert batcher.finish(plan, [1]) == []
    bad: tuple[Callable[[], object], ...] = (
        lambda: quire.Request(-1, 1, max_new_tokens=1),
        lambda: quire.Request(1, [0.5], max_new_tokens=1),
        lambda: quire.Request(1, "prompt", max_new_tokens=1),
        lambda: quire.Request(1, 1, max_new_tokens=2**31),
    )
    for make_bad in bad:
        with pytest.raises(quire.InvalidArgument):
            make_bad()


def test_the_next_step_is_planned_while_one_runs() -> None:
    pool, table = make()
    batcher = quire.Batcher(table, max_steps_in_flight=2)
    recorder = quire.Recorder()
    copies = quire.CopyPlan()
    request = quire.Request(1, 5, max_new_tokens=9)
    batcher.submit(request)
    recorder.submitted(request, 0.0)
    plans = []
    for step in range(2):
        plans.append(batcher.plan())
        batcher.commit(plans[-1], copies)
        recorder.committed(plans[-1], batcher, 1.0 + step)
    assert [plan.items[0].awaits_token for plan in plans] == [False, True]
    with pytest.raises(quire.InvalidArgument, match="step 0 to be finished first"):
        batcher.plan()
    recorder.finished(batcher.finish(plans[0], stopped=[1]), 3.0, stopped=[1])
    assert batcher.plan().items == []
    recorder.finished(batcher.finish(plans[1]), 4.0)
    assert batcher.idle
    assert recorder.ended["new_tokens"].tolist() == [1]
    assert pool.num_used == 0
    with pytest.raises(quire.InvalidArgument, match="max_steps_in_flight"):
        quire.Batcher(table, max_steps_in_flight=3)


def test_samples_of_one_prompt_share_its_pages() -> None:
    pool, table = make()
    batcher = quire.Batcher(table)
    copies = quire.CopyPlan()
    batcher.submit(quire.Request(1, 6, max_new_tokens=2, further_samples=[11, 12]))
    plan = batcher.plan()
    assert plan.items[0].num_samples == 3
    batcher.commit(plan, copies)
    with pytest.raises(quire.InvalidArgument, match="expected 3 sampled tokens"):
        batcher.finish(plan, [5])
    assert batcher.finish(plan, [5, 6, 7], stopped=[12]) == [12]
    assert pool.num_used == 2
    plan = batcher.plan()
    batcher.commit(plan, copies)
    assert [(item.request, item.position) for item in plan.items] == [(1, 6), (11, 6)]
    assert len(copies) == 1
    assert batcher.finish(plan, [8, 9]) == [1, 11]
    assert pool.num_used == 0
    with pytest.raises(quire.InvalidArgument, match="not in use"):
        batcher.submit(quire.Request(1, 6, max_new_tokens=2, further_samples=[1]))
    with pytest.raises(quire.InvalidArgument, match="uint64"):
        quire.Request(1, 6, max_new_tokens=2, further_samples=[-1])


def test_an_older_request_goes_first_unless_another_has_a_head_start() -> None:
    _, table = make(max_seqs=1)
    batcher = quire.Batcher(table)
    batcher.submit(quire.Request(1, 1, max_new_tokens=1, arrival=1.0))
    batcher.submit(quire.Request(2, 1, max_new_tokens=1, arrival=2.0, head_start=1.5))
    assert [item.request for item in batcher.plan().items] == [2]


def test_a_recorder_tells_what_happened() -> None:
    _, table = make()
    batcher, recorder = quire.Batcher(table), quire.Recorder(max_steps=1)
    copies = quire.CopyPlan()
    request = quire.Request(9, 6, max_new_tokens=2)
    batcher.submit(request)
    recorder.submitted(request, 1.0)
    for step in range(2):
        plan = batcher.plan()
        batcher.commit(plan, copies)
        recorder.committed(plan, batcher, 2.0 + step)
        recorder.finished(batcher.finish(plan), 2.5 + step)
    recorder.cancelled(77, 5.0)  # never seen: counted as lost
    kinds = [quire.EventKind(kind).name for kind in recorder.events["kind"]]
    assert kinds == ["SUBMIT", "ADMIT", "PREFILL", "DECODE", "FINISH"]
    assert recorder.steps["decode_tokens"].tolist() == [1]
    (life,) = recorder.ended
    assert life["first_token"] - life["submitted"] == 1.5
    assert (life["prompt_tokens"], life["new_tokens"]) == (6, 2)
    assert recorder.kept == quire.RecordCounts(5, 1, 1)
    assert recorder.lost.steps == 1
    with pytest.raises(quire.InvalidArgument, match="max_events"):
        quire.Recorder(max_events=0)


class Server:
    """Serves with everything; the "model" samples the sum of all tokens before, as it reads them
    from the slots that the library names."""

    modulus = 97

    def __init__(self, num_pages: int) -> None:
        self.pool, self.table = make(num_pages, max_seqs=4)
        self.cache = quire.PrefixCache(self.pool)
        self.batcher = quire.Batcher(self.table, self.cache)
        self.builder = quire.BatchBuilder(self.table)
        self.slots: npt.NDArray[np.int64] = np.full((num_pages, PAGE_SIZE), -1)
        self.texts: dict[int, list[int]] = {}
        self.ended: list[int] = []

    def submit(self, number: int, prompt: list[int], new_tokens: int) -> None:
        self.texts[number] = list(prompt)
        self.batcher.submit(quire.Request(number, prompt, new_tokens))

    def step(self, max_tokens: int) -> None:
        copies = quire.CopyPlan()
        plan = self.batcher.plan(max_tokens=max_tokens)
        self.batcher.commit(plan, copies)
        copies.execute(self.slots.reshape(-1, PAGE_SIZE, 1, 1))
        staged = self.builder.build(plan)
        sampled = []
        for row, item in enumerate(plan.items):
            text = self.texts[item.request]
            begin, end = staged.qo_indptr[row : row + 2]
            new = text[item.position : item.position + item.num_new_tokens]
            self.slots.flat[staged.slot_mapping[begin:end]] = new
            assert staged.page_table is not None
            pages = staged.page_table[row, : -(-staged.kv_len[row] // PAGE_SIZE)]
            seen = self.slots[pages].ravel()[: staged.kv_len[row]]
            if item.samples:
                sampled.append(int(seen.sum()) % self.modulus)
                text.append(sampled[-1])
        self.ended += self.batcher.finish(plan, sampled)
        self.batcher.check()


@pytest.mark.parametrize("num_pages", [8, 40])
def test_a_server_with_few_or_many_pages_answers_as_each_request_alone(num_pages: int) -> None:
    rng = np.random.default_rng(num_pages)
    head = rng.integers(0, 50, 9).tolist()
    server = Server(num_pages)
    prompts = [head + rng.integers(0, 50, n).tolist() for n in (1, 3, 7, 2, 11, 3)]
    for number, prompt in enumerate(prompts):
        server.submit(number, prompt, 12)
    for _ in range(200):
        if server.batcher.idle:
            break
        server.step(max_tokens=6)
    assert sorted(server.ended) == list(range(len(prompts)))
    for number, prompt in enumerate(prompts):
        alone = list(prompt)
        for _ in range(12):
            alone.append(sum(alone) % server.modulus)
        assert server.texts[number] == alone
    stats = server.batcher.stats
    assert stats.hit_tokens > 0
    assert stats.used_pages == stats.idle_pages
    assert (stats.preemptions > 0) == (num_pages == 8)
    server.cache.evict(num_pages)
    assert server.pool.num_free == num_pages
