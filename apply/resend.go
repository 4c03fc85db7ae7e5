package apply

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/rowkey"
	"github.com/pgbridge/pgbridge/wire"
)

// resender asks other nodes for the rows that they owe this one (owed.go), and writes rows again that others ask for. Its
// session has no replication origin, so that what it writes is captured as any local transaction, and fires no triggers.
type resender struct {
	opts    *Options
	conn    *pgx.Conn // nil: not needed yet
	own     origin.Origin
	log     *slog.Logger
	owed    *owed
	absence *absence
	wal     WAL // nil until run
	digests *rowkey.Digests
	catalog *catalog
	workers []*worker
	keep    func(rows []*owedRow) // out of their tables: keeper.setAside

	mu    sync.Mutex
	asked []askedRow
	have  map[askedID]bool // which ones stand in asked, or are being written
	said  map[askedID]bool // of which it was said that the row is kept out of the table
	woke  chan struct{}    // of capacity 1: asked has grown
	told  string           // what was logged last of a request that waits
}

// askedRow is a row that another node asks for.
type askedRow struct {
	by origin.Origin
	*wire.Ask
}

// askedID names a request.
type askedID struct {
	by origin.Origin
	id int64
}

func (r *askedRow) id() askedID { return askedID{r.by, r.ID} }

const (
	// askAgain is how often requests are repeated: whoever was asked may have been killed before it could answer.
	askAgain = 30 * time.Second
	// askedLimit bounds the requests that wait here. Whoever made one that was not taken repeats it.
	askedLimit = 10_000
	// answersAtOnce bounds the requests that one write to the WAL answers.
	answersAtOnce = 64
	// resendAgain is how soon a row is tried again that could not be written.
	resendAgain = 200 * time.Millisecond
)

func newResender(own origin.Origin, o *owed) *resender {
	return &resender{own: own, owed: o, have: map[askedID]bool{}, said: map[askedID]bool{}, woke: make(chan struct{}, 1)}
}

func (a *Applier) openResender() {
	d := newResender(a.own, a.owed)
	d.opts, d.log, d.absence, d.catalog, d.workers = &a.opts, a.opts.Logger, a.absence, a.catalog, a.workers
	d.digests, d.keep = rowkey.NewDigests(a.catalog.ask), a.keeper.setAside
	a.resends = d
	for _, w := range a.workers {
		w.inbox.resends = d
	}
}

// open opens the session: most nodes never need it.
func (d *resender) open(ctx context.Context) error {
	if d.conn != nil {
		return nil
	}
	conn, err := connect(ctx, d.opts.DSN, fmt.Sprintf("pgbridge %s rows again", d.opts.Node), nil)
	if err != nil {
		return err
	}
	d.conn = conn
	if _, err := conn.Exec(ctx, giveWaySQL); err != nil { // whoever holds a row that is asked for does not hold up all others
		return fmt.Errorf("set lock_timeout: %w", err)
	}
	return nil
}

// hearAsk takes in a request of another node.
func (d *resender) hearAsk(by origin.Origin, payload []byte) error {
	ask, err := wire.ParseAsk(payload)
	if err != nil || ask.Of != d.own {
		return err
	}
	r := askedRow{by, ask}
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.said, r.id()) // who asks again has started anew, it may be
	if len(d.asked) >= askedLimit || d.have[r.id()] {
		return nil
	}
	d.have[r.id()] = true
	d.asked = append(d.asked, r)
	select {
	case d.woke <- struct{}{}:
	default:
	}
	return nil
}

// hearAnswer takes in another node's answer; need is what stands in its stream up to there.
func (d *resender) hearAnswer(payload []byte, need origin.Vector) error {
	answer, err := wire.ParseAnswer(payload)
	switch {
	case err != nil || answer.To != d.own:
	case answer.Kept:
		d.owed.isKept(answer.ID, need)
	default:
		d.owed.answer(answer.ID, need)
	}
	return err
}

