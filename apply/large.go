package apply

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/pgbridge/pgbridge/wire"
)

// applyRun applies one large transaction from its file, as one transaction, alone in the pipeline. It
// locks and registers whole tables instead of keys, and keeps nothing in memory but its tombstones.
func (w *worker) applyRun(ctx context.Context, t *txn) error {
	if ok, err := w.alone(ctx, t); !ok {
		return err
	}
	if d, err := w.depends(t, nil); err != nil {
		return err
	} else if d != nil {
		return w.orPark(ctx, t, d)
	}
	h, surprise, err := w.claimRun(ctx, t)
	if err != nil {
		return err
	}
	if surprise {
		w.locks.release(h)
		w.absence.withdraw(w.origin, t.Seq)
		return w.carefully(ctx, t)
	}
	if err := w.markers.announced(ctx, t.entry()); err != nil {
		return err
	}
	w.inbox.take()
	return w.stream(ctx, t, h)
}

// stream plans the run and writes it out as it goes. The server reads at a local file's pace; nothing
// here waits for the network or for another node (PROOF.md R4).
func (w *worker) stream(ctx context.Context, t *txn, h *held) error {
	b := &batch{done: make(chan struct{}), txns: []landing{{t: t, held: h}}, commits: []int{1}}
	w.current = b
	p := &w.planner
	p.out = append(append(p.out[:0], w.beginMessages...), w.patientMessages...)
	launched := false
	write := func() error {
		if !launched {
			launched = true
			w.launch(b)
		}
		_, err := w.socket.Write(p.out)
		p.out = kept(p.out)
		return err
	}
	p.spill = func(then []byte) error {
		if b.failed.Load() {
			return errSurprise // the server skips the rest anyway
		}
		err := write()
		if err == nil && len(then) > 0 {
			_, err = w.socket.Write(then)
		}
		return err
	}
	err := p.plan(t)
	p.spill = nil
	if err != nil && !launched {
		w.locks.release(h)
		w.absence.withdraw(w.origin, t.Seq)
		w.inbox.rewind()
		for _, s := range b.parses {
			s.sent = false
		}
		if errors.Is(err, errSurprise) {
			return w.carefully(ctx, t)
		}
		return err
	}
	if err == nil {
		b.mu.Lock()
		b.txns[0].tomb, b.txns[0].buried = p.deleted()
		b.mu.Unlock()
		p.out = append(p.out, w.commitMessages...)
	} else {
		// An open COPY must end before the server listens to anything else; then nothing may commit.
		p.out = append(p.out[:0], appendAbandon(nil)...)
	}
	p.out = appendSync(p.out)
	if err := write(); err != nil {
		return err
	}
	return w.reap(ctx, 0) // a failure sends the transaction the careful path, which knows all reasons
}

// appendAbandon makes the server leave a COPY and abort: CopyFail, which outside of a COPY is ignored,
// then a statement that cannot be.
func appendAbandon(dst []byte) []byte {
	dst, at := begin(dst, 'f')
	dst = finish(appendCString(dst, "abandoned by pgbridge"), at)
	return append(dst, appendParse(nil, "", "abandoned by pgbridge", nil)...)
}

// claimRun reads the run once for what it creates and deletes, takes all keys and registers the tables.
// It reports a TRUNCATE, which only the careful path can do.
func (w *worker) claimRun(ctx context.Context, t *txn) (h *held, surprise bool, err error) {
	changes, err := newChanges(t)
	if err != nil {
		return nil, false, err
	}
	w.lag = w.lagOf(t)
	tables, unique := map[tableName]bool{}, false
	for {
		rec, relations, err := changes.next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, false, err
		}
		if rec.Kind == wire.KindTruncate {
			surprise = true
			continue
		}
		id, tuples, err := wire.ParseChange(rec.Payload)
		if err != nil {
			return nil, false, err
		}
		if r := relations[id]; r == nil {
			return nil, false, fmt.Errorf("%w: relation %d is not described", wire.ErrCorrupt, id)
		} else if w.opts.merges(r.Schema, r.Name) || !w.opts.Writers.MayWrite(w.origin.Node, r.Schema, r.Name) {
			surprise = true
			tables[tableName{r.Schema, r.Name}] = true
		} else if rec.Kind != wire.KindUpdate || len(tuples) > 0 && tuples[0] != 'N' {
			tables[tableName{r.Schema, r.Name}] = true
		} else if m, err := w.mapping(r, id); err != nil || len(m.local.uniques) > 0 {
			unique = true // or it may be so
		}
	}
	// What only updates rows needs no keys, but for those who find that its rows collide with others.
	h = &held{origin: w.origin, whole: len(tables) > 0 || unique}
	if err := w.locks.lock(ctx, h); err != nil {
		return nil, false, err
	}
	for n := range tables {
		w.absence.createMany(n, registration{w.origin, t.Seq})
	}
	return h, surprise, nil
}
