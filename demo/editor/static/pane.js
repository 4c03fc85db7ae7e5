'use strict';

// Pane is one text that somebody types into, and that others change. It knows no page: post sends a batch of splices to the server, and
// resolves when the server has answered. Lengths and places are in code points, of which an element of text is one.
//
// Nothing is transformed here. What others have changed comes worked out for so many own splices: if there are more by now, it is not
// taken, and the server sends it again when it has those.
class Pane {
  constructor(post) {
    this.post = post;
    this.life = 0;
  }

  // begin takes over a text; what was typed and not sent is gone.
  begin(event) {
    this.life = event.life;
    this.text = Array.from(event.text);
    this.edits = 0;     // own splices in text
    this.seen = 0;      // others' changes in text
    this.unsent = [];
    this.sending = false;
  }

  // typed says what somebody has made of the text, in one place.
  typed(value) {
    const now = Array.from(value), before = this.text;
    let at = 0, same = 0;
    while (at < before.length && at < now.length && before[at] === now[at]) at++;
    while (same < before.length - at && same < now.length - at &&
      before[before.length - 1 - same] === now[now.length - 1 - same]) same++;
    const cut = before.length - at - same, put = now.slice(at, now.length - same).join('');
    if (cut === 0 && put === '') return;
    this.text = now;
    this.edits++;
    this.unsent.push({at, cut, put});
    this.send();
  }

  // send sends what was typed, one batch at a time; also an empty one, if told to, which says what was seen.
  send(empty) {
    if (this.sending || this.life === 0 || (this.unsent.length === 0 && !empty)) return;
    const life = this.life, splices = this.unsent;
    this.unsent = [];
    this.sending = true;
    this.post({life, seen: this.seen, first: this.edits - splices.length, splices}).then(() => {
      if (this.life !== life) return;
      this.sending = false;
      this.send();
    });
  }

  // deliver makes others' changes, and returns them; null if there is more here than they were worked out for.
  deliver(event) {
    if (event.life !== this.life || event.edits !== this.edits) return null;
    const made = (event.then || []).filter((_, i) => event.from + i > this.seen);
    for (const change of made) this.text = apply(this.text, change);
    this.seen += made.length;
    if ((event.then || []).length > 20) this.send(true);
    return made;
  }
}

// apply makes a change of a text: n keeps n, -n cuts n, a text is put.
function apply(text, change) {
  const parts = [];
  let at = 0;
  for (const part of change) {
    if (typeof part === 'string') {
      parts.push(Array.from(part));
    } else if (part > 0) {
      parts.push(text.slice(at, at + part));
      at += part;
    } else {
      at -= part;
    }
  }
  return [].concat(...parts);
}

// moved is where a place in a text has gone by a change. What is put just there stands behind it.
function moved(place, change) {
  let at = 0, by = 0;
  for (const part of change) {
    if (at >= place) break;
    if (typeof part === 'string') {
      by += Array.from(part).length;
    } else if (part > 0) {
      at += part;
    } else {
      by -= Math.min(-part, place - at);
      at -= part;
    }
  }
  return place + by;
}

globalThis.Pane = Pane;
globalThis.moved = moved;
