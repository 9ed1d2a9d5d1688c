// SPDX-License-Identifier: Apache-2.0
// Distributions, as bars over a logarithmic axis, and the waste of last pages.
function drawDistribution(into, {title, note, unit, bins, low, high, marks, n, css}) {
  const width = 560, height = 190, left = 44, right = 10, bottom = 30;
  const svg = makeSvg('svg', {viewBox: `0 0 ${width} ${height}`, role: 'img', 'aria-label': title});
  const from = Math.log10(low), to = Math.log10(high);
  const x = (value) => left + (Math.log10(value) - from) / (to - from) * (width - left - right);
  // Marks that would touch go below one another, above the bars.
  const placed = [];
  for (const [name, value] of marks) {
    if (!(value >= low && value <= high * 1.001)) continue;
    const at = x(value), before = placed[placed.length - 1];
    placed.push({name, at, line: before && at - before.at < 32 ? before.line + 1 : 0});
  }
  const top = 18 + 12 * Math.max(0, ...placed.map((mark) => mark.line));
  const most = largest(bins, 1), y = (value) => height - bottom - value / most * (height - top - bottom);
  for (const mark of ticks(0, most, 3)) {
    svg.append(makeSvg('line', {class: 'gridline', x1: left, x2: width - right, y1: y(mark), y2: y(mark)}),
      makeSvg('text', {x: left - 6, y: y(mark) + 4, 'text-anchor': 'end'}, short(mark)));
  }
  bins.forEach((value, i) => {
    if (value === 0) return;
    const step = (to - from) / bins.length, begin = x(10 ** (from + i * step)), end = x(10 ** (from + (i + 1) * step));
    svg.append(makeSvg('rect', {x: begin, y: Math.min(y(value), height - bottom - 0.8), width: Math.max(0.5, end - begin - 0.6),
      height: Math.max(0.8, height - bottom - y(value)), style: `fill: var(--${css})`},
    makeSvg('title', {}, `${unit(10 ** (from + i * step))} – ${unit(10 ** (from + (i + 1) * step))}: ${count(value)}`)));
  });
  svg.append(makeSvg('line', {class: 'axis', x1: left, x2: width - right, y1: height - bottom, y2: height - bottom}));
  const digits = to - from < 1.2 ? [1, 2, 3, 5, 7] : to - from < 3 ? [1, 2, 5] : [1];
  let free = -Infinity;
  for (let power = Math.floor(from); power <= to; ++power) {
    for (const digit of digits) {
      const value = digit * 10 ** power, at = x(value);
      if (value < low * 0.999 || value > high * 1.001 || at < free) continue;
      free = at + 40;
      svg.append(makeSvg('line', {class: 'axis', x1: at, x2: at, y1: height - bottom, y2: height - bottom + 4}),
        makeSvg('text', {x: at, y: height - bottom + 16, 'text-anchor': 'middle'}, unit(value)));
    }
  }
  placed.forEach(({name, at, line}) => {
    const label = makeSvg('text', {class: 'strong', x: Math.min(at, width - right - 10), y: 10 + line * 12, 'text-anchor': 'middle'}, name);
    svg.append(makeSvg('line', {x1: at, x2: at, y1: 13 + line * 12, y2: height - bottom, style: 'stroke: var(--ink); stroke-dasharray: 2 2; opacity: .6'}), label);
  });
  const caption = make('figcaption', {}, make('b', {textContent: title}),
    make('span', {className: 'dim', textContent: ` · ${note}${count(n)} requests`}));
  const text = marks.map(([name, value]) => `${name} ${unit(value)}`).join(' · ');
  into.append(make('figure', {}, caption, svg, make('div', {className: 'dim', textContent: text})));
}

function drawDistributions() {
  const tokens = (value) => short(Math.round(value));
  for (const figure of data.distributions) {
    if (figure.n === 0) continue;
    drawDistribution(element(figure.inTokens ? 'lengths' : 'latencies'), {...figure,
      unit: figure.inTokens ? tokens : duration});
  }
  const width = 560, height = 180, bar = 25;
  const svg = makeSvg('svg', {viewBox: `0 0 ${width} ${height}`, role: 'img'});
  const most = largest(data.tailWaste.map((row) => row[1]), 0.1);
  data.tailWaste.forEach(([size, waste], i) => {
    const y = 10 + i * (bar + 8), length = Math.max(1, waste / most * (width - 180));
    svg.append(makeSvg('text', {x: 86, y: y + 16, 'text-anchor': 'end', class: size === data.pageSize ? 'strong' : ''}, `${size} tokens`),
      makeSvg('rect', {x: 94, y, width: length, height: bar, rx: 3, style: `fill: var(--${size === data.pageSize ? 'pool' : 'pool-soft'})`}),
      makeSvg('text', {x: 100 + length, y: y + 16, class: 'strong'}, `${waste.toFixed(2)} %`));
  });
  element('lengths').append(make('figure', {}, make('figcaption', {}, make('b', {textContent: 'Waste of last pages'}),
    make('span', {className: 'dim', textContent: ' · positions without a token, by page size, at final length'})), svg));
}
