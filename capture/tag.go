package capture

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

// tagger makes frames of pgoutput's messages. It is the one place where seq, stamp and dependencies come
// into being, as a function of the messages and of the state that it began with (PROOF.md R5, R6). It is
// owned by the goroutine that runs Capture.Run.
type tagger struct {
	opts   *Options
	pub    Publisher
	del    Deletes
	state  *state
	ledger *ledger
	// lookUp reads the key of a relation from the catalog; nil columns if the table is gone.
	lookUp func(ctx context.Context, oid uint32) ([]keyColumn, error)
	hashes *hashes
	// crowded is told when the recent ids should be pruned.
	crowded func()

	// What the last transaction and the last marker left, always that of position.
	seq      uint64
	clock    origin.Clock
	up, low  origin.Vector // never changed in place: frames and readers share them
	told     origin.Vector // what of low stands in frames
	deps     uint64        // generation of up and told, from 1
	mark     wire.Mark
	position uint64 // everything that committed below it has been told

	draft  draft
	moved  []byte // scratch of cut
	pacing pacing
	// unshown is the stream sequence of the last frame that did not go ahead of itself.
	unshown uint64

	txn       txn
	serial    uint64 // of txn
	stream    *run   // whose block is being read; nil outside of one
	runs      map[uint32]*run
	open      []*run // with chunks in frames, oldest first
	lastRun   uint64
	chunk     []byte      // of the run that is being read, not yet in the draft
	big       *bigMessage // that is arriving in parts
	relations map[uint32]*relation
	types     map[uint32]typeName
	arrivals  uint64
	badMarker bool // one was logged
	counters  Counters
	homeRow   []wire.Value // scratch of lookHome
	values    []byte       // scratch of sealValues
}

// txn is the transaction between a Begin and its Commit message.
type txn struct {
	open       bool
	xid        uint32
	commitLSN  uint64
	commitTime origin.Stamp
	foreign    bool // applied here by a bridge: dropped whole
	// Of one that had a row, or changed the schema:
	seq   uint64 // 0 before
	stamp origin.Stamp
	clock origin.Clock // after it
	start int          // of its B record in the draft
	// schema: it changes the schema.
	schema bool
	used   []*relation
	last   *relation // of the last row: declared and in used
	run    *run      // it has outgrown a frame
	touched
}

// before returns the relations that must be declared in front of the transaction's records: of a table that it has changed itself,
// only how it was before. How it is since stands among the records.
func (x *txn) before() (first []*relation) {
	for _, r := range x.used {
		if !slices.ContainsFunc(first, func(f *relation) bool { return f.ID == r.ID }) {
			first = append(first, r)
		}
	}
	return first
}

// message takes one pgoutput message.
func (t *tagger) message(ctx context.Context, m []byte) error {
	if len(m) == 0 {
		return protocolError("empty message")
	}
	switch kind := wire.Kind(m[0]); kind {
	case wire.KindInsert, wire.KindUpdate, wire.KindDelete:
		return t.row(ctx, kind, m[1:])
	}
	switch m[0] {
	case msgBegin:
		return t.begin(m[1:])
	case msgCommit:
		return t.commit(ctx, m[1:])
	case msgOrigin:
		return t.origin(m[1:])
	case msgLogical:
		return t.logical(ctx, m[1:])
	case msgStreamStart:
		return t.streamStart(m[1:])
	case msgStreamStop:
		return t.streamStop(ctx)
	case msgStreamCommit:
		return t.streamCommit(ctx, m[1:])
	case msgStreamAbort:
		return t.streamAbort(ctx, m[1:])
	}
	_, b, err := t.ownXID(m[1:])
	if err != nil {
		return err
	}
	switch m[0] {
	case msgRelation:
		return t.relation(b)
	case msgType:
		oid, name, err := parseType(b)
		t.types[oid] = name
		return err
	case byte(wire.KindTruncate):
		return t.truncate(ctx, m[1:])
	}
	return protocolError("message %q", m[0])
}

// ownXID takes the transaction id off that messages of a streamed transaction begin with.
func (t *tagger) ownXID(b []byte) (uint32, []byte, error) {
	if t.stream == nil {
		return t.txn.xid, b, nil
	}
	if len(b) < 4 {
		return 0, nil, protocolError("message of %d bytes in a streamed transaction", len(b))
	}
	return binary.BigEndian.Uint32(b), b[4:], nil
}

func (t *tagger) begin(b []byte) error {
	c := cursor{b: b}
	lsn, at, xid := c.u64(), origin.Stamp(c.u64()), c.u32()
	if c.bad || t.txn.open || t.stream != nil {
		return protocolError("begin message of %d bytes", len(b))
	}
	x := &t.txn
	x.touched.reset()
	t.serial++
	*x = txn{open: true, xid: xid, commitLSN: lsn, commitTime: at, used: x.used[:0], touched: x.touched}
	return nil
}

