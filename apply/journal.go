package apply

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgbridge/pgbridge/conflict"
	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

// journal keeps the writes of merged tables that not every node has seen yet: those of other nodes are put there with
// the rows themselves (mergerun.go), those of this node's users by run, out of the frames that are published. So whatever
// is in the journal is what the other nodes get to see, too.
//
// A row's journal goes when all nodes have seen all of its writes (PROOF.md R22). Of a row that is written without a
// pause, the older writes are folded into its base.
type journal struct {
	conn     *pgx.Conn
	own      origin.Origin
	origins  map[int32]origin.Origin // by id, as the journal names them; 0 is own
	catalog  *catalog
	heard    *hearsay
	absence  *absence
	progress *progress
	locks    *keyLocks
	opts     *Options
	log      *slog.Logger
	wal      WAL
	streams  Streams
	policy   string
	fresh    bool // it was emptied, and begin has to find out from where on it is kept

	mu      sync.Mutex
	done    origin.Entry  // own transactions up to here are in the journal
	changed chan struct{} // closed and replaced when done grows

	frames  chan *wire.Frame // published, in order
	purging chan struct{}    // of capacity 1: who has it lets writes go, or keeps others from it

	// Of the goroutine that runs:
	inbox    *inbox
	mappings ownMappings
	writes   []journaled
	bases    []journalBase
	key      []wire.Value
	// wiped are the TRUNCATEs that all nodes have seen, with what had been applied here by then.
	wiped map[wiped]origin.Vector
}

const (
	journalFrames = 16  // that wait; capture waits, too, when there are more
	journalBatch  = 500 // writes in one statement
	// foldFrom is how many writes a row's journal holds before the older ones are folded.
	foldFrom  = 64
	purgeKeys = 2000 // rows whose journal goes in one transaction
)

// openJournal reads how far the journal has come, and begins a new one if the policies have changed: the writes so far
// count as seen then.
func (a *Applier) openJournal(ctx context.Context, ids *remotes, locks *keyLocks) error {
	if len(a.opts.Merge) == 0 {
		return nil
	}
	if !a.opts.Running {
		if err := a.checkMerges(ctx); err != nil {
			return err
		}
	}
	conn, err := a.connect(ctx, "journal", map[string]string{"enable_seqscan": "on", "enable_hashjoin": "on"})
	if err != nil {
		return err
	}
	j := &journal{
		conn: conn, own: a.own, origins: map[int32]origin.Origin{0: a.own}, catalog: a.catalog, heard: a.heard, absence: a.absence, progress: a.progress, locks: locks,
		wiped: map[wiped]origin.Vector{}, opts: &a.opts,
		log: a.opts.Logger, policy: fingerprint(a.opts.Merge, a.opts.Priority, a.opts.Columns.Setting), changed: make(chan struct{}), frames: make(chan *wire.Frame, journalFrames), purging: make(chan struct{}, 1),
		mappings: ownMappings{}, done: origin.Entry{Origin: a.own},
	}
	for i, id := range ids.ids {
		j.origins[int32(id)] = ids.origins[i]
	}
	var seq, stamp int64
	var policy string
	if err := conn.QueryRow(ctx, `SELECT seq, stamp, policy FROM pgbridge.journal_state`).Scan(&seq, &stamp, &policy); err != nil {
		if hasCode(err, "42P01") || errors.Is(err, pgx.ErrNoRows) {
			err = ErrNotSetUp
		}
		return fmt.Errorf("read journal: %w", explain(err))
	}
	if policy != j.policy {
		j.log.Info("merge policies are new: the journal begins anew")
		seq = notBegun
		if err := j.commit(ctx, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, `TRUNCATE pgbridge.journal, pgbridge.journal_base`); err != nil {
				return err
			}
			_, err := tx.Exec(ctx, `UPDATE pgbridge.journal_state SET seq = $1, stamp = 0, policy = $2`, int64(notBegun), j.policy)
			return err
		}); err != nil {
			return err
		}
	}
	if seq == notBegun {
		seq, j.fresh = 0, true
	}
	j.done.Seq, j.done.Stamp = uint64(seq), origin.Stamp(stamp)
	a.journal, a.takes.journal = j, j
	for _, w := range a.workers {
		w.journal = j
	}
	return nil
}

