// SPDX-License-Identifier: Apache-2.0
// The pages: who had them over time, and all of them at a step.
const pageHistory = (() => {
  const packed = data.columns;
  return {
    n: packed.n, rows: packed.rows, pagesPerRow: packed.pagesPerRow,
    time: unpack(packed.time, Float64Array),
    step: unpack(packed.step, Uint32Array),
    owner: unpack(packed.owner, Uint32Array),  // [n, rows]: request + 1, 0 for a free page
  };
})();
const kOthers = 0xffffffff;
const othersText = data.tree ? 'only in the prefix cache' : 'in use by no running request';

// The whole history as a picture, a pixel a page and moment; made anew when the theme changes.
let picture = null;
function historyPicture() {
  if (picture || pageHistory.n === 0) return picture;
  picture = make('canvas', {width: pageHistory.n, height: pageHistory.rows});
  const context = picture.getContext('2d'), image = context.createImageData(pageHistory.n, pageHistory.rows);
  const free = rgbOf(colour('free')), others = rgbOf(colour('others')), cache = new Map();
  for (let c = 0; c < pageHistory.n; ++c) {
    for (let row = 0; row < pageHistory.rows; ++row) {
      const owner = pageHistory.owner[c * pageHistory.rows + row];
      let rgb = owner === 0 ? free : owner === kOthers ? others : cache.get(owner);
      if (!rgb) cache.set(owner, rgb = ownerRgb(owner - 1));
      image.data.set([...rgb, 255], 4 * (row * pageHistory.n + c));
    }
  }
  context.putImageData(image, 0, 0);
  return picture;
}

function drawColumns(context, columns, width, height) {
  const source = historyPicture();
  context.fillStyle = colour('dim');
  context.textAlign = 'right';
  context.textBaseline = 'middle';
  context.fillText('page 0', kGutter - 8, 7);
  context.fillText(count(data.numPages - 1), kGutter - 8, height - 7);
  if (!source) return;
  context.save();
  context.beginPath();
  context.rect(kGutter, 0, width, height);
  context.clip();
  context.imageSmoothingEnabled = false;
  const scale = width / (view.t1 - view.t0);
  for (let c = 0; c < pageHistory.n; ++c) {
    const until = c + 1 < pageHistory.n ? pageHistory.time[c + 1] : wholeTime[1];
    const from = (pageHistory.time[c] - view.t0) * scale, to = (until - view.t0) * scale;
    if (to < 0 || from > width) continue;
    context.drawImage(source, c, 0, 1, pageHistory.rows, kGutter + from, 0, Math.max(1, to - from + 0.5), height);
  }
  context.restore();
}

function describeColumn(time, share) {
  let c = pageHistory.n - 1;
  while (c > 0 && pageHistory.time[c] > time) --c;
  if (c < 0) return null;
  const row = Math.min(pageHistory.rows - 1, Math.floor(share * pageHistory.rows));
  const owner = pageHistory.owner[c * pageHistory.rows + row];
  const who = owner === 0 ? 'free' : owner === kOthers ? othersText : `request ${count(owner - 1)}`;
  return [`page ${count(row * pageHistory.pagesPerRow)}`, who, `step ${count(pageHistory.step[c])}, at ${moment(pageHistory.time[c], 10)}`];
}

// Maps of all pages, oldest first.
const maps = data.maps.map((map) => ({
  step: map.step, time: map.time,
  request: unpack(map.request, Uint32Array),
  tokens: unpack(map.tokens, Uint32Array),    // of the requests
  owner: unpack(map.owner, Uint16Array),      // of the cells: index + 2; 0 is free, 1 is others
  filled: unpack(map.filled, Uint16Array),
  refs: unpack(map.refs, Uint8Array),
}));
const chosen = {map: Math.max(0, data.fullest), paint: 'owner', owner: -1};
const chosenTime = () => maps.length > 0 ? maps[chosen.map].time : NaN;

function chooseMap(index) {
  if (maps.length === 0) return;
  chosen.map = Math.max(0, Math.min(maps.length - 1, index));
  element('moment').value = chosen.map;
  drawMap();
  drawMarker();
}
function chooseTime(time) {
  let nearest = 0;
  maps.forEach((map, i) => { if (Math.abs(map.time - time) < Math.abs(maps[nearest].time - time)) nearest = i; });
  chooseMap(nearest);
}

function gridOf(width, cells) {
  const size = Math.max(2, Math.min(22, Math.floor(Math.sqrt(width * 400 / cells))));
  const across = Math.floor(width / size);
  return {size, across, down: Math.ceil(cells / across)};
}