// origin says that the transaction was applied here from elsewhere. With origin 'none', which servers have
// from 16 on, none of these comes.
func (t *tagger) origin(b []byte) error {
	c := cursor{b: b}
	c.u64()
	name := c.cstring()
	own := originPrefix(t.opts.Cluster, t.opts.Node)
	switch {
	case c.bad:
		return protocolError("origin message of %d bytes", len(b))
	case name != own && !strings.HasPrefix(name, own+"_"):
		return foreignOrigin(name)
	case t.stream != nil:
		t.stream.foreign = true
	case t.txn.open && t.txn.seq == 0:
		t.txn.foreign = true
	default:
		return protocolError("origin message behind a row")
	}
	return nil
}

// originPrefix begins the names of the replication origins under which this node's bridge applies; its
// clean-up session's has nothing behind it.
func originPrefix(cluster, node string) string { return "pgb_" + cluster + "_" + node }

func foreignOrigin(name string) error {
	return finding(CodeOriginForeign, fmt.Sprintf("replication origin %q", name),
		"writes into this database and is not the bridge's: its rows would reach no other node",
		"drop the subscription that it belongs to, or let it write on a server of its own")
}

func (t *tagger) relation(b []byte) error {
	r, err := parseRelation(b, t.types)
	if err != nil {
		return err
	}
	t.arrivals++
	r.arrival, r.seal = t.arrivals, t.opts.sealer(r.Schema, r.Name)
	r.placed(t.opts)
	old := t.relations[r.ID]
	if t.stream != nil && t.stream.relations[r.ID] != nil {
		old = t.stream.relations[r.ID]
	}
	r.columnsOf(t.opts, old)
	if t.stream != nil {
		t.stream.relations[r.ID], t.stream.last = r, nil
		return nil
	}
	t.relations[r.ID], t.txn.last = r, nil
	if t.txn.run != nil {
		t.txn.run.last = nil
	}
	return nil
}

// row takes an insert, update or delete; b stands behind its letter.
func (t *tagger) row(ctx context.Context, kind wire.Kind, b []byte) error {
	xid, b, err := t.ownXID(b)
	if err != nil {
		return err
	}
	if len(b) < 5 {
		return protocolError("row %q of %d bytes", kind, len(b))
	}
	id, tuples := binary.BigEndian.Uint32(b), b[4:]
	if t.stream != nil {
		return t.runRow(ctx, t.stream, xid, kind, id, tuples)
	}
	x := &t.txn
	switch {
	case !x.open:
		return protocolError("row %q outside of a transaction", kind)
	case x.foreign:
		return nil
	case x.run != nil:
		return t.runRow(ctx, x.run, xid, kind, id, tuples)
	}
	r, err := t.use(id)
	if err != nil {
		return err
	}
	var records int
	if t.draft.body, records, err = t.appendRow(t.draft.body, r, kind, id, tuples); err != nil {
		return err
	}
	t.counters.Changes += uint64(records)
	if err := t.lookHome(r, tuples); err != nil {
		return err
	}
	if x.lifted || tuples[0] != 'N' {
		if err := t.note(ctx, &x.touched, r, kind, xid, tuples); err != nil {
			return err
		}
	}
	if len(t.draft.body) > t.draft.target {
		return t.overflow(ctx)
	}
	return nil
}

// use makes the transaction's present place in the draft ready for a change of that relation.
func (t *tagger) use(id uint32) (*relation, error) {
	x := &t.txn
	if x.last != nil && x.last.ID == id {
		return x.last, nil
	}
	r := t.relations[id]
	if r == nil {
		return nil, protocolError("row of relation %d, which was not announced", id)
	}
	if x.seq == 0 {
		t.first()
	}
	if r.usedBy != t.serial {
		r.usedBy = t.serial
		x.used = append(x.used, r)
	}
	t.draft.declare(r)
	x.last = r
	return r, nil
}

// first begins the transaction in the draft, now that it has a row.
func (t *tagger) first() {
	x := &t.txn
	x.seq, x.clock = t.seq+1, t.clock
	x.stamp = x.clock.Next(x.commitTime, t.up)
	x.lifted = x.stamp > x.commitTime
	t.depend()
	x.start = len(t.draft.body)
	t.draft.body = wire.AppendBegin(t.draft.body, wire.Begin{
		Seq: x.seq, Stamp: x.stamp, CommitTime: x.commitTime, CommitLSN: x.commitLSN, XID: x.xid,
	})
}

