// SPDX-License-Identifier: Apache-2.0
// The panels over time, their common ruler and how they are zoomed.
const kGutter = 62;

// Reads a value of the steps at a time, for the line beside a panel's title.
const at = (time, name) => {
  const g = groupAt(time);
  return g >= 0 && time <= steps.end[g] ? steps[name][g] : NaN;
};
const known = (value, text) => isNaN(value) ? 'no step' : text(value);
const mean = steps.perGroup > 1 ? `mean of ${count(steps.perGroup)} steps` : 'each step';

const panels = [
  {
    title: 'Requests', unit: inOrder ? 'a row each, in the order of coming' : 'from submission to end, each in a free lane',
    keys: [['waiting', 'waiting'], ['prefill', 'prefill'], ['decode', 'decode'], ['preempted', 'preempted, waiting again']],
    height: Math.max(150, Math.min(360, lanes.count * 9)),
    draw(context, columns, width, height) {
      fitRows();
      context.fillStyle = colour('dim');
      context.textAlign = 'right';
      context.textBaseline = 'middle';
      for (const row of ticks(rows.from, rows.to, 4)) {
        if (row !== Math.round(row)) continue;
        const y = (row - rows.from) / (rows.to - rows.from) * height;
        context.fillText(count(row), kGutter - 8, Math.max(6, Math.min(height - 6, y)));
      }
      context.save();
      context.translate(kGutter, 0);
      context.beginPath();
      context.rect(0, 0, width, height);
      context.clip();
      drawLives(context, (t) => (t - view.t0) / (view.t1 - view.t0) * width, width, height);
      context.restore();
    },
    now: () => '',
    tip: (time, share) => {
      const r = lifeAt(time, share);
      return r === undefined ? null : describeLife(r, time);
    },
  },
  {
    title: 'Running', unit: 'requests with pages', keys: [], height: 56,
    draw: (context, columns, width, height) => area(context, columns.running, width, height, 'decode'),
    now: (t) => known(at(t, 'running'), (running) => `${count(running)} running`),
  },
  {
    title: 'Waiting', unit: 'requests without', keys: [], height: 56,
    draw: (context, columns, width, height) => area(context, columns.waiting, width, height, 'waiting'),
    now: (t) => known(at(t, 'waiting'), (waiting) => `${count(waiting)} waiting`),
  },
  {
    title: 'Prefill', unit: `tokens a step, ${mean}`, keys: [], height: 70,
    draw: (context, columns, width, height) => area(context, columns.prefill, width, height, 'prefill'),
    now: (t) => known(at(t, 'prefill'), (v) => `${short(v)} tokens of ${short(at(t, 'prefills'))} requests`),
  },
  {
    title: 'Decode', unit: `tokens a step, ${mean}`, keys: [], height: 70,
    draw: (context, columns, width, height) => area(context, columns.decode, width, height, 'decode'),
    now: (t) => known(at(t, 'decode'), (v) => `${short(v)} tokens of ${short(at(t, 'decodes'))} requests`),
  },
  {
    title: 'Step time', unit: data.clock, keys: [['plain', 'mean'], ['plain-soft', 'longest']], height: 70,
    draw(context, columns, width, height) {
      const y = scaleTo(context, kGutter, width, height, largest(columns.longest, 1e-9), duration);
      context.translate(kGutter, 0);
      fillColumns(context, columns.longest, y, height - 1, colour('plain-soft'));
      fillColumns(context, columns.seconds, y, height - 1, colour('plain'));
    },
    now: (t) => known(at(t, 'seconds'), (v) => `${duration(v)}, longest ${duration(at(t, 'longest'))}`),
  },
  {
    title: 'Pool', unit: `pages in use of ${count(data.numPages)}`,
    keys: [['pool', 'of running requests'], ['pool-soft', 'the most'], ...(data.hasCache ? [['others', 'only in the prefix cache']] : []),
      ['preempted', 'preemptions']],
    height: 110,
    draw(context, columns, width, height) {
      const shares = (pages) => pages.map((used) => 100 * used / data.numPages);
      const most = shares(columns.used), mean = shares(columns.usedMean);
      const y = scaleTo(context, kGutter, width, height, largest(most, 0.1), (share) => `${short(share)} %`);
      context.translate(kGutter, 0);
      fillColumns(context, most, y, height - 1, colour('pool-soft'));
      if (data.hasCache) fillColumns(context, mean, y, height - 1, colour('others'));
      fillColumns(context, mean.map((share, c) => share - 100 * columns.idle[c] / data.numPages), y, height - 1, colour('pool'));
      context.fillStyle = colour('preempted');
      for (let c = 0; c < width; ++c) if (columns.preempted[c] > 0) context.fillRect(c, 0, 1.2, 7);
    },
    now: (t) => known(at(t, 'used'), (used) =>
      `${count(used)} pages (${percent(used, data.numPages)})` +
      (at(t, 'idle') > 0 ? `, ${count(at(t, 'idle'))} only in the cache` : '') + `, ${count(at(t, 'tokens'))} tokens of running requests` +
      (at(t, 'preempted') > 0 ? `, ${count(at(t, 'preempted'))} preempted` : '')),
  },
  {
    title: 'Waste', unit: 'positions without a token in the pages of running requests', keys: [], height: 56,
    draw(context, columns, width, height) {
      const waste = columns.tokens.map((tokens, c) => wasted(columns.positions[c], tokens));
      const y = scaleTo(context, kGutter, width, height, largest(waste, 0.1), (v) => `${short(v)} %`);
      context.translate(kGutter, 0);
      fillColumns(context, waste, y, height - 1, colour('others'));
    },
    now: (t) => known(at(t, 'positions'), (positions) => `${wasted(positions, at(t, 'tokens')).toFixed(2)} %`),
  },
  data.hasCache && {
    title: 'Hit rate', unit: 'tokens found in cache of those needed', keys: [], height: 70,
    draw(context, columns, width, height) {
      const rate = columns.reused.map((reused, c) => 100 * reused / (reused + columns.prompt[c]));
      const y = scaleTo(context, kGutter, width, height, 100, (v) => `${v} %`);
      context.translate(kGutter, 0);
      fillColumns(context, rate, y, height - 1, colour('hit'));
    },
    now: (t) => known(at(t, 'reused'), (v) => percent(v, v + at(t, 'prefill') * steps.perGroup)),
  },
  {
    title: 'Page map', unit: `owners of every ${count(data.columns.pagesPerRow)}${ordinal(data.columns.pagesPerRow)} page`,
    keys: [], height: 170,
    draw: drawColumns,
    now: () => '',
    tip: describeColumn,
  },
].filter(Boolean);

