package apply

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgbridge/pgbridge/conflict"
	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/rowkey"
	"github.com/pgbridge/pgbridge/wire"
)

// Shadow works out which conflicts a node would meet if it applied what the others have written by now, without writing anything:
// it compares the versions of rows in this node's frames with those in theirs, in memory, by the policy that counts for all. A row
// that was not written here since the slot was made meets nothing, whatever it is. So it asks the database for the shape of
// tables and the spelling of keys only, in a session that may not write. Its methods are safe for concurrent use.
type Shadow struct {
	opts    Options
	node    *Node
	own     origin.Origin
	conn    *pgx.Conn
	catalog *catalog
	policy  conflict.Policy
	since   time.Time

	mu      sync.Mutex // guards what follows
	digests *rowkey.Digests
	key     []wire.Value // scratch
	origins []origin.Origin
	reached map[origin.Origin]origin.Entry
	tables  map[tableName]*shadowTable
	rows    map[wire.KeyHash]*shadowRow
	held    int // rows and writes that are remembered
	order   uint64
	full    bool
	failed  error // a part of a transaction was taken in: all must begin anew
	kinds   map[ShadowKind]shadowCount
	unmet   []*shadowRow // whose conflicts must be worked out anew
	shown   []*shadowRow // examples, among which are rows with conflicts
}

// ShadowLimit bounds the rows and writes that a Shadow remembers, of about 200 bytes each.
const ShadowLimit = 1_000_000

const (
	// shadowShown is how many rows are shown at most.
	shadowShown = 100
	// shadowClose is how far apart two versions of a row are whose writers would hardly have seen each other's anyway.
	shadowClose = time.Second
	// shadowRetry is after how long a table is looked at again that could not be compared.
	shadowRetry = 10 * time.Second
)

// ErrHasRun means that a node whose bridge has run is to be a shadow.
var ErrHasRun = hasRunError{}

type hasRunError struct{}

func (hasRunError) Error() string {
	return "mode: shadow is for a node whose bridge has not run yet, and this one's has: others have what it wrote, and it has what they wrote; set mode: live"
}

// ExitCode is that of a wrong configuration.
func (hasRunError) ExitCode() int { return 2 }

// shadowTable is a table that was written here or elsewhere.
type shadowTable struct {
	name      tableName
	truncates []shadowWrite // of other nodes
	emptied   shadowVersion // by a TRUNCATE here
	rows      []*shadowRow
	skipped   uint64 // writes that were not compared
	why       string
}

// shadowVersion is one version of a row; seq 0: none.
type shadowVersion struct {
	seq    uint64
	stamp  origin.Stamp
	origin uint16 // its place in Shadow.origins
	gone   bool
}

// shadowTxn is what must be remembered of another node's transaction.
type shadowTxn struct {
	origin uint16
	seq    uint64
	stamp  origin.Stamp
	up     origin.Vector
	order  uint64 // of arrival, among all
	// writes and truncates are how many it has so far.
	writes, truncates uint32
}

// write is its next one.
func (x *shadowTxn) write(kind conflict.Write) shadowWrite {
	x.writes++
	if kind == conflict.Truncate {
		x.truncates++
	}
	return shadowWrite{x, kind, x.writes, x.truncates}
}

type shadowWrite struct {
	t    *shadowTxn
	kind conflict.Write
	at   uint32 // its place in the transaction
	part uint32 // which TRUNCATE of the transaction it is, or is behind
}

// before reports whether w came before v.
func (w shadowWrite) before(v shadowWrite) bool {
	return w.t.order < v.t.order || w.t == v.t && w.at < v.at
}

type shadowRow struct {
	table *shadowTable
	own   shadowVersion
	// theirs are the others' writes, as they came.
	theirs []shadowWrite
	met    []shadowMet
	unmet  bool
	shown  bool
	key    string // as JSON; only of a row that is shown
}

// shadowMet is a conflict that would have been recorded.
type shadowMet struct {
	kind  ShadowKind
	t     *shadowTxn
	local shadowVersion
}