function paintCell(context, map, i, x, y, size) {
  const gap = size >= 5 ? 1 : 0, inner = size - gap, owner = map.owner[i];
  const free = rgbOf(colourCache.free);
  const part = map.filled[i] / data.pageSize;
  if (owner === 0) {
    context.fillStyle = colourCache.free;
    context.fillRect(x, y, inner, inner);
    return;
  }
  let rgb = owner === 1 ? rgbOf(colourCache.others) : ownerRgb(map.request[owner - 2]);
  if (chosen.paint === 'fill') rgb = mix(free, rgbOf(colourCache.pool), 0.15 + 0.85 * part);
  if (chosen.paint === 'refs') rgb = mix(rgbOf(colourCache['pool-soft']), rgbOf(colourCache.preempted), Math.min(1, (map.refs[i] - 1) / 4));
  if (chosen.owner >= 0 && owner !== chosen.owner) rgb = mix(rgb, rgbOf(colourCache.panel), 0.78);
  const bar = chosen.paint === 'owner' && size >= 5 ? Math.max(1, Math.round(inner * part)) : inner;
  if (bar < inner) {
    context.fillStyle = cssOf(mix(rgb, free, 0.72));
    context.fillRect(x, y, inner, inner - bar);
  }
  context.fillStyle = cssOf(rgb);
  context.fillRect(x, y + inner - bar, inner, bar);
  if (map.refs[i] > 1 && size >= 5 && chosen.paint === 'owner') {
    context.fillStyle = colourCache.ink;
    context.fillRect(x + inner / 2 - 1, y + inner / 2 - 1, 2, 2);
  }
}

let colourCache = {};
function drawMap() {
  if (maps.length === 0) return;
  for (const name of ['free', 'others', 'pool', 'pool-soft', 'preempted', 'panel', 'ink']) colourCache[name] = colour(name);
  const map = maps[chosen.map], canvas = element('map');
  const grid = gridOf(canvas.clientWidth, map.owner.length);
  const context = prepare(canvas, grid.down * grid.size);
  for (let i = 0; i < map.owner.length; ++i) {
    paintCell(context, map, i, i % grid.across * grid.size, Math.floor(i / grid.across) * grid.size, grid.size);
  }
  describeMap(map);
}

function describeMap(map) {
  let used = 0, shared = 0, empty = 0, owned = 0;
  for (let i = 0; i < map.owner.length; ++i) {
    if (map.owner[i] > 0) ++used;
    if (map.refs[i] > 1) ++shared;
    if (map.owner[i] > 1) { ++owned; empty += data.pageSize - map.filled[i]; }
  }
  const scope = data.pagesPerCell > 1 ? `, of every ${count(data.pagesPerCell)}${ordinal(data.pagesPerCell)} page,` : '';
  element('moment-text').textContent =
    `Step ${count(map.step)}, at ${moment(map.time, 10)}: ${count(used)} of ${count(map.owner.length)} pages in use` +
    ` (${percent(used, map.owner.length)})${scope}, ${count(map.request.length)} requests, ${count(shared)} pages shared, ` +
    `${percent(empty, owned * data.pageSize)} of their positions without a token`;
  const chips = {
    owner: [['free', 'free'], ['pool', 'a colour a request; filled from below by tokens'], ['others', othersText], ['ink', 'dot: shared']],
    fill: [['free', 'free'], ['pool-soft', 'few tokens'], ['pool', 'full']],
    refs: [['free', 'free'], ['pool-soft', '1 reference'], ['preempted', '5 and more']],
  }[chosen.paint];
  element('map-legend').replaceChildren(...chips.map(([name, text]) => {
    const chip = make('i', {});
    chip.style.background = `var(--${name})`;
    return make('span', {}, chip, text);
  }), make('span', {textContent: `${data.pagesPerCell > 1 ? 'cells' : 'pages'} in the order of their ids, row by row`}));
}

function cellAt(event) {
  const canvas = element('map'), box = canvas.getBoundingClientRect(), map = maps[chosen.map];
  const grid = gridOf(canvas.clientWidth, map.owner.length);
  const column = Math.floor((event.clientX - box.left) / grid.size), row = Math.floor((event.clientY - box.top) / grid.size);
  const i = row * grid.across + column;
  return column < grid.across && i >= 0 && i < map.owner.length ? i : -1;
}

function listenToMap() {
  if (maps.length === 0) return;
  element('moment').max = maps.length - 1;
  element('moment').addEventListener('input', () => chooseMap(Number(element('moment').value)));
  element('earlier').addEventListener('click', () => chooseMap(chosen.map - 1));
  element('later').addEventListener('click', () => chooseMap(chosen.map + 1));
  element('fullest').addEventListener('click', () => chooseMap(data.fullest));
  for (const button of element('paint').children) {
    button.addEventListener('click', () => {
      chosen.paint = button.dataset.paint;
      for (const other of element('paint').children) other.classList.toggle('chosen', other === button);
      drawMap();
    });
  }
  element('map').addEventListener('pointermove', (event) => {
    const i = cellAt(event), map = maps[chosen.map];
    const owner = i >= 0 && map.owner[i] > 1 ? map.owner[i] : -1;
    if (owner !== chosen.owner) { chosen.owner = owner; drawMap(); }
    if (i < 0) return hideTip();
    const who = map.owner[i] === 0 ? 'free' : owner < 0 ? othersText
      : `request ${count(map.request[owner - 2])}, ${count(map.tokens[owner - 2])} tokens in cache`;
    showTip(event, [`page ${count(i * data.pagesPerCell)}`, who,
      ...(map.owner[i] > 0 ? [`${map.filled[i]} of ${data.pageSize} tokens, ${map.refs[i]} reference${map.refs[i] > 1 ? 's' : ''}`] : [])]);
  });
  element('map').addEventListener('pointerleave', () => { hideTip(); chosen.owner = -1; drawMap(); });
}
