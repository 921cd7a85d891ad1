'use strict';
const POLL_MS = 2000, SLOWEST_MS = 15000, REMEMBERED = 150, TOKEN = 'secateur-token';
const $ = id => document.getElementById(id);

// ---- elements: built anew from every status, then only the differences are taken over, so that focus stays ----

const element = (namespace, tag, attributes, children) => {
  const made = namespace ? document.createElementNS(namespace, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes ?? {}))
    if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value === true ? '' : value);
  made.append(...children.flat(9).filter(child => child !== null && child !== undefined && child !== false));
  return made;
};
const h = (tag, attributes, ...children) => element(null, tag, attributes, children);
const svg = (tag, attributes, ...children) => element('http://www.w3.org/2000/svg', tag, attributes, children);

function morph(old, fresh) {
  for (const { name } of [...old.attributes])
    if (!fresh.hasAttribute(name) && name !== 'open') old.removeAttribute(name);
  for (const { name, value } of [...fresh.attributes])
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  const keyed = new Map([...old.children].filter(c => c.dataset.key).map(c => [c.dataset.key, c]));
  let at = old.firstChild;
  for (const node of [...fresh.childNodes]) {
    const key = node.dataset?.key;
    const plain = at && !at.dataset?.key && at.nodeName === node.nodeName ? at : null;
    const same = key ? keyed.get(key) : plain;
    if (!same) { old.insertBefore(node, at); continue; }
    if (same === at) at = at.nextSibling; else old.insertBefore(same, at);
    if (same.nodeType === Node.TEXT_NODE) { if (same.data !== node.data) same.data = node.data; } else morph(same, node);
  }
  while (at) { const next = at.nextSibling; at.remove(); at = next; }
}

// ---- words and numbers ----

const number = (value, digits = 3) =>
  Number.isFinite(value) ? value.toLocaleString('en', { maximumSignificantDigits: digits, useGrouping: false }) : '–';
const whole = value => Number.isFinite(value) ? value.toLocaleString('en') : '–';
function short(value, unit = '') {
  if (!Number.isFinite(value)) return '–';
  const step = Math.min(4, Math.max(0, Math.floor(Math.log10(Math.max(1, Math.abs(value))) / 3)));
  return `${number(value / 1000 ** step)} ${['', 'k', 'M', 'G', 'T'][step]}${unit}`.trim();
}
function duration(seconds) {
  if (!Number.isFinite(seconds)) return '–';
  const s = Math.max(0, Math.round(seconds));
  const [large, small, unit, lower] = s < 3600 ? [Math.floor(s / 60), s % 60, 'min', 's']
    : s < 86400 ? [Math.floor(s / 3600), Math.floor(s % 3600 / 60), 'h', 'min']
    : [Math.floor(s / 86400), Math.floor(s % 86400 / 3600), 'd', 'h'];
  return s < 60 ? `${s} s` : s < 600 || s >= 3600 ? `${large} ${unit} ${small} ${lower}` : `${large} ${unit}`;
}
const words = text => String(text ?? '').replaceAll('_', ' ');
const sentence = text => { const t = words(text); return t.charAt(0).toUpperCase() + t.slice(1); };
function moment(text) {
  const at = new Date(text);
  if (!text || Number.isNaN(at.getTime())) return String(text ?? '–');
  const today = at.toDateString() === new Date().toDateString();
  const day = today ? {} : { month: 'short', day: 'numeric', year: at.getFullYear() === new Date().getFullYear() ? undefined : 'numeric' };
  return h('time', { datetime: text, title: at.toString() }, at.toLocaleString([], { ...day, hour: '2-digit', minute: '2-digit', hourCycle: 'h23' }));
}
/// What a figure of unknown meaning looks like.
function figure(value) {
  if (typeof value === 'boolean') return value ? 'yes' : 'no';
  if (typeof value === 'number') return Number.isInteger(value) ? whole(value) : number(value);
  return /^\d{4}-\d\d-\d\dT/.test(value) ? moment(value) : String(value);
}

// ---- parts ----

