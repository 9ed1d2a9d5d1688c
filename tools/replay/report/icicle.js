// SPDX-License-Identifier: Apache-2.0
// The prefix tree at the end: across, pages; down, how far into a prompt, on a logarithmic axis.
const tree = data.tree && (() => {
  const packed = data.tree, numbers = (name) => unpack(packed[name], Int32Array);
  const all = {
    n: packed.n, pages: packed.pages,
    parent: numbers('parent'), position: numbers('position'), tokens: numbers('tokens'),
    runPages: numbers('runPages'), subtree: numbers('subtree'), finds: numbers('finds'),
    onHost: numbers('onHost'), hidden: numbers('hidden'),
  };
  // Children stand side by side from the left end of their parent; what is left over is its own pages.
  all.left = new Float64Array(all.n);
  all.deepest = new Int32Array(all.n);
  const next = new Float64Array(all.n);
  let root = 0;
  for (let r = 0; r < all.n; ++r) {
    const parent = all.parent[r];
    all.left[r] = parent < 0 ? root : next[parent];
    if (parent < 0) root += all.subtree[r]; else next[parent] += all.subtree[r];
    next[r] = all.left[r];
  }
  for (let r = all.n - 1; r >= 0; --r) {
    all.deepest[r] = Math.max(all.deepest[r], all.position[r] + all.tokens[r]);
    if (all.parent[r] >= 0) all.deepest[all.parent[r]] = Math.max(all.deepest[all.parent[r]], all.deepest[r]);
  }
  return all;
})();
const focus = {run: -1};
const kIcicleHeight = 330, kIcicleAxis = 34;

// Where the tree is drawn: scales from pages and tokens to pixels, of all of it or of a branch.
function icicleScales(width) {
  const run = focus.run, whole = run < 0;
  const from = whole ? 0 : tree.left[run], pages = whole ? tree.pages : tree.subtree[run];
  const top = whole ? 0 : tree.position[run];
  const deepest = whole ? largest(tree.deepest, data.pageSize) : tree.deepest[run];
  const depth = (tokens) => Math.log2(1 + tokens / data.pageSize);
  const height = kIcicleHeight - kIcicleAxis;
  return {
    from, pages, top, deepest, height, width: width - kGutter,
    x: (page) => kGutter + (page - from) / pages * (width - kGutter),
    y: (tokens) => (depth(tokens) - depth(top)) / (depth(deepest) - depth(top)) * height,
  };
}

function findsColour(finds, most) {
  if (finds === 0) return cssOf(mix(rgbOf(colour('free')), rgbOf(colour('others')), 0.4));
  const part = Math.log2(1 + finds) / Math.log2(2 + most);
  return cssOf(mix(rgbOf(colour('hit-soft')), rgbOf(colour('hit')), 0.15 + 0.85 * part));
}

// Stripes over what is on the host.
function hostPattern(context) {
  const tile = make('canvas', {width: 6, height: 6}), into = tile.getContext('2d');
  into.strokeStyle = colour('panel');
  into.lineWidth = 1.6;
  into.beginPath();
  for (const shift of [-6, 0, 6]) { into.moveTo(shift, 6); into.lineTo(shift + 6, 0); }
  into.stroke();
  return context.createPattern(tile, 'repeat');
}

function drawIcicleAxes(context, scales) {
  context.fillStyle = colour('dim');
  context.textAlign = 'right';
  context.textBaseline = 'middle';
  let free = -Infinity;
  for (let tokens = 0; tokens <= scales.deepest; tokens = tokens === 0 ? data.pageSize : 2 * tokens) {
    const y = scales.y(tokens);
    if (tokens < scales.top || y < free || y > scales.height - 2) continue;
    free = y + 15;
    context.fillText(tokens === 0 ? 'token 0' : count(tokens), kGutter - 8, Math.max(6, y));
    context.fillRect(kGutter - 5, Math.round(y), 5, 1);
  }
  context.textAlign = 'center';
  const marks = ticks(0, scales.pages, scales.width / 130);
  for (const mark of marks) {
    const x = scales.x(scales.from + mark), text = mark === 0 ? '0 pages' : short(mark);
    const half = context.measureText(text).width / 2;
    context.fillRect(Math.round(x), scales.height + 2, 1, 5);
    context.fillText(text, Math.max(kGutter + half, Math.min(kGutter + scales.width - half, x)), scales.height + 17);
  }
  context.fillStyle = colour('line');
  context.fillRect(kGutter, scales.height + 1, scales.width, 1);
}

