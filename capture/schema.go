package capture

import (
	"context"

	"github.com/pgbridge/pgbridge/wire"
)

// schemaChange takes a message that pgbridge.ddl has written: a change of the schema, which other nodes make, too, in its place in
// the transaction.
func (t *tagger) schemaChange(ctx context.Context, content []byte) error {
	x := &t.txn
	if t.stream == nil && !x.open {
		return protocolError("schema change outside of a transaction")
	}
	if t.stream != nil && t.stream.foreign || t.stream == nil && x.foreign {
		return nil // a bridge has made it here
	}
	m, err := wire.ParseSchemaMessage(content, t.opts.Secret)
	if err != nil {
		t.counters.BadMarkers++
		t.opts.Logger.Warn("message is not a schema change", "err", err.Error())
		return nil
	}
	s := &wire.Schema{Role: m.Role, SearchPath: m.SearchPath, SQL: m.SQL}
	switch {
	case t.stream != nil:
		return t.runSchema(ctx, t.stream, m.XID, s)
	case x.run != nil:
		return t.runSchema(ctx, x.run, x.run.xid, s)
	}
	if x.seq == 0 {
		t.first()
	}
	x.schema = true
	x.last = nil // the server announces what it has changed
	t.draft.body = wire.AppendSchema(t.draft.body, s)
	if len(t.draft.body) > t.draft.target {
		return t.overflow(ctx)
	}
	return nil
}

// runSchema takes a schema change of a run. The server names the top-level transaction alone in what it streams of a message, so
// that the message itself names the subtransaction (ReorderBufferStreamMessage, pgoutput_message).
func (t *tagger) runSchema(ctx context.Context, r *run, xid uint32, s *wire.Schema) error {
	t.begun(r)
	t.runBy(r, xid)
	r.schemas++
	t.chunk = wire.AppendSchema(t.chunk, s)
	return t.flushFull(ctx, r)
}
