#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Puts known bugs of page managers into a copy of the sources and shows that the tests find each.

    scripts/mutation_check.py                 all mutants, some minutes once the copy is built
    scripts/mutation_check.py --only fence    those whose class or text holds a word
    scripts/mutation_check.py --list

Each mutant is one small edit of src/. The tests of pages, prefixes and batches run with it, one
after the other until one fails, LIMIT_S seconds of processor time in all at most, which others on
the machine hardly change. Not part of the tests: run it when these or what they test have changed.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import math
import pathlib
import resource
import shutil
import signal
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
LIMIT_S = 60.0
# In the order in which they are asked: those of the broken folder first.
CACHE_TESTS = [
    "page_pool_test",
    "page_table_test",
    "prefix_cache_test",
    "prefix_tiers_test",
    "page_table_states_test",
    "prefix_cache_states_test",
    "page_table_model_test",
    "prefix_cache_model_test",
]
BATCHING_TESTS = [
    "batch_builder_test",
    "batch_update_test",
    "batcher_test",
    "swap_test",
    "windows_test",
    "window_batcher_test",
    "batcher_simulation_test",
    "ahead_test",
    "samples_test",
    "every_allocation_test",
    "recorder_test",
    "shared_prefixes_simulation_test",
]


@dataclasses.dataclass(frozen=True)
class Mutant:
    """A bug: `old`, which stands in `file` once, becomes `new`."""

    kind: str
    bug: str
    file: str
    old: str
    new: str


POOL = "src/cache/page_pool.cpp"
POOL_STATE = "src/cache/page_pool_state.hpp"
TABLE = "src/cache/page_table.cpp"
TABLE_STATE = "src/cache/page_table_state.hpp"
PREFIX = "src/cache/prefix_cache.cpp"
PREFIX_STATE = "src/cache/prefix_cache_state.hpp"
INDEX = "src/cache/prefix_index.cpp"
EVICTION = "src/cache/prefix_eviction.cpp"
LEASE = "src/cache/prefix_lease.cpp"
TIERS = "src/cache/prefix_tiers.cpp"
BUILDER = "src/batching/batch_builder.cpp"
ROWS = "src/batching/staged_rows.cpp"
SHARING = "src/batching/prefix_sharing.cpp"
BATCHER = "src/batching/batcher.cpp"
PLANNER = "src/batching/planner.cpp"

