package capture

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
)

// session is one connection to PostgreSQL, from START_REPLICATION to its loss.
type session struct {
	*Capture
	wire    *wireConn
	catalog *catalog
	stitch  stitcher
	version int             // server_version_num
	all     bool            // the server sends what bridges apply, which it need not (from PostgreSQL 16 on)
	life    context.Context // ends with the connection; its cause says why
	end     context.CancelCauseFunc
}

// wholeLimit is the length in bytes up to which a message is held as a whole.
const wholeLimit = 1 << 20

// session connects, checks, reads until the connection is lost or ctx ends, and joins what it started.
func (c *Capture) session(ctx context.Context) error {
	plain, err := connectPlain(ctx, c.opts.DSN)
	if err != nil {
		return err
	}
	defer plain.Close(context.WithoutCancel(ctx))
	version, err := c.examine(ctx, plain)
	if err != nil {
		return err
	}
	all := version >= 160000 && c.tagger.position < c.opts.AgainLSN
	w, err := c.startReplication(ctx, version, all)
	if err != nil {
		return err
	}
	s := newSession(c, w)
	s.version, s.all = version, all
	s.catalog = newCatalog(plain)
	s.life, s.end = context.WithCancelCause(ctx)
	c.tagger.lookUp, c.tagger.hashes.ask = s.catalog.key, s.catalog.do
	c.tagger.crowded = func() { s.catalog.prune(&c.state.recents) }
	c.tagger.crowded() // Restore may have brought many
	return s.run(ctx)
}

func newSession(c *Capture, w *wireConn) *session {
	return &session{Capture: c, wire: w, stitch: stitcher{size: messageSize, limit: wholeLimit}}
}

// run starts the session's goroutines, walks what comes, and joins them.
func (s *session) run(ctx context.Context) error {
	var g sync.WaitGroup
	for _, part := range []func(context.Context) error{s.wire.receive, s.wire.report, s.catalog.run, s.watchStandbys} {
		g.Go(func() {
			err := part(s.life)
			s.end(err)
			s.wire.conn.Close() // so that a server that stops is not held up by our walsender
		})
	}
	s.state.report(func(st *Status) { st.State, st.Waiting = StateStreaming, "" })
	s.opts.Logger.Info("capture streams", "slot", s.opts.Slot, "seq", s.tagger.seq, "lsn", pglogrepl.LSN(s.tagger.position).String())
	err := s.loop(ctx)
	s.end(err)
	s.wire.conn.Close()
	g.Wait()
	return err
}

// examine checks the server and the slot, and settles where reading begins.
func (c *Capture) examine(ctx context.Context, plain *pgx.Conn) (version int, err error) {
	srv, err := readServer(ctx, plain)
	if err != nil {
		return 0, err
	}
	if err := srv.check(); err != nil {
		return 0, err
	}
	sl, err := readSlot(ctx, plain, c.opts.Slot)
	if err != nil {
		return 0, err
	}
	if err := sl.check(); err != nil {
		return 0, err
	}
	t := c.tagger
	if err := sl.checkStart(t.position, t.position != 0, srv.flushLSN); err != nil {
		return 0, err
	}
	if t.position == 0 {
		t.position = sl.confirmed
		t.pacing.resume = t.position
	}
	if srv.version >= minFailover {
		st, err := readStandbys(ctx, plain, c.opts.Slot)
		if err != nil {
			return 0, err
		}
		c.state.guard.look(st, true)
	}
	c.ledger.begin(sl.confirmed)
	c.state.passed.advance(t.position)
	return srv.version, nil
}

// startReplication opens the walsender's connection and asks it to begin at the tagger's position. The
// answer is read like all that follows.
func (c *Capture) startReplication(ctx context.Context, version int, all bool) (*wireConn, error) {
	conn, err := connectReplication(ctx, c.opts.DSN)
	if err != nil {
		return nil, err
	}
	hijacked, timeout, err := c.greet(ctx, conn)
	if err != nil {
		conn.Close(ctx)
		return nil, err
	}
	bare, err := unpolled(hijacked.Conn, writeTimeout)
	if err != nil {
		hijacked.Conn.Close()
		return nil, classify(err, "start replication")
	}
	w := newWireConn(bare, c.ledger, reportInterval(c.opts.StatusInterval, timeout))
	q := pgproto3.Query{String: startSQL(c.opts.Slot, c.opts.Publication, c.tagger.position, version, all)}
	b, err := q.Encode(nil)
	if err == nil {
		_, err = w.conn.Write(b)
	}
	if err != nil {
		w.conn.Close()
		return nil, classify(err, "start replication")
	}
	return w, nil
}