// run works until ctx ends or the connection is lost.
func (d *resender) run(ctx context.Context) error {
	defer func() {
		if d.conn != nil {
			d.conn.Close(context.WithoutCancel(ctx))
		}
	}()
	tick := time.NewTicker(askAgain)
	defer tick.Stop()
	again := false
	for {
		_, changed := d.owed.progress.watch()
		waits, left, err := d.turn(ctx, again)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			return fmt.Errorf("write rows again: %w", err)
		}
		if !waits {
			changed = nil
		}
		var late <-chan time.Time
		if left {
			late = time.After(resendAgain)
		}
		again = false
		select {
		case <-d.owed.woke:
		case <-d.woke:
		case <-changed:
		case <-tick.C:
			again = true
		case <-late:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// turn does what there is to do. waits: answers have come that are not reached yet; left: rows must be tried again.
func (d *resender) turn(ctx context.Context, again bool) (waits, left bool, err error) {
	d.mu.Lock()
	idle := len(d.asked) == 0 && d.owed.count.Load() == 0
	d.mu.Unlock()
	if idle {
		return false, false, nil
	}
	if err := d.open(ctx); err != nil {
		return false, false, err
	}
	if waits, err = d.settle(ctx); err != nil {
		return waits, false, err
	}
	if err := d.ask(ctx, again); err != nil {
		return waits, false, err
	}
	left, err = d.resendAll(ctx)
	return waits, left, err
}

// settle forgets the rows whose answers have been reached, and has those kept that their authors keep.
func (d *resender) settle(ctx context.Context) (waits bool, err error) {
	done, waits := d.owed.settled(d.own)
	rows, more := d.owed.toKeep(d.own)
	d.keep(rows)
	if waits = waits || more; len(done) == 0 {
		return waits, nil
	}
	ids := make([]int64, len(done))
	for i, e := range done {
		ids[i] = e.id
	}
	if _, err := d.conn.Exec(ctx, paySQL, ids); err != nil {
		return waits, err
	}
	d.owed.drop(done...)
	return waits, nil
}

// ask asks for what is owed: once, and again if there was no answer and the other node has been heard of since.
func (d *resender) ask(ctx context.Context, again bool) error {
	var asks [][]byte
	for _, e := range d.owed.unasked(again) {
		frames := d.frames(e.of.Origin)
		if e.asked && frames == e.frames {
			continue
		}
		asks = append(asks, wire.AppendAsk(nil, &wire.Ask{ID: e.id, Of: e.of.Origin, Schema: e.table.schema, Table: e.table.name, Key: e.key}))
		e.asked, e.frames = true, frames
	}
	return d.emit(ctx, wire.AskPrefix, asks)
}

// frames is how many frames of an origin have arrived.
func (d *resender) frames(o origin.Origin) uint64 {
	for _, w := range d.workers {
		if w.origin == o {
			return w.inbox.frames.Load()
		}
	}
	return 0
}

// emit puts messages into the WAL, behind all that this session has committed, and flushes them: by a commit that has an
// id, as before version 17 there is no other way.
func (d *resender) emit(ctx context.Context, prefix string, messages [][]byte) error {
	if len(messages) == 0 {
		return nil
	}
	err := pgx.BeginFunc(ctx, d.conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "SET LOCAL synchronous_commit = local"); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `SELECT pg_logical_emit_message(false, $1, m), pg_current_xact_id() FROM unnest($2::bytea[]) m`, prefix, messages)
		return err
	})
	if err != nil {
		return fmt.Errorf("write messages: %w", err)
	}
	return nil
}