MUTANTS = [
    Mutant(
        "leak",
        "truncate keeps the pages behind the new end",
        TABLE,
        "  state_->drop_pages(slot, state_->pages_for(length));\n",
        "",
    ),
    Mutant(
        "leak", "a lease that ends stays counted", LEASE, "    --state_->node(node_).leases;\n", ""
    ),
    Mutant(
        "leak", "the slot of a destroyed sequence is lost", TABLE, "  first_free_slot = slot;\n", ""
    ),
    Mutant(
        "leak",
        "a cache that is destroyed keeps its pages",
        PREFIX,
        "pool->unindex(static_cast<PageId>(page));\n",
        "pool->page(static_cast<PageId>(page)).indexed = false;\n",
    ),
    Mutant(
        "counter",
        "a page that loses one of several references counts as free",
        POOL_STATE,
        "    if (--page(id).refs > 0) {\n",
        "    if (--page(id).refs > 0) {\n      ++num_free;\n",
    ),
    Mutant(
        "counter",
        "pages that sequences share count as evictable",
        EVICTION,
        "(node(held_node).leases == 0 && pool->page(page).refs - gone <= 1)",
        "node(held_node).leases == 0",
    ),
    Mutant(
        "counter",
        "a removed page stays on the list of those that expire",
        EVICTION,
        "  at(node(id).tier).by_expiry.remove(node(id).page);\n",
        "",
    ),
    Mutant(
        "double free",
        "release does not ask whether the caller holds the page",
        POOL,
        "  if (pool.page(page).caller_refs == 0) {\n",
        "  if (pool.page(page).refs == 0) {\n",
    ),
    Mutant(
        "double free",
        "destroy gives the pages back on two ways",
        TABLE,
        "  state_->drop_pages(slot, 0);\n",
        "  state_->drop_pages(slot, 0);\n  state_->drop_pages(slot, 0);\n",
    ),
    Mutant(
        "double free",
        "the id of a destroyed sequence is valid for the next one",
        TABLE_STATE,
        "sequence.live && sequence.generation == seq.generation",
        "sequence.live",
    ),
    Mutant(
        "double free",
        "a page that a lease pins is evicted",
        PREFIX_STATE,
        "    return node(id).leases > 0 || page_of(node(id)).refs > 1;\n",
        "    return page_of(node(id)).refs > 1;\n",
    ),
    Mutant(
        "bad count",
        "a negative number of tokens is appended",
        TABLE,
        "  if (n < 0) {\n",
        "  if (n < -1) {\n",
    ),
    Mutant(
        "bad count",
        "the pool runs dry in the middle of an append",
        TABLE,
        "  if (needed > table.pool->num_free) {\n",
        "  if (needed > table.pool->num_free + 1) {\n",
    ),
    Mutant(
        "bad count",
        "the copy of the shared last page is not counted",
        TABLE,
        "  return added + (table.shared_tail(slot) != kNoPage ? 1 : 0);\n",
        "  return added;\n",
    ),
    Mutant(
        "tree order",
        "a parent stays evictable",
        INDEX,
        "node(parent).num_children[index_of(tier)]++ == 0 &&",
        "node(parent).num_children[index_of(tier)]++ < 0 &&",
    ),
    Mutant(
        "tree order",
        "the head of a prompt is evicted before its tail",
        PREFIX,
        "    cache.use(id, first_use - index);\n    parent = id;\n",
        "    cache.use(id, first_use - pages.size() + index);\n    parent = id;\n",
    ),
    Mutant(
        "tree order",
        "a listener may evict in the middle of a publish",
        PREFIX,
        "  return state_->announcing ? 0 : state_->evict(num_pages);\n",
        "  return state_->evict(num_pages);\n",
    ),
    Mutant(
        "isolation",
        "a hash is trusted, tokens are not compared",
        INDEX,
        "        std::memcmp(tokens_at(id), run.tokens.data(), run.tokens.size_bytes()) == 0) {\n",
        "        true) {\n",
    ),
    Mutant(
        "isolation",
        "a partial page of another namespace is found",
        INDEX,
        "    if (child.name_space == run.name_space) {\n",
        "    {\n",
    ),
    Mutant(
        "isolation",
        "a page that two sequences share is written to",
        TABLE_STATE,
        "    return pool->page(tail).refs > 1 ? tail : kNoPage;\n",
        "    return pool->page(tail).refs > 2 ? tail : kNoPage;\n",
    ),
    Mutant(
        "fence",
        "victims count with the pages that they share: preemption frees nothing",
        TABLE,
        "state_->pool->page(page).refs == 1; }",
        "state_->pool->page(page).refs >= 1; }",
    ),
    Mutant(
        "fence",
        "a step is planned before the last one is finished",
        BATCHER,
        "  if (state_->steps_in_flight() == state_->spec.max_steps_in_flight) {\n",
        "  if (false) {\n",
    ),
    Mutant(
        "fence",
        "a request is preempted in vain",
        PLANNER,
        "  if (room > 0) {\n    num_kept_ = kept;\n",
        "  {\n    num_kept_ = kept;\n",
    ),
    Mutant(
        "fence",
        "a page that goes to the host is free before its copy has retired",
        TIERS,
        "  if (fencing == Fencing::kTicket) pool->begin_transfer(before.page);\n",
        "  if (fencing == Fencing::kTicket) {\n"
        "    pool->begin_transfer(before.page);\n    pool->drop_ref(before.page);\n  }\n",
    ),
    Mutant(
        "fence",
        "a page of the host is fetched before it has been written",
        INDEX,
        "    if (page_of(node(id)).transfers > 0) {\n",
        "    if (page_of(node(id)).transfers > 9) {\n",
    ),
    Mutant(
        "fence",
        "a lease does not say that its pages are still being written",
        PREFIX_STATE,
        "           transfers[static_cast<std::size_t>(of.page)].ticket == 0;\n",
        "           transfers[static_cast<std::size_t>(of.page)].ticket != 1;\n",
    ),
    Mutant(
        "fence",
        "the page of the host may be reused while it is read",
        TIERS,
        "  at(PageTier::kHost).pool->begin_transfer(host_page);\n",
        "  if (!fetches) at(PageTier::kHost).pool->begin_transfer(host_page);\n",
    ),
    Mutant(
        "fence",
        "a ticket retires the copies of all",
        TIERS,
        "    if (transfer.ticket != ticket) {\n",
        "    if (transfer.ticket > ticket) {\n",
    ),
    Mutant(
        "fence",
        "somebody is preempted for pages that a fence holds",
        PLANNER,
        "  if (pages_come_free(place)) return 0;\n",
        "",
    ),
    Mutant(
        "fence",
        "somebody is admitted to pages that are not written yet",
        "src/batching/prefix_sharing.cpp",
        "  if (!prefixes->is_written(prefixes->node(id))) hit.pending = true;\n",
        "",
    ),
    Mutant(
        "tree order",
        "what hangs on an evicted page stays on the host",
        EVICTION,
        "    remove_with_host_children(id);\n    ++evicted;\n",
        "    remove_and_announce(id);\n    ++evicted;\n",
    ),
    Mutant(
        "tree order",
        "a page of the host with pages behind it is evicted",
        PREFIX_STATE,
        "return num_children[index_of(tier)] == 0; }",
        "return tier == PageTier::kHost || num_children[index_of(tier)] == 0; }",
    ),
    Mutant(
        "leak",
        "a copy that is displaced keeps its page",
        TIERS,
        "      pool->end_transfer(op.src);\n",
        "",
    ),
    Mutant(
        "leak",
        "a page that has come back stays on the host as well",
        INDEX,
        "  at(tier).pool->unindex(page);\n  --(tier",
        "  if (tier == PageTier::kDevice) at(tier).pool->unindex(page);\n  --(tier",
    ),
    Mutant(
        "isolation",
        "a commit that fails leaves pages on the host that nobody writes",
        "src/batching/commit.cpp",
        "  state.evict_sent(transfers);\n",
        "",
    ),
    Mutant(
        "fence",
        "a request that is cancelled gives its pages back while a step writes to them",
        BATCHER,
        "  if (place.in_flight() > 0) return {};  // the device may be writing to its pages\n",
        "",
    ),
    Mutant(
        "fence",
        "tokens that a step in flight has yet to write are found by others",
        BATCHER,
        "      state.publish_filled(place, place.cached - place.step_tokens[1 - parity]);\n",
        "      state.publish_filled(place, place.cached);\n",
    ),
    Mutant(
        "fence",
        "a request is preempted while a step in flight writes to its pages",
        PLANNER,
        "  if (room > 0 || state_.steps_in_flight() > 0) return room;\n",
        "  if (room > 0) return room;\n",
    ),
    Mutant(
        "leak",
        "a commit that fails keeps the leases that it took",
        "src/batching/commit.cpp",
        "    if (!status.ok()) {\n      let_go(state);\n",
        "    if (!status.ok()) {\n",
    ),
    Mutant(
        "exception",
        "a finish tells who ended before it has room for all of them",
        BATCHER,
        "    reserve_more(ended, state.running.size() + unborn);\n",
        "",
    ),
    Mutant(
        "window",
        "a page goes back that the next query sees",
        TABLE_STATE,
        "    return std::max(position - spec.window_left, 0) / pool->spec.page_size;\n",
        "    return (std::max(position - spec.window_left, 0) + 1) / pool->spec.page_size;\n",
    ),
    Mutant(
        "window",
        "a sequence goes back to where its window is gone",
        TABLE,
        '  if (Status status = check_window("truncate", *state_, slot, length); !status.ok()) return status;\n',
        "",
    ),
    Mutant(
        "window",
        "the holes of a fork give their pages back a second time",
        TABLE,
        "  table.at(slot).holes = table.at(parent).holes;\n",
        "",
    ),
    Mutant(
        "window",
        "the window of another prefix is taken for that of this one",
        "src/batching/window_suffixes.cpp",
        "suffix.node == node && suffix.serial == prefixes->node(node).serial;\n",
        "suffix.node == node;\n",
    ),
    Mutant(
        "window",
        "a hit is longer than the window tables can serve",
        "src/batching/prefix_sharing.cpp",
        "    if (reachable && have_suffix(id)) break;\n",
        "    if (reachable) break;\n",
    ),
    Mutant(
        "window",
        "a cached window that makes room keeps its pages",
        "src/batching/window_suffixes.cpp",
        "    pool.drop_ref(page);\n",
        "",
    ),
    Mutant(
        "window",
        "a chunk is longer than a share holds",
        "src/batching/windows.cpp",
        "(share - 1) * pool.page_size + 1 - kept_tokens) / steps;\n",
        "(share - 1) * pool.page_size + 2 - kept_tokens) / steps;\n",
    ),
    Mutant(
        "exception",
        "the page changes hands before the plan of copies has grown",
        TABLE,
        "      copies.push_back({tail, table.pool->next_free(), sequence.length % page_size});\n",
        "      const PageId own = table.pool->take();\n"
        "      copies.push_back({tail, own, sequence.length % page_size});\n"
        "      table.pool->drop_ref(own);\n",
    ),
    Mutant(
        "exception",
        "a request that could not be queued keeps its id",
        BATCHER,
        "    if (found != state.index_of.end() && found->second == index) "
        "state.index_of.erase(found);\n",
        "",
    ),
    Mutant(
        "lengths",
        "what a stopped request samples in a later step counts",
        "src/batching/recorder.cpp",
        "  if (!share.samples || life.stopped) return;\n",
        "  if (!share.samples) return;\n",
    ),
    Mutant(
        "lengths",
        "a request that has all of its tokens goes on",
        "src/batching/batcher_state.hpp",
        "      return !cancelled && !stopped && generated + awaited() < request.max_new_tokens;\n",
        "      return !cancelled && !stopped && generated < request.max_new_tokens;\n",
    ),
    Mutant(
        "isolation",
        "a token of an accepted path moves onto a page that others share",
        TABLE,
        "  if (status.ok()) status = check_targets(table, slot, length, path);\n",
        "",
    ),
    Mutant(
        "isolation",
        "a fork of a prompt begins with a token that it does not share",
        "src/batching/samples.cpp",
        "    const Result<SeqId> forked = table.fork(place.seq, prompt);\n",
        "    const Result<SeqId> forked = table.fork(place.seq, place.cached);\n",
    ),
    Mutant(
        "exception",
        "a release that fails half way keeps what it has done",
        POOL,
        "      state_->undo_drop_ref(pages[done]);\n",
        "",
    ),
    Mutant(
        "reset",
        "a new pool loses its last page",
        POOL_STATE,
        "std::iota(free_pages.rbegin(), free_pages.rend(), PageId{0});",
        "std::iota(free_pages.rbegin(), free_pages.rend() - 1, PageId{0});",
    ),
    Mutant(
        "reset",
        "a new table loses its last slot",
        TABLE,
        "slot + 1 < spec.max_seqs; ++slot) at(slot).next_free",
        "slot + 2 < spec.max_seqs; ++slot) at(slot).next_free",
    ),
    Mutant(
        "batch",
        "a running request is planned without a token",
        PLANNER,
        "    if (n > 0) add(index, n);\n",
        "    add(index, n);\n",
    ),
    Mutant(
        "batch",
        "a decode gets the tokens that were kept for others",
        PLANNER,
        "    const std::int32_t kept_back = decodes ? 0 : decodes_to_come_;\n",
        "    const std::int32_t kept_back = 0;\n",
    ),
    Mutant(
        "batch",
        "a full last page has length 0",
        ROWS,
        "length == 0 ? 0 : length - (row.pages - 1) * page_size;\n",
        "length % page_size;\n",
    ),
    Mutant(
        "stale rows",
        "a copy of a shared last page is no change of the row",
        TABLE,
        "    table.edit(slot, last);\n",
        "",
    ),
    Mutant(
        "stale rows",
        "pages that a sequence gave back are no change of its row",
        TABLE,
        "  if (begin < end) edit(slot, begin);\n",
        "",
    ),
    Mutant(
        "stale rows",
        "a page that was changed for the cache's is no change of the row",
        SHARING,
        "      sequences.edit(slot, place.published);\n",
        "",
    ),
    Mutant(
        "stale rows",
        "changes that have been forgotten do not count",
        TABLE_STATE,
        "    if (edits.count - count > Edits::kRemembered) return 0;\n",
        "",
    ),
    Mutant(
        "stale rows",
        "the row of a sequence that is gone is kept for the next in its slot",
        ROWS,
        "rows[row].seq == seq ?",
        "rows[row].seq.slot == seq.slot ?",
    ),
    Mutant(
        "stale rows",
        "rows that move to the end go first to last, over one another",
        ROWS,
        "  for (std::size_t i = moves.size(); i-- > 0;) {\n",
        "  for (std::size_t i = 0; i < moves.size(); ++i) {\n",
    ),
    Mutant(
        "stale rows",
        "rows that change places with others are kept",
        ROWS,
        "    if (row.from < passed || leaps) {\n",
        "    if (row.from == kNowhere) {\n",
    ),
    Mutant(
        "stale rows",
        "pages that a window has left stay in the tables",
        ROWS,
        "    begin[i] = kNoPage;\n",
        "",
    ),
    Mutant(
        "stale rows",
        "the rows of sequences that have left stay behind the last one",
        ROWS,
        "  if (now.size() < used_rows) {\n",
        "  if (false) {\n",
    ),
    Mutant(
        "stale rows",
        "a block of another shape counts as known",
        BUILDER,
        " || state.shape != shape",
        "",
    ),
    Mutant(
        "host tier",
        "a request that comes back begins with pages that were not fetched",
        SHARING,
        "  if (part.pages > 0) prefixes->fetch(part, transfers, PrefixCacheState::Fencing::kOrdered);\n",
        "",
    ),
    Mutant(
        "int32",
        "a slot is computed in 32 bits",
        TABLE,
        "  return page * page_size + position % page_size;\n",
        "  return static_cast<std::int32_t>(page * page_size + position % page_size);\n",
    ),
    Mutant(
        "int32",
        "the slots of a batch are computed in 32 bits",
        ROWS,
        "        std::int64_t{pages[static_cast<std::size_t>(token / page_size)]} * page_size + offset;\n",
        "        static_cast<std::int32_t>(static_cast<std::uint32_t>("
        "pages[static_cast<std::size_t>(token / page_size)]) *\n"
        "            static_cast<std::uint32_t>(page_size) + static_cast<std::uint32_t>(offset));\n",
    ),
]