type shadowCount struct{ all, close uint64 }

// ShadowKind says what met and who would win.
type ShadowKind struct {
	Kind    conflict.Kind
	Outcome string // "remote wins" or "local wins"
}

// OpenShadow connects to the database, takes the node's lock for as long as it is open, and checks that no bridge has run for the
// node. It writes nothing. Errors: ErrNotSetUp, ErrFenced, ErrHasRun, and those of PostgreSQL with the mend.
func OpenShadow(ctx context.Context, opts Options) (_ *Shadow, err error) {
	s := &Shadow{opts: opts.withDefaults(), since: opts.withDefaults().Now(), reached: map[origin.Origin]origin.Entry{},
		tables: map[tableName]*shadowTable{}, rows: map[wire.KeyHash]*shadowRow{}, kinds: map[ShadowKind]shadowCount{}}
	if s.policy, err = conflict.ByName(s.opts.Policy); err != nil {
		return nil, err
	}
	s.conn, err = connect(ctx, s.opts.DSN, fmt.Sprintf("pgbridge %s shadow", s.opts.Node),
		map[string]string{"default_transaction_read_only": "on", "enable_seqscan": "on", "enable_hashjoin": "on"})
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	if s.node, err = readNode(ctx, s.conn); err != nil {
		return nil, err
	}
	if err := s.node.is(s.opts.Cluster, s.opts.Node); err != nil {
		return nil, err
	}
	if err := lockNode(ctx, s.conn); err != nil {
		return nil, err
	}
	if s.node.WriterEpoch > 0 {
		return nil, ErrHasRun
	}
	if err := os.MkdirAll(s.opts.SpoolDir, 0o700); err != nil {
		return nil, fmt.Errorf("spool directory: %w; make data_dir writable", err)
	}
	if err := clearSpool(s.opts.SpoolDir); err != nil {
		return nil, err
	}
	s.own = origin.Origin{Node: s.node.Name, Epoch: s.node.Epoch}
	s.catalog = &catalog{conn: s.conn, types: map[uint32]*pgType{}, merges: s.opts.Merge, priority: s.opts.Priority, node: s.opts.Node, columns: &s.opts.Columns}
	s.digests = rowkey.NewDigests(s.catalog.ask)
	return s, nil
}

// Close ends the session, and with it the node's lock.
func (s *Shadow) Close() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	s.conn.Close(ctx)
}

// Ping makes sure that the session, and with it the node's lock, is there.
func (s *Shadow) Ping(ctx context.Context) error {
	return s.catalog.ask(ctx, func(ctx context.Context, conn *pgx.Conn) error { return conn.Ping(ctx) })
}

// Origin is this node's.
func (s *Shadow) Origin() origin.Origin { return s.own }

// Reached is up to where the transactions of o have been taken in.
func (s *Shadow) Reached(o origin.Origin) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reached[o].Seq
}

// Failed is why all must begin anew, with another Shadow; nil while that is not so.
func (s *Shadow) Failed() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failed
}

// A ShadowSource takes in one stream of frames; the same transactions may come from several. Its methods are called by one
// goroutine.
type ShadowSource struct {
	s     *Shadow
	inbox *inbox
	fits  map[tableName]*shadowFit
}

// shadowFit is how a relation as its author describes it fits the table here.
type shadowFit struct {
	relation *wire.Relation
	keys     *mapping
	why      error // it does not fit
	at       time.Time
}

// Source returns a source of o's frames.
func (s *Shadow) Source(o origin.Origin) *ShadowSource {
	return &ShadowSource{s: s, inbox: newInbox(o, &s.opts, 0), fits: map[tableName]*shadowFit{}}
}

// Restart says that the frames begin anew, at or before the first transaction that is missing.
func (f *ShadowSource) Restart() { f.inbox.restart() }

// Close removes what is left of large transactions.
func (f *ShadowSource) Close() { f.inbox.close() }

