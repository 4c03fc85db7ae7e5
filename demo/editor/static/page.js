'use strict';

// One page: a pane per node, or that of ?node=NAME alone, and one stream of events for all of them.
const page = crypto.randomUUID();
const only = new URLSearchParams(location.search).get('node');
const panes = new Map(); // by node

async function post(path, body) {
  for (;;) {
    try {
      return await fetch(path, {method: 'POST', headers: {'Content-Type': 'application/json'}, body: JSON.stringify(body)});
    } catch {
      await new Promise(after => setTimeout(after, 500)); // the server is away; a batch that it took is known by its numbers
    }
  }
}

// Box is a pane as it is seen.
class Box {
  constructor(node) {
    this.node = node;
    this.root = document.getElementById('pane').content.firstElementChild.cloneNode(true);
    this.area = this.root.querySelector('textarea');
    this.box = this.root.querySelector('input');
    this.pane = new Pane(async batch => {
      const answer = await post('edit', {page, node, ...batch});
      this.note(answer.ok || answer.status === 409 ? '' : await answer.text());
    });
    this.root.querySelector('h2').textContent = 'node ' + node;
    this.area.setAttribute('aria-label', 'The text on node ' + node);
    this.box.setAttribute('aria-label', 'Node ' + node + ' is connected to the others');
    this.area.addEventListener('input', event => { if (!event.isComposing) this.typed(); });
    this.area.addEventListener('compositionstart', () => { this.composing = true; });
    this.area.addEventListener('compositionend', () => { this.composing = false; this.typed(); this.show(this.missed); });
    this.box.addEventListener('change', () => this.cut(!this.box.checked));
    document.getElementById('panes').append(this.root);
  }

  typed() {
    this.pane.typed(this.area.value);
    verdict();
    this.size();
  }

  // hear takes an event; while a character is being composed, text that changes would break it off.
  hear(event) {
    if (event.text !== undefined) {
      this.pane.begin(event);
      this.area.value = event.text;
      this.area.disabled = false;
      this.missed = null;
    } else if (this.composing) {
      this.missed = event;
    } else {
      this.show(event);
    }
    this.size();
  }

  show(event) {
    const made = event ? this.pane.deliver(event) : null;
    this.missed = null;
    if (!made || made.length === 0) return;
    const {selectionStart, selectionEnd, selectionDirection, scrollTop, value} = this.area;
    const place = unit => made.reduce(moved, Array.from(value.slice(0, unit)).length);
    const unit = point => this.pane.text.slice(0, point).join('').length;
    const start = unit(place(selectionStart)), end = unit(place(selectionEnd));
    this.area.value = this.pane.text.join('');
    this.area.setSelectionRange(start, end, selectionDirection);
    this.area.scrollTop = scrollTop;
  }

  size() {
    const n = this.pane.text ? this.pane.text.length : 0;
    this.root.querySelector('.size').textContent = n === 1 ? '1 character' : n.toLocaleString('en') + ' characters';
  }

  note(text) { this.root.querySelector('.note').textContent = text; }

  async cut(off) {
    this.box.disabled = true;
    this.root.querySelector('.word').textContent = off ? 'is being cut off' : 'is coming back';
    const answer = await post('cut', {node: this.node, off});
    this.note(answer.ok ? '' : await answer.text());
    this.box.disabled = false;
    if (!answer.ok) this.state(!off);
  }

  state(off) {
    this.box.checked = !off;
    this.root.classList.toggle('off', off);
    this.root.querySelector('.word').textContent = off ? 'cut off' : 'connected';
  }
}

// verdict says whether all panes show the same.
function verdict() {
  const all = [...panes.values()], at = document.getElementById('verdict');
  if (all.length < 2 || all.some(b => !b.pane.text)) return;
  const same = all.every(b => b.area.value === all[0].area.value);
  at.className = same ? 'same' : 'differ';
  const off = all.filter(b => !b.box.checked).map(b => b.node);
  at.textContent = same ? 'All nodes show the same text.' : 'The nodes show different texts: ' +
    (off.length > 0 ? off.join(' and ') + (off.length > 1 ? ' are' : ' is') + ' cut off.' : 'something is on its way.');
}

const events = new EventSource('events?page=' + page);
events.addEventListener('state', event => {
  for (const {name, off} of JSON.parse(event.data).nodes) {
    if (only && only !== name) continue;
    if (!panes.has(name)) panes.set(name, new Box(name));
    panes.get(name).state(off);
  }
});
events.addEventListener('message', event => {
  const told = JSON.parse(event.data), box = panes.get(told.node);
  if (!box) return;
  box.hear(told);
  verdict();
});
events.addEventListener('error', () => panes.forEach(box => box.note('the demonstration has ended, or cannot be reached')));
events.addEventListener('open', () => panes.forEach(box => box.note('')));
