package apply

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

// closingDelay is how long the marker writer waits for more work before it writes the closing marker
// (PROOF.md R7), which lets capture tell everybody what has been applied here. Long enough not to cost
// anything under load, short enough for peers to forget soon.
const closingDelay = 20 * time.Millisecond

// rowsInterval is how often a marker is written while only local sessions write. A remote write to one of their
// rows is proved to have seen it by a marker behind the row (PROOF.md R11): without one it goes the careful path.
const rowsInterval = time.Second

// markers writes the markers (PROOF.md R7): what is about to be applied goes into the WAL before the
// first COMMIT of it, from a session without a replication origin, so that capture meets it in front of
// every local transaction that can have seen it.
type markers struct {
	conn     *pgx.Conn
	flushArg bool // the server's pg_logical_emit_message can flush (17 and later)
	progress *progress
	requests chan markRequest
}

type markRequest struct {
	up    origin.Entry // zero: nothing to announce
	lost  []wire.Loss  // up's transaction is about to lose on these rows
	flush bool
	reply chan markReply // of capacity 1
}

type markReply struct {
	lsn uint64
	err error
}

func newMarkers(conn *pgx.Conn, version int, p *progress) *markers {
	return &markers{conn: conn, flushArg: version >= 170000, progress: p, requests: make(chan markRequest, 64)}
}

// announce asks for a marker that covers e. The reply comes when it stands in the WAL; if it does
// already, at once.
func (m *markers) announce(ctx context.Context, e origin.Entry) (<-chan markReply, error) {
	m.progress.mu.Lock()
	done := m.progress.announced.Covers(e.Origin, e.Seq)
	m.progress.mu.Unlock()
	if done {
		c := make(chan markReply, 1)
		c <- markReply{}
		return c, nil
	}
	return m.send(ctx, markRequest{up: e})
}

// announced is announce that waits until the marker stands in the WAL.
func (m *markers) announced(ctx context.Context, e origin.Entry) error {
	c, err := m.announce(ctx, e)
	if err != nil {
		return err
	}
	_, err = awaitMarker(ctx, c)
	return err
}

// awaitMarker waits until the marker that was asked for stands in the WAL; lsn is of one that was to be flushed.
func awaitMarker(ctx context.Context, c <-chan markReply) (lsn uint64, err error) {
	select {
	case r := <-c:
		return r.lsn, r.err
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
}

// lose asks for a marker that says on which rows e's transaction is about to lose, and waits until it stands in
// the WAL.
func (m *markers) lose(ctx context.Context, e origin.Entry, lost []wire.Loss) error {
	c, err := m.send(ctx, markRequest{up: e, lost: lost})
	if err != nil {
		return err
	}
	_, err = awaitMarker(ctx, c)
	return err
}

// flush writes a marker, flushes the WAL up to it and returns its LSN (PROOF.md R13).
func (m *markers) flush(ctx context.Context) (uint64, error) {
	c, err := m.send(ctx, markRequest{flush: true})
	if err != nil {
		return 0, err
	}
	return awaitMarker(ctx, c)
}

func (m *markers) send(ctx context.Context, r markRequest) (<-chan markReply, error) {
	r.reply = make(chan markReply, 1)
	select {
	case m.requests <- r:
		return r.reply, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// run owns the connection until ctx ends or the connection breaks.
func (m *markers) run(ctx context.Context, wal WAL) error {
	idle := time.NewTimer(closingDelay)
	defer idle.Stop()
	rows := time.NewTicker(rowsInterval)
	defer rows.Stop()
	marked := wal.Captured()    // before the last marker
	var closed applied          // when the last flushed marker was written
	var changed <-chan struct{} // set while there is nothing to close: wakes us when there is again
	for {
		var batch []markRequest
		select {
		case r := <-m.requests:
			batch = append(batch, r)
		case <-changed:
			changed = nil
			idle.Reset(closingDelay)
			continue
		case <-rows.C:
			if wal.Captured() == marked {
				continue
			}
			batch = append(batch, markRequest{reply: make(chan markReply, 1)})
		case <-idle.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	drain:
		for {
			select {
			case r := <-m.requests:
				batch = append(batch, r)
			default:
				break drain
			}
		}
		if len(batch) == 0 {
			if changed = m.progress.unchanged(closed); changed != nil {
				continue
			}
		}
		flush := len(batch) == 0
		for _, r := range batch {
			flush = flush || r.flush
		}
		marked = wal.Captured()
		lsn, now, err := m.write(ctx, batch, flush)
		for _, r := range batch {
			r.reply <- markReply{lsn, err}
		}
		if err != nil {
			return fmt.Errorf("write marker: %w", err)
		}
		if flush {
			closed = now
		}
		changed = nil
		idle.Reset(closingDelay)
	}
}

const (
	// xmin is read in the same statement that writes the message: all older ids have their commit or
	// abort record in the WAL before it (PROOF.md F6).
	markContent  = `$1::bytea || int8send(pg_snapshot_xmin(pg_current_snapshot())::text::int8)`
	markSQL      = `SELECT (pg_logical_emit_message(false, '` + wire.MarkerPrefix + `', ` + markContent + `) - '0/0')::int8`
	markFlushSQL = `SELECT (pg_logical_emit_message(false, '` + wire.MarkerPrefix + `', ` + markContent + `, true) - '0/0')::int8`
	// Before 17 the WAL is flushed by committing a transaction that has an id and has written to the
	// WAL (xact.c, RecordTransactionCommit); this session commits synchronously.
	markCommitSQL = markSQL + `, pg_current_xact_id()::text`
)

// announcing returns what a marker tells that announces the entries: these with all that was announced, and what is
// applied now.
func (p *progress) announcing(entries ...origin.Entry) (up origin.Vector, now applied) {
	p.mu.Lock()
	defer p.mu.Unlock()
	up = p.announced.Clone()
	for _, e := range entries {
		up.Advance(e)
	}
	return up, p.now()
}

func (m *markers) write(ctx context.Context, batch []markRequest, flush bool) (uint64, applied, error) {
	p := m.progress
	var lost []wire.Loss
	var entries []origin.Entry
	for _, r := range batch {
		if r.up.Seq != 0 {
			entries = append(entries, r.up)
		}
		lost = append(lost, r.lost...)
	}
	up, now := p.announcing(entries...)
	sql := markSQL
	if flush && m.flushArg {
		sql = markFlushSQL
	}
	var lsn int64
	var xid string
	to := []any{&lsn}
	if flush && !m.flushArg {
		sql, to = markCommitSQL, append(to, &xid)
	}
	if err := m.conn.QueryRow(ctx, sql, wire.AppendMarker(nil, up, now.done, lost)).Scan(to...); err != nil {
		return 0, applied{}, err
	}
	p.mu.Lock()
	p.announced.Merge(up)
	p.read.marked(uint64(lsn), now)
	p.mu.Unlock()
	return uint64(lsn), now, nil
}