// Feed takes in a frame. ErrGap: transactions are missing in front of it.
func (f *ShadowSource) Feed(ctx context.Context, frame *wire.Frame) error {
	txns, err := f.inbox.open(0, frame)
	for _, t := range txns {
		if err == nil && !t.vectorOnly {
			err = f.txn(ctx, t)
		}
		if t.run != nil {
			t.run.remove()
		}
	}
	return err
}

func (f *ShadowSource) txn(ctx context.Context, t *txn) error {
	s := f.s
	s.mu.Lock()
	defer s.mu.Unlock()
	switch last := s.reached[t.origin].Seq; {
	case s.failed != nil:
		return s.failed
	case t.Seq <= last || s.full:
		return nil
	case t.Seq != last+1:
		return fmt.Errorf("%w: %s:%d comes after %d", ErrGap, t.origin, t.Seq, last)
	}
	at := slices.Index(s.origins, t.origin)
	if at < 0 {
		at, s.origins = len(s.origins), append(s.origins, t.origin)
	}
	s.order++
	x := &shadowTxn{origin: uint16(at), seq: t.Seq, stamp: t.Stamp, up: t.up, order: s.order}
	src, err := newChanges(t)
	if err != nil {
		return err
	}
	if err := eachChange(src, func(rec wire.Record, rels []*wire.Relation, ch *wire.Change) error {
		if rec.Kind == wire.KindTruncate {
			for _, rel := range rels {
				s.truncate(s.table(rel), x)
			}
			return nil
		}
		err := f.change(ctx, x, rels[0], ch)
		if b := (*Blocked)(nil); errors.As(err, &b) {
			t := s.table(rels[0])
			t.skipped, t.why, err = t.skipped+1, b.Error(), nil
		}
		return err
	}); err != nil {
		s.failed = fmt.Errorf("transaction %d of %s: %w", t.Seq, t.origin, err)
		return s.failed
	}
	s.reached[t.origin] = t.entry()
	s.full = s.held > ShadowLimit
	return nil
}

func (s *Shadow) table(rel *wire.Relation) *shadowTable {
	n := tableName{rel.Schema, rel.Name}
	if s.tables[n] == nil {
		s.tables[n] = &shadowTable{name: n}
	}
	return s.tables[n]
}

// change takes one row's change in. A changed key is a delete of the old one and an insert of the new one (PROOF.md R31).
func (f *ShadowSource) change(ctx context.Context, x *shadowTxn, rel *wire.Relation, ch *wire.Change) error {
	s, table := f.s, f.s.table(rel)
	m, err := f.fit(ctx, table, rel)
	if err != nil {
		return err
	}
	if ch.Kind == wire.KindUpdate {
		fillUnchanged(ch)
	}
	if len(ch.Old) > 0 && !m.usable {
		return m.needsKey()
	}
	var from, to wire.KeyHash
	if len(ch.Old) > 0 {
		if from, err = s.hash(ctx, m, ch.Old); err != nil {
			return err
		}
	}
	if len(ch.New) > 0 {
		if to, err = s.hash(ctx, m, ch.New); err != nil {
			return err
		}
	}
	none := wire.KeyHash{}
	switch {
	case ch.Kind == wire.KindInsert:
		return s.write(ctx, table, m, ch.New, to, x, conflict.Insert)
	case ch.Kind == wire.KindDelete:
		return s.write(ctx, table, m, ch.Old, from, x, conflict.Delete)
	case from == none || from == to:
		return s.write(ctx, table, m, ch.New, to, x, conflict.Update)
	}
	if err := s.write(ctx, table, m, ch.Old, from, x, conflict.Delete); err != nil {
		return err
	}
	return s.write(ctx, table, m, ch.New, to, x, conflict.Insert)
}