// notBegun stands for the seq from which on own writes are kept, as long as it is not known.
const notBegun = -1

// begin finds out from where on a new journal keeps own writes.
func (j *journal) begin(ctx context.Context) error {
	if !j.fresh {
		return nil
	}
	seq := j.wal.Captured()
	if _, err := j.conn.Exec(ctx, `UPDATE pgbridge.journal_state SET seq = $1`, int64(seq)); err != nil {
		return fmt.Errorf("begin journal: %w", err)
	}
	j.advance(origin.Entry{Origin: j.own, Seq: seq})
	return nil
}

// commit runs f in a transaction of its own.
func (j *journal) commit(ctx context.Context, f func(tx pgx.Tx) error) error {
	if err := pgx.BeginFunc(ctx, j.conn, f); err != nil {
		return fmt.Errorf("write journal: %w", err)
	}
	return nil
}

// run puts own writes into the journal and forgets what every node has seen.
func (j *journal) run(ctx context.Context) error {
	if err := j.begin(ctx); err != nil {
		return err
	}
	// What an earlier life has published is waited for, too, though nothing new may come.
	if err := j.catchUp(ctx, j.wal.Captured()); err != nil {
		return err
	}
	j.inbox = newInbox(j.own, j.opts, j.upTo())
	defer j.inbox.restart()
	purge := time.NewTicker(purgeEvery)
	defer purge.Stop()
	for {
		var err error
		select {
		case f := <-j.frames:
			err = j.take(ctx, f)
		case <-purge.C:
			select {
			case j.purging <- struct{}{}:
				err = j.purge(ctx)
				<-j.purging
			default: // a delta reads it
			}
		case <-ctx.Done():
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			return err
		}
	}
}

// take takes in a frame that was just published.
func (j *journal) take(ctx context.Context, f *wire.Frame) error {
	if f.FirstSeq > 0 {
		if err := j.catchUp(ctx, f.FirstSeq-1); err != nil {
			return err
		}
	}
	return j.open(ctx, j.inbox, f)
}

// catchUp reads own transactions up to one from the stream, if they are not in the journal. The broker may be away.
func (j *journal) catchUp(ctx context.Context, upTo uint64) error {
	for j.upTo() < upTo {
		err := j.read(ctx, upTo)
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case j.conn.IsClosed():
			return err
		}
		j.log.Warn("own writes are not in the journal yet", "err", err.Error())
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// offer hands over a frame that was published. It waits while the journal is behind; frame and body may be used again when
// it returns.
func (j *journal) offer(ctx context.Context, f *wire.Frame) {
	c := *f
	c.Body = slices.Clone(f.Body)
	select {
	case j.frames <- &c:
	case <-ctx.Done():
	}
}

// reached reports whether own transactions with stamps up to s are in the journal.
func (j *journal) reached(s origin.Stamp) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return s <= j.done.Stamp
}

// upTo is the seq of the last own transaction in the journal.
func (j *journal) upTo() uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.done.Seq
}

// wait returns when own transactions up to seq are in the journal.
func (j *journal) wait(ctx context.Context, seq uint64) error {
	for {
		j.mu.Lock()
		done, changed := j.done.Seq, j.changed
		j.mu.Unlock()
		if done >= seq {
			return nil
		}
		j.wal.Hasten()
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (j *journal) advance(e origin.Entry) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if e.Seq > j.done.Seq {
		j.done = e
		close(j.changed)
		j.changed = make(chan struct{})
	}
}

// read takes in own transactions up to one that is in the stream. Those that are gone from it every node has seen.
func (j *journal) read(ctx context.Context, upTo uint64) error {
	b := newInbox(j.own, j.opts, j.upTo())
	defer b.restart()
	return j.streams.Reread(ctx, j.own, j.upTo(), upTo, func(f *wire.Frame) error {
		if err := j.open(ctx, b, f); err != nil {
			return err
		}
		j.advance(origin.Entry{Origin: j.own, Seq: f.LastSeq, Stamp: f.LastStamp})
		return nil
	})
}

// open takes a frame apart and its transactions in.
func (j *journal) open(ctx context.Context, b *inbox, f *wire.Frame) error {
	txns, err := b.open(0, f)
	if err == nil {
		err = j.frame(ctx, txns)
	}
	for _, t := range txns {
		if t.run != nil {
			t.run.remove()
		}
	}
	return err
}

// frame puts the transactions of a frame into the journal, all or none.
func (j *journal) frame(ctx context.Context, txns []*txn) error {
	txns = slices.DeleteFunc(slices.Clone(txns), func(t *txn) bool { return t.vectorOnly || t.Seq <= j.upTo() })
	if len(txns) == 0 {
		return nil
	}
	last := txns[len(txns)-1].entry()
	if !slices.ContainsFunc(txns, j.opts.mayMerge) { // after a restart they are looked at again, in vain
		j.advance(last)
		return nil
	}
	j.writes, j.bases = j.writes[:0], j.bases[:0]
	err := j.commit(ctx, func(tx pgx.Tx) error {
		for _, t := range txns {
			if err := j.txn(ctx, t); err != nil {
				return err
			}
		}
		if err := j.flush(ctx); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `UPDATE pgbridge.journal_state SET seq = $1, stamp = $2`, int64(last.Seq), int64(last.Stamp))
		return err
	})
	if err == nil {
		j.advance(last)
	}
	return err
}