const card = (title, end, ...children) => {
  const id = 'card-' + title.replaceAll(' ', '-');
  return h('section', { 'aria-labelledby': id, 'data-key': id },
    h('div', { class: 'head' }, h('h2', { id, tabindex: -1 }, title), end && h('div', { class: 'end' }, end)), ...children);
};
const badge = (tone, text, live) => h('span', { class: `badge ${tone} ${live ? 'live' : ''}` }, text);
const facts = pairs => {
  const shown = pairs.filter(([, value]) => value !== null && value !== undefined);
  return shown.length > 0 && h('dl', {}, shown.map(([name, value]) => [h('dt', {}, name), h('dd', {}, value)]));
};
/// Figures of an object that are not shown otherwise.
const others = (object, ...known) => facts(Object.entries(object)
  .filter(([key, value]) => !known.includes(key) && value !== null && typeof value !== 'object')
  .map(([key, value]) => [sentence(key), figure(value)]));

/// A curve, or several over one scale; `points` are [x, y].
function curves(lines, label, className, fromZero) {
  const all = lines.flat().filter(p => p.every(Number.isFinite));
  if (all.length < 2) return h('div', { class: className });
  const [x0, x1] = [Math.min(...all.map(p => p[0])), Math.max(...all.map(p => p[0]))];
  let [y0, y1] = [Math.min(...all.map(p => p[1])), Math.max(...all.map(p => p[1]))];
  if (fromZero) y0 = Math.min(0, y0);
  if (y0 === y1) y1 += Math.abs(y1) || 1;
  const at = ([x, y]) => `${((x - x0) / (x1 - x0 || 1) * 100).toFixed(1)},${(38 - (y - y0) / (y1 - y0) * 36).toFixed(1)}`;
  return svg('svg', { class: className, viewBox: '0 0 100 40', preserveAspectRatio: 'none', role: 'img', 'aria-label': label },
    svg('line', { class: 'base', x1: 0, x2: 100, y1: 39.5, y2: 39.5 }),
    lines.map((line, i) => svg('polyline', { class: i ? 'line b' : 'line', points: line.filter(p => p.every(Number.isFinite)).map(at).join(' ') })));
}
const tile = (name, value, unit, ...more) => h('div', { class: 'tile' }, h('h3', {}, name),
  h('p', { class: 'value' }, value, unit && h('small', {}, unit)), ...more);
const bars = (items, total) => h('ul', { class: 'bars' }, items.map(({ name, count }) => {
  const part = total ? count / total * 100 : 0;
  return h('li', {}, h('span', {}, name ?? 'unnamed'), h('b', {}, `${whole(count)} · ${number(part, part < 10 ? 1 : 2)} %`),
    svg('svg', { 'aria-hidden': true }, svg('rect', { width: part.toFixed(1) + '%', height: '100%' })));
}));

// ---- what the status shows ----

const seen = { uptime: 0, models: new Map(), heat: [] };

function remember(status) {
  const now = Date.now() / 1000;
  if (status.server.uptime_s < seen.uptime) { seen.models.clear(); seen.heat = []; }
  seen.uptime = status.server.uptime_s;
  const add = (list, item) => { list.push(item); if (list.length > REMEMBERED) list.shift(); };
  for (const model of status.models) {
    if (!seen.models.has(model.name)) seen.models.set(model.name, []);
    const past = seen.models.get(model.name);
    // Over ten seconds: single polls jump.
    const from = past.findLast(p => now - p.t >= 10) ?? past[0];
    const rate = from && now - from.t >= 1 ? (model.requests - from.requests) / (now - from.t) : null;
    add(past, { t: now, requests: model.requests, rate, p50: model.latency_ms.p50, p99: model.latency_ms.p99 });
  }
  if (Number.isFinite(status.board.temperature_c)) add(seen.heat, [now, status.board.temperature_c]);
}

