// SPDX-License-Identifier: Apache-2.0
// Puts the page together.
function buildTop() {
  element('source').textContent = data.source;
  element('setup').textContent = data.setup;
  element('tiles').append(...data.tiles.map(([value, text, bad]) =>
    make('div', {className: bad ? 'tile bad' : 'tile'}, make('b', {textContent: value}), make('span', {textContent: text}))));
  element('settings').append(...data.settings.map(([name, value]) =>
    make('tr', {}, make('td', {textContent: name}), make('td', {textContent: value}))));
  if (data.losses) {
    element('losses').textContent = data.losses;
    element('losses').hidden = false;
  }
}

function drawAll() {
  picture = null;
  drawTime();
  drawMap();
  drawIcicle();
}

function useTheme(name) {
  document.documentElement.dataset.theme = name;
  drawAll();
}

window.addEventListener('error', (event) => { document.documentElement.dataset.state = 'failed: ' + event.message; });
buildTop();
buildTime();
listenToMap();
listenToIcicle();
drawDistributions();
const wanted = new URLSearchParams(location.search).get('theme');
const systems = window.matchMedia('(prefers-color-scheme: dark)');
document.documentElement.dataset.theme = wanted || (systems.matches ? 'dark' : 'light');
systems.addEventListener('change', () => useTheme(systems.matches ? 'dark' : 'light'));
element('theme').addEventListener('click', () => useTheme(isDark() ? 'light' : 'dark'));
chooseMap(chosen.map);
drawAll();
new ResizeObserver(drawAll).observe(element('panels'));
document.documentElement.dataset.state = 'drawn';
