'use strict';
// What a chart says where one points. The listeners are the document's, so that charts may come and go.
let pointed = null;
const hideHover = () => {
  for (const out of document.querySelectorAll('output')) out.style.display = 'none';
  for (const cursor of document.querySelectorAll('.cursor')) cursor.style.visibility = 'hidden';
};
const showHover = event => {
  const svg = event.target.closest && event.target.closest('svg[data-hover]');
  hideHover();
  pointed = svg ? event : null;
  if (!svg) return;
  const data = JSON.parse(svg.dataset.hover), out = svg.nextElementSibling, cursor = svg.querySelector('.cursor');
  const box = svg.getBoundingClientRect(), at = (event.clientX - box.left) * svg.viewBox.baseVal.width / box.width;
  let i = 0;
  data.px.forEach((px, k) => { if (Math.abs(px - at) < Math.abs(data.px[i] - at)) i = k; });
  cursor.setAttribute('x1', data.px[i]); cursor.setAttribute('x2', data.px[i]); cursor.style.visibility = 'visible';
  const lines = Object.entries(data.values).filter(([, v]) => v[i] !== '').map(([name, v]) => name + '  ' + v[i]);
  out.textContent = [data.along + ' ' + data.x[i], ...lines].join('\n');
  out.style.display = 'block';
  const left = 12 + data.px[i] * box.width / svg.viewBox.baseVal.width;
  out.style.left = (left + out.offsetWidth + 12 > box.width ? left - out.offsetWidth - 10 : left + 10) + 'px';
};
document.addEventListener('pointermove', showHover);
document.addEventListener('pointerdown', showHover);
document.documentElement.addEventListener('pointerleave', hideHover);