function live(model) {
  const past = seen.models.get(model.name) ?? [];
  const { p50, p99 } = model.latency_ms;
  const of = key => past.map(p => [p.t, p[key] ?? NaN]);
  const span = past.length > 1 ? duration(past.at(-1).t - past[0].t) : '';
  const rate = past.at(-1)?.rate;
  return card(`Model ${model.name}`, model.active ? badge(model.ready ? 'ok' : 'bad', model.ready ? 'ready' : 'not ready') : badge('bad', 'not served'),
    model.store_active && model.store_active !== model.active && h('p', { class: 'verdict warn' },
      h('strong', {}, `Version ${model.store_active} is active in the store but does not answer.`),
      'It is being loaded, or it was refused: the log says why.'),
    h('div', { class: 'tiles' },
      tile('Version', model.active ? `v${model.active}` : 'none', null,
        h('p', { class: 'small soft' }, `${whole(model.requests)} requests answered`)),
      tile('Latency', number(p50), Number.isFinite(p50) ? 'ms' : 'no requests lately',
        curves([of('p50'), of('p99')], `Latency over ${span}: median ${number(p50)} ms, 99th percentile ${number(p99)} ms`, 'spark', true),
        h('p', { class: 'small soft' }, h('span', { class: 'key p' }, 'median'), ' ', h('span', { class: 'key q' }, `p99 ${number(p99)} ms`))),
      tile('Requests', number(rate), '/ s',
        curves([of('rate')], `Requests per second over ${span}, now ${number(rate)}`, 'spark', true),
        h('p', { class: 'small soft' }, `${whole(model.queued_images)} waiting, ${whole(model.overloaded)} turned away`))));
}

function versions(model) {
  const list = [...model.versions].sort((a, b) => b.version - a.version);
  const back = model.rollback_to;
  const change = (what, version, text, label) => h('button', { type: 'button', 'data-key': what, 'data-do': what, 'data-model': model.name,
    'data-version': version, 'data-from': model.store_active, 'aria-label': label, class: what === 'rollback' && 'primary' }, text);
  return card(`Versions of ${model.name}`, back && change('rollback', back, `Roll back to version ${back}`),
    list.length ? h('ol', { class: 'list' }, list.map(v => h('li', { class: 'version', 'data-key': 'v' + v.version },
      h('p', {}, h('b', {}, `Version ${v.version}`), v.active && badge('ok', 'active'), v.damaged && badge('bad', 'damaged')),
      h('div', { class: 'act' }, !v.active && !v.damaged && change('activate', v.version, 'Activate', `Activate version ${v.version}`)),
      h('p', { class: 'small' }, [[v.channels, 'channels'], [v.parameters, 'parameters'], [v.macs, 'MACs']].filter(([n]) => n)
        .map(([n, unit]) => `${n < 1e5 ? n : short(n)} ${unit}`).concat(v.bytes ? short(v.bytes, 'B') : []).join(' · ')),
      h('p', { class: 'small soft' }, v.note, v.published && [', ', moment(v.published)]))))
      : h('p', { class: 'soft' }, 'Served from a file. A store (', h('code', {}, 'secateur models publish'), ') keeps versions to go back to.'));
}

function predictions(model) {
  const total = model.predictions, listed = model.classes.slice(0, 12);
  const rest = total - listed.reduce((sum, c) => sum + c.count, 0);
  return card(`Predictions of ${model.name}`, total > 0 && h('span', { class: 'small soft' }, `${whole(total)} images`),
    total ? bars(rest > 0 ? [...listed, { name: 'all others', count: rest }] : listed, total)
      : h('p', { class: 'soft' }, 'No image was classified since this version serves.'));
}

const TONES = { adapting: 'ok', judging: 'ok', watching: 'ok', paused: 'warn', backing_off: 'warn' };

function adaptation(a) {
  if (!a) return card('Adaptation', badge('', 'off'), h('p', { class: 'soft' },
    'No daemon runs here: this server answers and changes nothing by itself. ', h('code', {}, 'secateur daemon'), ' collects images and adapts.'));
  const run = a.run;
  return card('Adaptation', badge(TONES[a.state] ?? '', words(a.state), ['adapting', 'judging'].includes(a.state)),
    h('p', {}, sentence(a.reason), h('span', { class: 'soft' }, ' · since ', moment(a.since))),
    a.backoff_until && h('p', { class: 'soft' }, 'The next try is not before ', moment(a.backoff_until), '.'),
    run && progress(run), a.gate && gate(a.gate),
    a.watch && [h('h3', {}, 'Watch over the new version'), others(a.watch)]);
}