// greet makes sure who answers, and takes the bare connection out of pgconn's hands.
func (c *Capture) greet(ctx context.Context, conn *pgconn.PgConn) (*pgconn.HijackedConn, time.Duration, error) {
	sys, err := pglogrepl.IdentifySystem(ctx, conn)
	if err != nil {
		return nil, 0, classify(err, "identify system")
	}
	switch {
	case c.opts.SystemID != 0 && sys.SystemID != strconv.FormatUint(c.opts.SystemID, 10):
		return nil, 0, finding(CodeServerOther, "postgresql",
			fmt.Sprintf("is another database cluster: its system identifier is %s, not %d", sys.SystemID, c.opts.SystemID),
			"point postgres.dsn at this node's own server")
	case c.opts.Timeline != 0 && uint32(sys.Timeline) != c.opts.Timeline:
		return nil, 0, fmt.Errorf("postgresql went from timeline %d to %d: a standby was promoted, or a backup restored",
			c.opts.Timeline, sys.Timeline)
	}
	timeout, err := walsenderTimeout(ctx, conn)
	if err != nil {
		return nil, 0, err
	}
	if err := conn.SyncConn(ctx); err != nil {
		return nil, 0, classify(err, "take over connection")
	}
	h, err := conn.Hijack()
	if err != nil {
		return nil, 0, classify(err, "take over connection")
	}
	return h, timeout, nil
}

func walsenderTimeout(ctx context.Context, conn *pgconn.PgConn) (time.Duration, error) {
	results, err := conn.Exec(ctx, "SELECT setting FROM pg_settings WHERE name = 'wal_sender_timeout'").ReadAll()
	if err != nil {
		return 0, classify(err, "read wal_sender_timeout")
	}
	if len(results) != 1 || len(results[0].Rows) != 1 {
		return 0, protocolError("no wal_sender_timeout")
	}
	ms, err := strconv.Atoi(string(results[0].Rows[0][0]))
	if err != nil {
		return 0, protocolError("wal_sender_timeout %q", results[0].Rows[0][0])
	}
	return time.Duration(ms) * time.Millisecond, nil
}

// reportInterval is how often the server must hear of us, at the least.
func reportInterval(wanted, timeout time.Duration) time.Duration {
	if timeout > 0 {
		wanted = min(wanted, timeout/4)
	}
	return max(wanted, 10*time.Millisecond)
}

// startSQL builds START_REPLICATION with the newest protocol that the server has; all: what bridges apply is wanted, too.
func startSQL(slot, publication string, from uint64, version int, all bool) string {
	proto := 4
	switch {
	case version < 150000:
		proto = 2
	case version < 160000:
		proto = 3
	}
	options := fmt.Sprintf("proto_version '%d', publication_names %s, binary 'true', messages 'true', streaming 'on'",
		proto, literal(ident(publication)))
	if version >= 160000 && !all {
		options += ", origin 'none'"
	}
	return fmt.Sprintf("START_REPLICATION SLOT %s LOGICAL %s (%s)", ident(slot), pglogrepl.LSN(from), options)
}

func ident(s string) string { return `"` + strings.ReplaceAll(s, `"`, `""`) + `"` }

func literal(s string) string { return `'` + strings.ReplaceAll(s, `'`, `''`) + `'` }

