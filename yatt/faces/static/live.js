// The live page: asks once a second for the sections that have changed, and for conversations when told to.
(() => {
  const page = document.getElementById('page'), status = document.getElementById('live');
  if (!page || 'once' in page.dataset) return;
  const EVERY = 1000, HIDDEN = 5000;
  let revision = page.dataset.revision, shown = Number(page.dataset.newest), chosen = '';

  const body = id => document.querySelector('#' + id + ' > .body');
  const put = (id, html) => {
    const section = document.getElementById(id);
    if (!section) return;
    body(id).innerHTML = html;
    section.hidden = !html;
  };
  const ask = async address => {
    const answer = await fetch(address, {cache: 'no-store'});
    if (!answer.ok) throw new Error(await answer.text());
    return answer;
  };

  const newer = document.getElementById('newer');
  const poll = async () => {
    try {
      const told = await (await ask('parts?since=' + revision)).json();
      for (const [id, html] of Object.entries(told.parts)) {
        if (id === 'devices' && chosen) document.getElementById(id).hidden = false; else put(id, html);
      }
      if (Object.keys(told.parts).length && pointed) {
        const target = document.elementFromPoint(pointed.clientX, pointed.clientY);
        if (target) showHover({target, clientX: pointed.clientX, clientY: pointed.clientY});
      }
      revision = told.revision;
      if (told.newest > shown) {
        newer.textContent = 'show step ' + told.newest;
        newer.hidden = false;
      }
      status.textContent = 'live';
      status.classList.remove('lost');
    } catch (error) {
      status.textContent = 'yatt watch does not answer; the page is as it was';
      status.classList.add('lost');
    }
    setTimeout(poll, document.hidden ? HIDDEN : EVERY);
  };
  setTimeout(poll, EVERY);

  const search = document.getElementById('search');
  let asked = 0;
  const find = async after => {
    const mine = ++asked, words = new URLSearchParams(new FormData(search));
    if (after) words.set('after', after);
    let html;
    try {
      html = await (await ask('conversations?' + words)).text();
    } catch (error) {
      html = '';
      status.textContent = error.message;
    }
    if (mine !== asked) return;
    const list = body('conversations');
    const more = list.querySelector('.more');
    if (after && more) more.outerHTML = html; else list.innerHTML = html;
    const on = list.querySelector('.more button');
    if (on && !html.includes('<article')) find(on.dataset.after);
  };
  search.addEventListener('submit', event => { event.preventDefault(); find(''); });
  search.addEventListener('change', () => find(''));
  newer.addEventListener('click', () => {
    shown = Number(newer.textContent.split(' ').pop());
    newer.hidden = true;
    find('');
  });
  body('conversations').addEventListener('click', event => {
    if (event.target.dataset.after) find(event.target.dataset.after);
  });

  const choose = document.getElementById('choose');
  const draw = async () => {
    chosen = choose.elements.step.value;
    try { put('devices', await (await ask('devices?step=' + chosen)).text()); } catch (error) { status.textContent = error.message; }
  };
  choose.addEventListener('change', draw);
  choose.addEventListener('submit', event => { event.preventDefault(); draw(); });
})();
