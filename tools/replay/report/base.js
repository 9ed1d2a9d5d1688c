// SPDX-License-Identifier: Apache-2.0
// What all parts of the page use: the data, numbers as people read them, colours, the tooltip.
const data = JSON.parse(document.getElementById('data').textContent);
const element = (id) => document.getElementById(id);

// Arrays travel as base64 of little-endian numbers.
function unpack(text, Type) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  return new Type(bytes.buffer);
}

// The nodes of a piece of the page: text is text, whatever a file name may hold.
function make(tag, properties, ...children) {
  const node = document.createElement(tag);
  Object.assign(node, properties);
  node.append(...children);
  return node;
}
function makeSvg(tag, attributes, ...children) {
  const node = document.createElementNS('http://www.w3.org/2000/svg', tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

const count = (n) => Math.round(n).toLocaleString('en-US');
const percent = (part, whole) => whole > 0 ? (100 * part / whole).toFixed(1) + ' %' : '–';
function short(n) {
  if (n >= 9.95e5) return (n / 1e6).toFixed(n < 9.95e6 ? 1 : 0) + ' M';
  if (n >= 1e4) return (n / 1e3).toFixed(0) + ' k';
  if (n >= 100 || n === Math.round(n)) return count(n);
  return n.toPrecision(2);
}
function duration(s) {
  if (!isFinite(s)) return '–';
  const a = Math.abs(s);
  if (a === 0) return '0 s';
  if (a < 1e-3) return (s * 1e6).toPrecision(3) + ' µs';
  if (a < 1) return (s * 1e3).toPrecision(3) + ' ms';
  if (a < 1000) return s.toPrecision(3) + ' s';
  if (a < 10000) return count(s) + ' s';
  return (s / 60).toFixed(1) + ' min';
}
// A moment, to the digits that the zoom can tell apart.
function moment(s, span) {
  const digits = Math.max(0, Math.min(6, 3 - Math.floor(Math.log10(span))));
  return s.toLocaleString('en-US', {minimumFractionDigits: digits, maximumFractionDigits: digits}) + ' s';
}

// Round numbers between low and high, about as many as asked for.
function ticks(low, high, wanted) {
  const raw = (high - low) / Math.max(1, wanted);
  if (!(raw > 0)) return [low];
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw * 0.999);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9) || 0; i * step <= high + step * 1e-9; ++i) found.push(i * step);
  return found;
}

const isDark = () => document.documentElement.dataset.theme === 'dark';
function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue('--' + name).trim();
}

// A request's own colour: the golden angle keeps neighbours apart.
function ownerRgb(request) {
  const hue = (request * 137.50776) % 360;
  const light = (isDark() ? 0.58 : 0.54) + ((request * 7) % 3 - 1) * 0.07;
  const spread = 0.62 * Math.min(light, 1 - light);
  const channel = (n) => {
    const k = (n + hue / 30) % 12;
    return Math.round(255 * (light - spread * Math.max(-1, Math.min(k - 3, 9 - k, 1))));
  };
  return [channel(0), channel(8), channel(4)];
}
const cssOf = (rgb) => `rgb(${rgb[0]},${rgb[1]},${rgb[2]})`;
function rgbOf(css) {
  const n = parseInt(css.slice(1), 16);
  return [n >> 16, (n >> 8) & 255, n & 255];
}
const mix = (a, b, part) => a.map((v, i) => Math.round(v + (b[i] - v) * part));

// A canvas as sharp as the screen; coordinates are CSS pixels.
function prepare(canvas, height) {
  const scale = window.devicePixelRatio || 1;
  const width = canvas.clientWidth;
  canvas.style.height = height + 'px';
  if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
  }
  const context = canvas.getContext('2d');
  context.setTransform(scale, 0, 0, scale, 0, 0);
  context.clearRect(0, 0, width, height);
  context.font = '11px system-ui, "Segoe UI", "DejaVu Sans", sans-serif';
  return context;
}

function showTip(event, lines) {
  const tip = element('tip');
  tip.replaceChildren(make('b', {textContent: lines[0]}), '\n' + lines.slice(1).join('\n'));
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  const right = event.clientX + 16 + box.width < window.innerWidth;
  const below = event.clientY + 16 + box.height < window.innerHeight;
  tip.style.left = (right ? event.clientX + 14 : Math.max(4, event.clientX - box.width - 12)) + 'px';
  tip.style.top = (below ? event.clientY + 14 : Math.max(4, event.clientY - box.height - 12)) + 'px';
}
const hideTip = () => { element('tip').hidden = true; };