// loop walks what the receiver reads and lets frames leave when they are due. What it waits for is bounded
// by ctx alone: a connection that is lost meanwhile is seen when Publish has returned.
func (s *session) loop(ctx context.Context) error {
	timer := time.NewTimer(s.opts.StatusInterval)
	defer timer.Stop()
	for {
		var b []byte
		var ok bool
		select {
		case b, ok = <-s.wire.full:
		default:
			changed := s.tagger.pub.Changed()
			wait, err := s.tagger.tend(ctx, time.Now(), true)
			if err != nil {
				return err
			}
			s.tagger.report()
			timer.Reset(wait)
			select {
			case b, ok = <-s.wire.full:
			case <-changed:
				continue
			case <-s.tagger.state.hurried:
				continue
			case <-timer.C:
				continue
			}
		}
		if !ok { // the receiver is about to say why
			<-s.life.Done()
			return context.Cause(s.life)
		}
		if err := s.stitch.feed(ctx, b, s); err != nil {
			return err
		}
		s.wire.free <- b[:cap(b)]
		if _, err := s.tagger.tend(ctx, time.Now(), false); err != nil {
			return err
		}
		if s.all && s.tagger.position >= s.opts.AgainLSN && s.tagger.idle() {
			return errAgainRead
		}
	}
}

// errAgainRead ends a session that has come past the rows that were written again: the next one need not be sent all.
var errAgainRead = errors.New("rows that were written again have been read")

// The fixed parts of CopyData messages that carry replication: "Streaming Replication Protocol".
const (
	copyHead = 5             // 'd' and length
	dataHead = copyHead + 25 // 'w', start, end, time
	aliveLen = copyHead + 18 // 'k', end, time, reply requested
)

// whole implements sink.
func (s *session) whole(ctx context.Context, m []byte) error {
	switch m[0] {
	case 'd':
		return s.copyData(ctx, m)
	case 'E':
		return s.serverError(ctx, m)
	case 'W', 'N', 'S': // CopyBothResponse, notice, parameter status
		return nil
	case 'c', 'C', 'Z': // the server ends the stream
		return &lostError{fmt.Errorf("replication: %w", io.EOF)}
	}
	return protocolError("message %q of the server", m[0])
}

func (s *session) copyData(ctx context.Context, m []byte) error {
	switch {
	case len(m) > dataHead && m[copyHead] == 'w':
		return s.tagger.message(ctx, m[dataHead:])
	case len(m) == aliveLen && m[copyHead] == 'k':
		if m[aliveLen-1] != 0 {
			s.wire.askReport()
		}
		s.tagger.alive(binary.BigEndian.Uint64(m[copyHead+1:]))
		return nil
	}
	return protocolError("replication message of %d bytes", len(m))
}

// part implements sink.
func (s *session) part(ctx context.Context, b []byte, first, last bool) error {
	if !first {
		return s.tagger.bigPart(ctx, b, 0, false, last)
	}
	size, _, err := messageSize(b)
	if err != nil || b[0] != 'd' || b[copyHead] != 'w' {
		return protocolError("message %q of %d bytes", b[0], size)
	}
	return s.tagger.bigPart(ctx, b[dataHead:], size-dataHead, true, last)
}

func (s *session) serverError(ctx context.Context, m []byte) error {
	var e pgproto3.ErrorResponse
	if err := e.Decode(m[copyHead:]); err != nil {
		return protocolError("error message: %v", err)
	}
	pg := pgconn.ErrorResponseToPgError(&e)
	if pg.Code == "42704" {
		if err := s.undefined(ctx, pg); err != nil {
			return err
		}
	}
	return classify(pg, "replicate from slot "+strconv.Quote(s.opts.Slot))
}

// undefined finds out what it is that the server says is not there: the slot or, when it decodes a change, the
// publication. nil if it is neither. Slot and publication may have one name, and the message may be in any
// language; so the catalog is asked, over a connection that the server has not just given up.
func (s *session) undefined(ctx context.Context, pg *pgconn.PgError) error {
	conn, err := connectPlain(ctx, s.opts.DSN)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	sl, err := readSlot(ctx, conn, s.opts.Slot)
	if err != nil {
		return err
	}
	if !sl.exists {
		return sl.check()
	}
	p, err := readPublication(ctx, conn, s.opts.Publication, 0)
	if err != nil {
		return err
	}
	// One that exists now did not when the change was made.
	if !p.exists || strings.Contains(pg.Message, strconv.Quote(s.opts.Publication)) {
		return &CheckError{Findings: []Finding{publicationGone(s.opts.Publication)}}
	}
	return nil
}
