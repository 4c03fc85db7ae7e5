package apply

import (
	"bufio"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"slices"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgbridge/pgbridge/conflict"
	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

// Resynced says what a delta has brought.
type Resynced struct {
	Seen      origin.Vector // what the donor had seen, and this node has now
	Rows      uint64        // in the delta
	Deletes   uint64        // rows here of which the delta says that they were deleted
	Conflicts uint64        // with writes that the donor had not seen
}

// resync takes a delta in (delta.go), as one transaction: nobody sees a part of it. It is an attempt of the careful path in
// the keeper's session, so that each row has an origin and a stamp of its own, which pgbridge.returned keeps. Nothing else is
// applied meanwhile. What the node's users write goes on: their rows meet the delta's like those of any transaction.
type resync struct {
	*carefulRun
	k         *keeper
	file      *os.File
	rows      uint64
	deletes   []*wire.Gone
	seen      origin.Vector
	latest    map[wire.KeyHash]origin.Version // deletes, by key
	truncated map[tableName]origin.Version
	doomed    []doomed
	logged    map[*mapping]map[wire.KeyHash]*loggedRow
	theirs    []*wire.Made   // schema changes that the donor has made
	looked    int64          // the generation under which doomed and logged were looked up; -1: they were not
	careful   bool           // rows are looked at for collisions
	joins     bool           // merged tables come whole, to a node that has nothing of them
	keys      []wire.KeyHash // that the donor has, of a whole delta (wholedelta.go)
}

// doomed is the key of a row here that was deleted elsewhere.
type doomed struct {
	m       *mapping
	tuple   []wire.Value // the key's values
	version origin.Version
}

// resyncTries bounds how often a resync begins anew since a user has locked a row. Then it waits for the lock.
const resyncTries = 5

// resyncNames is where the names of a resync's statements begin, beyond the keeper's in the same session.
const resyncNames = 1 << 30

// Resync takes in the delta that stands in file; joins: merged tables are whole in it. Call it while the Applier runs and no transactions are fed to it; what it does
// is only known to an Applier that is opened anew.
func (a *Applier) Resync(ctx context.Context, file *os.File, joins bool) (*Resynced, error) {
	var got *Resynced
	j := keeperJob{done: make(chan error, 1), run: func(ctx context.Context) (err error) {
		got, err = a.resync(ctx, file, joins)
		return err
	}}
	select {
	case a.keeper.jobs <- j:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	select {
	case err := <-j.done:
		return got, err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// newResync makes one of a delta, in the keeper's session.
func (a *Applier) newResync(ctx context.Context, file *os.File) (*resync, error) {
	run, err := a.sideRun(ctx, a.keeper.conn)
	if err != nil {
		return nil, err
	}
	policy, err := conflict.ByName(a.opts.Policy)
	if err != nil {
		return nil, err
	}
	r := &resync{carefulRun: run, k: a.keeper, file: file, latest: map[wire.KeyHash]origin.Version{}, truncated: map[tableName]origin.Version{},
		looked: -1}
	w := r.worker
	w.id, w.policy, w.named = a.kept.back, policy, max(resyncNames, a.keeper.resyncNamed)
	w.locks = a.workers[0].locks
	w.wal, w.streams, w.owed, w.parked, w.pauses = a.keeper.wal, a.keeper.streams, a.owed, a.parked, a.pauses
	k := a.keeper
	w.beginStatement, w.commitStatement, w.xidStatement, w.unkeepStatement = k.beginStatement, k.commitStatement, k.xidStatement, k.unkeepStatement
	w.patientStatement = &statement{sql: "SET LOCAL lock_timeout = 0"}
	w.journalStatement = &statement{sql: journalSQL, types: journalTypes}
	w.journalBaseStatement = &statement{sql: baseSQL, types: baseTypes}
	w.payStatement = &statement{sql: paySQL, types: []uint32{oidInt8Array}}
	r.delta = true
	return r, nil
}

func (a *Applier) resync(ctx context.Context, file *os.File, joins bool) (*Resynced, error) {
	r, err := a.newResync(ctx, file)
	if err != nil {
		return nil, err
	}
	r.joins = joins
	if err := r.readAhead(); err != nil {
		return nil, err
	}
	if err := r.try(ctx); err != nil {
		return nil, err
	}
	return &Resynced{Seen: r.seen, Rows: r.rows, Deletes: uint64(len(r.doomed)), Conflicts: uint64(len(r.losses))}, nil
}

// records walks the delta.
func (r *resync) records(f func(wire.Record) error) error {
	in := bufio.NewReaderSize(io.NewSectionReader(r.file, 0, math.MaxInt64), 256<<10)
	var buf []byte
	ended := false
	for {
		rec, err := wire.ReadRecord(in, buf, maxRow)
		if err == io.EOF && ended {
			return nil
		}
		if err == io.EOF {
			err = fmt.Errorf("%w: delta has no end", wire.ErrCorrupt)
		}
		if err == nil && ended {
			err = fmt.Errorf("%w: record behind a delta's end", wire.ErrCorrupt)
		}
		if err != nil {
			return err
		}
		ended = rec.Kind == wire.KindEnd
		if err := f(rec); err != nil {
			return err
		}
		if buf = rec.Payload[:0]; cap(buf) > 1<<20 {
			buf = nil
		}
	}
}

// readAhead reads what must be known before the first row: the deletes, and what the donor had seen.
func (r *resync) readAhead() error {
	err := r.records(func(rec wire.Record) error {
		switch rec.Kind {
		case wire.KindInsert:
			r.rows++
		case wire.KindGone:
			g, err := wire.ParseGone(rec.Payload)
			if err != nil {
				return err
			}
			if g.Table != "" {
				n := tableName{g.Schema, g.Table}
				r.truncated[n] = latestOf(r.truncated[n], g.Version)
			}
			for _, k := range g.Keys {
				r.latest[k] = latestOf(r.latest[k], g.Version)
			}
			r.deletes = append(r.deletes, g)
		case wire.KindKeys:
			var err error
			r.keys, err = wire.ParseKeys(r.keys, rec.Payload)
			return err
		case wire.KindMade:
			m, err := wire.ParseMade(rec.Payload)
			r.theirs = append(r.theirs, m)
			return err
		case wire.KindEnd:
			seen, rows, err := wire.ParseEnd(rec.Payload)
			if err == nil && rows != r.rows {
				err = fmt.Errorf("%w: delta has %d rows and speaks of %d", wire.ErrCorrupt, r.rows, rows)
			}
			r.seen = seen
			return err
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("read delta: %w", err)
	}
	r.all = []*txn{{}, {Begin: wire.Begin{Stamp: r.seen.MaxStamp()}}} // whatever comes is not above the last
	for _, t := range r.all {
		t.up, t.low = r.seen, r.seen
	}
	r.t = r.all[0]
	return nil
}

// latestOf is the later of two versions; one of no origin is none.
func latestOf(a, b origin.Version) origin.Version {
	if a.Origin.Node == "" || b.Later(a) {
		return b
	}
	return a
}

// gone returns the latest delete of a key that the delta tells of.
func (r *resync) gone(n tableName, k wire.KeyHash) (v origin.Version, ok bool) {
	v = r.latest[k]
	if t, ok := r.truncated[n]; ok {
		v = latestOf(v, t)
	}
	return v, v.Origin.Node != ""
}

// findDoomed looks for the rows here that the delta's deletes are about. It has their keys' hashes only.
func (r *resync) findDoomed() error {
	if len(r.latest) == 0 && len(r.truncated) == 0 {
		return nil
	}
	names := map[tableName]bool{}
	err := r.eachRelation(func(rel *wire.Relation) error {
		names[tableName{rel.Schema, rel.Name}] = true
		return nil
	})
	if err != nil {
		return err
	}
	for n := range names {
		t, err := r.catalog.tableNow(r.ctx, n.schema, n.name)
		if err != nil {
			return err
		}
		m, err := r.selfMapping(t)
		if err != nil {
			return err
		}
		if t.merge != nil {
			continue
		}
		if err := r.findDoomedOf(m); err != nil {
			return fmt.Errorf("read keys of %s: %w", t.quoted, err)
		}
	}
	return nil
}

func (r *resync) findDoomedOf(m *mapping) error {
	resides, err := r.opts.residesSQL(r.opts.Node, m.local)
	if err != nil {
		return err
	}
	cols, formats := m.local.keyColumns()
	rows := r.conn.PgConn().ExecParams(r.ctx, "SELECT "+cols+" FROM "+m.local.rows+" t WHERE "+resides, nil, nil, nil, formats)
	for err == nil && rows.NextRow() {
		key := keyValues(rows.Values(), formats)
		var k wire.KeyHash
		if k, err = r.digests.Hash(r.ctx, m.local.hasher, key); err != nil {
			break
		}
		if v, ok := r.gone(m.name(), k); ok {
			d := doomed{m: m, tuple: make([]wire.Value, len(m.cols)), version: v}
			for n, i := range m.key {
				d.tuple[i] = wire.Value{Format: key[n].Format, Data: slices.Clone(key[n].Data)}
			}
			r.doomed = append(r.doomed, d)
		}
	}
	_, late := rows.Close()
	return cmp.Or(err, late)
}

// try runs attempts until one succeeds. Each time something has become known that was unknown, or a user's lock has gone.
func (r *resync) try(ctx context.Context) error {
	// Local deletes of any table that may be about to get rows become take-backs, which wait for their turn (R18). The next
	// Applier checks those in the database that capture has not read by then.
	var tables []tableName
	err := r.eachRelation(func(rel *wire.Relation) error {
		tables = append(tables, tableName{rel.Schema, rel.Name})
		return nil
	})
	if err != nil {
		return err
	}
	for _, n := range tables {
		defer r.kept.intend(n)()
	}
	return r.untilDone(ctx, r.attempt, r.waitAWhile)
}

// untilDone makes attempts until one succeeds, and waits in between.
func (r *resync) untilDone(ctx context.Context, attempt, wait func(context.Context) error) error {
	for tries := 0; ; tries++ {
		err := attempt(ctx)
		var pg *pgconn.PgError
		var history *historyError
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case tries >= carefulTries:
			return err
		case errors.Is(err, errUnknown):
		case hasCode(err, "55P03") && r.gaveWay < resyncTries:
			r.gaveWay++
			tries--
		case errors.As(err, &history) && r.bare == "" && !lost(err) && !passing(history.Code):
			r.bare = history.Message
			continue
		case hasCode(err, "23505", "23P01"):
			r.careful = true
		case errors.As(err, &pg) && !lost(err) && passing(pg.Code):
		default:
			return err
		}
		if err := wait(ctx); err != nil {
			return err
		}
	}
}

// ErrCaptureBehind means that a delta cannot be taken in before capture has come further.
var ErrCaptureBehind = errors.New("capture does not come along, as where the own stream is full")

// captureWait is how long a resync waits for capture. It may be that frames must be read for it to go on, and none are meanwhile.
const captureWait = 15 * time.Second

func (r *resync) waitAWhile(ctx context.Context) error {
	short, cancel := context.WithTimeout(ctx, captureWait)
	defer cancel()
	err := r.wait(short)
	if err != nil && short.Err() != nil && ctx.Err() == nil {
		return ErrCaptureBehind
	}
	return err
}

// attempt takes all of the delta in once. Unless it returns nil, nothing of it is left.
func (r *resync) attempt(ctx context.Context) (err error) {
	if err := r.planSchema(ctx); err != nil {
		return err
	}
	h := &held{whole: true} // in nobody's name: whoever holds keys excludes it
	if err := r.locks.lock(ctx, h); err != nil {
		return err
	}
	defer r.locks.release(h)
	done, err := r.kept.take(ctx)
	if err != nil {
		return err
	}
	defer done()
	c := r.carefulRun
	r.renew()
	c.push("begin", c.beginStatement, nil)
	own, err := r.makeSchema(ctx)
	defer own()
	if c.gaveWay == resyncTries {
		c.push("set time-out", c.patientStatement, nil)
	}
	if err == nil {
		err = r.announce(ctx)
	}
	if err == nil {
		err = r.look(ctx)
	}
	if err == nil {
		c.begun()
		err = r.changes(ctx)
	}
	if told := c.tell(); err == nil && len(told) > 0 {
		if err = c.flush(ctx); err == nil {
			err = c.markers.lose(ctx, r.seen[0], told)
		}
	}
	if err == nil {
		c.push("commit", c.commitStatement, nil)
		err = c.flush(ctx)
	}
	if err != nil {
		return errors.Join(err, c.rollBack(ctx, c.conn.PgConn().TxStatus()))
	}
	c.owed.drop(c.paid...)
	c.committed()
	c.kinds.add(c.losses)
	return nil
}

// announce writes the markers: behind the locks of a schema change, and before any row.
func (r *resync) announce(ctx context.Context) error {
	for _, e := range r.seen {
		if e.Origin != r.own {
			if err := r.markers.announced(ctx, e); err != nil {
				return err
			}
		}
	}
	return nil
}

// look finds what is here of the rows that the delta is about.
func (r *resync) look(ctx context.Context) error {
	if r.looked == r.generation && len(r.theirs) == 0 {
		return nil
	}
	r.doomed, r.looked = nil, r.generation
	if err := r.findDoomed(); err != nil {
		return err
	}
	if r.joins { // the journal is taken as it is
		return nil
	}
	return r.loggedRows(ctx)
}

// renew begins an attempt.
func (r *resync) renew() {
	c := r.carefulRun
	c.t, c.part, c.wrote = c.all[0], 0, map[wire.KeyHash]*txn{}
	c.keeps, c.touched, c.ownKept, c.wholly, c.onTheWay = map[wire.KeyHash]*keptRow{}, map[wire.KeyHash]struct{}{}, nil, nil, nil
	c.guarded = map[tableName]bool{}
	c.rows, c.unsure, c.queue = map[wire.KeyHash]*rowState{}, map[uint32]bool{}, c.queue[:0]
	c.lost, c.buried, c.losses, c.blind, c.beaten, c.told, c.swarm = keySet{}, keySet{}, c.losses[:0], false, lostRows{}, nil, swarm{}
	c.owes, c.paid = nil, nil
}

// windows returns what takes steps, window by window, and what takes those that are left.
func (r *resync) windows(ctx context.Context) (more func(step) error, rest func() error) {
	c := r.carefulRun
	var pending []step
	size := 0
	rest = func() error {
		err := c.steps(ctx, pending)
		clear(pending)
		pending, size = pending[:0], 0
		c.lost = keySet{} // each version of a key comes once
		if err == nil && !c.blind {
			err = c.flush(ctx)
		}
		return err
	}
	return func(s step) error {
		pending = append(pending, s)
		if size += pending[len(pending)-1].size(); len(pending) < windowChanges && size < windowBytes {
			return nil
		}
		return rest()
	}, rest
}

// changes does all that the delta says within the open transaction.
func (r *resync) changes(ctx context.Context) error {
	c := r.carefulRun
	more, steps := r.windows(ctx)
	if r.joins {
		if err := errors.Join(r.noneMerged(ctx), r.takeJournal(ctx)); err != nil {
			return err
		}
	}
	add := func(t *txn, m *mapping, ch *wire.Change) error {
		if r.joins && m.local.merge != nil {
			return r.takeMergedRow(ctx, m, ch)
		}
		r.watchFor(m)
		return more(copyStep(t, m, ch))
	}
	for _, d := range r.doomed {
		if err := add(r.writtenBy(d.version), d.m, &wire.Change{Kind: wire.KindDelete, Old: d.tuple}); err != nil {
			return err
		}
	}
	if err := r.eachRow(add); err != nil {
		return err
	}
	if err := r.eachLogged(more); err != nil {
		return err
	}
	if err := steps(); err != nil {
		return err
	}
	if c.blind {
		return errUnknown
	}
	r.forgetKept()
	if err := r.pushUnseen(ctx); err != nil {
		return err
	}
	if err := c.settleOwn(ctx); err != nil {
		return err
	}
	if err := c.recordLasting(); err != nil {
		return err
	}
	if err := c.pushDebts(); err != nil {
		return err
	}
	if err := r.pushVersions(ctx); err != nil {
		return err
	}
	if err := r.pushTombstones(ctx); err != nil {
		return err
	}
	return r.pushPositions(ctx)
}

// watchFor has a table's rows looked at for others that they collide with, if that may be needed.
func (r *resync) watchFor(m *mapping) {
	n := m.name()
	if _, ok := r.guarded[n]; !ok {
		r.guarded[n] = len(m.local.uniques) > 0 && (r.careful || m.local.unchecked || len(r.kept.of(n)) > 0)
	}
}

// writtenBy is a transaction that stands for all that bears a version.
func (r *resync) writtenBy(v origin.Version) *txn {
	if r.t != nil && r.t.version() == v {
		return r.t
	}
	return &txn{Begin: wire.Begin{Stamp: v.Stamp}, origin: v.Origin, up: r.seen, low: r.seen}
}

// eachRow calls f for the delta's rows, but for those that were deleted at the donor while capture had yet to read that (R19).
func (r *resync) eachRow(f func(*txn, *mapping, *wire.Change) error) error {
	relations := map[uint32]*wire.Relation{}
	var t *txn
	var ch wire.Change
	return r.records(func(rec wire.Record) error {
		switch rec.Kind {
		case wire.KindRelation:
			rel, err := wire.ParseRelation(rec.Payload)
			if err == nil {
				relations[rel.ID] = rel
			}
			return err
		case wire.KindWriter:
			v, err := wire.ParseWriter(rec.Payload)
			if err == nil && !r.seen.Covers(v.Origin, 1) {
				err = fmt.Errorf("%w: a row is of %s, of which the donor has seen nothing", wire.ErrCorrupt, v.Origin)
			}
			t = r.writtenBy(v)
			return err
		case wire.KindInsert:
			if err := ch.Parse(rec); err != nil {
				return err
			}
			if t == nil {
				return fmt.Errorf("%w: row of nobody", wire.ErrCorrupt)
			}
			rel := relations[ch.Relation]
			if rel != nil && r.lag.drops(rel) {
				return nil
			}
			m, err := r.mapping(rel, ch.Relation)
			if err != nil {
				return err
			}
			m.readable(&ch)
			if len(r.deletes) > 0 && m.local.merge == nil { // whose journal says whether a row outlives a later delete
				k, err := r.planner.hash(m, ch.New)
				if err != nil {
					return err
				}
				if v, ok := r.gone(m.name(), k); ok && v.Later(t.version()) {
					return nil
				}
			}
			return f(t, m, &ch)
		}
		return nil
	})
}

// forgetKept forgets the kept rows that were deleted elsewhere.
func (r *resync) forgetKept() {
	for _, e := range r.kept.all() {
		if v, ok := r.gone(e.table, e.key); ok && v.Later(e.version) && r.entry(e.key) == e {
			r.unkeep(e.key)
			r.touched[e.key] = struct{}{}
		}
	}
}

// versionRows is how many versions are written at once.
const versionRows = 5000

const versionsSQL = `INSERT INTO pgbridge.returned (at, lo, id, behind, seq) SELECT $1, v.* FROM unnest($2::int8[], $3::int4[], $4::int8[], $5::int8[]) v
	ON CONFLICT (at, lo) DO UPDATE SET id = EXCLUDED.id, behind = EXCLUDED.behind, seq = EXCLUDED.seq`

// pushVersions notes who wrote the rows, under which stamps: their commit bears one that is not below any of them.
func (r *resync) pushVersions(ctx context.Context) error {
	at := clampStamp(r.final().Stamp)
	keys := slices.SortedFunc(maps.Keys(r.wrote), func(a, b wire.KeyHash) int { return cmp.Compare(a.Lo, b.Lo) })
	s := &statement{sql: versionsSQL, types: []uint32{oidTimestamptz, oidInt8Array, oidInt4Array, oidInt8Array, oidInt8Array}}
	for part := range slices.Chunk(keys, versionRows) {
		var lo, id, behind, seq array
		for _, a := range []*array{&lo, &id, &behind, &seq} {
			a.reset()
		}
		long := func(a *array, v uint64) { a.add(binary.BigEndian.AppendUint64(nil, v), false) }
		for _, k := range part {
			t := r.wrote[k]
			number, ok := r.k.ids[t.origin]
			if !ok {
				return fmt.Errorf("a row was written by %s, which is not in topology.nodes here", t.origin)
			}
			long(&lo, k.Lo)
			id.add(binary.BigEndian.AppendUint32(nil, uint32(number)), false)
			long(&behind, uint64(at-t.Stamp))
			long(&seq, max(r.seen.Seq(t.origin), t.Seq))
		}
		r.push("note who wrote the rows", s, []param{int64Param(int64(at)), binaryParam(lo.value(oidInt8)), binaryParam(id.value(oidInt4)),
			binaryParam(behind.value(oidInt8)), binaryParam(seq.value(oidInt8))})
		if err := r.flush(ctx); err != nil {
			return err
		}
	}
	return nil
}

const resyncTombstoneSQL = `INSERT INTO pgbridge.tombstone (origin, epoch, seq, part, stamp, keys) VALUES ($1, $2, $3, $4, $5, $6)`

// pushTombstones keeps the deletes.
func (r *resync) pushTombstones(ctx context.Context) error {
	s := &statement{sql: resyncTombstoneSQL, types: []uint32{oidText, oidInt8, oidInt8, oidInt8, oidInt8, oidBytea}}
	type of struct {
		origin    origin.Origin
		seq       uint64
		truncated bool
	}
	parts := map[of]int64{}
	for _, g := range r.deletes {
		if g.Version.Origin == r.own && r.comeback == nil {
			continue // they stand in the own stream
		}
		name := of{g.Version.Origin, g.Seq, g.Table != ""}
		push := func(part int64, keys []byte) {
			parts[name]++
			r.push("write tombstones", s, []param{textParam(g.Version.Origin.Node), int64Param(int64(g.Version.Origin.Epoch)), int64Param(int64(g.Seq)),
				int64Param(part), int64Param(int64(g.Version.Stamp)), binaryParam(keys)})
		}
		if g.Table != "" {
			push(-1-parts[name], []byte(g.Schema+"\x00"+g.Table))
		}
		for keys := range slices.Chunk(g.Keys, tombstoneRow) {
			push(parts[name], packKeys(keys))
		}
		if len(r.queue) >= windowChanges {
			if err := r.flush(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

const resyncPositionSQL = `UPDATE pgbridge.position SET seq = greatest(seq, $1), stamp = CASE WHEN seq < $1 THEN $2 ELSE stamp END, stream_seq = CASE WHEN seq < $1 THEN 0 ELSE stream_seq END
	WHERE origin = $3 AND epoch = $4`

// pushPositions moves the positions to where the donor's were.
func (r *resync) pushPositions(ctx context.Context) error {
	r.pushSameSchema()
	s := &statement{sql: resyncPositionSQL, types: []uint32{oidInt8, oidInt8, oidText, oidInt8}}
	for _, e := range r.seen {
		if e.Origin == r.own {
			continue
		}
		if _, ok := r.k.ids[e.Origin]; !ok {
			return fmt.Errorf("the donor has seen transactions of %s, which is not in topology.nodes here", e.Origin)
		}
		r.push("move position", s, []param{int64Param(int64(e.Seq)), int64Param(int64(e.Stamp)), textParam(e.Origin.Node), int64Param(int64(e.Origin.Epoch))})
	}
	r.push("set stamp", r.k.stampStatement, []param{int64Param(int64(clampStamp(r.final().Stamp)))})
	return r.flush(ctx)
}

// all returns all kept rows.
func (q *quarantine) all() []*keptRow {
	q.mu.Lock()
	defer q.mu.Unlock()
	return slices.Collect(maps.Values(q.kept))
}