function progress(run) {
  const known = run.steps > 0, channels = run.channels ?? [], drawn = (run.losses ?? []).filter(l => l.points?.length > 1);
  // They are named after their phase, unless there is but one.
  const start = `${run.phase} `, own = drawn.filter(l => l.name.startsWith(start));
  const now = own.length ? own.map(l => ({ ...l, name: l.name.slice(start.length) })) : drawn;
  const earlier = own.length ? drawn.filter(l => !own.includes(l)) : [];
  return [
    h('div', {},
      h('p', { class: 'head' }, h('b', {}, sentence(run.phase || 'On hold')), h('span', { class: 'end small soft' }, known && `step ${whole(run.step)} of ${whole(run.steps)}`,
        run.eta_s > 0 && `, about ${duration(run.eta_s)} left`)),
      h('progress', { 'aria-label': `Progress of run ${run.id}`, max: known ? run.steps : null, value: known ? Math.min(run.step, run.steps) : null }),
      h('p', { class: 'small soft' }, `Run ${run.id}, begun `, moment(run.started))),
    now.length > 0 && [h('h3', {}, 'Losses by step'), losses(now)],
    earlier.length > 0 && h('details', {}, h('summary', {}, 'Losses of earlier phases'), losses(earlier)),
    channels.length > 0 && layers(channels),
  ];
}

const losses = list => h('div', { class: 'curves' }, list.map(({ name, points }) => {
  const [first, last] = [points[0], points.at(-1)];
  return h('figure', {}, h('figcaption', {}, words(name), h('b', {}, number(last[1]))),
    curves([points], `${words(name)} from ${number(first[1])} at step ${first[0]} to ${number(last[1])} at step ${last[0]}`, ''));
}));

function layers(channels) {
  const sum = key => channels.reduce((total, c) => total + c[key], 0);
  const [before, after, most] = [sum('before'), sum('after'), Math.max(...channels.map(c => c.before))];
  const rect = (className, i, n) => svg('rect', { class: className, x: i * 4 + .4, width: 3.2, y: 60 - n / most * 60, height: n / most * 60 });
  return [
    h('h3', {}, 'Channels per layer', ' ', h('span', { class: 'key' }, 'before'), ' ', h('span', { class: 'key a' }, 'after')),
    svg('svg', { class: 'columns', viewBox: `0 0 ${channels.length * 4} 60`, preserveAspectRatio: 'none', role: 'img',
      'aria-label': `${channels.length} layers with ${before} channels before and ${after} after` },
      channels.map((c, i) => svg('g', {}, svg('title', {}, `${c.group}: ${c.before} → ${c.after}`), rect('before', i, c.before), rect('after', i, c.after)))),
    h('p', { class: 'small soft' }, `${whole(before)} → ${whole(after)} channels in ${channels.length} layers, ${number(100 - after / before * 100)} % removed`),
    h('details', {}, h('summary', {}, 'All layers as a table'),
      h('div', { class: 'scroll', tabindex: 0, role: 'region', 'aria-label': 'Channels per layer' }, h('table', {},
        h('thead', {}, h('tr', {}, ['Layer', 'before', 'after', 'kept'].map(t => h('th', { scope: 'col' }, t)))),
        h('tbody', {}, channels.map(c => h('tr', {}, h('th', { scope: 'row' }, c.group),
          [c.before, c.after, `${number(c.after / c.before * 100, 2)} %`].map(t => h('td', {}, t)))))))),
  ];
}

const gate = g => [
  h('p', { class: `verdict ${g.accepted ? 'ok' : 'bad'}` }, h('strong', {}, g.accepted ? '✓ The gate accepted the last student' : '✗ The gate refused the last student'), g.reason),
  others(g, 'accepted', 'reason'),
];

function images(i) {
  const classes = i.classes ?? [], total = classes.reduce((sum, c) => sum + c.count, 0);
  return card('Images', h('span', { class: 'small soft' }, short(i.bytes, 'B')),
    h('div', { class: 'tiles' }, tile('Kept', whole(i.reservoir)), tile('New', whole(i.new), i.needed > 0 && `${whole(i.needed)} to go`)),
    i.needed > 0 && h('progress', { 'aria-label': 'New images towards the next adaptation', max: i.new + i.needed, value: i.new }),
    facts([['Quarantined as broken', whole(i.quarantined)], ['Duplicates left out', whole(i.duplicates)]]),
    classes.length > 0 && [h('h3', {}, 'Kept images by predicted class'), bars(classes.slice(0, 12), total)]);
}

