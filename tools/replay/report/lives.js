// SPDX-License-Identifier: Apache-2.0
// The requests: their lanes, and what each of them did when.
const kAdmit = 1, kPrefill = 2, kDecode = 3, kPreempt = 4;

const lives = (() => {
  const packed = data.requests;
  const all = {
    n: packed.n,
    id: unpack(packed.id, Uint32Array),
    submitted: unpack(packed.submitted, Float64Array),
    admitted: unpack(packed.admitted, Float32Array),  // these three: after the submission
    first: unpack(packed.first, Float32Array),
    finished: unpack(packed.finished, Float32Array),
    gap: unpack(packed.gap, Float32Array),
    prompt: unpack(packed.prompt, Uint32Array),
    answer: unpack(packed.answer, Uint32Array),
    preemptions: unpack(packed.preemptions, Uint32Array),
    eventFrom: unpack(packed.eventFrom, Uint32Array),
    kind: unpack(data.events.kind, Uint8Array),
    begin: unpack(data.events.begin, Float32Array),   // these two: after the submission
    end: unpack(data.events.end, Float32Array),
    tokens: unpack(data.events.tokens, Uint32Array),
  };
  return all;
})();

// A heap of [key, value], the smallest key first.
class Heap {
  constructor() { this.items = []; }
  get size() { return this.items.length; }
  get least() { return this.items[0]; }
  push(item) {
    const a = this.items;
    let i = a.push(item) - 1;
    while (i > 0 && a[(i - 1) >> 1][0] > item[0]) { a[i] = a[(i - 1) >> 1]; i = (i - 1) >> 1; }
    a[i] = item;
  }
  pop() {
    const a = this.items, top = a[0], last = a.pop();
    if (a.length === 0) return top;
    let i = 0;
    for (;;) {
      let child = 2 * i + 1;
      if (child >= a.length) break;
      if (child + 1 < a.length && a[child + 1][0] < a[child][0]) ++child;
      if (a[child][0] >= last[0]) break;
      a[i] = a[child];
      i = child;
    }
    a[i] = last;
    return top;
  }
}

// Each request in the lowest lane that is free when it comes; requests are in the order of coming.
const lanes = (() => {
  const laneOf = new Uint32Array(lives.n), members = [];
  const busy = new Heap(), free = new Heap();
  for (let r = 0; r < lives.n; ++r) {
    while (busy.size > 0 && busy.least[0] <= lives.submitted[r]) {
      const lane = busy.pop()[1];
      free.push([lane, lane]);
    }
    const lane = free.size > 0 ? free.pop()[1] : members.push([]) - 1;
    laneOf[r] = lane;
    members[lane].push(r);
    busy.push([lives.submitted[r] + lives.finished[r], lane]);
  }
  return {laneOf, members, count: members.length};
})();

// Few lanes are easy to follow. A long queue is shown as it forms: a row a request, in the order of
// coming. Only the rows of those that are there in the time shown are drawn.
const kMostLanes = 300;
const inOrder = lanes.count > kMostLanes;
const rows = {from: 0, to: lanes.count};
const rowOf = (r) => inOrder ? r : lanes.laneOf[r];
const endOf = (r) => lives.submitted[r] + lives.finished[r];

function fitRows() {
  const least = 8;
  let first = lives.n, last = -1;
  for (let r = 0; r < lives.n; ++r) {
    if (lives.submitted[r] > view.t1 || endOf(r) < view.t0) continue;
    first = Math.min(first, rowOf(r));
    last = Math.max(last, rowOf(r));
  }
  rows.from = inOrder && last >= 0 ? first : 0;
  rows.to = Math.max(last + 1, rows.from + least);
}

// Calls back with (kind, begin, end, tokens) of each phase; kind 'waiting' and 'preempted' included.
function eachPhase(r, visit) {
  const start = lives.submitted[r];
  visit('waiting', start, start + lives.admitted[r], 0);
  let lost = NaN;
  for (let e = lives.eventFrom[r]; e < lives.eventFrom[r + 1]; ++e) {
    const begin = start + lives.begin[e];
    if (lives.kind[e] === kPreempt) lost = begin;
    if (lives.kind[e] === kAdmit && !isNaN(lost)) {
      visit('preempted', lost, begin, 0);
      lost = NaN;
    }
    if (lives.kind[e] === kPrefill) visit('prefill', begin, start + lives.end[e], lives.tokens[e]);
    if (lives.kind[e] === kDecode) visit('decode', begin, start + lives.end[e], lives.tokens[e]);
  }
}

// Thinner than a pixel, a phase tints it in proportion: what is drawn last does not hide the rest.
function drawLives(context, x, width, height) {
  const size = height / (rows.to - rows.from);
  const bar = Math.max(1, size - (size >= 5 ? 1.5 : size >= 3 ? 0.75 : 0));
  const boxes = {waiting: [], decode: [], prefill: [], preempted: []};
  for (let r = 0; r < lives.n; ++r) {
    if (x(lives.submitted[r]) > width || x(endOf(r)) < 0) continue;
    const y = (rowOf(r) - rows.from) * size;
    eachPhase(r, (kind, begin, end) => {
      const from = Math.max(0, x(begin)), to = Math.min(width, x(end));
      if (to >= 0 && from <= width && end > begin) boxes[kind].push(from, y, Math.max(to - from, 0.15));
    });
  }
  for (const [kind, list] of Object.entries(boxes)) {
    context.fillStyle = colour(kind);
    for (let i = 0; i < list.length; i += 3) context.fillRect(list[i], list[i + 1], list[i + 2], bar);
  }
}

// The request at a time in the row at this share of the height.
function lifeAt(time, share) {
  const row = Math.floor(rows.from + share * (rows.to - rows.from));
  const candidates = inOrder ? [row] : lanes.members[row] || [];
  return candidates.find((r) => r < lives.n && time >= lives.submitted[r] && time <= endOf(r));
}

function describeLife(r, time) {
  let now = '';
  eachPhase(r, (kind, begin, end, tokens) => {
    if (time < begin || time > end) return;
    now = `${kind} for ${duration(end - begin)}` + (tokens > 0 ? `, ${count(tokens)} tokens` : '');
  });
  const perToken = (lives.finished[r] - lives.first[r]) / Math.max(1, lives.answer[r] - 1);
  return [
    `request ${count(lives.id[r])}`,
    `${count(lives.prompt[r])} tokens of prompt, ${count(lives.answer[r])} of answer`,
    `came at ${moment(lives.submitted[r], 10)}, waited ${duration(lives.admitted[r])}`,
    `first token after ${duration(lives.first[r])}, then ${duration(perToken)} a token`,
    `longest gap ${duration(lives.gap[r])}, ended after ${duration(lives.finished[r])}`,
    lives.preemptions[r] > 0 ? `preempted ${lives.preemptions[r]} times` : 'never preempted',
    now && `here: ${now}`,
  ].filter(Boolean);
}