const wasted = (positions, tokens) => positions > 0 ? 100 * (1 - tokens / positions) : NaN;

function ordinal(n) {
  const tens = n % 100;
  return tens > 10 && tens < 14 ? 'th' : ['th', 'st', 'nd', 'rd'][n % 10] || 'th';
}

function area(context, values, width, height, name) {
  const y = scaleTo(context, kGutter, width, height, largest(values, 1), short);
  context.translate(kGutter, 0);
  fillColumns(context, values, y, height - 1, colour(name));
}

function drawRuler() {
  const context = prepare(element('ruler').firstChild, 24);
  const width = element('ruler').clientWidth - kGutter, span = view.t1 - view.t0;
  context.fillStyle = colour('dim');
  context.textBaseline = 'middle';
  context.textAlign = 'right';
  context.fillText('time, s', kGutter - 8, 12);
  context.textAlign = 'center';
  const marks = ticks(view.t0, view.t1, width / 110);
  const digits = Math.max(0, -Math.floor(Math.log10(marks.length > 1 ? marks[1] - marks[0] : span) + 1e-9));
  for (const mark of marks) {
    const x = kGutter + (mark - view.t0) / span * width;
    context.fillRect(Math.round(x), 19, 1, 5);
    const text = mark.toLocaleString('en-US', {minimumFractionDigits: digits, maximumFractionDigits: digits});
    const half = context.measureText(text).width / 2;
    context.fillText(text, Math.max(kGutter + half, Math.min(kGutter + width - half, x)), 9);
  }
  context.fillStyle = colour('line');
  context.fillRect(kGutter, 23, width, 1);
  context.fillStyle = colour('decode');
  const scale = width / wholeTime[1];
  if (span < wholeTime[1]) context.fillRect(kGutter + view.t0 * scale, 21, Math.max(3, span * scale), 3);
}

function drawTime() {
  drawRuler();
  const width = Math.max(10, Math.floor(element('panels').clientWidth - kGutter));
  const columns = columnsOf(width);
  for (const panel of panels) {
    panel.draw(prepare(panel.canvas, panel.height), columns, width, panel.height);
  }
  drawMarker();
}

let pending = false;
function redrawTime() {
  if (pending) return;
  pending = true;
  requestAnimationFrame(() => { pending = false; drawTime(); });
}