// resendAll writes the rows again that others have asked for, and answers. left: some must be tried again.
func (d *resender) resendAll(ctx context.Context) (left bool, err error) {
	d.mu.Lock()
	asked := d.asked
	d.asked = nil
	d.mu.Unlock()
	var again []askedRow
	tables := map[tableName]*table{}
	for some := range slices.Chunk(asked, answersAtOnce) {
		var answers [][]byte
		for _, r := range some {
			waits, err := d.resend(ctx, r.Ask, tables)
			var pg *pgconn.PgError
			switch {
			case err == nil && waits == "":
				answers = append(answers, wire.AppendAnswer(nil, wire.Answer{To: r.by, ID: r.ID}))
				continue
			case err == nil:
				if waits == isKept && d.sayKept(r) {
					answers = append(answers, wire.AppendAnswer(nil, wire.Answer{To: r.by, ID: r.ID, Kept: true}))
				}
				err = errors.New(waits)
			case !errors.As(err, &pg) || lost(err) || ctx.Err() != nil:
				return false, err
			}
			if text := fmt.Sprintf("%s.%s %s: %v", r.Schema, r.Table, r.Key, err); text != d.told {
				d.told = text
				d.log.Info("row that another node asks for waits", "for", r.by.String(), "row", text)
			}
			again = append(again, r)
		}
		if err := d.emit(ctx, wire.AnswerPrefix, answers); err != nil {
			return false, err
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	said := d.said
	d.said = map[askedID]bool{}
	for _, r := range asked {
		delete(d.have, r.id())
	}
	for _, r := range again {
		if d.have[r.id()] = true; said[r.id()] {
			d.said[r.id()] = true
		}
	}
	d.asked = append(again, d.asked...)
	return len(again) > 0, nil
}

// isKept is what resend returns of a row that is kept out of its table.
const isKept = "it is kept out of the table, since a later one has a value that must be unique (docs/unique.md)"

// isMoved is what resend returns of a row that is not for this node any more. What stands here under its key nobody keeps up to date.
const isMoved = "it was moved from here to other nodes without a large value (topology.rows), since its table has not REPLICA IDENTITY FULL; write it anew there"

// sayKept reports whether the asking node is to be told that the row is kept, and notes that it is.
func (d *resender) sayKept(r askedRow) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	said := d.said[r.id()]
	d.said[r.id()] = true
	return !said
}

// resend writes one row again, with new values of all that may be stored out of line, so that the WAL has them. It returns
// why it waits if the row is not this node's to write: one that is owed to it, that is in quarantine, or that a local delete takes
// back which capture has not read yet (PROOF.md R19): written again, it would stay. A row that is not there needs nothing: the
// delete stands in the stream. tables are those that were read before, for this turn.
func (d *resender) resend(ctx context.Context, ask *wire.Ask, tables map[tableName]*table) (waits string, err error) {
	if p := d.opts.places(ask.Schema, ask.Table); p != nil {
		if value, ok := p.OfKey(ask.Key); !ok || !p.At(d.opts.Node, value) {
			return isMoved, nil
		}
	}
	name := tableName{ask.Schema, ask.Table}
	t := tables[name]
	if t == nil {
		if t, err = d.catalog.table(ctx, name.schema, name.name); isBlocked(err) { // it is not here any more
			return "", nil
		} else if err != nil {
			return "", err
		}
		tables[name] = t
	}
	// All that is asked sees the same moment; a row that somebody has changed since is tried again.
	opts := pgx.TxOptions{IsoLevel: pgx.RepeatableRead}
	err = pgx.BeginTxFunc(ctx, d.conn, opts, func(tx pgx.Tx) error {
		waits, err = d.resendIn(ctx, tx, t, ask)
		return err
	})
	return waits, err
}

func (d *resender) resendIn(ctx context.Context, tx pgx.Tx, t *table, ask *wire.Ask) (waits string, err error) {
	var keptSame, wide []string
	for _, k := range t.key {
		c := &t.cols[k]
		root := c.typ.root()
		keptSame = append(keptSame, fmt.Sprintf("q.image[array_position(q.columns, %s)]::%s %s %s", literal(c.name),
			pgx.Identifier{root.schema, root.name}.Sanitize(), c.equals, c.comparedIn("k")))
	}
	for i := range t.cols {
		if c := &t.cols[i]; c.long && !c.generated && !slices.Contains(t.key, i) {
			wide = append(wide, c.quoted)
		}
	}
	key, same := fmt.Sprintf("pg_catalog.json_populate_record(NULL::%s, $1::json) k", t.quoted), t.sameKey("t", "k")
	var owed, kept, visible bool
	err = tx.QueryRow(ctx, fmt.Sprintf(`SELECT EXISTS (SELECT FROM %[5]s t, %[1]s WHERE %[6]s),
		EXISTS (SELECT FROM pgbridge.quarantine q, %[1]s WHERE q.schema = $2 AND q.name = $3 AND %[2]s),
		EXISTS (SELECT FROM %[5]s t CROSS JOIN LATERAL pg_xact_commit_timestamp_origin(t.xmin) c, pgbridge.owed w,
			pg_catalog.json_populate_record(NULL::%[3]s, w.key) o, %[1]s WHERE w.schema = $2 AND w.name = $3 AND %[4]s AND %[6]s
			AND (c.roident = 0 AND COALESCE(%[7]s, true) AND w.writer IS DISTINCT FROM t.xmin::text) IS NOT TRUE)`,
		key, strings.Join(keptSame, " AND "), t.quoted, t.sameKey("o", "k"), t.rows, same, genuine),
		string(ask.Key), t.schema, t.name).Scan(&visible, &kept, &owed)
	switch {
	case err != nil:
		return "", err
	case owed:
		return "it is owed to this node, too", nil
	case kept && !visible:
		return isKept, nil
	case kept:
		return "users have written one of its key, beside one that is kept out of the table", nil
	}
	if len(wide) == 0 {
		return "", nil // the WAL has all values of such a table's rows
	}
	rows, err := tx.Query(ctx, fmt.Sprintf("SELECT %s FROM %s t, %s WHERE %s FOR UPDATE OF t", "t."+strings.Join(wide, "::text, t.")+"::text", t.rows, key,
		same), string(ask.Key))
	if err != nil {
		return "", err
	}
	values := [][]byte{[]byte(ask.Key)} // as text, of the types that the server finds for them
	found := false
	for rows.Next() {
		found = true
		for _, v := range rows.RawValues() {
			values = append(values, bytes.Clone(v))
		}
	}
	if err := rows.Err(); err != nil || !found {
		return "", err
	}
	if unsettled, err := d.unsettled(ctx, tx.Conn().PgConn(), t, key, same, ask); err != nil || unsettled {
		return "a local delete may still take it back", err
	}
	var set []string
	for i, name := range wide {
		set = append(set, fmt.Sprintf("%s = $%d", name, i+2))
	}
	sql := fmt.Sprintf("UPDATE %s t SET %s FROM %s WHERE %s", t.rows, strings.Join(set, ", "), key, same)
	return "", tx.Conn().PgConn().ExecParams(ctx, sql, values, nil, nil, nil).Read().Err
}

// unsettled reports whether a local delete may still take back the row, which is locked.
func (d *resender) unsettled(ctx context.Context, conn *pgconn.PgConn, t *table, key, same string, ask *wire.Ask) (bool, error) {
	cols, formats := t.keyColumns()
	r := conn.ExecParams(ctx, fmt.Sprintf("SELECT %s FROM %s t, %s WHERE %s", cols, t.rows, key, same), [][]byte{[]byte(ask.Key)}, nil, nil, formats).Read()
	if r.Err != nil || len(r.Rows) == 0 {
		return true, r.Err
	}
	k, err := d.digests.Hash(ctx, t.hasher, keyValues(r.Rows[0], formats))
	if err != nil {
		return false, err
	}
	d.absence.settle(d.owed.progress.readBack(d.wal))
	return d.absence.unsettled(tableName{t.schema, t.name}, k, registration{origin: d.own, seq: math.MaxUint64}, d.wal.Passed()), nil
}
