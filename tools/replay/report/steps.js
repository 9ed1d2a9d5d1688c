// SPDX-License-Identifier: Apache-2.0
// The steps, in groups of equal number, and what a column of pixels shows of them.
const steps = (() => {
  const packed = data.steps, floats = (name) => unpack(packed[name], Float32Array);
  return {
    n: packed.n, perGroup: packed.perGroup,
    first: unpack(packed.first, Uint32Array),
    begin: unpack(packed.begin, Float64Array),
    end: unpack(packed.end, Float64Array),
    prefill: floats('prefill'), decode: floats('decode'),  // means of a step
    prefills: floats('prefills'), decodes: floats('decodes'),
    seconds: floats('seconds'), longest: floats('longest'),
    usedMean: floats('usedMean'), idle: floats('idle'),
    tokens: floats('tokens'), positions: floats('positions'),  // of running requests
    running: floats('running'), waiting: floats('waiting'), used: floats('used'),  // the most of a step
    reused: floats('reused'), admitted: floats('admitted'), preempted: floats('preempted'),  // sums
  };
})();
const wholeTime = [0, Math.max(data.duration, 1e-9)];
const view = {t0: wholeTime[0], t1: wholeTime[1]};

// Index of the last group that begins at or before a time; −1 before the first.
function groupAt(time) {
  let low = -1, high = steps.n - 1;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (steps.begin[middle] <= time) low = middle; else high = middle - 1;
  }
  return low;
}

const kMeans = ['prefill', 'decode', 'prefills', 'decodes', 'seconds', 'usedMean', 'idle', 'tokens', 'positions'];
const kMaxima = ['longest', 'running', 'waiting', 'used'];
const kSums = ['reused', 'admitted', 'preempted', 'prompt'];

// A value a column of pixels; NaN where no step ran.
function columnsOf(width) {
  const columns = {width, weight: new Float32Array(width)};
  for (const name of [...kMeans, ...kSums]) columns[name] = new Float32Array(width);
  for (const name of kMaxima) columns[name] = new Float32Array(width).fill(NaN);
  const scale = width / (view.t1 - view.t0);
  for (let g = Math.max(0, groupAt(view.t0)); g < steps.n && steps.begin[g] < view.t1; ++g) {
    const from = (steps.begin[g] - view.t0) * scale, to = (steps.end[g] - view.t0) * scale;
    const first = Math.max(0, Math.floor(from)), last = Math.min(width - 1, Math.floor(to));
    for (let c = first; c <= last; ++c) {
      const weight = Math.max(1e-6, Math.min(c + 1, to) - Math.max(c, from));
      columns.weight[c] += weight;
      for (const name of kMeans) columns[name][c] += weight * steps[name][g];
      for (const name of kMaxima) {
        if (!(columns[name][c] >= steps[name][g])) columns[name][c] = steps[name][g];
      }
    }
    const middle = Math.floor((from + to) / 2);
    if (middle < 0 || middle >= width) continue;
    for (const name of ['reused', 'admitted', 'preempted']) columns[name][middle] += steps[name][g];
    columns.prompt[middle] += steps.prefill[g] * steps.perGroup;
  }
  for (const name of kMeans) {
    for (let c = 0; c < width; ++c) columns[name][c] = columns.weight[c] > 0 ? columns[name][c] / columns.weight[c] : NaN;
  }
  return columns;
}

function largest(values, least) {
  let most = least;
  for (const value of values) if (value > most) most = value;
  return most;
}

// Fills between the baseline and values of which those that are NaN are gaps.
function fillColumns(context, values, y, baseline, css) {
  context.fillStyle = css;
  for (let c = 0; c < values.length; ++c) {
    if (!(values[c] > 0)) continue;
    const top = y(values[c]);
    context.fillRect(c, top, 1.04, Math.max(0.75, baseline - top));
  }
}
function strokeColumns(context, values, y, css) {
  context.strokeStyle = css;
  context.lineWidth = 1.4;
  context.beginPath();
  let pen = false;
  for (let c = 0; c < values.length; ++c) {
    if (isNaN(values[c])) { pen = false; continue; }
    if (pen) context.lineTo(c + 0.5, y(values[c])); else context.moveTo(c + 0.5, y(values[c]));
    pen = true;
  }
  context.stroke();
}

// A scale from 0 to a round number above `most`, with its lines and labels left of the panel.
function scaleTo(context, gutter, width, height, most, label) {
  const wanted = height > 90 ? 4 : 2;
  let marks = ticks(0, most * 1.04, wanted);
  if (marks.length < 2) marks = ticks(0, most * 1.04, wanted + 1);
  const top = Math.max(most * 1.06, marks[marks.length - 1]);
  const y = (value) => height - 1 - value / top * (height - 8);
  context.textAlign = 'right';
  context.textBaseline = 'middle';
  for (const mark of marks) {
    context.fillStyle = colour('grid');
    context.fillRect(gutter, Math.round(y(mark)), width, 1);
    context.fillStyle = colour('dim');
    context.fillText(label(mark), gutter - 8, Math.max(6, Math.min(height - 6, y(mark))));
  }
  return y;
}