const guards = list => card('Guards', list.every(g => g.ok) ? badge('ok', 'all clear') : badge('warn', 'holding'),
  h('ul', { class: 'list' }, list.map(g => h('li', { class: `guard ${g.ok ? 'ok' : 'bad'}` }, h('span', { 'aria-hidden': true }, g.ok ? '✓' : '✗'),
    h('p', {}, sentence(g.name), h('span', { class: 'unseen' }, g.ok ? ': clear' : ': holds adaptation back'), h('br'), h('span', { class: 'small soft' }, g.detail))))));

function board(b) {
  const [low, high] = [Math.min(...seen.heat.map(p => p[1])), Math.max(...seen.heat.map(p => p[1]))];
  return card('Board', null,
    h('div', { class: 'tiles' },
      tile('Temperature', number(b.temperature_c), Number.isFinite(b.temperature_c) ? '°C' : 'no sensor',
        curves([seen.heat], `Temperature between ${number(low)} and ${number(high)} °C`, 'spark')),
      tile('Load', number(b.load), null, b.processors && h('p', { class: 'small soft' }, `on ${b.processors} processors`))),
    facts([['Memory available', short(b.memory_available, 'B')], ['Used by secateur', short(b.memory_used, 'B')],
      ['Clock', b.mhz ? `${number(b.mhz)} MHz` : null], ['Throttling', b.throttled ? whole(b.throttled) : null]]));
}

const history = list => card('Decisions', null, list.length ? h('ol', { class: 'history list scroll', tabindex: 0, 'aria-label': 'Decisions, the latest first' },
  list.map(e => h('li', {}, h('span', { class: 'soft' }, moment(e.at)), h('p', {}, h('b', {}, words(e.event)), ' ', e.detail))))
  : h('p', { class: 'soft' }, 'Nothing was decided yet.'));

function render(status) {
  const a = status.adaptation;
  const none = card('Models', badge('bad', 'none'), h('p', { class: 'soft' }, 'No model is served.'));
  const left = [status.models.length ? status.models.map(live) : none, adaptation(a), status.models.map(versions), a?.history && history([...a.history].sort((x, y) => y.at < x.at ? -1 : 1))];
  const right = [status.models.map(predictions), a?.images && images(a.images), a?.guards && guards(a.guards), board(status.board)];
  morph($('main'), h('main', { id: 'main', class: 'wide' }, h('div', { class: 'column' }, left), h('div', { class: 'column' }, right)));
  const text = `${status.board.name ?? 'unknown board'} · up ${duration(status.server.uptime_s)}`;
  if ($('about').textContent !== text) $('about').textContent = text;
  $('foot').textContent = `secateur ${status.server.version}`;
  const [first] = status.models;
  document.title = first ? `${first.ready ? '' : '⚠ '}${first.name} v${first.active ?? '–'} · secateur` : 'secateur';
}

// ---- what is said aloud: changes alone ----

let told = {};
function tell(status) {
  const now = Object.fromEntries(status.models.map(m => [m.name, `Version ${m.active ?? 'none'} of ${m.name} ${m.ready ? 'is ready' : 'is not ready'}.`]));
  if (status.adaptation) now[''] = `Adaptation: ${words(status.adaptation.state)}. ${status.adaptation.reason}`;
  const news = Object.keys(now).filter(key => key in told && told[key] !== now[key]).map(key => now[key]);
  if (news.length) say(news.join(' '));
  told = now;
}
const say = text => { $('news').textContent = text; };

// ---- the server ----

const token = { // Storage may be forbidden; then the page remembers until it is left.
  value: null,
  get() { try { return this.value ?? sessionStorage.getItem(TOKEN); } catch { return this.value; } },
  set(value) {
    this.value = value;
    try { if (value) sessionStorage.setItem(TOKEN, value); else sessionStorage.removeItem(TOKEN); } catch { /* see above */ }
    $('forget').hidden = !value;
  },
};

async function call(path, body) {
  const headers = body ? { 'content-type': 'application/json' } : {};
  if (token.get()) headers.authorization = `Bearer ${token.get()}`;
  const options = { method: body ? 'POST' : 'GET', headers, body: body && JSON.stringify(body), cache: 'no-store', signal: AbortSignal.timeout(body ? 120000 : 10000) };
  const response = await fetch(path, options);
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw Object.assign(new Error(answer.error ?? `the server answered ${response.status}`), { status: response.status });
  return answer;
}

let timer = 0, wait = POLL_MS, lost = null, polling = false;