def copy_sources(tree: pathlib.Path) -> None:
    """Brings the copy up to date; files that are the same keep their times, so little is rebuilt."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in listed.stdout.decode().split("\0"):
        source, copy = ROOT / name, tree / name
        if not name or not source.is_file():
            continue
        if copy.is_file() and copy.read_bytes() == source.read_bytes():
            continue
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, copy)


def configure(tree: pathlib.Path, build: pathlib.Path) -> None:
    command = [
        "cmake",
        "-G",
        "Ninja",
        "-S",
        str(tree),
        "-B",
        str(build),
        "--log-level=WARNING",
        "-DCMAKE_BUILD_TYPE=Release",
        "-DCMAKE_CXX_FLAGS_RELEASE=-O1",
        "-DQUIRE_TESTS=ON",
        "-DQUIRE_INSTALL=OFF",
        "-DQUIRE_EXAMPLES=OFF",
        "-DQUIRE_WERROR=OFF",
    ]
    if shutil.which("ccache"):
        command.append("-DCMAKE_CXX_COMPILER_LAUNCHER=ccache")
    subprocess.run(command, check=True)


def build_test(build: pathlib.Path, jobs: int, test: str) -> None:
    result = subprocess.run(
        ["ninja", "-C", str(build), f"-j{jobs}", test], capture_output=True, text=True, check=False
    )
    if result.returncode != 0:
        sys.exit(f"{test} does not build\n{result.stdout[-2000:]}")


def first_failure(output: str) -> str:
    for line in output.splitlines():
        if line.startswith("[ RUN      ]"):
            running = line.split("]", 1)[1].strip()
        if line.startswith("[  FAILED  ]"):
            return line.split("]", 1)[1].split(",")[0].split("(")[0].strip()
    return f"{running}, which ended the process" if "running" in locals() else "ended the process"


def children_s() -> float:
    """Seconds of processor time of the commands that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def find(build: pathlib.Path, jobs: int, tests: list[str]) -> tuple[str, float]:
    """The test that fails first, if any, and the seconds of processor time of tests until then.

    A test is built just before it runs: most bugs need one or two.
    """
    spent = 0.0
    for test in tests:
        build_test(build, jobs, test)
        command = [str(build / "tests" / test), "--gtest_fail_fast", "--gtest_color=no"]
        left = math.ceil(LIMIT_S - spent)
        before = children_s()
        result = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            errors="replace",
            preexec_fn=functools.partial(resource.setrlimit, resource.RLIMIT_CPU, (left, left + 1)),
        )
        spent += children_s() - before
        if result.returncode == -signal.SIGXCPU:
            return (f"{test} does not end" if left > LIMIT_S / 2 else ""), LIMIT_S
        if result.returncode != 0:
            return f"{test}: {first_failure(result.stdout)}", spent
    return "", spent