function setView(t0, t1) {
  const least = Math.max(wholeTime[1] * 1e-7, 1e-6);
  const span = Math.max(least, Math.min(wholeTime[1], t1 - t0));
  view.t0 = Math.max(0, Math.min(wholeTime[1] - span, t0));
  view.t1 = view.t0 + span;
  redrawTime();
}
function zoom(factor, time) {
  setView(time - (time - view.t0) * factor, time + (view.t1 - time) * factor);
}

// Where the step is whose pages are shown.
function drawMarker() {
  const box = element('time'), width = box.clientWidth - kGutter;
  const x = (chosenTime() - view.t0) / (view.t1 - view.t0) * width;
  marker.hidden = !(x >= 0 && x <= width);
  marker.style.left = kGutter + x + 'px';
}
const marker = make('div', {className: 'marker'});

function timeAt(event) {
  const box = element('time').getBoundingClientRect();
  const share = (event.clientX - box.left - kGutter) / (box.width - kGutter);
  return view.t0 + Math.max(0, Math.min(1, share)) * (view.t1 - view.t0);
}

function pointAt(event) {
  const time = timeAt(event), box = element('time').getBoundingClientRect();
  const inside = event.clientX >= box.left + kGutter;
  element('cursor').hidden = !inside;
  element('cursor').style.left = event.clientX - box.left + 'px';
  let lines = null;
  for (const panel of panels) {
    panel.nowNode.textContent = inside ? panel.now(time) : '';
    const area = panel.canvas.getBoundingClientRect();
    if (panel.tip && inside && event.clientY >= area.top && event.clientY < area.bottom) {
      lines = panel.tip(time, (event.clientY - area.top) / area.height);
    }
  }
  if (lines) showTip(event, lines); else hideTip();
}

function listenToTime() {
  const box = element('time');
  let from = null, brush = null;
  box.addEventListener('pointerdown', (event) => {
    if (event.button !== 0) return;
    from = {x: event.clientX, time: timeAt(event)};
    box.setPointerCapture(event.pointerId);
  });
  box.addEventListener('pointermove', (event) => {
    pointAt(event);
    if (!from || Math.abs(event.clientX - from.x) < 4) return;
    if (!brush) box.append(brush = make('div', {className: 'brush'}));
    const span = view.t1 - view.t0, width = box.clientWidth - kGutter;
    const ends = [from.time, timeAt(event)].sort((a, b) => a - b).map((t) => kGutter + (t - view.t0) / span * width);
    brush.style.left = ends[0] + 'px';
    brush.style.width = ends[1] - ends[0] + 'px';
  });
  const release = (event) => {
    if (!from) return;
    const ends = [from.time, timeAt(event)].sort((a, b) => a - b);
    if (brush) setView(...ends); else chooseTime(from.time);
    if (brush) brush.remove();
    from = brush = null;
  };
  box.addEventListener('pointerup', release);
  box.addEventListener('pointercancel', () => { if (brush) brush.remove(); from = brush = null; });
  box.addEventListener('pointerleave', () => { element('cursor').hidden = true; hideTip(); });
  box.addEventListener('dblclick', () => setView(...wholeTime));
  box.addEventListener('wheel', (event) => {
    if (!event.shiftKey && !event.ctrlKey) return;
    event.preventDefault();
    zoom((event.deltaY || event.deltaX) > 0 ? 1.25 : 0.8, timeAt(event));
  }, {passive: false});
  box.addEventListener('keydown', (event) => {
    const step = (view.t1 - view.t0) / 5, middle = (view.t0 + view.t1) / 2;
    const acts = {
      ArrowLeft: () => setView(view.t0 - step, view.t1 - step), ArrowRight: () => setView(view.t0 + step, view.t1 + step),
      '+': () => zoom(0.5, middle), '=': () => zoom(0.5, middle), '-': () => zoom(2, middle), '0': () => setView(...wholeTime),
    };
    if (!acts[event.key]) return;
    event.preventDefault();
    acts[event.key]();
  });
}

function buildTime() {
  element('ruler').append(make('canvas', {}));
  for (const panel of panels) {
    const keys = panel.keys.map(([name, text]) => {
      const chip = make('i', {});
      chip.style.background = `var(--${name})`;
      return make('span', {className: 'key'}, chip, text);
    });
    panel.canvas = make('canvas', {});
    panel.nowNode = make('span', {className: 'now'});
    const title = make('span', {}, make('b', {textContent: panel.title}), make('span', {className: 'dim', textContent: ` · ${panel.unit}`}), ...keys);
    element('panels').append(make('div', {className: 'panel'}, make('div', {className: 'head'}, title, panel.nowNode), panel.canvas));
  }
  element('time').append(marker);
  listenToTime();
}