function drawIcicle() {
  if (!tree || tree.n === 0) return;
  const canvas = element('icicle'), context = prepare(canvas, kIcicleHeight), scales = icicleScales(canvas.clientWidth);
  drawIcicleAxes(context, scales);
  const most = largest(tree.finds, 1), colours = new Map(), stripes = hostPattern(context);
  context.save();
  context.beginPath();
  context.rect(kGutter, 0, scales.width, scales.height);
  context.clip();
  for (let r = 0; r < tree.n; ++r) {
    const left = scales.x(tree.left[r]), right = scales.x(tree.left[r] + tree.subtree[r]);
    if (right < kGutter || left > kGutter + scales.width || tree.position[r] < scales.top) continue;
    const top = scales.y(tree.position[r]), bottom = scales.y(tree.position[r] + tree.tokens[r]), finds = tree.finds[r];
    if (!colours.has(finds)) colours.set(finds, findsColour(finds, most));
    context.fillStyle = colours.get(finds);
    const gap = right - left > 3 ? 0.6 : 0;
    const box = [left, top, right - left - gap, Math.max(0.5, bottom - top - (bottom - top > 3 ? 0.6 : 0))];
    context.fillRect(...box);
    if (tree.onHost[r] > 0) {
      context.fillStyle = stripes;
      context.fillRect(...box);
    }
    const text = finds > 0 ? `found ${count(finds)}×` : '';
    if (right - left < 84 || bottom - top < 15 || !text) continue;
    const strong = Math.log2(1 + finds) / Math.log2(2 + most) > 0.45;
    context.fillStyle = strong ? colour('panel') : colour('ink');
    context.textAlign = 'left';
    context.textBaseline = 'middle';
    context.fillText(text, Math.max(left, kGutter) + 6, (top + bottom) / 2);
  }
  context.restore();
  describeIcicle();
  element('icicle-legend').replaceChildren(...[[0, 'not found again'], [1, 'found once'], [most, `found up to ${count(most)} times`]].map(([finds, text]) => {
    const chip = make('i', {});
    chip.style.background = findsColour(finds, most);
    return make('span', {}, chip, text);
  }), ...(data.tree.hostPages > 0 ? [make('span', {textContent: 'striped: on the host'})] : []),
  make('span', {textContent: 'empty below a branch: its own pages'}));
}

function describeIcicle() {
  const run = focus.run, scope = run < 0
    ? `${count(tree.pages)} pages at the end` + (data.tree.hostPages > 0 ? `, ${count(data.tree.hostPages)} of them on the host` : '') +
      `; ${count(data.tree.found)} of them (${percent(data.tree.found, tree.pages)}) were found by a later request`
    : `A branch of ${count(tree.subtree[run])} pages from token ${count(tree.position[run])} on`;
  const hidden = run < 0 ? tree.pages - (tree.n > 0 ? shownPages() : 0) : 0;
  element('icicle-text').textContent = scope + (hidden > 0 ? `; ${count(hidden)} pages in small branches are not drawn` : '');
  element('icicle-all').disabled = run < 0;
}
const shownPages = () => tree.runPages.reduce((sum, pages) => sum + pages, 0);

// The run at a place of the canvas: the last one that covers it, as it was drawn on top.
function runAt(event) {
  const canvas = element('icicle'), box = canvas.getBoundingClientRect(), scales = icicleScales(canvas.clientWidth);
  const px = event.clientX - box.left, py = event.clientY - box.top;
  for (let r = tree.n - 1; r >= 0; --r) {
    if (tree.position[r] < scales.top) continue;
    if (px < scales.x(tree.left[r]) || px >= scales.x(tree.left[r] + tree.subtree[r])) continue;
    if (py >= scales.y(tree.position[r]) && py < scales.y(tree.position[r] + tree.tokens[r])) return r;
  }
  return -1;
}

function listenToIcicle() {
  if (!tree || tree.n === 0) return;
  element('icicle-section').hidden = false;
  const zoomTo = (run) => { focus.run = run; hideTip(); drawIcicle(); };
  element('icicle').addEventListener('click', (event) => {
    const run = runAt(event);
    zoomTo(run === focus.run ? -1 : run);
  });
  element('icicle-all').addEventListener('click', () => zoomTo(-1));
  element('icicle').addEventListener('pointermove', (event) => {
    const r = runAt(event);
    if (r < 0) return hideTip();
    const end = tree.position[r] + tree.tokens[r];
    showTip(event, [`tokens ${count(tree.position[r])} to ${count(end)}`,
      `${count(tree.runPages[r])} page${tree.runPages[r] === 1 ? '' : 's'}${tree.onHost[r] ? ' on the host' : ''} without a branch, ${count(tree.subtree[r])} with all behind`,
      tree.finds[r] > 0 ? `${count(tree.finds[r])} later requests began with it` : 'not found by anybody yet']);
  });
  element('icicle').addEventListener('pointerleave', hideTip);
}