// depend puts the present dependencies into the draft unless they are there.
func (t *tagger) depend() {
	if t.draft.deps != t.deps {
		t.draft.deps = t.deps
		t.draft.body = wire.AppendDeps(t.draft.body, t.up, t.told)
	}
}

// note hands a row to touched, with its table's key.
func (t *tagger) note(ctx context.Context, k *touched, r *relation, kind wire.Kind, sub uint32, tuples []byte) error {
	table, err := t.table(ctx, r)
	if err != nil {
		return err
	}
	return k.row(ctx, table, kind, sub, tuples)
}

// table returns the relation's table, whose key is looked up when it is first needed.
func (t *tagger) table(ctx context.Context, r *relation) (*Table, error) {
	if r.table == nil {
		key, err := t.lookUp(ctx, r.ID)
		if err != nil {
			return nil, fmt.Errorf("look up key of %s.%s: %w", r.Schema, r.Name, err)
		}
		r.table = newTable(&r.Relation, key, t.hashes)
	}
	return r.table, nil
}

func (t *tagger) truncate(ctx context.Context, b []byte) error {
	xid, b, err := t.ownXID(b)
	if err != nil {
		return err
	}
	options, ids, err := parseTruncate(b)
	if err != nil {
		return err
	}
	x := &t.txn
	switch {
	case t.stream != nil:
		return t.runTruncate(ctx, t.stream, xid, options, ids)
	case !x.open:
		return protocolError("truncate outside of a transaction")
	case x.foreign || len(ids) == 0:
		return nil
	case x.run != nil:
		return t.runTruncate(ctx, x.run, xid, options, ids)
	}
	var rels []*relation
	for _, id := range ids {
		r, err := t.use(id)
		if err != nil {
			return err
		}
		rels = append(rels, r)
		table, err := t.table(ctx, r)
		if err != nil {
			return err
		}
		if err := x.graves.add(grave{sub: xid, table: table}); err != nil {
			return err
		}
	}
	t.draft.body = appendTruncate(t.draft.body, options, rels)
	t.counters.Changes++
	if len(t.draft.body) > t.draft.target {
		return t.overflow(ctx)
	}
	return nil
}

func (t *tagger) commit(ctx context.Context, b []byte) error {
	lsn, end, at, err := commitOf(b)
	x := &t.txn
	if err != nil {
		return err
	}
	if !x.open || lsn != x.commitLSN || at != x.commitTime {
		return protocolError("commit that fits no begin")
	}
	k := &x.touched
	if x.run != nil {
		k = &x.run.touched
	}
	if err := k.settle(ctx); err != nil {
		return err
	}
	x.open = false
	switch {
	case x.run != nil:
		err = t.commitRun(ctx, x.run, x.commitLSN, x.commitTime)
	case x.foreign:
		t.counters.Foreign++
	case x.seq != 0:
		t.draft.body = wire.AppendCommit(t.draft.body)
		t.clock = x.clock
		if x.schema {
			t.del.LocalSchema(x.seq, x.xid)
		}
		err = t.tell(x.seq, x.stamp, x.commitTime, x.commitLSN, x.xid, &x.touched, &xidSet{})
	}
	if err != nil {
		return err
	}
	t.passed(end)
	return t.full(ctx)
}

// tell makes a transaction that now stands in the draft known: to Deletes, to the index of lifted stamps,
// to the list of recent ids.
func (t *tagger) tell(seq uint64, stamp, commitTime origin.Stamp, lsn uint64, xid uint32, k *touched, void *xidSet) error {
	t.seq = seq
	t.draft.ends(seq, commitTime)
	t.counters.Transactions++
	v := origin.Version{Stamp: stamp, Origin: t.opts.Origin}
	err := k.graves.each(void, func(g grave) {
		if g.key == nil {
			t.del.LocalTruncate(Truncate{Relation: g.table, Version: v, Seq: seq, CommitLSN: lsn})
			return
		}
		t.del.LocalDelete(Delete{Relation: g.table, Key: g.key, Hash: g.hash, Version: v, Seq: seq, CommitLSN: lsn})
	})
	if err != nil {
		return err
	}
	t.state.written.add(commitTime, seq, xid)
	if stamp > commitTime {
		t.counters.Lifted++
		t.counters.LiftedLost += uint64(t.state.lifted.add(commitTime, stamp, seq, k.keys, k.many))
	}
	if t.state.recents.add(xid) {
		t.crowded()
	}
	return nil
}

// idle reports whether no transaction has been read in part.
func (t *tagger) idle() bool { return !t.txn.open && t.stream == nil && len(t.runs) == 0 }

// passed moves the position: everything that committed below lsn has been told.
func (t *tagger) passed(lsn uint64) {
	t.position = max(t.position, lsn)
	t.state.passed.advance(t.position)
}
