package capture

import (
	"context"

	"github.com/pgbridge/pgbridge/wire"
)

// logical takes a logical decoding message; only the bridge's own matter: schema changes, rows that are written again, markers, and
// what apply tells its peers.
func (t *tagger) logical(ctx context.Context, b []byte) error {
	_, b, err := t.ownXID(b)
	if err != nil {
		return err
	}
	m, err := parseLogicalMessage(b)
	if err != nil {
		return err
	}
	if m.transactional && m.prefix == wire.SchemaPrefix {
		return t.schemaChange(ctx, m.content)
	}
	if m.transactional && m.prefix == wire.AgainPrefix && m.lsn < t.opts.AgainLSN {
		t.again()
		return nil
	}
	if m.transactional || t.txn.open || t.stream != nil {
		return nil
	}
	if m.prefix == wire.MarkerPrefix {
		t.read(m)
	} else if body, ok := t.appendNote(t.draft.body, m.prefix, m.content); ok {
		t.draft.body, t.draft.worth, t.draft.waits = body, true, true
	}
	// That is where its record ends (decode.c, logicalmsg_decode): the next one, which may be a commit, begins there.
	t.passed(m.lsn)
	return nil
}

// again takes what follows in a transaction that the bridge applies for a user's.
func (t *tagger) again() {
	if t.stream != nil {
		t.stream.foreign = false
		return
	}
	t.txn.foreign = false
}

// read takes a message with the markers' prefix, which anybody may write.
func (t *tagger) read(m logicalMessage) {
	x, err := wire.ParseMarker(m.content)
	if err == nil {
		t.counters.Markers++
		t.marker(x)
		return
	}
	t.counters.BadMarkers++
	if !t.badMarker {
		t.badMarker = true
		t.opts.Logger.Warn("message is not a marker", "lsn", m.lsn, "err", err.Error())
	}
}

// marker takes over what a marker says (PROOF.md R7, R11).
func (t *tagger) marker(m wire.Marker) {
	_, higher := t.up.Lacks(m.Up)
	_, lower := t.low.Lacks(m.Done)
	if higher || lower {
		up, low := t.up.Clone(), t.low.Clone()
		up.Merge(m.Up)
		low.Merge(m.Done)
		t.up, t.low = up, low
		t.state.vectors.Store(&vectors{up, low})
	}
	told := t.del.Told(t.told, t.low)
	if higher || !told.Equal(t.told) {
		t.told = told
		t.deps++
	}
	if len(m.Lost) > 0 {
		t.draft.body = wire.AppendLost(t.draft.body, m.Lost)
		t.draft.worth, t.draft.waits = true, true
	}
	if m.XMin > t.mark.XID {
		t.mark = wire.Mark{XID: m.XMin, Seq: t.seq}
		t.state.marks.add(t.mark, t.up)
		t.state.recents.ended(m.XMin)
	}
}

// alive takes the WAL end of a keepalive: all that committed below it has been sent. One that comes in the
// middle of a transaction says no more than the messages around it.
func (t *tagger) alive(end uint64) {
	if !t.txn.open && t.stream == nil {
		t.passed(end)
	}
}