// fit finds how a relation fits the table here. It is an error that is Blocked if its rows cannot be compared.
func (f *ShadowSource) fit(ctx context.Context, table *shadowTable, rel *wire.Relation) (*mapping, error) {
	fit, now := f.fits[table.name], f.s.opts.Now()
	if fit != nil && sameRelation(fit.relation, rel) && (fit.why == nil || now.Sub(fit.at) < shadowRetry) {
		return fit.keys, fit.why
	}
	fit = &shadowFit{relation: rel, at: now}
	local, err := f.s.catalog.table(ctx, rel.Schema, rel.Name)
	if err == nil && local.merge != nil {
		err = blocked("its concurrent writes are merged, or left to a person (conflict.tables)")
	}
	if err == nil {
		fit.keys, err = keysOf(rel, local)
	}
	if fit.why = err; err == nil || isBlocked(err) {
		f.fits[table.name] = fit
	}
	return fit.keys, err
}

func (s *Shadow) hash(ctx context.Context, m *mapping, tuple []wire.Value) (wire.KeyHash, error) {
	var err error
	if s.key, err = m.keyOf(s.key, tuple); err != nil {
		return wire.KeyHash{}, err
	}
	k, err := s.digests.Hash(ctx, m.local.hasher, s.key)
	if err != nil && !lost(err) {
		return k, &Blocked{Reason: "a key cannot be hashed here", Err: err}
	}
	return k, err
}

// write takes in what a transaction did to a row.
func (s *Shadow) write(ctx context.Context, table *shadowTable, m *mapping, tuple []wire.Value, k wire.KeyHash, x *shadowTxn, kind conflict.Write) error {
	r := s.rows[k]
	if r == nil {
		r = &shadowRow{table: table}
		s.rows[k] = r
		table.rows = append(table.rows, r)
		s.held++
	}
	if s.origins[x.origin] == s.own {
		r.own = shadowVersion{seq: x.seq, stamp: x.stamp, origin: x.origin, gone: kind == conflict.Delete}
	} else {
		r.theirs = append(r.theirs, x.write(kind))
		s.held++
	}
	s.changed(r)
	last := len(r.theirs) - 1
	several := last >= 0 && (r.own.seq != 0 || r.theirs[0].t.origin != r.theirs[last].t.origin)
	if !several || r.shown || len(s.shown) >= shadowShown {
		return nil
	}
	r.shown, s.shown = true, append(s.shown, r)
	var err error
	r.key, err = s.keyText(ctx, m, tuple)
	return err
}

// truncate takes in that a transaction emptied a table.
func (s *Shadow) truncate(table *shadowTable, x *shadowTxn) {
	if s.origins[x.origin] == s.own {
		table.emptied = shadowVersion{seq: x.seq, stamp: x.stamp, origin: x.origin, gone: true}
	} else {
		table.truncates = append(table.truncates, x.write(conflict.Truncate))
	}
	for _, r := range table.rows {
		if r.own.seq == x.seq && s.origins[x.origin] == s.own { // written before by the same transaction
			r.own = table.emptied
		}
		s.changed(r)
	}
}

// keyText writes a key as the server does.
func (s *Shadow) keyText(ctx context.Context, m *mapping, tuple []wire.Value) (string, error) {
	var cols []string
	var types []uint32
	var ps []param
	for _, i := range m.key {
		p, err := m.param(i, tuple[i])
		if err != nil {
			return "", err
		}
		col := &m.local.cols[m.cols[i]]
		types, ps = append(types, col.param()), append(ps, p)
		cols = append(cols, fmt.Sprintf("$%d AS %s", len(types), col.quoted))
	}
	var text string
	err := s.catalog.ask(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		values, formats := raw(ps)
		r := conn.PgConn().ExecParams(ctx, "SELECT row_to_json(r.*) FROM (SELECT "+strings.Join(cols, ", ")+") r", values, types, formats, nil).Read()
		if r.Err == nil && len(r.Rows) == 1 {
			text = string(r.Rows[0][0])
		}
		return r.Err
	})
	if err != nil && !lost(err) {
		return "", nil // a type that has no JSON: the row is shown without its key
	}
	return text, err
}
