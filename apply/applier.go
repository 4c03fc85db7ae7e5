package apply

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/pgbridge/pgbridge/conflict"
	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/rowkey"
	"github.com/pgbridge/pgbridge/wire"
)

// WAL answers what capture has read in the local WAL: the question that goes against the stream.
// Implementations are safe for concurrent use.
type WAL interface {
	// Passed is the LSN up to which everything has been read and told.
	Passed() uint64
	// WaitPassed waits until Passed reaches lsn.
	WaitPassed(ctx context.Context, lsn uint64) error
	// LocalStamp is the stamp of the captured local transaction with that commit time that wrote the
	// key last; the commit time itself if it was not lifted (PROOF.md R15).
	LocalStamp(commitTime origin.Stamp, key wire.KeyHash) origin.Stamp
	// Wrote reports whether a local transaction with that commit time was captured, of those that are
	// not stable yet (R15).
	Wrote(commitTime origin.Stamp) bool
	// Before reports whether one with that commit time and id, which Wrote does not know, has a seq of at most seq if it was captured: it
	// was stable when it was forgotten.
	Before(commitTime origin.Stamp, xid, seq uint64) bool
	// Captured is the seq of the last local transaction that has been read.
	Captured() uint64
	// Hasten has what is captured published without waiting for more.
	Hasten()
	// MarkFor is the xmin of the newest marker whose seq is at most seq (R11).
	MarkFor(seq uint64) (xid uint64, ok bool)
	// MarkWithin is the xmin of the newest marker up to which deps covers all that had been captured, and
	// all that had been announced of other origins but except (R28).
	MarkWithin(deps origin.Vector, except origin.Origin) (xid uint64, ok bool)
	// Vectors are up and low as markers that were read back say (R10).
	Vectors() (up, low origin.Vector)
	// RecentXIDs are the ids of captured transactions that may not be visible here yet (R14).
	RecentXIDs() []uint32
}

// Streams reads transactions back from the streams where they were published; they stay there until they are
// stable at every node. Implementations are safe for concurrent use.
type Streams interface {
	// Reread calls fn for frames of o's stream, in order, among which are all that hold a part of o's
	// transactions from seq after+1 to upTo. It waits for own ones that are not published yet. fn's error
	// ends it. ErrGap: some of them are gone.
	Reread(ctx context.Context, o origin.Origin, after, upTo uint64, fn func(f *wire.Frame) error) error
}

// Options configure an Applier. Zero values mean the defaults that are named.
type Options struct {
	DSN               string
	Cluster           string
	Node              string
	Peers             []string      // the other nodes' names
	SpoolDir          string        // for large transactions while they arrive; emptied at start
	Policy            string        // last_writer_wins
	BatchTransactions int           // at most in one network round trip; 256
	BatchBytes        int           // about so many in one network round trip; 1 MiB
	Rate              int64         // bytes of transactions that are applied in a second, of all origins together; 0 is no bound
	YieldAt           int           // sessions of users at work from which on apply works a part of the time only; 0: never
	InboxBytes        int64         // received and not applied, per origin; 16 MiB
	SpoolLimit        int64         // bytes of large transactions on disk, per origin; 10 GiB; negative: no bound
	MaxClockSkew      time.Duration // 1 minute; a transaction from further in the future waits
	ConflictRetention time.Duration // 30 days; negative: for ever
	ConflictRows      int           // kept at most, the newest; 1 000 000; negative: all
	ParkedLimit       int           // transactions parked at most, before their origins wait; 10 000
	// Merge says how concurrent writes become one row where that is not simply the later row; for a table the first counts
	// that is for it. Priority lists nodes whose writes come first under the rule of that name. Both must be the same on all
	// nodes.
	Merge    []MergePolicy
	Priority []string
	// Writers says who writes which tables. The same on all nodes.
	Writers Writers
	// Elsewhere tells of tables that are not on this node, though others have them: changes of theirs are left out. nil: there are none.
	Elsewhere func(schema, table string) bool
	// Rows says, of a table of which only some nodes have some rows, which ones have which; nil of others. nil: there are none. The same on
	// all nodes.
	Rows func(schema, table string) *wire.Places
	// Columns says which nodes have the values of columns that not all have. The same on all nodes.
	Columns ColumnPlaces
	// Open opens what is sealed in frames for those who have a table; nil: nothing is.
	Open *wire.Opener
	// ForeignKeys says what becomes of orphans; for a foreign key the first counts that is for it. The same on all nodes.
	ForeignKeys []ForeignKeyPolicy
	// Chosen, Excluded and Merged are regular expressions over a table's schema and name, one a line: which tables are
	// replicated, and which of them merged. pgbridge.ddl reads them in the database.
	Chosen, Excluded, Merged string
	Now                      func() time.Time // time.Now
	Logger                   *slog.Logger     // slog.Default
	// Running says that apply goes on after an interruption: a policy in Merge that does not fit a table any more keeps
	// nothing from that.
	Running bool
	// NoHold switches the causal hold off, so that a test can show what it is for.
	NoHold bool

	// FirstXID is read from the database: local rows of older transactions were never captured.
	FirstXID uint64
	openXID  uint64 // the database's next transaction id when the Applier was opened
	localXID uint64 // Node.LocalXID
}