// txn collects the writes of one own transaction.
func (j *journal) txn(ctx context.Context, t *txn) error {
	changes, err := newChanges(t)
	if err != nil {
		return err
	}
	part := conflict.Part(0)
	return eachChange(changes, func(rec wire.Record, rels []*wire.Relation, ch *wire.Change) error {
		for _, rel := range rels {
			m, err := j.mapping(ctx, rel)
			if err != nil {
				return err
			}
			if m == nil {
				continue
			}
			if rec.Kind == wire.KindTruncate {
				part++
				j.writes = append(j.writes, journaled{key: wholeTable(m.local), write: t.logged(rec.Kind, part, nil), low: t.low, local: m.local})
				continue
			}
			m.readable(ch)
			rows, err := m.rowWrites(ch, j.hash)
			if err != nil {
				return err
			}
			for _, r := range rows {
				part++
				j.writes = append(j.writes, journaled{key: r.key, write: t.logged(r.kind, part, r.ops), low: t.low, image: m.local.keeps(r.new), local: m.local})
				j.bases = append(j.bases, journalBase{key: r.key, local: m.local, cells: r.old})
			}
		}
		if len(j.writes) < journalBatch {
			return nil
		}
		return j.flush(ctx)
	})
}

// mapping returns how an own relation fits its table if that is merged, else nil.
func (j *journal) mapping(ctx context.Context, r *wire.Relation) (*mapping, error) {
	if !j.opts.merges(r.Schema, r.Name) {
		return nil, nil
	}
	m, err := j.mappings.of(ctx, j.catalog.table, r)
	if isBlocked(err) {
		return nil, nil // dropped since, or not to be merged: whoever applies says so
	}
	return m, err
}

func (j *journal) hash(m *mapping, tuple []wire.Value) (wire.KeyHash, error) {
	var err error
	j.key, err = m.keyOf(j.key, tuple)
	return m.local.hasher.Hash(j.key, nil), err
}

// flush writes what was collected. A row's base comes first: the first that is given stays, with the exception of ownBaseSQL.
func (j *journal) flush(ctx context.Context) error {
	seen := map[wire.KeyHash]bool{}
	j.bases = slices.DeleteFunc(j.bases, func(b journalBase) bool {
		again := seen[b.key]
		seen[b.key] = true
		return again
	})
	if len(j.bases) > 0 {
		if err := j.exec(ctx, ownBaseSQL, baseTypes, baseParams(j.bases)); err != nil {
			return err
		}
	}
	if len(j.writes) > 0 {
		if err := j.exec(ctx, journalSQL, journalTypes, journalParams(j.writes)); err != nil {
			return err
		}
	}
	j.writes, j.bases = j.writes[:0], j.bases[:0]
	return nil
}

func (j *journal) exec(ctx context.Context, sql string, types []uint32, ps []param) error {
	values, formats := raw(ps)
	return j.conn.PgConn().ExecParams(ctx, sql, values, types, formats, nil).Read().Err
}

// id is what the journal calls an origin.
func (j *journal) id(o origin.Origin) int32 {
	for id, other := range j.origins {
		if other == o {
			return id
		}
	}
	return -1 // no origin whose transactions are here
}