function connection(tone, text, banner) {
  $('link').className = `badge ${tone}`;
  if ($('link').textContent !== text) $('link').textContent = text;
  $('banner').hidden = !banner;
  if (banner && $('banner').textContent !== banner) { $('banner').textContent = banner; say(banner); }
}

async function poll() {
  if (polling) return;
  clearTimeout(timer);
  polling = true;
  try {
    const status = await call('v1/status').catch(unanswered);
    if (!status) return;
    if (lost) say('Connected again.');
    [lost, wait] = [null, POLL_MS];
    connection('ok live', 'live');
    remember(status);
    render(status);
    tell(status);
  } finally {
    polling = false;
    if (!document.hidden) timer = setTimeout(poll, wait);
  }
}

function unanswered(error) {
  if (error.status === 401) {
    connection('warn', 'locked', 'This server shows its state to those who have its token.');
    if (!$('ask').open) askForToken();
    return;
  }
  lost ??= new Date();
  const since = lost.toLocaleTimeString();
  const reason = error.status ? `No status since ${since}: ${error.message}.` : `Disconnected since ${since}.`;
  connection('bad', 'disconnected', `${reason} What is shown is from then; trying again.`);
  wait = Math.min(wait * 1.5, SLOWEST_MS);
}

// ---- questions ----

let question = null;

function ask(asked) {
  question = asked;
  $('ask-title').textContent = asked.title;
  $('ask-text').textContent = asked.text;
  $('ask-go').textContent = asked.go;
  $('ask-error').textContent = '';
  $('token').value = '';
  $('ask-token').hidden = !asked.secret;
  $('ask').showModal();
  if (asked.secret) $('token').focus(); else $('ask-go').focus();
}

const askForToken = () => ask({
  title: 'Token', text: 'The token that the server was started with (serve.token_file). It is kept until this tab is closed.', go: 'Show the status', secret: true,
  run: () => call('v1/status'),
});

async function answer(event) {
  event.preventDefault();
  const asked = question, given = $('token').value.trim();
  if (!$('ask-token').hidden && !given) { $('ask-error').textContent = 'Enter the token.'; return; }
  if (given) token.set(given);
  $('ask-go').disabled = true;
  $('ask-error').textContent = '';
  try {
    const outcome = await asked.run();
    if (asked === question) $('ask').close();
    if (asked.done) say(asked.done(outcome));
    // The button that asked may be gone.
    if (document.activeElement === document.body) document.querySelector('main h2')?.focus();
    poll();
  } catch (error) {
    if (error.status === 401) {
      $('ask-error').textContent = token.get() ? 'The server does not take this token.' : 'The server wants its token.';
      token.set(null);
      $('ask-token').hidden = false;
      $('token').focus();
      $('token').select();
    } else {
      $('ask-error').textContent = `Nothing was changed: ${error.status ? error.message : 'the server does not answer'}.`;
      if (!error.status) $('ask-error').textContent = 'The server did not answer. Look at the versions before you try again.';
    }
  } finally {
    $('ask-go').disabled = false;
  }
}

const actions = {
  cancel: () => $('ask').close(),
  forget: () => { token.set(null); poll(); },
  rollback: ({ model, version, from }) => ask({
    title: `Roll back ${model} to version ${version}?`, go: 'Roll back',
    text: `Version ${version} served before version ${from}. It answers as soon as it is loaded; no request fails meanwhile.`,
    run: () => call(`v1/models/${encodeURIComponent(model)}/rollback`, { from: Number(from) }),
    done: outcome => `Version ${outcome.version} of ${model} serves.`,
  }),
  activate: ({ model, version }) => ask({
    title: `Activate version ${version} of ${model}?`, go: 'Activate',
    text: `It takes over as soon as it is loaded and has passed a test inference; no request fails meanwhile.`,
    run: () => call(`v1/models/${encodeURIComponent(model)}/activate`, { version: Number(version) }),
    done: outcome => `Version ${outcome.version} of ${model} serves.`,
  }),
};

document.addEventListener('click', event => {
  const button = event.target.closest?.('[data-do]');
  if (button) actions[button.dataset.do](button.dataset);
});
document.addEventListener('visibilitychange', () => { if (!document.hidden) poll(); });
$('ask').addEventListener('close', () => { question = null; });
$('ask').querySelector('form').addEventListener('submit', answer);
$('forget').hidden = !token.get();
poll();