func (o Options) withDefaults() Options {
	set := func(v *int, def int) {
		if *v == 0 {
			*v = def
		}
	}
	set(&o.BatchTransactions, 256)
	set(&o.BatchBytes, 1<<20)
	if o.InboxBytes == 0 {
		o.InboxBytes = 16 << 20
	}
	if o.SpoolLimit == 0 {
		o.SpoolLimit = 10 << 30
	}
	if o.MaxClockSkew == 0 {
		o.MaxClockSkew = time.Minute
	}
	if o.ConflictRetention == 0 {
		o.ConflictRetention = 30 * 24 * time.Hour
	}
	set(&o.ConflictRows, 1_000_000)
	set(&o.ParkedLimit, 10_000)
	if o.Policy == "" {
		o.Policy = "last_writer_wins"
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	return o
}

// Applier applies the other nodes' transactions to one database. Open makes it, Run runs it; its other
// methods are safe for concurrent use while it runs.
type Applier struct {
	opts     Options
	nodeMu   sync.Mutex // guards node once Open is through
	numbered bool       // rows that were written again have their seq; the sweeper's
	node     *Node
	own      origin.Origin
	version  int
	progress *progress
	markers  *markers
	absence  *absence
	heard    *hearsay
	parked   *parked
	pauses   *pauses
	kinds    tally
	clocks   clocks
	pace     *pace
	yields   *yields
	workers  []*worker
	takes    *takebacks
	journal  *journal // nil if no table is merged
	kept     *quarantine
	keeper   *keeper
	mender   *mender // nil if no foreign key has a policy
	owed     *owed
	resends  *resender
	start    origin.Vector // applied before this start
	gone     letGone
	goneNode map[string]GoneNode // by name; never changed
	schema   *schemaChanges
	wal      atomic.Pointer[WAL]
	catalog  *catalog
	limits   atomic.Pointer[Limits]
	conns    []*pgx.Conn
}

// ErrFenced means that another bridge works for this node. Do not restart this one.
var ErrFenced = fencedError{}

type fencedError struct{}

func (fencedError) Error() string {
	return "another pgbridge already runs for this node on this database; stop it, or give this one a name and a database of its own"
}

// ExitCode is the command's exit code for this error.
func (fencedError) ExitCode() int { return 4 }

// Open connects to the database, takes the node's lock, raises its writer epoch and reads the positions.
// It waits for the connections of an earlier bridge to go away. Errors: ErrNotSetUp, ErrFenced, and those
// of PostgreSQL with the mend.
func Open(ctx context.Context, opts Options) (_ *Applier, err error) {
	a := &Applier{opts: opts.withDefaults(), progress: newProgress(), absence: newAbsence(), kept: newQuarantine()}
	a.owed = newOwed(a.progress)
	a.limits.Store(&Limits{a.opts.Rate, a.opts.YieldAt, a.opts.ConflictRetention, a.opts.ConflictRows})
	defer func() {
		if err != nil {
			a.close()
		}
	}()
	a.absence.merged = func(n tableName) bool { return a.opts.merges(n.schema, n.name) }
	policy, err := conflict.ByName(a.opts.Policy)
	if err != nil {
		return nil, err
	}
	if err := a.openMarkers(ctx); err != nil {
		return nil, err
	}
	a.own = origin.Origin{Node: a.node.Name, Epoch: a.node.Epoch}
	a.opts.FirstXID, a.opts.localXID = a.node.FirstXID, a.node.LocalXID
	if err := os.MkdirAll(a.opts.SpoolDir, 0o700); err != nil {
		return nil, fmt.Errorf("spool directory: %w; make data_dir writable", err)
	}
	if err := clearSpool(a.opts.SpoolDir); err != nil {
		return nil, err
	}
	conn, err := a.connect(ctx, "catalog", map[string]string{"enable_seqscan": "on", "enable_hashjoin": "on"})
	if err != nil {
		return nil, err
	}
	a.catalog = &catalog{conn: conn, types: map[uint32]*pgType{}, merges: a.opts.Merge, priority: a.opts.Priority, foreign: a.opts.ForeignKeys, node: a.opts.Node, columns: &a.opts.Columns}
	if err := a.openSchema(ctx); err != nil {
		return nil, err
	}
	ids, err := a.origins(ctx)
	if err != nil {
		return nil, err
	}
	if err := a.loadGoneNodes(ctx); err != nil {
		return nil, err
	}
	if err := a.openQuarantine(ctx); err != nil {
		return nil, err
	}
	locks := newKeyLocks(len(ids.origins))
	locks.alone = locks.alone && len(a.opts.Merge) == 0 // the journal excludes, too
	a.heard = newHearsay(a.own, a.waitedFor(ids.origins))
	a.pauses, a.pace, a.yields = newPauses(), newPace(a.opts.Rate), newYields(a.opts.YieldAt)
	a.clocks.by = map[string]Clock{}
	if err := a.loadPauses(ctx); err != nil {
		return nil, err
	}
	a.parked = newParked(&a.opts, a.progress, a.heard, ids.origins)
	for i := range ids.origins {
		w, err := a.openWorker(ctx, ids, i, policy, locks)
		if err != nil {
			return nil, err
		}
		a.workers = append(a.workers, w)
	}
	if err := a.openTakebacks(ctx, ids); err != nil {
		return nil, err
	}
	if err := a.openJournal(ctx, ids, locks); err != nil {
		return nil, err
	}
	if err := a.loadParked(ctx); err != nil {
		return nil, err
	}
	if err := a.loadOwed(ctx); err != nil {
		return nil, err
	}
	if err := a.openKeeper(ctx, ids); err != nil {
		return nil, err
	}
	a.openResender()
	a.openMender()
	a.start = a.progress.vector()
	if err := a.loadTombstones(ctx); err != nil {
		return nil, err
	}
	return a, a.loadLetGo(ctx)
}

func (a *Applier) connect(ctx context.Context, what string, settings map[string]string) (*pgx.Conn, error) {
	conn, err := connect(ctx, a.opts.DSN, fmt.Sprintf("pgbridge %s %s", a.opts.Node, what), settings)
	if err == nil {
		a.conns = append(a.conns, conn)
	}
	return conn, err
}

// raiseSQL raises the writer epoch. A standby that has taken over may lack what was committed last, so that bridges have had
// higher ones than it says: one for each start since the last commit that it has.
const raiseSQL = `
UPDATE pgbridge.node n SET writer_epoch = n.writer_epoch + CASE WHEN n.timeline IN (0, now.timeline) THEN 1 ELSE 1000 END, timeline = now.timeline
FROM (SELECT ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int AS timeline) now
RETURNING n.writer_epoch, n.timeline`

// openMarkers opens the session that has no replication origin. It also holds the node's lock, so that
// the lock goes when the bridge does.
func (a *Applier) openMarkers(ctx context.Context) error {
	conn, err := a.connect(ctx, "markers", map[string]string{"synchronous_commit": "local"})
	if err != nil {
		return err
	}
	if a.node, err = readNode(ctx, conn); err != nil {
		return err
	}
	if err := a.node.is(a.opts.Cluster, a.opts.Node); err != nil {
		return err
	}
	if err := lockNode(ctx, conn); err != nil {
		return err
	}
	var epoch int64
	if err := conn.QueryRow(ctx, raiseSQL).Scan(&epoch, &a.node.Timeline); err != nil {
		if hasCode(err, "42703") { // a version before this one has set it up
			err = ErrNotSetUp
		}
		return fmt.Errorf("raise writer epoch: %w", explain(err))
	}
	a.node.WriterEpoch = uint64(epoch)
	var version int
	var next int64
	if err := conn.QueryRow(ctx, `SELECT current_setting('server_version_num')::int, pg_snapshot_xmax(pg_current_snapshot())::text::int8`).
		Scan(&version, &next); err != nil {
		return fmt.Errorf("read server version: %w", err)
	}
	a.version, a.opts.openXID = version, uint64(next)
	a.markers = newMarkers(conn, version, a.progress)
	return nil
}

// lockPatience is how long a starting bridge waits for the sessions of one that has just gone.
const lockPatience = 20 * time.Second

func lockNode(ctx context.Context, conn *pgx.Conn) error {
	return patiently(ctx, ErrFenced, func() (bool, error) {
		var ok bool
		err := conn.QueryRow(ctx, `SELECT pg_try_advisory_lock('pgbridge.node'::regclass::int, 0)`).Scan(&ok)
		return ok, err
	})
}

// patiently tries f until it is done; when patience ends, it returns late.
func patiently(ctx context.Context, late error, f func() (bool, error)) error {
	end := time.After(lockPatience)
	for {
		ok, err := f()
		if ok || err != nil {
			return err
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-end:
			return late
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// remotes are the other origins with the ids of their replication origins here.
type remotes struct {
	origins []origin.Origin
	ids     []uint32
	own     uint32 // of the bridge's own replication origin
}

func (a *Applier) origins(ctx context.Context) (*remotes, error) {
	r := &remotes{}
	rows, err := a.catalog.conn.Query(ctx, `SELECT id, origin, epoch FROM pgbridge.position ORDER BY origin, epoch`)
	if err != nil {
		return nil, fmt.Errorf("read positions: %w", explain(err))
	}
	var id, epoch int64
	var name string
	if _, err := pgx.ForEachRow(rows, []any{&id, &name, &epoch}, func() error {
		r.origins = append(r.origins, origin.Origin{Node: name, Epoch: uint32(epoch)})
		r.ids = append(r.ids, uint32(id))
		return nil
	}); err != nil {
		return nil, fmt.Errorf("read positions: %w", err)
	}
	for _, p := range a.opts.Peers {
		if !slices.ContainsFunc(r.origins, func(o origin.Origin) bool { return o.Node == p }) {
			return nil, fmt.Errorf("node %s of topology.nodes: %w", p, ErrNotSetUp)
		}
	}
	err = a.catalog.conn.QueryRow(ctx, `SELECT roident FROM pg_replication_origin WHERE roname = $1`,
		ownOriginName(a.opts.Cluster, a.opts.Node)).Scan(&r.own)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, ErrNotSetUp
	}
	return r, err
}

func (a *Applier) openTakebacks(ctx context.Context, ids *remotes) error {
	conn, err := a.connect(ctx, "take-back", nil) // what it did is flushed by a marker
	if err != nil {
		return err
	}
	if err := setOrigin(ctx, conn, ownOriginName(a.opts.Cluster, a.opts.Node)); err != nil {
		return err
	}
	a.takes = &takebacks{conn: conn, own: a.own, ids: ids.ids, origins: ids.origins, catalog: a.catalog, digests: rowkey.NewDigests(a.catalog.ask),
		absence: a.absence, progress: a.progress, markers: a.markers, kept: a.kept,
		failed: func(err error) { a.opts.Logger.Warn("take-back waits", "err", err.Error()) }}
	return nil
}

// loadTombstones reads back the deletes of applied transactions. Those of local ones come from the own
// stream, through LocalDelete.
func (a *Applier) loadTombstones(ctx context.Context) error {
	rows, err := a.catalog.conn.Query(ctx, `SELECT origin, epoch, seq, part, stamp, keys FROM pgbridge.tombstone`)
	if err != nil {
		return fmt.Errorf("read tombstones: %w", err)
	}
	var name string
	var epoch, seq, part, stamp int64
	var keys []byte
	_, err = pgx.ForEachRow(rows, []any{&name, &epoch, &seq, &part, &stamp, &keys}, func() error {
		t := tombstone{origin.Version{Stamp: origin.Stamp(stamp), Origin: origin.Origin{Node: name, Epoch: uint32(epoch)}}, uint64(seq)}
		if part >= 0 {
			a.absence.bury(t, unpackKeys(keys))
			return nil
		}
		schema, table, _ := cutName(keys)
		a.absence.truncate(t, tableName{schema, table})
		return nil
	})
	if err != nil {
		return fmt.Errorf("read tombstones: %w", err)
	}
	return nil
}

// Node returns the node's own row, with the writer epoch that this applier has raised.
func (a *Applier) Node() Node {
	a.nodeMu.Lock()
	defer a.nodeMu.Unlock()
	return *a.node
}

// CheckDeletesFrom says where the slot is confirmed: the take-backs of later local deletes may not have
// been flushed by an earlier bridge, so they are checked in the database (PROOF.md R20). Call it before
// capture reports anything.
func (a *Applier) CheckDeletesFrom(ctx context.Context, confirmed uint64) error {
	a.catalog.mu.Lock()
	defer a.catalog.mu.Unlock()
	var now int64
	if err := a.catalog.conn.QueryRow(ctx, `SELECT (pg_current_wal_insert_lsn() - '0/0')::int8`).Scan(&now); err != nil {
		return fmt.Errorf("read WAL position: %w", err)
	}
	a.absence.mu.Lock()
	defer a.absence.mu.Unlock()
	a.absence.confirmed, a.absence.rescan = confirmed, uint64(now)
	return nil
}

// LocalDelete is told by capture, in WAL order, that a local transaction of version v deleted a key.
func (a *Applier) LocalDelete(schema, table string, key []wire.Value, hash wire.KeyHash, v origin.Version, seq, commitLSN uint64) {
	a.absence.deleted(tableName{schema, table}, key, hash, tombstone{v, seq}, commitLSN, a.startPassed())
}

// startPassed reports whether capture had, at the delete that it tells of, passed the commits of all that
// was applied before this start: then the registry of the bridge's earlier life is not missed.
func (a *Applier) startPassed() bool {
	wal := a.wal.Load()
	if wal == nil {
		return false
	}
	_, low := (*wal).Vectors()
	return low.Includes(a.start)
}

// LocalTruncate is LocalDelete for everything in a table.
func (a *Applier) LocalTruncate(schema, table string, v origin.Version, seq, commitLSN uint64) {
	a.absence.truncatedHere(tableName{schema, table}, tombstone{v, seq}, commitLSN, a.startPassed())
}

// HoldLSN is the lowest commit LSN of a local delete whose take-back is not flushed, 0 if there is none:
// the slot must not be confirmed at or beyond it.
func (a *Applier) HoldLSN() uint64 { return a.absence.holdLSN() }

// Told returns how much of low, which capture has read, may be told other nodes, that have been told before.
func (a *Applier) Told(before, low origin.Vector) origin.Vector { return a.absence.told(before, low) }

// Flush returns when all that was applied before is on this server's disk, with the LSN that it is below.
func (a *Applier) Flush(ctx context.Context) (uint64, error) { return a.markers.flush(ctx) }

// Run applies until ctx ends or the database is lost. It closes all connections.
func (a *Applier) Run(ctx context.Context, wal WAL, streams Streams) error {
	defer a.close()
	a.keeper.wal, a.keeper.streams, a.resends.wal = wal, streams, wal
	a.wal.Store(&wal)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return a.markers.run(ctx, wal) })
	g.Go(func() error { return a.takes.run(ctx) })
	g.Go(func() error { return a.sweep(ctx, wal) })
	g.Go(func() error { return a.keeper.work(ctx) })
	if a.journal != nil {
		a.journal.wal, a.journal.streams = wal, streams
		g.Go(func() error { return a.journal.run(ctx) })
	}
	if a.mender != nil {
		g.Go(func() error { return a.mender.run(ctx) })
	}
	g.Go(func() error { return a.watchParked(ctx) })
	g.Go(func() error { return a.watchPauses(ctx) })
	g.Go(func() error { return a.watchUsers(ctx) })
	g.Go(func() error { return a.resends.run(ctx) })
	for _, w := range a.workers {
		w.wal, w.streams = wal, streams
		g.Go(func() error { return w.run(ctx) })
	}
	return g.Wait()
}

// Close gives up an Applier that was opened and is not run.
func (a *Applier) Close() { a.close() }

func (a *Applier) close() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if a.catalog != nil { // readers and retention may be asking it
		a.catalog.mu.Lock()
		defer a.catalog.mu.Unlock()
	}
	for _, c := range a.conns {
		c.Close(ctx)
	}
}