def check(mutant: Mutant, tree: pathlib.Path, build: pathlib.Path, jobs: int) -> tuple[str, float]:
    """As `find`, of the sources with the bug, which are put back afterwards."""
    file = tree / mutant.file
    original = file.read_text()
    if original.count(mutant.old) != 1:
        sys.exit(
            f"{mutant.file}: expected once, got {original.count(mutant.old)} times:\n{mutant.old}"
        )
    file.write_text(original.replace(mutant.old, mutant.new))
    batching = mutant.file.startswith("src/batching")
    try:
        return find(
            build, jobs, BATCHING_TESTS + CACHE_TESTS if batching else CACHE_TESTS + BATCHING_TESTS
        )
    finally:
        file.write_text(original)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="mutants whose class or text holds this")
    parser.add_argument("--list", action="store_true", help="print the mutants and end")
    parser.add_argument("--jobs", type=int, default=2, help="compilers at a time")
    parser.add_argument(
        "--folder",
        type=pathlib.Path,
        default=ROOT / "build" / "mutants",
        help="of the copy and its build",
    )
    options = parser.parse_args()
    chosen = [m for m in MUTANTS if options.only in m.kind or options.only in m.bug]
    if options.list:
        print("\n".join(f"{m.kind}: {m.bug} ({m.file})" for m in chosen))
        return 0
    tree, build = options.folder / "tree", options.folder / "build"
    copy_sources(tree)
    configure(tree, build)
    failed, seconds = find(build, options.jobs, CACHE_TESTS + BATCHING_TESTS)
    if failed:
        sys.exit(f"expected tests that pass without a mutant, got {failed}")
    print(f"Without a mutant all tests pass, in {seconds:.1f} s.\n", flush=True)
    print("| class | bug | found by | s |\n| --- | --- | --- | --- |", flush=True)
    missed = 0
    for mutant in chosen:
        found, seconds = check(mutant, tree, build, options.jobs)
        missed += not found
        print(
            f"| {mutant.kind} | {mutant.bug} | {found or '**nobody**'} | {seconds:.1f} |",
            flush=True,
        )
    print(f"\n{len(chosen) - missed} of {len(chosen)} mutants were found.")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
